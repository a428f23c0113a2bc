"""What is raced: forward, training step, head with loss, complex stack, other models; each against its plain form.

Every group runs its paths on the same weights and tokens. "muse" paths are this package's, compiled, as a CUDA graph or
eager; "naive" is `muse.bench.naive`; peers are in `muse.bench.peers`. Vector parameters are stirred first, so that a
path which forgets a bias or a gain is found out. References are float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from muse.catalog import BENCH_GROUPS
from muse.measure.common import Progress, passthrough
from muse.measure.throughput import Ceiling, copy_ceiling, matrix_ceiling
from muse.ops import planar
from muse.records.schema import Metric

from .context import BenchSizes, Build, Context, nothing
from .forward import forward
from .head import head_race
from .peak import memory
from .race import RaceResult, one_line, release
from .stack import stack_race
from .training import models, training

GROUPS: dict[str, Callable[[Context], Iterator[RaceResult | Metric]]] = {
    "forward": forward,
    "training": training,
    "head": lambda bench: iter([head_race(bench)]),
    "stack": lambda bench: iter([stack_race(bench)]),
    "models": models,
    "memory": memory,
}
"""The groups of the catalog, each a function from the bench to its results."""


@dataclass(frozen=True)
class BenchResult:
    """Every race, the ceilings of the machine, and what has no race."""

    found: tuple[RaceResult | Metric, ...]  # in the order of the groups
    matrix: Ceiling
    copy: Ceiling
    seconds: float

    @property
    def races(self) -> tuple[RaceResult, ...]:
        return tuple(one for one in self.found if isinstance(one, RaceResult))

    def metrics(self) -> list[Metric]:
        """Return all of it, under names that start with `bench_`."""
        ceilings = [*self.matrix.metrics(), *self.copy.metrics()]
        found = [metric.model_copy(update={"name": f"bench_{metric.name}"}) for metric in ceilings]
        for one in self.found:
            found += [one] if isinstance(one, Metric) else one.metrics(self.matrix.value, self.copy.value)
        took = Metric(name="bench_seconds", value=self.seconds, unit="s", note="all of it, compiling included")
        return [*found, took]


def measure_bench(
    build: Build,
    sizes: BenchSizes,
    device: torch.device | str,
    *,
    progress: Progress = passthrough,
    on_group: Callable[[BenchResult], None] = lambda so_far: None,
) -> BenchResult:
    """Race every group of `sizes`; `build(name, use_complex32=...)` returns an untrained model on the device.

    `on_group` gets what there is after each group, so that an interruption loses one group.
    """
    start, device = time.perf_counter(), torch.device(device)
    sizes = sizes.for_device(device.type)
    half = planar.compute_dtype(torch.float16, device)
    ceilings = [matrix_ceiling(device, dtype) for dtype in dict.fromkeys((half, torch.float32))]
    result = BenchResult((), max(ceilings, key=lambda ceiling: ceiling.value), copy_ceiling(device), 0.0)
    bench = Context(build, sizes, device, half, progress)
    for group in (group for group in BENCH_GROUPS if group in sizes.groups):
        found: list[RaceResult | Metric] = []
        try:
            found.extend(GROUPS[group](bench))
        except Exception as error:  # a reference that does not fit, for instance; the other groups go on
            found.append(nothing(f"bench_{group}_speed", "token/s", f"failed: {one_line(error)}"))
        result = replace(result, found=(*result.found, *found), seconds=time.perf_counter() - start)
        on_group(result)
        release(device)
    return result
