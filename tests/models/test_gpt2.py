"""The gpt2 yardstick: the library's model unchanged, behind the protocol all models share."""

import math

import pytest
import torch
import torch.nn.functional as F

from muse.models.gpt2 import Gpt2Config, Gpt2Model

TINY = {"vocab_size": 53, "d_model": 32, "n_layers": 2, "n_seq": 64}


def random_ids(vocab_size, *shape, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_published_size_counts_and_starts_near_uniform():
    model = Gpt2Model(Gpt2Config())
    groups = model.parameter_groups()
    assert sum(groups.values()) == sum(p.numel() for p in model.parameters()) == 45_171_200
    assert groups["embedding"] == 50257 * 512
    assert model.config.n_heads == 8
    loss = model.loss(random_ids(50257, 1, 65), random_ids(50257, 1, 65, seed=1))
    assert loss.item() == pytest.approx(math.log(50257), rel=0.02)


def test_logits_and_loss_are_those_of_the_library():
    model = Gpt2Model(Gpt2Config(**TINY)).eval()
    ids = random_ids(53, 3, 37)
    with torch.no_grad():
        library = model.gpt2(input_ids=ids, labels=ids)
        torch.testing.assert_close(model(ids), library.logits)
        torch.testing.assert_close(model.loss(ids[:, :-1], ids[:, 1:]), library.loss)
        torch.testing.assert_close(F.linear(model.features(ids), *model.head_parameters()), library.logits)
        assert model.loss(ids, ids, reduction="none").shape == (3, 37)
    assert model.gpt2.config._attn_implementation == "sdpa"
    assert model.head_parameters()[0] is model.gpt2.lm_head.weight


def test_a_token_changes_later_logits_and_no_earlier_ones_and_no_state_is_kept():
    model = Gpt2Model(Gpt2Config(**TINY)).eval()
    ids = random_ids(53, 2, 37)
    other = ids.clone()
    other[0, 20] = (other[0, 20] + 1) % 53
    with torch.no_grad():
        before = model(ids)
        change = (model(other) - before).abs().amax(-1)
        assert torch.equal(model(ids), before)
    assert change[0, :20].max() <= 1e-6
    assert change[1].max() <= 1e-6
    assert (change[0, 20:] > 1e-5).all()


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first = Gpt2Model(Gpt2Config(**TINY), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(77)
    second, other = Gpt2Model(Gpt2Config(**TINY), seed=3), Gpt2Model(Gpt2Config(**TINY), seed=4)
    torch.random.set_rng_state(state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.gpt2.transformer.wte.weight, other.gpt2.transformer.wte.weight)


def test_overfits_one_batch_and_repeats_itself():
    def run(steps):
        model = Gpt2Model(Gpt2Config(**TINY))
        ids = random_ids(53, 4, 34)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    losses = run(50)
    assert losses[-1] < 0.3
    assert run(5) == losses[:5]


def test_dropout_acts_in_training_only():
    model = Gpt2Model(Gpt2Config(**TINY, dropout=0.5))
    ids = random_ids(53, 2, 19)
    with torch.no_grad():
        assert not torch.allclose(model(ids), model(ids))
        model.eval()
        assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("change", [{"d_model": 0}, {"n_heads": 5}, {"dropout": 1.0}, {"n_layers": -1}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}.*got"):
        Gpt2Config(**{**TINY, **change})


def test_wrong_token_ids_are_refused():
    model = Gpt2Model(Gpt2Config(**TINY))
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(1, 65, dtype=torch.int64), torch.full((1, 2), 53)):
        with pytest.raises(ValueError, match="got"):
            model.features(bad)
