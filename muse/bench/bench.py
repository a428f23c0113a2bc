"""The benchmark: forward, training step, head with loss, complex stack, other models, writing; each against another.

Every group runs its paths on the same weights and tokens. "muse" paths are this package's, compiled, as a CUDA graph or
eager; "naive" is `muse.bench.naive`; other libraries are in `muse.bench.libraries`. Vector parameters are perturbed
first, so that a path which forgets a bias or a gain shows. References are float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from muse.catalog import BENCH_GROUPS
from muse.data.corpus import Corpus
from muse.measure.common import Progress, passthrough
from muse.measure.throughput import Ceiling, copy_ceiling, matrix_ceiling
from muse.ops import planar
from muse.params import Settings
from muse.records.schema import Metric

from .context import Build, Context, no_value
from .forward import forward
from .generation import generation
from .gradient_gate import gate
from .head import head
from .peak import memory
from .stack import complex_stack
from .timing import GroupResult, first_line, release
from .training import angles, models, training

GROUPS: dict[str, Callable[[Context], Iterator[GroupResult | Metric]]] = {
    "gradients": gate,
    "forward": forward,
    "training": training,
    "head": head,
    "stack": complex_stack,
    "models": models,
    "angles": angles,
    "memory": memory,
    "generation": generation,
}
"""The groups of the catalog, each a function from the context to its results."""


@dataclass(frozen=True)
class BenchResult:
    """The results of every group, the ceilings of the machine, and what was not timed."""

    results: tuple[GroupResult | Metric, ...]  # in the order of the groups
    matrix: Ceiling
    copy: Ceiling
    seconds: float

    @property
    def groups(self) -> tuple[GroupResult, ...]:
        """What was timed."""
        return tuple(result for result in self.results if isinstance(result, GroupResult))

    def metrics(self) -> list[Metric]:
        """Return all of it, under names that start with `bench_`."""
        ceilings = [*self.matrix.metrics(), *self.copy.metrics()]
        metrics = [metric.model_copy(update={"name": f"bench_{metric.name}"}) for metric in ceilings]
        for result in self.results:
            is_metric = isinstance(result, Metric)
            metrics += [result] if is_metric else result.metrics(self.matrix.value, self.copy.value)
        took = Metric(name="bench_seconds", value=self.seconds, unit="s", note="all of it, compiling included")
        return [*metrics, took]


def measure_bench(
    build: Build,
    settings: Settings,
    device: torch.device | str,
    text: Callable[[], Corpus],
    *,
    progress: Progress = passthrough,
    on_result: Callable[[BenchResult], None] = lambda so_far: None,
) -> BenchResult:
    """Compare the paths of every group of `settings.bench_groups`, in the sizes of these settings.

    `build(name, use_complex32=...)` returns an untrained model on the device, `text()` what it is trained on for a few
    steps. `on_result` gets what there is after each result, so that an interruption loses one.
    """
    start, device = time.perf_counter(), torch.device(device)
    half = planar.compute_dtype(torch.float16, device)
    ceilings = [matrix_ceiling(device, dtype) for dtype in dict.fromkeys((half, torch.float32))]
    result = BenchResult((), max(ceilings, key=lambda ceiling: ceiling.value), copy_ceiling(device), 0.0)
    bench = Context(build, settings, device, half, progress, text)
    for group in (group for group in BENCH_GROUPS if group in settings.bench_groups):
        for found in _of_group(group, bench):
            result = replace(result, results=(*result.results, found), seconds=time.perf_counter() - start)
            on_result(result)
        release(device)
    return result


def _of_group(group: str, bench: Context) -> Iterator[GroupResult | Metric]:
    try:
        yield from GROUPS[group](bench)
    except Exception as error:  # a reference that does not fit, for instance; the other groups go on
        yield no_value(f"bench_{group}_speed", "token/s", f"failed: {first_line(error)}")
