"""Differences with their doubt, where they can be worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from builders import metric

from muse.records.losses import Losses
from muse.report.paired import by_seeds, by_targets, student, tied

DOCUMENTS = np.repeat(np.arange(4, dtype=np.int32), [3, 1, 4, 2])
TEXT = np.array([0.5, 9, 2, 6, 1, 1, 8, 3, 0.25, 7])


def losses(by_seed, documents=DOCUMENTS):
    return Losses({seed: np.asarray(values, np.float16) for seed, values in by_seed.items()}, documents)


def of_seeds(*samples, value=None, labels=None):
    labels = labels or [f"seed {seed}" for seed in range(len(samples))]
    return metric("loss", value=sum(samples) / len(samples) if value is None else value,
                  samples=list(samples), labels=labels)  # fmt: skip


def test_what_is_the_same_for_every_document_has_no_spread():
    """Documents differ by far more than the models do: only a pairing finds that."""
    found = by_targets(losses({0: TEXT + 1}), losses({0: TEXT}), "loss")
    assert (found.value, *found.interval, found.detectable) == pytest.approx((1, 1, 1, 0))
    assert (found.paired_by, found.seeds, found.identical, found.is_zero_possible) == ("targets", 1, False, False)


def test_seeds_are_paired_too():
    seeds = {0: TEXT, 1: TEXT + 2, 2: TEXT + 4}
    more = {seed: values + 0.5 for seed, values in seeds.items()}
    found = by_targets(losses(more), losses(seeds), "loss")
    assert found.interval == pytest.approx((0.5, 0.5))
    others = {10: more[0], 11: more[1]}
    unpaired = by_targets(losses(others), losses(seeds), "loss")
    assert unpaired.seeds == 0
    assert unpaired.interval[0] < 0 < unpaired.interval[1]
    part = by_targets(losses({1: seeds[1] + 3, 7: TEXT}), losses(seeds), "loss")
    assert (part.value, part.seeds) == (pytest.approx(3), 1)


def test_two_documents_give_three_means():
    """With losses 1 and 1 beside 1 and 2 a resample of the two differs by 0, -1/2 or -1, half of them by the middle."""
    documents = np.array([0, 0, 1, 1], np.int32)
    found = by_targets(losses({0: [1, 1, 1, 1]}, documents), losses({0: [1, 1, 2, 2]}, documents), "loss")
    assert (found.value, found.interval, found.is_zero_possible) == (-0.5, (-1, 0), True)
    assert found.detectable == pytest.approx((1.9600 + 0.8416) * math.sqrt(1 / 8), rel=0.05)


def test_a_difference_of_perplexities_is_one_of_exponentials():
    pair = [losses({0: np.full(10, loss), 1: np.full(10, loss + 1)}) for loss in (2, 1)]
    found = by_targets(*pair, "perplexity")
    assert found.value == pytest.approx((math.exp(2) + math.exp(3)) / 2 - (math.exp(1) + math.exp(2)) / 2)
    assert found.interval[0] <= found.value <= found.interval[1]


def test_other_targets_are_not_compared_and_one_document_tells_no_spread():
    assert by_targets(losses({0: TEXT}), losses({0: TEXT}, DOCUMENTS[::-1]), "loss") is None
    assert by_targets(losses({0: TEXT}), losses({0: TEXT[:5]}, DOCUMENTS[:5]), "loss") is None
    alone = np.zeros(10, np.int32)
    found = by_targets(losses({0: TEXT + 1}, alone), losses({0: TEXT}, alone), "loss")
    assert (found.value, found.interval, found.is_zero_possible) == (pytest.approx(1), None, None)


def test_identical_means_every_target_of_every_seed():
    seeds = {0: TEXT, 1: TEXT + 1}
    found = by_targets(losses(seeds), losses(seeds), "loss")
    assert (found.identical, found.value, found.is_zero_possible) == (True, 0, True)
    swapped = TEXT[[1, 0, *range(2, 10)]]  # the same mean of every document
    assert not by_targets(losses({0: swapped}), losses({0: TEXT}), "loss").identical
    assert not by_targets(losses({0: TEXT}), losses(seeds), "loss").identical


def test_the_interval_over_seeds_is_students():
    """Differences 1, 2 and 3: mean 2, sd 1, and t of 2 degrees 4.3027 and 1.0607."""
    found = by_seeds(of_seeds(11, 22, 33), of_seeds(10, 20, 30))
    assert (found.value, found.paired_by, found.seeds) == (2, "seeds", 3)
    assert found.interval == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert found.detectable == pytest.approx((4.3027 + 1.0607) / 3**0.5, abs=1e-4)
    assert found.is_zero_possible is True
    assert by_seeds(of_seeds(11, 12.1, 13), of_seeds(1, 2, 3)).is_zero_possible is False


def test_seeds_are_found_by_their_names():
    one, other = of_seeds(1, 2, 9), of_seeds(2, 1, 5, labels=["seed 1", "seed 0", "seed 5"])
    found = by_seeds(one, other)
    assert (found.value, found.interval, found.seeds) == (0, (0, 0), 2)
    assert not found.identical


def test_what_is_no_seed_is_not_paired():
    calls = of_seeds(1, 2, labels=["call 1", "call 2"])
    found = by_seeds(calls, of_seeds(3, 4))
    assert (found.value, found.interval, found.detectable, found.paired_by) == (-2, None, None, "nothing")
    one = by_seeds(of_seeds(4), of_seeds(1))
    assert (one.value, one.interval, one.paired_by, one.seeds) == (3, None, "seeds", 1)
    assert by_seeds(of_seeds(4), of_seeds(4)).identical


@pytest.mark.parametrize(
    ("degrees", "quantiles"),
    [(1, (12.7062, 1.3764)), (2, (4.3027, 1.0607)), (9, (2.2622, 0.8834)), (30, (2.0423, 0.8538))],
)
def test_quantiles_of_student_are_those_of_the_tables(degrees, quantiles):
    assert (student(0.975, degrees), student(0.8, degrees)) == pytest.approx(quantiles, abs=1e-4)


def test_groups_are_ties_and_nothing_else():
    assert tied(3, lambda one, other: (one, other) != (0, 2)) == [[0, 1], [1, 2]]
    assert tied(3, lambda one, other: False) == [[0], [1], [2]]
    assert tied(4, lambda one, other: True) == [[0, 1, 2, 3]]
    assert tied(0, lambda one, other: True) == []
    ties = {(0, 1), (1, 2), (0, 2), (2, 4), (3, 4)}
    groups = tied(5, lambda one, other: (one, other) in ties)
    for pair in itertools.combinations(range(5), 2):
        assert any(set(pair) <= set(group) for group in groups) == (pair in ties)
