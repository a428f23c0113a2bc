"""Steps with weights laid out once: the numbers and the tokens of the blocks' own steps, for every model that steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from muse.catalog import MODEL_NAMES
from muse.models import stepper
from muse.models.build import build_model
from muse.models.generate import Recurrent, generate
from muse.ops import planar

from .test_generate import REAL, prompt, tiny

LOW = {"table_rank": 6}
OPTIONS = [
    *({}, {"rotation": "data", "qk_norm": True, "input_scaling": True}, {"rotation": "none", "convolution": 1}),
    *({"imaginary_scores": False}, {"imaginary_scores": False, "qk_norm": True}, {"positions": True}, {"tied": False}),
    *({"decay": "none", "input_scaling": True}, {"decay": "fixed", "input_scaling": True}, {"output_gate": False}),
    *(
        {"feed_forward": "modrelu"},
        {"n_heads": 2, "d_ff": 5},
        LOW,
        LOW | {"table": "real"},
        LOW | {"adjoint_head": True},
    ),
    *(LOW | {"table": "real", "adjoint_head": True}, REAL | {"rotation": "none"}, REAL | {"rotation": "data"}),
    *(REAL | LOW | {"rotation": "none"}, REAL | LOW | {"rotation": "none", "adjoint_head": True}),
    REAL | {"rotation": "fixed", "output_gate": False, "tied": False},
]
MODELS = [name for name in MODEL_NAMES if name not in ("stage1", "phase2", "phase2_compact", "gpt2")]


def logits_of(reader, ids, length):
    """Logits (B T V) after a prompt of this length and after each token that follows."""
    found = [reader(ids[:, :length]), *(reader(ids[:, t : t + 1]) for t in range(length, ids.shape[1]))]
    return torch.stack(found, 1)


def built(name):
    """An odd vocabulary, some weights away from their initial values."""
    model = build_model(name, vocab_size=37, d_model=24, n_layers=2, n_seq=16, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 5)])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_logits_are_those_of_the_blocks(options, batch, length, dtype, least):
    model, ids = tiny(**options).to(dtype), prompt(batch, 40)
    want, reader = logits_of(Recurrent(model), ids, length), Recurrent(model, plain=False)
    got = logits_of(reader, ids, length)
    assert reader.stepper is not None
    assert got.dtype == dtype
    assert (got - want).abs().max() < least


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_catalog_write_the_same_tokens_far_beyond_n_seq(name):
    model, ids = built(name), torch.randint(37, (3, 7), generator=torch.Generator().manual_seed(1))
    n_new = 10 if model.positions is not None else 40
    for choices in ({"temperature": 0}, {"seed": 5}, {"seed": 6, "top_p": 0.8, "top_k": 20, "temperature": 0.7}):
        got, want = (torch.stack(list(generate(model, ids, n_new, plain=plain, **choices))) for plain in (False, True))
        assert torch.equal(got, want)
    assert stepper.knows(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute", ["auto", "float32"])
@pytest.mark.parametrize("options", [{}, LOW | {"adjoint_head": True}, REAL | {"rotation": "none"}], ids=str)
def test_half_precision_is_as_close_to_the_exact_numbers_as_the_blocks_are(dtype, compute, options):
    model, ids = tiny(**options).to(dtype), prompt(3, 24)
    exact = logits_of(Recurrent(copy.deepcopy(model).double()), ids, 7)
    with planar.cpu_compute(compute):
        got, want = (logits_of(Recurrent(model, plain=plain), ids, 7).double() for plain in (False, True))
    errors = [(found - exact)[:, 1:].square().mean().sqrt() for found in (got, want)]
    assert errors[0] < 1.2 * errors[1]


def test_weights_are_read_once_and_the_state_of_the_prompt_is_left_alone():
    model, ids = tiny(), prompt()
    reader = Recurrent(model)
    reader(ids)
    before = copy.deepcopy(reader.state)
    steps = stepper.Stepper(model, reader.state)
    again = stepper.Stepper(model, reader.state)
    first = steps(ids[:, :1])
    assert torch.equal(reader.state.lengths, before.lengths)
    for state, old in zip(reader.state.blocks, before.blocks, strict=True):
        assert all(torch.equal(getattr(state, name), getattr(old, name)) for name in vars(old))
    with torch.no_grad():
        model.blocks[0].memory.qkv.weight_real.zero_()
    assert torch.equal(again(ids[:, :1]), first)


@pytest.mark.parametrize("options", [{"rotation": "data"}, {"positions": True}], ids=str)
def test_rows_change_their_order_and_go_on(options):
    model, ids = tiny(**options).double(), prompt(3, 12)
    readers = Recurrent(model), Recurrent(model, plain=False)
    for reader in readers:
        reader(ids[:, :5], [5, 2, 4])
        reader(ids[:, 5:6])
        reader.select(torch.tensor([2, 0, 0, 1]))
    want, got = (logits_of(reader, ids[[2, 0, 0, 1], 6:], 1) for reader in readers)
    assert readers[1].stepper is not None
    assert (got - want).abs().max() < 1e-12


def test_no_gradient_and_no_dropout():
    model = tiny(dropout=0.5).train()
    reader = Recurrent(model, plain=False)
    reader(prompt())
    first, second = (reader(prompt()[:, :1]) for _ in range(2))
    assert not first.requires_grad
    reader = Recurrent(model, plain=False)
    reader(prompt())
    assert torch.equal(reader(prompt()[:, :1]), first)
    assert not torch.equal(first, second)
    assert model.training


class Doubled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, z):
        return 2 * self.layer(z)


def wrapped(model):
    model.blocks[1].feed.writing = Doubled(model.blocks[1].feed.writing)


def hooked(model):
    model.blocks[1].memory.qkv.register_forward_hook(lambda module, inputs, output: 2 * output)


def replaced(model):
    norm = model.blocks[0].feed_norm
    norm.forward = lambda z: 2 * type(norm).forward(norm, z)


@pytest.mark.parametrize("change", [wrapped, hooked, replaced])
def test_what_was_put_into_a_model_counts(change):
    model, ids = tiny(), prompt(length=12)
    change(model)
    want = logits_of(Recurrent(model), ids, 5)
    assert not stepper.knows(model)
    assert torch.equal(logits_of(Recurrent(model, plain=False), ids, 5), want)


def test_what_is_not_known_goes_by_the_blocks():
    assert not stepper.knows(tiny("none"))
    assert not stepper.knows(built("phase2"))
    assert not stepper.knows(tiny().half().to("meta"))
    with planar.cpu_compute("storage"):
        assert not stepper.knows(tiny().half())
    with torch.autocast("cpu", torch.bfloat16):
        assert not stepper.knows(tiny())
