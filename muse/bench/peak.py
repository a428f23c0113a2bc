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
    model, settings = partial(bench.build, REFERENCE, use_complex32=True), bench.settings
    for name, make in {"muse eager": model, "naive": lambda: NaiveStage1(model())}.items():
        result = measure_memory(make, batch_size=settings.memory_batch_size, n_seq=settings.n_seq, device=bench.device,
                                seed=settings.seed)  # fmt: skip
        note = f"forward + loss + backward, batch {result.batch_size} x {result.n_seq}; {result.note}"
        yield Metric(name="bench_peak_memory", model=name, value=result.peak_bytes, unit="byte", basis=result.basis,
                     note=note)  # fmt: skip
