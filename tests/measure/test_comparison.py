"""Means over seeds and paired ratios: by hand where a hand can, and with the doubt that the data hold."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from muse.data.corpus import TokenSplit
from muse.measure import PerplexityResult, compare, ensemble_metrics, ratio_metrics, seed_metrics
from muse.records.schema import Metric

TARGETS = np.array([100, 300, 50, 250])


def result(losses_nats: list[float], targets: np.ndarray = TARGETS) -> PerplexityResult:
    """A measured split with these mean losses of its documents."""
    nll = np.array(losses_nats) * targets
    return PerplexityResult(
        split="test",
        nll_nats=float(nll.sum()),
        num_targets=int(targets.sum()),
        num_tokens=int(targets.sum()) + 1,
        num_words=400,
        num_bytes=2000,
        document_nll_nats=nll,
        document_targets=targets,
        position_loss_nats=np.array([1.0]),
        target_loss_nats=np.repeat(losses_nats, targets),
        loss_interval=(1.0, 2.0),
    )


def found(metrics, name):
    return next(metric for metric in metrics if metric.name == name)


def test_one_seed_keeps_its_own_numbers_and_is_named():
    metric = found(seed_metrics("stage1", {7: result([1, 2, 3, 2])}), "perplexity")
    assert metric.value == pytest.approx(math.exp((100 + 600 + 150 + 500) / 700))
    assert metric.samples == [metric.value]
    assert metric.labels == ["seed 7"]
    assert metric.interval == pytest.approx((math.e, math.e**2))


def test_several_seeds_give_the_mean_perplexity_not_that_of_the_mean_loss():
    seeds = {0: result([1, 1, 1, 1]), 1: result([3, 3, 3, 3])}
    metrics = seed_metrics("stage1", seeds)
    metric = found(metrics, "perplexity")
    assert metric.value == pytest.approx((math.e + math.e**3) / 2)
    assert metric.labels == ["seed 0", "seed 1"]
    assert found(metrics, "loss").value == pytest.approx(2)
    # documents agree, so only the seeds doubt: resamples are e, the mean, or e^3
    assert metric.interval == pytest.approx((math.e, math.e**3))
    words = found(metrics, "word_perplexity")
    assert words.value == pytest.approx((math.exp(701 / 400) + math.exp(3 * 701 / 400)) / 2)
    assert found(metrics, "num_targets").value == 700


def test_ratio_is_of_means_and_paired_by_seed():
    ours = {0: result([2, 2, 2, 2]), 1: result([2.2, 2.2, 2.2, 2.2]), 5: result([9, 9, 9, 9])}
    theirs = {1: result([2, 2, 2, 2]), 0: result([2, 2, 2, 2])}
    comparison = compare(ours, theirs, "phase2")
    (metric,) = comparison.metrics("stage1")
    assert metric.name == "perplexity_ratio_to_phase2"
    assert metric.value == pytest.approx((math.exp(2) + math.exp(2.2) + math.exp(9)) / 3 / math.exp(2))
    assert comparison.seed_ratios == pytest.approx({0: 1.0, 1: math.exp(0.2)})


def test_documents_are_paired_so_a_constant_advantage_has_no_doubt():
    hard = [1.0, 3.0, 2.0, 5.0]
    comparison = compare({0: result([x - 0.1 for x in hard])}, {0: result(hard)}, "phase2")
    assert comparison.ratio == pytest.approx(math.exp(-0.1))
    assert comparison.interval == pytest.approx((math.exp(-0.1), math.exp(-0.1)))
    unpaired = compare({0: result([1.0, 2.0, 3.0, 4.0])}, {0: result([4.0, 3.0, 2.0, 1.0])}, "phase2")
    assert unpaired.interval[1] / unpaired.interval[0] > 2


def test_different_targets_cannot_be_compared():
    other = dataclasses.replace(result([1, 1, 1, 1]), document_targets=np.array([100, 300, 50, 249]))
    with pytest.raises(ValueError, match="same targets"):
        compare({0: result([1, 1, 1, 1])}, {0: other}, "phase2")


def test_ratios_to_a_baseline_keep_the_weaker_basis_and_skip_what_is_missing():
    def metric(model, value, **more):
        return Metric(name="peak_memory", model=model, value=value, unit="GiB", **more)

    found = [metric("stage1", 1.5, basis="estimate"), metric("phase2", 3.0), metric("gpt2", None), metric("", 9.0)]
    (ratio,) = ratio_metrics(found, "phase2")
    assert (ratio.name, ratio.model, ratio.value, ratio.unit) == ("peak_memory_ratio_to_phase2", "stage1", 0.5, "1")
    assert ratio.basis == "estimate"
    assert ratio_metrics(found, "absent") == []
    assert ratio_metrics([metric("stage1", 1.0), metric("phase2", 0.0)], "phase2") == []


def test_perplexities_without_unk_have_seeds_and_ratios_of_their_own():
    def both(every, others):
        return dataclasses.replace(result(every), without_unk=result(others, TARGETS - 10))

    ours = {0: both([1, 1, 1, 1], [2, 2, 2, 2]), 1: both([1, 1, 1, 1], [3, 3, 3, 3])}
    theirs = {0: both([1, 1, 1, 1], [1, 1, 1, 1])}
    metric = found(seed_metrics("stage1", ours), "perplexity_without_unk")
    assert metric.value == pytest.approx((math.e**2 + math.e**3) / 2)
    assert metric.interval == pytest.approx((math.e**2, math.e**3))
    assert (metric.n, metric.labels) == (660, ["seed 0", "seed 1"])
    assert "40 targets left out" in metric.note
    plain, without = compare(ours, theirs, "phase2").metrics("stage1")
    assert (plain.name, plain.value) == ("perplexity_ratio_to_phase2", pytest.approx(1))
    assert (without.name, without.samples) == ("perplexity_without_unk_ratio_to_phase2", [pytest.approx(math.e)])
    assert without.value == pytest.approx((math.e + math.e**2) / 2)


def test_averaged_trainings_have_names_of_their_own_and_say_which_they_are():
    starts = torch.tensor([0, *(np.cumsum(TARGETS)[:-1] + 1)])
    split = TokenSplit("test", torch.zeros(701, dtype=torch.int32), starts, 400, 2000, "")
    seeds = {3: result([1, 2, 3, 4]), 7: result([3, 2, 1, 0])}
    metrics = ensemble_metrics("stage1", seeds, split)
    assert [metric.name.removeprefix("ensemble_") for metric in metrics] == [
        "trainings", "loss", "perplexity", "word_perplexity", "bits_per_byte"]  # fmt: skip
    assert {metric.model for metric in metrics} == {"stage1"}
    losses = -np.log((np.exp([-1, -2, -3, -4]) + np.exp([-3, -2, -1, 0])) / 2)
    loss = np.dot(losses, TARGETS) / 700
    assert found(metrics, "ensemble_trainings").value == 2
    assert found(metrics, "ensemble_loss").value == pytest.approx(loss)
    metric = found(metrics, "ensemble_perplexity")
    assert metric.value == pytest.approx(math.exp(loss))
    assert (metric.n, metric.samples, metric.labels) == (700, [], ["seed 3", "seed 7"])
    assert math.exp(min(losses)) < metric.interval[0] < metric.value < metric.interval[1] < math.exp(max(losses))
    told = "mean of the probabilities of 2 trainings (seed 3, seed 7); test split; bootstrap over 4 documents"
    assert metric.note == told
    assert found(metrics, "ensemble_bits_per_byte").value == pytest.approx(loss * 701 / 2000 / math.log(2))
    assert ensemble_metrics("stage1", {3: seeds[3]}, split) == []
