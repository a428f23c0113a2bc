"""Differences of two models with their doubt: paired target by target where losses are kept, else seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from muse.records.bootstrap import INTERVAL, resampled_losses
from muse.records.losses import Losses
from muse.records.schema import Metric

CONFIDENCE, POWER = 0.95, 0.8
"""Of an interval, and of the effect that a repetition would find."""


@dataclass(frozen=True)
class Difference:
    """How much larger one side is than the other, in the metric's unit."""

    value: float
    interval: tuple[float, float] | None = None  # 95 %; None where nothing tells the spread
    detectable: float | None = None  # the smallest true difference that would be found in 4 of 5 cases
    paired_by: Literal["targets", "seeds", "nothing"] = "nothing"
    seeds: int = 0  # that both sides have
    identical: bool = False  # all that was observed is the same on both sides

    @property
    def is_zero_possible(self) -> bool | None:
        """Whether the interval contains no difference; None where there is no interval, unless nothing differs."""
        if self.identical or self.interval is None:
            return True if self.identical else None
        return self.interval[0] <= 0 <= self.interval[1]


def same_targets(one: Losses, other: Losses) -> bool:
    """Return whether two models' losses are of targets in the same documents, one by one."""
    return np.array_equal(one.documents, other.documents)


def by_targets(one: Losses, other: Losses, name: Literal["loss", "perplexity"]) -> Difference | None:
    """Return the difference of mean losses or mean perplexities; its interval resamples documents and seeds.

    Documents are paired, and so are the seeds of both sides; where they share none, the means of all are compared.
    None where the targets are not the same; ValueError unless there are any.
    """
    if not same_targets(one, other):
        return None
    shared = [seed for seed in one.by_seed if seed in other.by_seed]
    sides = [[side.by_seed[seed].astype(float) for seed in shared or side.by_seed] for side in (one, other)]
    scale: Callable = np.exp if name == "perplexity" else np.asarray
    value = float(np.subtract(*(np.mean([scale(losses.mean()) for losses in side]) for side in sides)))
    identical = set(one.by_seed) == set(other.by_seed) == set(shared) and all(
        np.array_equal(*pair) for pair in zip(*sides, strict=True)
    )
    found = Difference(value, paired_by="targets", seeds=len(shared), identical=identical)
    targets = np.bincount(one.documents)
    if (targets > 0).sum() < 2:
        return found
    drawn = np.subtract(*(scale(resampled_losses(_of_documents(side, one.documents), targets)) for side in sides))
    low, high = np.percentile(drawn, INTERVAL)
    factor = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) + statistics.NormalDist().inv_cdf(POWER)
    return replace(found, interval=(float(low), float(high)), detectable=factor * float(drawn.std(ddof=1)))


def _of_documents(losses: Sequence[np.ndarray], documents: np.ndarray) -> np.ndarray:
    """Summed losses of each document, (seeds, documents)."""
    return np.stack([np.bincount(documents, weights=of_seed) for of_seed in losses])


def by_seeds(one: Metric, other: Metric) -> Difference:
    """Return the difference of two metrics with values; its interval is Student's over the seeds that both have.

    With fewer than two of them there is none.
    """
    first, second = (dict(zip(m.labels, m.samples, strict=False)) for m in (one, other))
    identical = (one.value, one.samples) == (other.value, other.samples)
    shared = [label for label in first if label in second and label.startswith("seed ")]
    if len(shared) < 2:
        paired_by = "seeds" if shared else "nothing"
        return Difference(one.value - other.value, paired_by=paired_by, seeds=len(shared), identical=identical)
    differences = [first[label] - second[label] for label in shared]
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(shared))
    ends, found_again = (student(share, len(shared) - 1) * error for share in ((1 + CONFIDENCE) / 2, POWER))
    return Difference(mean, (mean - ends, mean + ends), ends + found_again, "seeds", len(shared), identical)


def student(share: float, degrees: int) -> float:
    """Return the quantile of Student's t above one half, by halving; Abramowitz and Stegun 26.7.3 and 26.7.4."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < 2 * share - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 2 * share - 1 else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """The probability that |T| is below t."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def tied(count: int, tie: Callable[[int, int], bool]) -> list[list[int]]:
    """Return the groups of things 0 to count - 1 in which every two are tied, none of them within another group.

    Two things share a group exactly if they are tied; a thing may belong to several.
    """
    near = [{other for other in range(count) if other != one and tie(min(one, other), max(one, other))}
            for one in range(count)]  # fmt: skip
    found = []

    def grow(group: set[int], more: set[int], done: set[int]) -> None:
        if not more and not done:
            found.append(sorted(group))
        for one in sorted(more):
            grow(group | {one}, more & near[one], done & near[one])
            more, done = more - {one}, done | {one}

    grow(set(), set(range(count)), set())
    return sorted(group for group in found if group)
