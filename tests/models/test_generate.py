from __future__ import annotations

import pytest
import torch

from muse.models.generate import Recurrent, generate
from muse.models.memory_options import MemoryOptions
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model
from muse.models.static_step import choose

REAL = {"numbers": "real", "imaginary_scores": False}


def tiny(mixer="memory", n_seq=64, dropout=0.0, **options):
    config = Phase3Stage1Config(vocab_size=41, d_model=16, n_layers=2, n_seq=n_seq, dropout=dropout, mixer=mixer,
                                use_complex32=False, memory=MemoryOptions(**{"chunk_tokens": 6} | options))  # fmt: skip
    model = Phase3Stage1Model(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


def prompt(batch=2, length=7):
    return torch.randint(41, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [
    {}, {"rotation": "data", "qk_norm": True, "input_scaling": True}, {"rotation": "none", "convolution": 1},
    {"imaginary_scores": False}, {"positions": True}, {"tied": False, "decay": "none"}, REAL | {"rotation": "none"},
    REAL | {"rotation": "data"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("length", [1, 2, 13])
def test_streamed_logits_are_those_of_the_whole_sequence(options, length):
    model, ids = tiny(**options).double(), prompt(length=31)
    want, reader = model(ids), Recurrent(model)
    logits = [reader(ids[:, :length])] + [reader(ids[:, t : t + 1]) for t in range(length, 31)]
    assert (torch.stack(logits, 1) - want[:, length - 1 :]).abs().max() < 1e-10


@pytest.mark.parametrize("mixer", ["memory", "none"])
def test_greedy_stream_is_the_argmax_of_full_forwards(mixer):
    model, ids = tiny(mixer).double(), prompt()  # so that rounding decides between no two tokens
    got = torch.stack(list(model.generate(ids, 20, temperature=0)), 1)
    for _ in range(20):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, ids[:, 7:])


def test_state_keeps_its_size_beyond_n_seq():
    model = tiny(n_seq=8)
    reader, sizes = Recurrent(model), set()
    for token in generate(model, prompt(), 40):
        reader(prompt() if reader.state is None else token[:, None])
        sizes.add(tuple(x.numel() for state in reader.state.blocks for x in vars(state).values()))
        assert all(state.angle.abs().max() < 6.2832 for state in reader.state.blocks)
    assert len(sizes) == 1


def test_window_forgets_what_is_older_than_n_seq():
    model = tiny("none", n_seq=8)
    long, short = prompt(length=8), prompt(length=8).clone()
    short[:, 0] = (short[:, 0] + 1) % 41
    tokens = [torch.stack(list(model.generate(ids, 12, temperature=0)), 1) for ids in (long, short)]
    assert tokens[0].shape == (2, 12)
    assert torch.equal(*tokens)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(20000, 4)

    def shares(**choices):
        given = {"temperature": 1.0, "top_k": None, "top_p": None} | choices
        drawn = choose(logits, *given.values(), torch.Generator().manual_seed(0))
        return (torch.bincount(drawn, minlength=4) / 20000).tolist()

    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.012)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.012)
    assert shares(top_p=0.5) == [1, 0, 0, 0]
    assert shares(top_p=0.51) == pytest.approx([0.625, 0.375, 0, 0], abs=0.012)
    assert shares(top_p=0.8001) == pytest.approx([0.5263, 0.3158, 0.1579, 0], abs=0.012)
    assert shares(temperature=0.5) == pytest.approx([0.6849, 0.2466, 0.0616, 0.0068], abs=0.012)
    assert shares(temperature=0) == [1, 0, 0, 0]


def test_equal_seeds_draw_equal_tokens_and_leave_the_global_generator():
    model = tiny()
    before = torch.get_rng_state()
    first, again, other = (torch.stack(list(model.generate(prompt(), 12, seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off_and_the_mode_comes_back():
    model = tiny(dropout=0.5)
    stream = model.generate(prompt(), 3, temperature=0)
    tokens = [next(stream)]
    assert model.training
    assert all(block.training for block in model.blocks)
    tokens += list(stream)
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(tokens, model.generate(prompt(), 3, temperature=0), strict=True))
    assert not model.training


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(prompt(), 3, **choices)


def test_bad_lengths_are_refused():
    with pytest.raises(ValueError, match="n_new"):
        tiny().generate(prompt(), -1)
    with pytest.raises(ValueError, match="n_seq"):
        tiny("none", n_seq=6).generate(prompt(), 1)
    with pytest.raises(ValueError, match="position table"):
        tiny(positions=True, n_seq=10).generate(prompt(), 5)
    assert len(list(tiny(positions=True, n_seq=10).generate(prompt(), 4))) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_named_with_the_weight(temperature):
    model = tiny()
    stream = model.generate(prompt(), 3, temperature=temperature)
    next(stream)
    model.head_bias.data[2] = float("nan")
    with pytest.raises(ValueError, match=r"new token 2 are not finite.*head_bias holds nan at \[2\]"):
        next(stream)
