"""The terms of a read must add up to what the model's own memory gives, by chunks and step by step."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from muse.measure.reads import Read, most_turned, read_at, reads_at, states, traffic
from muse.measure.switches import SWITCHES, next_tokens, switched, switches_of, token_losses
from muse.models.build import build_model
from muse.models.memory_options import MemoryOptions
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model

SIZES = {"vocab_size": 31, "d_model": 16, "n_layers": 2, "n_seq": 48}
IDS = torch.randint(31, (41,), generator=torch.Generator().manual_seed(1))
KINDS = (
    {},
    {"rotation": "data"},
    {"rotation": "none"},
    {"decay": "fixed"},
    {"decay": "none"},
    {"imaginary_scores": False},
    {"convolution": 1, "qk_norm": True},
    {"input_scaling": True, "rotation": "data"},
    {"positions": True, "table_rank": 8},
)


def perturbed(options=None, dtype=torch.float64):
    """A model whose learned corrections are no longer zero."""
    model = Phase3Stage1Model(
        Phase3Stage1Config(**SIZES, use_complex32=False, mixer="memory", memory=MemoryOptions(**(options or {})))
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "embedding" not in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval()


def remembered(model, layer):
    """What the model's own memory reads (H T X), by its chunks."""
    with torch.no_grad():
        z = model.embed(IDS[None])
        for block in model.blocks[:layer]:
            z = block(z)
        return model.blocks[layer].memory.remembered(model.blocks[layer].memory_norm(z))[0][0]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("chunk", [7, 64])
def test_contributions_add_up_to_what_the_memory_reads(options, chunk):
    model = perturbed(options | {"chunk_tokens": chunk})
    for layer in (0, 1):
        read = remembered(model, layer)
        for head, position in ((0, 0), (1, 19), (3, 40)):
            found = read_at(model, IDS, layer, head, position)
            assert found.contributions.shape == (position + 1, read.shape[-1])
            torch.testing.assert_close(found.total, read[head, position], rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(found.contributions.sum(0), found.total, rtol=1e-12, atol=1e-15)
            assert found.signed.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_weight_turns_and_scales_what_its_token_wrote():
    model = perturbed()
    found = read_at(model, IDS, 1, 2, 30)
    sizes = found.contributions.norm(dim=-1) / found.weights.abs()
    other = read_at(model, IDS, 1, 2, 25)  # another reader of the same writes
    torch.testing.assert_close(sizes[:26], other.contributions.norm(dim=-1) / other.weights.abs())
    assert found.weights.imag.abs().max() > 1e-8
    assert read_at(perturbed({"imaginary_scores": False}), IDS, 1, 2, 30).weights.imag.abs().max() == 0


def test_without_rotation_is_the_read_of_a_model_whose_head_does_not_rotate():
    model = perturbed()
    plain = copy.deepcopy(model)
    plain.blocks[1].memory.turn_bias.data.fill_(-torch.inf)  # frequencies of 0
    with_it, without = (read_at(model, IDS, 1, 0, 40, rotated=rotated) for rotated in (True, False))
    torch.testing.assert_close(without.total, remembered(plain, 1)[0, 40], rtol=1e-10, atol=1e-14)
    assert (with_it.total - without.total).norm() > 0.01 * without.total.norm()


def test_all_heads_read_at_once_read_what_each_reads():
    model = perturbed()
    found = reads_at(model, IDS, 30)
    assert list(found) == [(layer, head) for layer in (0, 1) for head in range(4)]
    for (layer, head), both in found.items():
        for rotated, one in zip((True, False), both, strict=True):
            other = read_at(model, IDS, layer, head, 30, rotated=rotated)
            torch.testing.assert_close(one.contributions, other.contributions, rtol=0, atol=0)


def test_the_head_that_rotation_moves_furthest_is_found_beside_its_own_layer():
    """Head (1, 0) moves by less than (0, 0), but its layer reads less; (0, 1) turns all of a small read."""

    def reads(rotated, plain):
        return tuple(Read(torch.tensor([total]), torch.tensor(total), torch.ones(1)) for total in (rotated, plain))

    found = {(0, 0): reads([8.0, 0.0], [8.0, 4.0]), (0, 1): reads([0.1, 0.0], [-0.1, 0.0])}
    assert most_turned(found) == (0, 0)
    assert most_turned(found | {(1, 0): reads([2.0, 0.0], [2.0, 3.0])}) == (1, 0)


def test_states_are_the_stream_behind_each_layer():
    model = perturbed()
    found = states(model, IDS)
    assert (found.shape, found.dtype) == ((3, 41, 16), torch.complex128)
    with torch.no_grad():
        z = model.embed(IDS[None])[0]
        torch.testing.assert_close(torch.cat([found[0].real, found[0].imag], -1), z)
        logits = model(IDS[None])[0]
    torch.testing.assert_close(states(model, IDS[:9]), found[:, :9])  # no token sees what comes after it
    with torch.no_grad():
        features = model.read(torch.cat([found[2].real, found[2].imag], -1))
        torch.testing.assert_close(torch.nn.functional.linear(features, *model.head_parameters()), logits)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_traffic_is_what_a_memory_of_one_token_more_holds(options):
    model = perturbed(options)
    found = traffic(model, IDS)
    assert found.kept.shape == found.written.shape == found.held.shape == (2, 4, 41)
    with torch.no_grad():
        state = model.blocks[0].prefill(model.embed(IDS[None]))[1].matrix
    torch.testing.assert_close(found.held[0, :, -1], state[0].flatten(1).norm(dim=-1))
    torch.testing.assert_close(found.held[..., 0], found.written[..., 0])  # the first token finds an empty memory
    torch.testing.assert_close(found.new[..., 0], torch.ones(2, 4, dtype=torch.float64))
    assert (found.held[..., 1:] <= found.kept[..., 1:] * found.held[..., :-1] + found.written[..., 1:] + 1e-12).all()
    if options.get("decay") == "none":
        assert found.forgotten.abs().max() == 0
    else:
        assert 0 < found.forgotten.min() <= found.forgotten.max() < 1


def test_places_that_are_not_there_and_models_without_complex_memory_are_named():
    model = perturbed()
    for place, expected in (
        ((2, 0, 0), "layer: got 2, expected 0 to 1"),
        ((0, 4, 0), "head: got 4, expected 0 to 3"),
        ((0, 0, 41), "position: got 41, expected 0 to 40"),
        ((0, 0, -1), "position: got -1, expected 0 to 40"),
    ):
        with pytest.raises(ValueError, match=expected):
            read_at(model, IDS, *place)
    for name in ("phase2", "stage1", "real_twin"):
        for ask in (states, traffic):
            with pytest.raises(ValueError, match=r"model: got .*Model without complex memory, expected"):
                ask(build_model(name, **SIZES), IDS)
    with pytest.raises(ValueError, match="expected 1 to 48 tokens"):
        states(model, IDS.repeat(2))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("kind", ["half", "float32"])
def test_a_switch_leaves_the_model_as_it_was(name, kind):
    model = perturbed(dtype=torch.float32)
    model = model.to_complex32() if kind == "half" else model
    before, losses = copy.deepcopy(model.state_dict()), token_losses(model, IDS)
    changed = token_losses(switched(model, name), IDS)
    assert torch.equal(token_losses(model, IDS), losses)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())
    as_it_is = token_losses(model.float(), IDS) if kind == "half" else losses
    assert torch.equal(changed, as_it_is) == (name == "float32")


def test_each_switch_changes_what_its_name_says():
    model = perturbed(dtype=torch.float32)
    slow = copy.deepcopy(model)
    for block in slow.blocks:
        block.memory.turn_bias.data.fill_(-torch.inf)
    torch.testing.assert_close(token_losses(switched(model, "no_rotation"), IDS), token_losses(slow, IDS))
    assert traffic(switched(model, "no_decay"), IDS).forgotten.abs().max() == 0
    assert states(switched(model, "no_imaginary"), IDS).imag.abs().max() == 0
    assert states(model, IDS).imag.abs().max() > 0
    for name, dtype in (("bfloat16", torch.bfloat16), ("complex32", torch.float16)):
        assert {p.dtype for p in switched(model, name).parameters()} == {dtype}
    scaled = perturbed({"input_scaling": True}, torch.float32)  # writes are scaled by what is forgotten: not by nothing
    assert traffic(switched(scaled, "no_decay"), IDS).written.min() > 0


def test_only_what_a_model_has_can_be_switched():
    formats = ["float32", "bfloat16"]
    assert switches_of(build_model("phase2", **SIZES)) == formats
    assert switches_of(build_model("stage1", **SIZES)) == [*formats, "complex32"]
    assert switches_of(perturbed({"rotation": "none"})) == [*formats, "complex32", "no_decay", "no_imaginary"]
    assert switches_of(perturbed()) == list(SWITCHES)
    with pytest.raises(ValueError, match="got Phase2Model without complex memory"):
        switched(build_model("phase2", **SIZES), "no_decay")


@pytest.mark.parametrize("name", ["stage1_memory", "phase2", "gpt2"])
def test_surprise_and_next_tokens_are_those_of_the_logits(name):
    model = build_model(name, **SIZES).eval()
    with torch.no_grad():
        logs = model(IDS[None])[0].double().log_softmax(-1)
    losses = token_losses(model, IDS)
    assert losses.shape == (40,)
    torch.testing.assert_close(losses.double(), -logs[:-1].gather(1, IDS[1:, None])[:, 0], rtol=1e-5, atol=1e-5)
    found = next_tokens(model, IDS, 5)
    assert [index for index, _ in found] == logs[-1].topk(5).indices.tolist()
    assert [share for _, share in found] == pytest.approx(logs[-1].topk(5).values.exp().tolist(), rel=1e-5)
    assert sum(share for _, share in next_tokens(model, IDS, 99)) == pytest.approx(1)
    with pytest.raises(ValueError, match="expected 2 to 48 tokens"):
        token_losses(model, IDS[:1])


def test_a_look_leaves_the_model_as_it_was():
    model = perturbed(dtype=torch.float32).to_complex32().train()
    before = copy.deepcopy(model.state_dict())
    for look in (states, traffic, lambda model, ids: read_at(model, ids, 0, 0, 3), token_losses):
        look(model, IDS)
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())


def test_options_of_a_switched_copy_are_its_own():
    model = perturbed()
    options = dataclasses.asdict(model.blocks[0].memory.options)
    assert switched(model, "no_rotation").blocks[0].memory.options.rotation == "none"
    assert dataclasses.asdict(model.blocks[0].memory.options) == options
