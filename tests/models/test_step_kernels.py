"""The kernels of one token's step against the Stepper's own form: logits, states, tokens, and what is not finite."""

from __future__ import annotations

import contextlib

import pytest
import torch
from devices import CUDA, DEVICE, interpret, needs_kernels

from muse.models import states
from muse.models.static_step import StaticStep, generators
from muse.models.stepper import Stepper
from muse.ops import operator, step

from .test_generate import REAL, prompt, tiny
from .test_stepper import LOW, MODELS, built

kernels = step.step_triton
needs_kernels = needs_kernels(kernels)
SERVED = [
    *({}, {"rotation": "none", "convolution": 1}, {"imaginary_scores": False}, {"decay": "none"}, {"decay": "fixed"}),
    *({"tied": False}, {"output_gate": False}, {"n_heads": 2, "d_ff": 5}, {"convolution": 2}, LOW),
    *(LOW | {"table": "real"}, LOW | {"adjoint_head": True}, REAL | {"rotation": "none"}),
    *(REAL | LOW | {"rotation": "none"}, REAL | {"rotation": "fixed", "output_gate": False, "tied": False}),
]
NOT_SERVED = [
    *({"rotation": "data"}, {"qk_norm": True}, {"input_scaling": True}, {"feed_forward": "modrelu"}),
    {"positions": True},
]
CATALOG = MODELS if CUDA else ["stage1_memory", "stage1_compact", "real_twin_compact"]
READ, WRITTEN = (5, 8) if CUDA else (2, 3)  # tokens; the interpreter is slow
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.15}
"""Of logits near 1, by a few products in this dtype; interpreted, numbers are cut off, not rounded."""


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    interpret(monkeypatch)


def both(model, batch, length):
    """Steps by their own form and by kernels, from the same state, and what they read next."""
    ids = prompt(batch, length + 5).to(DEVICE)
    with operator.plain_forms():
        state = states.read(model, ids[:, :length])
        plain = Stepper(model, state)
    assert plain.kernels is None
    return plain, Stepper(model, state), ids[:, length:]


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-3)).item()


@needs_kernels
@pytest.mark.parametrize("options", SERVED, ids=str)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 5)] if CUDA else [(1, 3)])
def test_logits_and_states_are_those_of_the_plain_steps(options, batch, length):
    plain, fast, ids = both(tiny(**options).to(DEVICE), batch, length)
    assert fast.kernels is not None
    for token in ids[:, :READ].split(1, 1):
        assert relative(fast(token), plain(token)) < 1e-5
    for got, want in zip(fast.buffers(), plain.buffers(), strict=True):
        if want.numel():
            assert relative(got.double(), want.double()) < 1e-5


@needs_kernels
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("batch", [1, 2, 3, 64] if CUDA else [1, 3])
def test_every_dtype_and_batch(dtype, batch):
    plain, fast, ids = both(tiny(**LOW).to(DEVICE, dtype), batch, 4)
    for token in ids[:, :READ].split(1, 1):
        assert relative(fast(token), plain(token)) < ROUNDING[fast.compute]


@needs_kernels
@pytest.mark.parametrize("name", CATALOG)
def test_models_of_the_catalog_write_the_tokens_of_the_plain_steps(name):
    model = built(name).to(DEVICE)
    ids = torch.randint(37, (2, 7), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with operator.plain_forms():
        state = states.read(model, ids)
    for choices, seed in (((0.0, None, None), 0), ((0.7, 20, 0.8), [6, 7])):
        found = []
        for plain in (True, False):
            with operator.plain_forms() if plain else contextlib.nullcontext():
                stepper = Stepper(model, state)
            drawing = generators(seed, 2, ids.device) if choices[0] else []
            static = StaticStep(stepper, ids[:, -1:], *choices, drawing, capture=False)
            found.append(torch.stack([static() for _ in range(WRITTEN)], 1))
            assert static.first_bad() is None
            assert static.index.tolist() == [WRITTEN, WRITTEN]
        assert torch.equal(*found)


@needs_kernels
def test_states_may_lie_in_any_order():
    """Kernels go by places, so a state of other strides is laid out anew."""
    model, ids = tiny().to(DEVICE), prompt(2, 4).to(DEVICE)
    with operator.plain_forms():
        state = states.read(model, ids[:, :3])
    turned = state._mapped(lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.ndim > 1 else x)
    assert not turned.blocks[0].matrix.is_contiguous()
    with torch.no_grad():
        got, want = (Stepper(model, one)(ids[:, 3:]) for one in (turned, state))
    assert torch.equal(got, want)


@needs_kernels
@pytest.mark.parametrize("options", NOT_SERVED, ids=str)
def test_what_kernels_do_not_compute_goes_by_the_plain_steps(options):
    assert both(tiny(**options).to(DEVICE), 1, 3)[1].kernels is None
    assert both(tiny().to(DEVICE).double(), 1, 3)[1].kernels is None


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf")] if CUDA else [float("nan")])
def test_the_first_step_that_is_not_finite_is_named(value):
    _, fast, ids = both(tiny().to(DEVICE), 2, 3)
    static = StaticStep(fast, ids[:, :1], 0.0, None, None, [], capture=False)
    static(), static()
    assert static.first_bad() is None
    fast.head.bias[3] = value
    static(), static()
    assert static.first_bad() == 2


@needs_kernels
def test_of_equal_logits_the_first_token_is_chosen(monkeypatch):
    monkeypatch.setattr(kernels, "CHOSEN_LOGITS", 16)
    logits = torch.tensor([[0.0] * 40 + [3.0, 3.0] + [1.0] * 7, [-5.0] * 20 + [-4.0] * 29]).to(DEVICE)
    token, index, bad = (torch.full((2,), start, device=DEVICE) for start in (0, 7, -1))
    kernels.chosen(logits, token, index, bad)
    assert (token.tolist(), index.tolist(), bad.tolist()) == ([40, 20], [8, 8], [-1, -1])


@needs_kernels
@pytest.mark.parametrize("rows", [1, 3, 4, 5])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (7, 40), (50, 1100)])
def test_a_product_of_a_few_columns(rows, outputs, inputs):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, 2 * inputs), (outputs, inputs), (outputs,)
    x, w, b = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in shapes)
    for bias in (None, b):
        want = x[:, :inputs].double() @ w.double().t() + (0 if bias is None else bias.double())
        assert relative(kernels.product(x[:, :inputs], w, bias).double(), want) < 1e-5
