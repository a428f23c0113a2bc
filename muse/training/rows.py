"""The trainings of a params file as a list that stays the same while they are done: for job arrays, one entry a job."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from muse.catalog import BASELINE
from muse.params import GRID, MOST_ROWS, ParamsError, Row, Settings

from .tuning import Job, Plan


@dataclass(frozen=True)
class Entry:
    """One training of the list: a try, whose values are known, or a seed with the best of its model's tries."""

    row: Row
    model_name: str
    seed: int
    job: Job | None  # None where the tries decide

    def alone(self) -> Row:
        """What trains this one alone; where the tries decide it keeps the grid, and the seed of tries."""
        settings, own = self.row.settings, {"models": [self.model_name]}
        if self.job is not None:
            own |= {"seeds": [self.seed], "train_tokens": self.job.tokens, "tune_tokens": 0}
            own |= {GRID[name]: [value] for name, value in self.job.choice.values().items()}
        return Row(self.row.values, settings.model_copy(update=own))


def entries(rows: Sequence[Row]) -> list[Entry]:
    """Every training of the rows of a matrix in the order in which they are wanted, those that tries decide last.

    Of one row that is all tries, then seed by seed across models; what several rows share stands in the first of them.
    ParamsError where there is none, or more than `MOST_ROWS`.
    """
    check_number(rows)
    found: dict[tuple[bool, Job], Entry] = {}
    for row in rows:
        for job, decided_by_tries in _of_row(row):
            entry = Entry(row, job.model_name, job.seed, None if decided_by_tries else job)
            found.setdefault((decided_by_tries, job), entry)
    return sorted(found.values(), key=lambda entry: entry.job is None)


def _of_row(row: Row) -> Iterator[tuple[Job, bool]]:
    """Yield each training of a row, and whether tries decide its values, which are then the first ones here."""
    settings, models = row.settings, compared(row.settings)
    plan = Plan(settings, tuple(models), row=row if row.values else None)
    tries = [job for name in models for job in plan.tries(name)]
    yield from ((job, False) for job in tries)
    full = bool(tries) and settings.tune_tokens in (0, settings.train_tokens)
    seeds = settings.seeds[1:] if full else settings.seeds  # a try with the full budget is the first seed's training
    for seed in seeds:
        for name in models:
            yield plan.job(name, seed, plan.choices[0], settings.train_tokens), bool(tries)


def compared(settings: Settings) -> list[str]:
    """The models that are trained, without Phase 2 where `skip_phase2` says so."""
    return [name for name in settings.models if not (name == BASELINE and settings.skip_phase2)]


def trained(settings: Settings, models: Sequence[str]) -> frozenset[tuple[object, ...]]:
    """What trainings of these models are told by: equal in two rows where one training serves both."""
    plan, budgets = Plan(settings, tuple(models)), {settings.train_tokens, settings.tune_tokens} - {0}
    jobs = [plan.job(name, settings.seeds[0], choice, tokens)
            for name in models for choice in plan.choices for tokens in budgets]  # fmt: skip
    return frozenset((job, *plan.decided(job)) for job in jobs)


def check_number(rows: Sequence[Row]) -> None:
    """Raise ParamsError where rows, models, seeds and what is tried make no training, or more than `MOST_ROWS`."""
    number = sum(_number(row.settings) for row in rows)
    if not 0 < number <= MOST_ROWS:
        what = ("the matrix, " if len(rows) > 1 else "") + "models, seeds and the values that are tried"
        raise ParamsError(f"{what}: got {number:,} trainings, expected 1 to {MOST_ROWS:,}")


def _number(settings: Settings) -> int:
    choices = math.prod(len(getattr(settings, key)) for key in GRID.values())
    return len(compared(settings)) * ((choices if choices > 1 else 0) + len(settings.seeds))


def entry(rows: Sequence[Row], index: int) -> tuple[Row, tuple[int, ...]]:
    """What trains the entry with this index, counted from 0, and its seed where the tries decide its values.

    ParamsError where there is no such entry.
    """
    found = entries(rows)
    if not 0 <= index < len(found):
        expected = f"0 to {len(found) - 1}" if len(found) > 1 else "0"
        raise ParamsError(f"--index: got {index}, expected {expected}: the trainings of the params file")
    chosen = found[index]
    return chosen.alone(), () if chosen.job else (chosen.seed,)
