"""Peak memory of forward and backward of the reference, and of its naive form."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from muse.catalog import REFERENCE
from muse.measure.memory import measure_memory
from muse.records.schema import Metric

from .context import Context
from .naive import NaiveStage1


def memory(bench: Context) -> Iterator[Metric]:
    """Peak of forward + backward of the reference model in complex32; without CUDA an estimate."""
    model = partial(bench.build, REFERENCE, use_complex32=True)
    for name, make in {"muse eager": model, "naive": lambda: NaiveStage1(model())}.items():
        shape = {"batch_size": bench.sizes.memory_batch, "n_seq": bench.sizes.n_seq}
        found = measure_memory(make, **shape, device=bench.device, seed=bench.sizes.seed)
        note = f"forward + loss + backward, batch {found.batch_size} x {found.n_seq}; {found.note}"
        yield Metric(name="bench_peak_memory", model=name, value=found.peak_bytes, unit="byte", basis=found.basis,
                     note=note)  # fmt: skip
