"""The trainings of a params file as a list that stays the same while they are done: for job arrays, one row a job."""

from __future__ import annotations

import math
from dataclasses import dataclass

from muse.catalog import BASELINE
from muse.params import GRID, ParamsError, Settings

from .tuning import Job, Plan

MOST_ROWS = 10_000


@dataclass(frozen=True)
class Row:
    """One training of the list: a try, whose values are known, or a seed with the best of its model's tries."""

    model_name: str
    seed: int
    job: Job | None  # None where the tries decide

    def settings(self, settings: Settings) -> Settings:
        """The settings that train this row alone; where the tries decide they keep the grid, and the seed of tries."""
        if self.job is None:
            return settings.model_copy(update={"models": [self.model_name]})
        grid = {GRID[name]: [value] for name, value in self.job.choice.values().items()}
        own = {"models": [self.model_name], "seeds": [self.seed], "train_tokens": self.job.tokens, "tune_tokens": 0}
        return settings.model_copy(update=own | grid)


def rows(settings: Settings) -> list[Row]:
    """Every training in the order in which they are wanted: all tries, then seed by seed across models.

    ParamsError where there is none, or more than `MOST_ROWS`.
    """
    models = compared(settings)
    check_number(settings)
    plan = Plan(settings, tuple(models))
    tries = [Row(job.model_name, job.seed, job) for name in models for job in plan.tries(name)]
    full = bool(tries) and settings.tune_tokens in (0, settings.train_tokens)
    seeds = settings.seeds[1:] if full else settings.seeds  # a try with the full budget is the first seed's training
    if tries:
        return tries + [Row(name, seed, None) for seed in seeds for name in models]
    jobs = [plan.job(name, seed, plan.choices[0], settings.train_tokens) for seed in seeds for name in models]
    return [Row(job.model_name, job.seed, job) for job in jobs]


def compared(settings: Settings) -> list[str]:
    """The models that are trained, without Phase 2 where `skip_phase2` says so."""
    return [name for name in settings.models if not (name == BASELINE and settings.skip_phase2)]


def check_number(settings: Settings) -> None:
    """Raise ParamsError where models, seeds and what is tried make no training, or more than `MOST_ROWS`."""
    choices = math.prod(len(getattr(settings, key)) for key in GRID.values())
    number = len(compared(settings)) * ((choices if choices > 1 else 0) + len(settings.seeds))
    if not 0 < number <= MOST_ROWS:
        what = "models, seeds and the values that are tried"
        raise ParamsError(f"{what}: got {number:,} trainings, expected 1 to {MOST_ROWS:,}")


def row(settings: Settings, index: int) -> tuple[Settings, tuple[int, ...]]:
    """The settings that train the row with this index, counted from 0, and the seed where the tries decide its values.

    ParamsError where there is no such row.
    """
    found = rows(settings)
    if not 0 <= index < len(found):
        expected = f"0 to {len(found) - 1}" if len(found) > 1 else "0"
        raise ParamsError(f"--index: got {index}, expected {expected}: the trainings of the params file")
    chosen = found[index]
    return chosen.settings(settings), () if chosen.job else (chosen.seed,)
