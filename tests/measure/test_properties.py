"""Causality, mixing and state: models that have and that lack each property."""

from __future__ import annotations

import math

import pytest
import torch
from measure_toys import Causal, Peeking, Stateful, Toy

from muse.measure.properties import check_causality, check_mixing, check_statefulness


def value(result) -> float:
    (metric,) = result.metrics("toy")
    return metric.value


@pytest.mark.parametrize(("model", "violations", "mixing"), [(Toy(), 0, 0), (Causal(), 0, 1), (Peeking(), 8, 0)])
def test_causality_and_mixing(model, violations, mixing):
    assert value(check_causality(model)) == violations
    assert value(check_mixing(model)) == mixing


def test_the_reach_of_a_change_is_reported():
    result = check_mixing(Causal())
    assert result.positions == (1, 3, 5, 7, 8, 10, 12, 14)
    assert result.farthest_reach == 14  # from position 1 to the last of 16
    assert result.largest_change > 0


def test_a_leak_below_the_tolerance_is_rounding():
    class Rounding(Toy):
        def mix(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1e-6 * x.mean(1, keepdim=True)

    assert value(check_causality(Rounding())) == 8
    assert value(check_causality(Rounding(), tolerance=1e-4)) == 0
    assert value(check_mixing(Rounding(), tolerance=1e-4)) == 0


def test_logits_that_are_not_finite_are_violations():
    model = Toy()
    with torch.no_grad():
        model.head.weight[3, 2] = math.nan
    result = check_causality(model, tolerance=1.0)
    assert result.violations == len(result.positions)
    assert "nan" in result.metrics("toy")[0].note


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_mixing_says_nothing_but_their_name_of_logits_that_are_not_finite(bad):
    model = Causal()
    with torch.no_grad():
        model.head.weight[3, 2] = bad
    (metric,) = check_mixing(model).metrics("toy")
    assert metric.value is None
    assert metric.reason == metric.note
    assert "change of a logit" in metric.reason
    assert "changed tokens" not in metric.note
    assert value(check_statefulness(model)) == 2


def test_state_carried_between_calls_is_found():
    assert value(check_statefulness(Toy())) == 0
    result = check_statefulness(Stateful())
    assert (result.violations, result.num_repeats) == (2, 2)


def test_state_that_only_another_batch_changes_is_found():
    class Remembering(Toy):
        memory = 0.0

        def mix(self, x: torch.Tensor) -> torch.Tensor:
            before, self.memory = self.memory, x.mean()
            return x if self.memory == before else x + before

    assert check_statefulness(Remembering()).violations >= 1


def test_a_context_too_short_to_tell_is_an_error():
    with pytest.raises(ValueError, match="n_seq=2"):
        check_causality(Toy(n_seq=2))
