"""Rotation by angles from the token: all forms agree, it starts as no rotation, and other models keep their keys."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math

import pytest
import reference
import reference_memory
import torch

from muse.measure.reads import reads_at
from muse.measure.switches import switched, switches_of
from muse.models import stepper
from muse.models.angle_model import AngleConfig, AngleModel
from muse.models.angles import AngleOptions
from muse.models.build import build_model
from muse.models.generate import Recurrent, generate
from muse.models.memory_options import MemoryOptions
from muse.models.pretrained import from_pretrained, save_pretrained
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model
from muse.training.code_key import closure
from muse.training.muon import Muon

REAL = {"numbers": "real", "imaginary_scores": False}
VARIANTS = (
    {}, {"qk_norm": True, "input_scaling": True}, {"imaginary_scores": False}, {"decay": "none", "convolution": 1},
    {"table_rank": 6, "output_gate": False}, REAL, REAL | {"input_scaling": True, "tied": False},
)  # fmt: skip
IDS = torch.randint(41, (2, 37), generator=torch.Generator().manual_seed(0))


def tiny(seed=0, moved=True, **options):
    """V 41, D 14 with H 2, chunks of 5; every parameter moved away from where it starts."""
    memory = AngleOptions(**{"chunk_tokens": 5, "n_heads": 2} | options)
    made = AngleModel(AngleConfig(vocab_size=41, d_model=14, n_layers=2, n_seq=37, use_complex32=False, memory=memory),
                      seed=seed)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters() if moved else ():
        with torch.no_grad():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_logits_and_gradients_match_the_token_by_token_reference(options):
    model, ids = tiny(**options).double(), IDS[:, :17]
    assert all(parameter.requires_grad for parameter in model.parameters())
    reference_memory.check(model, ids)
    assert model.blocks[1].memory.turning.weight.grad.abs().min() > 0
    assert model.blocks[1].memory.writes.weight.grad.abs().min() > 0


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("length", [1, 13])
def test_streams_of_the_blocks_and_of_the_stepper_are_the_whole_sequence(options, length):
    model = tiny(**options).double()
    want = model(IDS)[:, length - 1 :]
    for plain in (True, False):
        reader = Recurrent(model, plain)
        got = [reader(IDS[:, :length])] + [reader(IDS[:, t : t + 1]) for t in range(length, 37)]
        assert (torch.stack(got, 1) - want).abs().max() < 1e-10
        assert (reader.stepper is None) == plain
    assert stepper.knows(model)


def test_the_state_keeps_its_size_and_its_angle_within_one_turn():
    model, sizes = tiny(), set()
    reader = Recurrent(model)
    for token in generate(model, IDS[:, :7], 60, plain=True):
        reader(IDS[:, :7] if reader.state is None else token[:, None])
        sizes.add(tuple(x.numel() for state in reader.state.blocks for x in vars(state).values()))
        assert all((state.angle >= 0).all() and (state.angle < 2 * math.pi).all() for state in reader.state.blocks)
    assert len(sizes) == 1
    written = [torch.stack([*generate(model, IDS[:, :7], 60, plain=plain, temperature=0)]) for plain in (False, True)]
    assert torch.equal(*written)


def test_float32_sums_of_angles_hold_over_a_thousand_tokens():
    memory = tiny().blocks[0].memory
    u = torch.randn(1, 1000, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        memory.turning.weight.mul_(50)  # turns of up to half a circle each
        got, want = memory(u)[0], copy.deepcopy(memory).double()(u.double())[0]
    assert memory.angles(u).abs().max() > 3.1
    assert reference.rms_error(got, want) < 1e-3
    half = copy.deepcopy(memory).half()
    assert half.angles(u.half()).dtype == torch.float32


@pytest.mark.parametrize("d_model", [14, 56, 224])
def test_one_step_of_muon_turns_a_token_by_little_at_any_width(d_model):
    """At most by pi times its rate, here for a token that all of the gradient is about: turns add up over tokens."""
    model = AngleModel(AngleConfig(vocab_size=5, d_model=d_model, n_layers=1, n_seq=8, use_complex32=False))
    memory, u = model.blocks[0].memory, torch.randn(1, 1, 2 * d_model, generator=torch.Generator().manual_seed(4))
    u = u * math.sqrt(2 * d_model) / u.norm()
    memory.turning.weight.grad = torch.zeros_like(memory.turning.weight)
    memory.turning.weight.grad[0] = -u[0, 0]
    Muon([(memory.turning.weight,)], 0.02).step()
    assert 0.6 < memory.angles(u)[0, 0, 0, 0] / (0.02 * math.pi) < 1.3


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_starts_as_the_model_that_does_not_rotate(options):
    model = tiny(seed=3, moved=False, **options | {"d_ff": 9})
    memory = MemoryOptions(**dataclasses.asdict(model.config.memory) | {"rotation": "none"})
    sizes = {name: getattr(model.config, name) for name in ("vocab_size", "d_model", "n_layers", "n_seq")}
    still = Phase3Stage1Model(Phase3Stage1Config(**sizes, mixer="memory", use_complex32=False, memory=memory), seed=3)
    assert torch.equal(model(IDS), still(IDS))
    assert not any(block.memory.angles(torch.randn(1, 3, 28)).any() for block in model.blocks)


def test_a_token_can_leave_everything_as_it_was_and_turn_it_exactly():
    """Decay of exactly 1, writes of exactly 0, and a third of a turn: after three tokens the same is read again."""
    memory = tiny(convolution=1, n_heads=1).blocks[0].memory
    u = torch.zeros(1, 301, 28)
    u[:, 0, 0], u[:, 1:, 1] = 1, 1  # the first token, then the same one again and again
    with torch.no_grad():
        for layer, on_others in ((memory.decay, -60.0), (memory.writes, -200.0)):
            layer.weight.zero_()
            layer.weight[:, 1] = on_others
        memory.turning.weight.zero_()
        memory.turning.weight[:, 1] = math.atanh(2 / 3) * math.sqrt(28)
        y, state = memory.remembered(u)
        _, after_first = memory.remembered(u[:, :1])
    assert torch.equal(memory.log_decay(u).exp()[..., 1:], torch.ones(1, 1, 300))
    assert torch.equal(state.matrix, after_first.matrix)
    turns = torch.polar(torch.ones(14), state.angle[0, 0])
    assert (turns - 1).abs().max() < 2e-3  # a hundred whole turns
    assert reference.rms_error(y[:, :, 4::3], y[:, :, 1:-3:3]) < 2e-3
    assert reference.rms_error(y[:, :, 2], y[:, :, 1]) > 0.1


def test_bad_options_are_refused_in_one_line():
    for make, words in (
        (lambda: AngleConfig(mixer="none"), "rotation 'angles' is of a memory, expected mixer 'memory', got 'none'"),
        (lambda: AngleOptions(rotation="fixed"), "rotation must be 'angles' in a model that rotates by angles"),
        (lambda: AngleOptions(convolution=0), "convolution must be at least 1"),
        (lambda: AngleConfig(memory=MemoryOptions()), "memory: got rotation 'fixed', expected AngleOptions"),
        (lambda: MemoryOptions(rotation="angles"), "rotation must be one of"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            make()
        assert "\n" not in str(error.value)


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    model = tiny()
    save_pretrained(model, tmp_path / "saved")
    found = from_pretrained(tmp_path / "saved")
    assert torch.equal(found(IDS), model.eval()(IDS))
    assert found.config == model.config


def test_reads_and_switches_know_the_angles():
    model = tiny().eval()
    for (layer, head), (rotated, still) in reads_at(model, IDS[0, :20], 19).items():
        memory, z = model.double().blocks[layer].memory, model.embed(IDS[:1, :20])
        for block in model.blocks[:layer]:
            z = block(z)
        read = memory.remembered(model.blocks[layer].memory_norm(z))[0][0, head, -1]
        if head == 0:
            assert reference.rms_error(rotated.total, read) < 1e-9
        assert reference.rms_error(rotated.total, still.total) > 1e-3
    assert "no_rotation" in switches_of(model)
    assert not torch.equal(switched(model, "no_rotation")(IDS), model.float()(IDS))


def test_the_compact_model_with_angles_has_the_size_of_the_compact_one():
    sizes = {"vocab_size": 97, "d_model": 96, "n_layers": 2, "n_seq": 16}
    made, plain = (build_model(name, **sizes) for name in ("stage1_compact_angles", "stage1_compact"))
    counts = [sum(p.numel() for p in model.parameters()) for model in (made, plain)]
    assert isinstance(made, AngleModel)
    assert abs(counts[0] / counts[1] - 1) < 0.02


def test_models_without_angles_keep_the_keys_of_their_trainings():
    """What knows of angles lies in modules that no other model's key covers."""
    ours = {"models/angles.py", "models/angle_model.py"}
    assert ours <= set(closure(inspect.getfile(AngleModel)))
    for name in ("stage1", "stage1_memory", "stage1_compact", "real_twin", "phase2", "gpt2"):
        other = build_model(name, vocab_size=7, d_model=12, n_layers=1, n_seq=8)
        assert not ours & set(closure(inspect.getfile(type(other))))
