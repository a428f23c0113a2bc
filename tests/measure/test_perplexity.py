"""Perplexity against models whose loss is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from measure_toys import Causal, Fixed, Toy

from muse.data.corpus import TokenSplit
from muse.measure.perplexity import NonFiniteBatchError, average_probabilities, measure_perplexity
from muse.records.bootstrap import loss_interval


def split_of(ids, document_starts=(0,), num_words=10, num_bytes=40) -> TokenSplit:
    return TokenSplit(
        name="test",
        ids=torch.tensor(ids, dtype=torch.int32),
        document_starts=torch.tensor(document_starts),
        num_words=num_words,
        num_bytes=num_bytes,
        sha256="",
    )


def by_name(result) -> dict:
    return {metric.name: metric for metric in result.metrics("toy")}


def test_uniform_logits_give_the_vocabulary_size():
    result = measure_perplexity(Fixed([0] * 7, 0.0), split_of([3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0]), n_seq=4, batch_size=2)
    assert result.perplexity == pytest.approx(7, rel=1e-6)
    assert result.num_targets == 10
    assert by_name(result)["word_perplexity"].value == pytest.approx(7 ** (11 / 10), rel=1e-6)
    assert by_name(result)["bits_per_byte"].value == pytest.approx(11 * math.log2(7) / 40, rel=1e-6)


KNOWN = math.log1p(6 * math.exp(-5))  # loss of the one logit of 5 among six of 0


@pytest.mark.parametrize(("shift", "per_token"), [(1, KNOWN), (0, 5 + KNOWN)])
def test_targets_are_the_next_tokens(shift, per_token):
    """Counting up: the successor model knows every target, a model that copies its input knows none."""
    model = Fixed([(token + shift) % 7 for token in range(7)], 5.0)
    result = measure_perplexity(model, split_of([token % 7 for token in range(30)]), n_seq=8, batch_size=2)
    assert result.loss_nats == pytest.approx(per_token, rel=1e-6)


@pytest.mark.parametrize("n_seq", [1, 3, 5, 16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_target_counts_once_whatever_the_windows(n_seq, batch_size):
    ids = torch.randint(8, (38,), generator=torch.Generator().manual_seed(1))
    model = Toy()
    logits = model(ids[None, :-1])[0].double().log_softmax(-1)
    expected = -logits[torch.arange(37), ids[1:]].detach().numpy()
    result = measure_perplexity(model, split_of(ids.tolist(), (0, 5, 20)), n_seq=n_seq, batch_size=batch_size)
    assert result.nll_nats == pytest.approx(expected.sum(), rel=1e-6)
    np.testing.assert_array_equal(result.document_targets, [4, 15, 18])  # token 0 of the split has no target
    parts = np.split(expected, [4, 19])
    np.testing.assert_allclose(result.document_nll_nats, [part.sum() for part in parts], rtol=1e-6)
    np.testing.assert_allclose(result.target_loss_nats, expected, rtol=1e-5)
    np.testing.assert_array_equal(result.target_documents, [0] * 4 + [1] * 15 + [2] * 18)
    (series,) = result.series("toy")
    np.testing.assert_allclose(series.y, [expected[i::n_seq].mean() for i in range(n_seq)], rtol=1e-6)


def test_windows_know_nothing_of_each_other():
    ids = [1, 2, 3, 4, 5, 6, 7, 0, 1]
    model = Causal()
    halves = [measure_perplexity(model, split_of(part), n_seq=16, batch_size=1).nll_nats for part in (ids[:5], ids[4:])]
    assert measure_perplexity(model, split_of(ids), n_seq=4, batch_size=2).nll_nats == pytest.approx(
        sum(halves), rel=1e-6
    )


def test_part_of_a_split_has_no_word_perplexity():
    result = measure_perplexity(Toy(), split_of([1, 2] * 20), n_seq=4, batch_size=2, max_batches=3)
    found = by_name(result)
    assert result.num_targets == found["num_targets"].value == 24
    assert found["word_perplexity"].value is None
    assert found["bits_per_byte"].value is None
    assert "24 of 39" in found["perplexity"].note


@pytest.mark.parametrize(
    ("index", "place"), [(5, "batch 0, window 1, position 1"), (12, "batch 2, window 3, position 0")]
)
def test_a_non_finite_loss_stops_the_measurement_and_is_named(index, place):
    """Three whole windows in batches of two and one, then a tail of one target."""
    ids = [1] * 14
    ids[index] = 5
    model = Toy()
    with torch.no_grad():
        model.embedding.weight[5] = math.nan
    with pytest.raises(NonFiniteBatchError, match=place):
        measure_perplexity(model, split_of(ids), n_seq=4, batch_size=2)


def test_the_mode_of_every_module_is_put_back():
    model = Toy().train()
    model.head.eval()
    measure_perplexity(model, split_of([1, 2, 3]), n_seq=4, batch_size=1)
    assert model.training
    assert not model.head.training


def test_a_loss_whose_exponential_overflows_keeps_its_loss():
    result = measure_perplexity(Fixed([0, 0], 1000.0), split_of([0, 1, 1, 1]), n_seq=4, batch_size=1)
    found = by_name(result)
    assert found["loss"].value == pytest.approx(1000, rel=1e-6)
    assert found["perplexity"].value is None
    assert "overflow" in found["perplexity"].note


def test_bootstrap_interval_is_that_of_the_ratio_estimator():
    """Documents of equal length: the standard error is that of the mean of the document means."""
    generator = np.random.default_rng(3)
    means = generator.normal(4, 0.5, 400)
    low, high = loss_interval(means * 50, np.full(400, 50))
    error = means.std() / math.sqrt(400)
    assert low == pytest.approx(means.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(means.mean() + 1.96 * error, abs=0.2 * error)
    assert loss_interval(means * 50, np.full(400, 50)) == (low, high)


def test_bootstrap_weighs_documents_by_their_targets():
    low, high = loss_interval(np.array([1000.0, 9.0, 0.0]), np.array([1000, 1, 0]))
    assert (low, high) == (pytest.approx(1), pytest.approx(9))
    low, high = loss_interval(np.array([1000.0] * 50 + [9.0]), np.array([1000] * 50 + [1]))
    assert high < 1.01  # a rare short document hardly moves the mean per token
    assert loss_interval(np.array([3.0]), np.array([2])) is None


def test_a_split_without_targets_is_an_error():
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        measure_perplexity(Toy(), split_of([1]), n_seq=4, batch_size=1)


@pytest.mark.parametrize("max_batches", [None, 3])
def test_without_unk_only_the_other_targets_count(max_batches):
    """Documents and numbers of targets by hand: pieces 3 to 5 and 21 of 38 tokens lie inside an <unk>."""
    ids = torch.randint(8, (38,), generator=torch.Generator().manual_seed(1)).tolist()
    inside = torch.zeros(38, dtype=torch.bool)
    inside[[3, 4, 5, 21]] = True
    model, whole = Toy(), split_of(ids, (0, 5, 20))
    marked = replace(whole, inside_unk=inside)
    result = measure_perplexity(model, marked, n_seq=4, batch_size=2, max_batches=max_batches)
    logits = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    losses = -logits[torch.arange(37), torch.tensor(ids[1:])].detach().numpy()[: result.num_targets]
    others = ~inside[1 : result.num_targets + 1].numpy()
    found = by_name(result)["perplexity_without_unk"]
    assert found.value == pytest.approx(math.exp(losses[others].mean()), rel=1e-6)
    assert (found.n, found.unit) == (others.sum(), "per token")
    assert found.interval[0] < found.value < found.interval[1]
    assert found.note.startswith("4 targets left out: second and later pieces of <unk>; test split")
    assert ("first 20 of 33 targets only" in found.note) == (max_batches is not None)
    unmarked = measure_perplexity(model, whole, n_seq=4, batch_size=2, max_batches=max_batches)
    assert by_name(result)["perplexity"] == by_name(unmarked)["perplexity"]
    assert result.without_unk.document_targets.tolist() == [2, 14, 17] if max_batches is None else [2, 14, 4]


def test_without_unk_is_not_told_where_no_target_is_left_out():
    early = replace(split_of([1, 2] * 20), inside_unk=torch.arange(40) == 39)
    assert "perplexity_without_unk" in by_name(measure_perplexity(Toy(), early, n_seq=4, batch_size=2))
    for split, batches in ((early, 3), (split_of([1, 2] * 20), None)):
        result = measure_perplexity(Toy(), split, n_seq=4, batch_size=2, max_batches=batches)
        assert "perplexity_without_unk" not in by_name(result)


def test_averaged_probabilities_are_those_of_each_target():
    """Against the mean of the softmax outputs themselves; documents, positions and <unk> as for a single model."""
    ids = torch.randint(8, (38,), generator=torch.Generator().manual_seed(1)).tolist()
    split = replace(split_of(ids, (0, 5, 20)), inside_unk=torch.arange(38) % 5 == 3)
    models = [Toy(), Causal(), Fixed([(token + 1) % 8 for token in range(8)], 6.0)]
    results = [measure_perplexity(model, split, n_seq=40, batch_size=1) for model in models]
    averaged = average_probabilities(results, split)
    chances = torch.stack([model(torch.tensor([ids[:-1]]))[0].double().softmax(-1) for model in models]).mean(0)
    expected = -chances[torch.arange(37), torch.tensor(ids[1:])].log().detach().numpy()
    np.testing.assert_allclose(averaged.target_loss_nats, expected, rtol=1e-5)
    assert averaged.loss_nats == pytest.approx(expected.mean(), rel=1e-5)
    assert averaged.loss_nats < min(result.loss_nats for result in results)
    parts = [part.sum() for part in np.split(expected, [4, 19])]
    np.testing.assert_allclose(averaged.document_nll_nats, parts, rtol=1e-5)
    np.testing.assert_allclose(averaged.position_loss_nats[:37], expected, rtol=1e-5)
    others = ~split.inside_unk[1:].numpy()
    assert averaged.without_unk.loss_nats == pytest.approx(expected[others].mean(), rel=1e-5)


def test_averaged_probabilities_that_underflow_keep_their_loss():
    """exp(-3000) is 0 in double precision."""
    split = split_of([0, 1, 1, 1])
    results = [measure_perplexity(Fixed([0, 0], loss), split, n_seq=4, batch_size=1) for loss in (3000.0, 4000.0)]
    averaged = average_probabilities(results, split)
    assert averaged.loss_nats == pytest.approx(3000 + math.log(2), rel=1e-6)
