"""The grid that is tried on validation: its combinations, what they reached, and the one that serves all best."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from muse.records.schema import Metric

from .recipe import TRIED, in_words


@dataclass(frozen=True)
class Choice:
    """One combination of the grid: every value that is tried on validation."""

    learning_rate: float
    dropout: float
    batch_tokens: int
    weight_decay: float
    muon_weight_decay: float | None = None  # None where AdamW trains everything

    def values(self, names: Collection[str] = tuple(TRIED)) -> dict[str, float]:
        """Its values by name, of these names only."""
        return {name: value for name, value in vars(self).items() if name in names and value is not None}

    def metrics(self, prefix: str = "", **about: object) -> list[Metric]:
        """One metric for each value; `about` are their further fields."""
        return [
            Metric(name=prefix + name, value=value, unit="tokens" if name == "batch_tokens" else "1", **about)
            for name, value in self.values().items()
        ]


def varying(choices: Sequence[Choice]) -> tuple[str, ...]:
    """Return the names of the values in which some of these combinations differ."""
    return tuple(name for name in TRIED if len({getattr(choice, name) for choice in choices}) > 1)


@dataclass(frozen=True)
class Try:
    """A combination and what it reached on validation; None where it diverged."""

    choice: Choice
    validation_loss: float | None

    def told(self, names: Collection[str]) -> str:
        """These values of the combination, in words."""
        return in_words(self.choice.values(names))

    @property
    def ended(self) -> str:
        return "diverged" if self.validation_loss is None else f"{self.validation_loss:.4f}"


@dataclass(frozen=True)
class Common:
    """The combination that serves all models best together; `regrets` are what each loses by it, in nat/token."""

    choice: Choice
    regrets: Mapping[str, float]
    tries: int  # of each model
    varying: tuple[str, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.regrets.values())

    def __str__(self) -> str:
        values, models = in_words(self.choice.values(self.varying)), ", ".join(self.regrets)
        return f"common to {models}: {values}; mean regret {self.mean:.4f} nat/token, {self.tries} tries each"

    def metrics(self) -> list[Metric]:
        """The combination and its regrets as numbers of the run."""
        regrets = Metric(name="common_regret", value=self.mean, unit="nat/token", n=len(self.regrets),
                         samples=list(self.regrets.values()), labels=list(self.regrets),
                         note="mean over models of validation loss minus the model's own best one")  # fmt: skip
        note = "of all models, by the smallest mean regret"
        return [*self.choice.metrics("common_", n=self.tries, note=note), regrets]


def common_choice(tries: Mapping[str, Sequence[Try]]) -> Common | None:
    """Return the combination with the smallest mean regret over the models, the first of equal ones.

    A model's regret is the validation loss of its try minus that of its best one; a combination that diverged for one
    of the models loses. None where nothing was tried, for a single model, and where no combination is left.
    """
    losses = {name: {t.choice: t.validation_loss for t in of_model} for name, of_model in tries.items()}
    grid = list(next(iter(losses.values()), ()))
    shared = [choice for choice in grid if all(of_model.get(choice) is not None for of_model in losses.values())]
    if len(losses) < 2 or not shared:
        return None
    best = {name: min(loss for loss in of_model.values() if loss is not None) for name, of_model in losses.items()}
    found = [
        Common(choice, {name: losses[name][choice] - best[name] for name in losses}, len(grid), varying(grid))
        for choice in shared
    ]
    return min(found, key=lambda common: common.mean)
