"""What the plan says beside what committed records have: `python -m muse.stages.plan_errors` writes reports/plan.json.

Of each number its estimate, the measured one, and where that stands. docs/scale.md is made from it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from torch import Tensor

from muse.catalog import BASELINE, CARDS, REFERENCE, WITH_MEMORY, YARDSTICK, recomputes
from muse.host.files import write_atomic
from muse.measure.memory import GIB, count
from muse.measure.roofline import seconds
from muse.ops import cross_entropy
from muse.params import Settings, of_today, validate
from muse.records.schema import BenchRecord, Report, StageRecord
from muse.records.store import read_record
from muse.report.companions import stage_of
from muse.report.plan_errors import FILE, OF_TWO_CHUNKS

from .check import sizes_of
from .memory import optimizer_step
from .plan import START_SECONDS, counted_step, shaped

MEMORY_RUNS = {
    "gpu-memory": "gpu-memory/report.json",
    "gpu-adamw": "gpu-adamw/report.json",
    **{f"gpu-length-{n}": f"gpu-adamw/companions/gpu-length-{n}.json" for n in (4096, 8192)},
}
"""Records with peaks, by name; the longer contexts are sizes from which nothing was taken."""

TWO_CHUNKS = ("gpu-length-4096", "gpu-length-8192")
"""Records of code whose loss held two chunks of logits at a time where that of today holds one."""

BENCH, BENCH_CARD = "bench-h100", "h100"
TRIES, TRIES_CARDS, TRIES_CARD = "gpu", 2, "h200"
ALONE = (BASELINE, WITH_MEMORY)
"""Models whose tries had both cards for themselves, all twelve at a time."""

SITTING = timedelta(hours=1)
"""Tries that started within it ran beside each other; the chosen one was trained again for the comparison, later."""


class Row(NamedTuple):
    """A number of the plan, and the one that was measured."""

    kind: str  # peak, peak of two chunks, step, sweep
    run: str
    model: str
    what: str
    unit: str
    estimate: float
    measured: float

    @property
    def error(self) -> float:
        return self.estimate / self.measured - 1


def rows(reports: Path) -> Iterator[Row]:
    """Yield every number that records of a folder have."""
    for run in MEMORY_RUNS:
        yield from peaks(reports, run)
    with two_chunks():
        for run in TWO_CHUNKS:
            yield from (row._replace(kind=OF_TWO_CHUNKS) for row in peaks(reports, run))
    yield from steps(reports)
    yield from sweeps(reports)


def peaks(reports: Path, run: str, models: tuple[str, ...] = ()) -> Iterator[Row]:
    """Yield the peaks of a comparison: those of the stage `memory` that are told today."""
    report = read_record(Report, reports / MEMORY_RUNS[run])
    record = stage_of(report, "memory")
    settings = settings_of(record)
    for name in models or tuple(settings.models):
        for what, peak in peaks_of(settings, name).items():
            found = record.find(what, name)
            if found is not None and found.basis == "measured" and found.value is not None:
                yield Row("peak", run, name, what, "GiB", peak() / GIB, found.value)


@contextlib.contextmanager
def two_chunks() -> Iterator[None]:
    """Inside, a loss holds the logits of its last chunk until those of the next are there, as it did once."""
    held: list[Tensor | None] = []
    chunk_loss, whole_loss = cross_entropy._chunk_loss, cross_entropy._loss_and_gradients

    def chunk(*given: object, **more: object) -> tuple:
        found = chunk_loss(*given, **more)
        held[:] = [found[1]]
        return found

    def whole(*given: object, **more: object) -> tuple:
        try:
            return whole_loss(*given, **more)
        finally:
            held.clear()

    with mock.patch.multiple(cross_entropy, _chunk_loss=chunk, _loss_and_gradients=whole):
        yield


def settings_of(record: StageRecord) -> Settings:
    known = {name: value for name, value in of_today(record.params).items() if name in Settings.model_fields}
    return validate(known)


def peaks_of(settings: Settings, name: str) -> dict[str, Callable[[], int]]:
    """What gives the bytes of each peak, by the name of its metric."""
    size = {"batch_size": settings.memory_batch_size, "n_seq": settings.n_seq}
    sizes = sizes_of(settings, settings.vocab_size)

    def peak(recompute: bool, half: bool = True, optimizer: str = "", dropout: float = 0.0, **other: int) -> int:
        model = shaped(name, sizes, dropout, half and not optimizer).train()
        model.recompute = recompute
        shape = size | other
        step = optimizer_step(optimizer, **shape, precision="bfloat16") if optimizer else None
        return count(model, **shape, training=step).peak_bytes

    default, trained = recomputes(name, settings.recompute), settings.optimizer
    recipe = {"batch_size": max(1, max(settings.batch_tokens) // settings.n_seq), "dropout": max(settings.dropouts)}
    return {
        "peak_memory": lambda: peak(default),
        "peak_memory_recomputed": lambda: peak(True),
        "peak_memory_plain": lambda: peak(False),
        "peak_memory_matched": lambda: peak(default, half=False),
        "peak_memory_training_step": lambda: peak(True, optimizer=trained),
        "peak_memory_training_step_adamw": lambda: peak(True, optimizer="adamw"),
        "peak_memory_recipe_step": lambda: peak(default, optimizer=trained, **recipe),
    }


def steps(reports: Path) -> Iterator[Row]:
    """Yield milliseconds of training steps of models that had the card for themselves."""
    bench = read_record(BenchRecord, reports / BENCH / "bench.json")
    settings, card = Settings(), CARDS[BENCH_CARD]
    sizes = sizes_of(settings, settings.vocab_size)
    groups = {REFERENCE: ("bench_training_16x1024", "muse {}")}
    groups |= {name: ("bench_models_{}_16x1024", name) for name in (WITH_MEMORY, BASELINE, YARDSTICK)}
    cases = [(name, 16, *named) for name, named in groups.items()]
    cases.append((REFERENCE, 64, "bench_training_64x1024", "muse {}"))
    for name, size, group, path in cases:
        model = shaped(name, sizes)
        work = counted_step(model, settings, size, 1024, recompute=False, card=card).work
        for way in ("compiled", "eager"):
            found = bench.stage.find(f"{group.format(way)}_milliseconds", path.format(way))
            took = 1e3 * seconds(work, card, compiled=way == "compiled")
            yield Row("step", BENCH, name, f"{size} x 1024, {way}", "ms", took, found.value)


def sweeps(reports: Path) -> Iterator[Row]:
    """Yield the card-seconds of all tries of a model, several beside each other on each card."""
    settings = Settings(optimizer="muon", dropouts=[0.1])
    card, sizes = CARDS[TRIES_CARD], sizes_of(settings, settings.vocab_size)
    report = read_record(Report, reports / TRIES / "report.json")
    trainings = stage_of(report, "train").trainings
    for name in ALONE:
        of_model = [one for one in trainings if (one.model, one.seed) == (name, 0)]
        tries = list({(one.batch_tokens, one.dropout, one.weight_decay): one for one in of_model}.values())
        began = min(one.started_utc for one in of_model)
        ended = max(one.finished_utc for one in of_model if one.started_utc - began < SITTING)
        took = TRIES_CARDS * (ended - began).total_seconds()
        model, planned = shaped(name, sizes, dropout=0.1), 0.0
        for size in {one.batch_tokens for one in tries}:
            many = [one.tokens for one in tries if one.batch_tokens == size]
            counted = counted_step(model, settings, size // 1024, 1024, False, card)
            step = seconds(counted.work, card, compiled=True)
            planned += sum(tokens / size * step + START_SECONDS for tokens in many)
        yield Row("sweep", TRIES, name, f"{len(tries)} tries on {TRIES_CARDS} cards", "card s", planned, took)


def main(reports: Path) -> None:
    """Write the file into a folder of reports: a number a line."""
    found = [json.dumps(row._asdict(), separators=(",", ":"), allow_nan=False) for row in rows(reports)]
    write_atomic(reports / FILE, "[\n" + ",\n".join(found) + "\n]\n")


if __name__ == "__main__":
    main(Path(*sys.argv[1:] or ["reports"]))
