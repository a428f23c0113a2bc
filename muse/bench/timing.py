"""Paths that compute the same thing: each is checked, then all are timed in turn; one that breaks stops no other."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from muse.measure.common import Progress, passthrough
from muse.measure.throughput import Path, device_name, measure_throughput
from muse.records.schema import Metric

from .equality import Check
from .libraries import PathMissingError

Status = Literal["timed", "refused", "missing", "failed"]
EXTRA_MEMORY = "peak of one forward and backward pass, gradients included, above what was there before"


@dataclass(frozen=True)
class Trial:
    """One path, ready to run: what is timed, and what must be right before that."""

    call: Path
    check: Callable[[], list[Check]]  # runs the path, compilation included
    memory: Callable[[], tuple[int, Literal["measured", "estimate"]]] | None = None  # extra bytes of one call
    launches: Callable[[], int | None] | None = None  # kernels of one token, None where they cannot be counted
    ready: Callable[[], object] | None = None  # brings the call, once it is checked, to the form that is timed


@dataclass
class PathResult:
    """What became of one path."""

    name: str
    status: Status = "timed"
    note: str = ""
    checks: list[Check] = field(default_factory=list)
    prepare_seconds: float = 0.0  # building, compiling, comparing
    seconds: tuple[float, ...] = ()
    extra_bytes: int | None = None
    bytes_basis: Literal["measured", "estimate"] = "measured"
    launches: int | None = None

    @property
    def typical_seconds(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class GroupResult:
    """All paths of one group and the work they share."""

    group: str
    tokens_per_call: int
    baseline: str
    paths: tuple[PathResult, ...]
    device: str
    flops_per_token: float | Mapping[str, float]  # matrix products, backward included where the paths have one
    least_bytes: int | Mapping[str, int]  # what one call must at least read and write; both may differ by path
    samples: int  # calls that were asked for

    def metrics(self, matrix_flops_per_second: float, copy_bytes_per_second: float) -> list[Metric]:
        """Return speed, ratio, shares of the ceilings, errors and extra memory of every path, `model` being the path.

        A path that was not timed has no values but a note that says why.
        """
        metrics = []
        for path in self.paths:
            metrics.append(self._speed(path))
            for check in path.checks:
                error = check.error if math.isfinite(check.error) else None
                note = f"{check} against float64"
                metrics.append(self._metric(f"{check.quantity}_error", path, error, check.unit, note))
            if path.extra_bytes is not None:
                peak = self._metric("extra_memory", path, path.extra_bytes, "byte", EXTRA_MEMORY)
                metrics.append(peak.model_copy(update={"basis": path.bytes_basis}))
            if path.launches is not None:
                metrics.append(self._metric("launches", path, path.launches, "1", "on the device, for one token", n=1))
            if path.seconds:
                metrics += self._of_seconds(path, matrix_flops_per_second, copy_bytes_per_second)
        return metrics

    def _metric(self, what: str, path: PathResult, value: float | None, unit: str, note: str, **more) -> Metric:
        more = {"n": len(path.seconds) or 1} | more
        return Metric(name=f"bench_{self.group}_{what}", model=path.name, value=value, unit=unit, note=note, **more)

    def _of_seconds(self, path: PathResult, matrix: float, copy: float) -> Iterator[Metric]:
        """Yield the ratio to the baseline, the shares of the two ceilings, and the duration of a call."""
        seconds = path.typical_seconds
        base = next((p for p in self.paths if p.name == self.baseline and p.seconds), None)
        note = f"median against {self.baseline}" + ("" if base else ", which was not timed")
        yield self._metric("ratio", path, base.typical_seconds / seconds if base else None, "1", note)
        flops = self.tokens_per_call * of_path(self.flops_per_token, path.name)
        yield self._metric("matrix_share", path, flops / seconds / matrix, "1", "of the matrix ceiling")
        moved = of_path(self.least_bytes, path.name)
        yield self._metric("copy_share", path, moved / seconds / copy, "1", "of the copy ceiling")
        yield self._metric("least_bytes", path, moved, "byte", "that one call must read and write at least")
        yield self._metric("milliseconds", path, seconds * 1e3, "ms", "median duration of one call")

    def _speed(self, path: PathResult) -> Metric:
        samples = [self.tokens_per_call / seconds for seconds in path.seconds]
        status = f"{path.status}: {path.note}" if path.note or not samples else ""
        parts = [status, *map(str, path.checks)]
        if not samples:
            note = "; ".join(filter(None, parts))
            return self._metric("speed", path, None, "token/s", note, n=0, reason=status)
        few = f", fewer than {self.samples} by the time limit" if len(samples) < self.samples else ""
        parts.append(f"median and quartiles of {len(samples)} samples{few}, {self.tokens_per_call} tokens per call")
        parts.append(f"on {self.device}, ready after {path.prepare_seconds:.1f} s")
        quartiles = tuple(np.percentile(samples, (25, 75)).tolist())
        note = "; ".join(filter(None, parts))
        return self._metric("speed", path, statistics.median(samples), "token/s", note, samples=samples,
                            interval=quartiles)  # fmt: skip


def of_path(value: float | Mapping[str, float], name: str) -> float:
    """Return what a path has of a number that all paths share or that each has for itself."""
    return value[name] if isinstance(value, Mapping) else value


def compare(
    group: str,
    paths: Mapping[str, Callable[[], Trial]],
    *,
    baseline: str,
    tokens_per_call: int,
    device: torch.device,
    flops_per_token: float | Mapping[str, float],
    least_bytes: int | Mapping[str, int],
    warmups: int,
    samples: int,
    limit_seconds: float,
    progress: Progress = passthrough,
) -> GroupResult:
    """Prepare and check every path, then time those that are equal to the reference, in turn."""
    results, calls, trials = [], {}, {}
    for name, build in progress(paths.items(), f"checking {group}", len(paths)):
        result, trial = prepare(name, build, device)
        results.append(result)
        if trial:
            calls[name], trials[name] = Guarded(trial.call), trial
    if calls:
        times = measure_throughput(calls, tokens_per_call=tokens_per_call, warmups=warmups, samples=samples,
                                   device=device, limit_seconds=limit_seconds, progress=progress).seconds  # fmt: skip
    for result in results:
        if result.name not in calls:
            continue
        if error := calls[result.name].error:
            result.status, result.note = "failed", error
        else:
            result.seconds = times[result.name]
            _count_launches(result, trials[result.name])  # at the end, since a profiler slows what comes after it
    calls.clear(), trials.clear()
    release(device)
    return GroupResult(group, tokens_per_call, baseline, tuple(results), device_name(device), flops_per_token,
                       least_bytes, samples)  # fmt: skip


def _count_launches(result: PathResult, trial: Trial) -> None:
    """What a machine without a profiler cannot count is left out; the path has its speed."""
    if trial.launches is None:
        return
    try:
        result.launches = trial.launches()
    except RuntimeError as error:
        result.note = f"launches not counted: {first_line(error)}"


def prepare(name: str, build: Callable[[], Trial], device: torch.device) -> tuple[PathResult, Trial | None]:
    """Build a path and compare it with its reference; return the trial only if it may be timed."""
    result, start = PathResult(name), time.perf_counter()
    trial = None
    try:
        trial = build()
        result.checks = trial.check()
        if not result.checks:
            raise ValueError("no check, so nothing shows that this path is right")
        if not all(check.ok for check in result.checks):
            result.status, result.note = "refused", "not equal to the reference, so no speed is given"
        else:
            if trial.ready:
                trial.ready()
            if trial.memory:
                result.extra_bytes, result.bytes_basis = trial.memory()
    except PathMissingError as error:
        result.status, result.note = "missing", str(error)
    except Exception as error:  # whatever it is, the other paths go on
        result.status, result.note = "failed", first_line(error)
    if result.status != "timed":
        trial = None
        free(device)
    result.prepare_seconds = time.perf_counter() - start
    return result, trial


class Guarded:
    """A call that remembers its first exception and does nothing from then on."""

    def __init__(self, call: Path) -> None:
        self.call, self.error = call, ""

    def __call__(self) -> object:
        if self.error:
            return None
        try:
            return self.call()
        except Exception as error:
            self.error = first_line(error)
        return None


def first_line(error: Exception, length: int = 300) -> str:
    """Return the type and the first line of what an exception says."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:length]


def free(device: torch.device) -> None:
    """Give unused memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def release(device: torch.device) -> None:
    """Forget compiled code and its graphs, so that one group does not weigh on the next, and give memory back."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    free(device)
