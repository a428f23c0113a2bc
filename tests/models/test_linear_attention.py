"""The memory mixer's kernels against its PyTorch form, and what the two share."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math

import pytest
import reference
import torch
from devices import DEVICE, INTERPRETED, interpret, needs_kernels

from muse.models.linear_attention import MemoryMixer
from muse.models.memory_options import CHOICES, MemoryOptions
from muse.ops import gate, planar, qkv

REAL = {"numbers": "real", "imaginary_scores": False}
OPTIONS = (
    {}, {"rotation": "data"}, {"rotation": "none", "convolution": 1}, {"convolution": 3, "output_gate": False},
    {"qk_norm": True}, {"input_scaling": True, "convolution": 1}, REAL, REAL | {"rotation": "data", "convolution": 2},
    REAL | {"rotation": "none", "output_gate": False},
)  # fmt: skip
SIZES = (
    (3, 131, 96, 4),
    (1, 2, 24, 2),
    (5, 64, 128, 2),
    (2, 37, 42, 3),
)  # B T D H; H of complex numbers, even for real
SIZES = ((3, 11, 12, 2),) if INTERPRETED else SIZES
MODES = list(itertools.product([False, True], [None, torch.bfloat16]))[:: 3 if INTERPRETED else 1]
BACKEND = "aot_eager" if INTERPRETED else "inductor"
needs_kernels = needs_kernels(qkv.qkv_triton)


@pytest.fixture
def kernels(monkeypatch):
    """As on CUDA with the interpreter, too: tokens and batch still make several programs."""
    if INTERPRETED:
        before, after = qkv.qkv_triton, gate.gate_triton
        for module, stem in ((before, "PREPARE"), (after, "WRITE"), (after, "WRITE_BACKWARD")):
            monkeypatch.setattr(module, f"{stem}_PAIRS", 64)
            monkeypatch.setattr(module, f"{stem}_BATCHES", 2)
        monkeypatch.setattr(before, "PREPARE_BACKWARD_PAIRS", 16)
        monkeypatch.setattr(before, "PREPARE_BACKWARD_TOKENS", 4)
        interpret(monkeypatch)


def noise(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(d_model, heads, **options):
    """A mixer whose parameters are all different from what they start with."""
    made = MemoryMixer(d_model, MemoryOptions(n_heads=heads, chunk_tokens=16, **options), 100.0, 4.0)
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(0.3 * noise(*parameter.shape, seed=i))
    return made


def everything(made, u, call=None):
    """Output, state, and the gradients of input and parameters for one fixed gradient of the output."""
    u = u.clone().requires_grad_()
    made.zero_grad()
    out, state = (made if call is None else call)(u)
    out.backward(noise(*out.shape, seed=99).to(out))
    gradients = {name: parameter.grad for name, parameter in made.named_parameters()}
    state = {"matrix": state.matrix, "angle": state.angle, "recent": state.recent}
    return {"out": out, "u": u.grad} | state | gradients


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9])
def test_the_state_goes_on_where_the_tokens_ended(tokens, taps):
    """What the convolution still sees, zeros before the first token included."""
    made, u = randomised(8, 2, convolution=taps).double(), noise(2, tokens + 1, 16, seed=1)
    with torch.no_grad():
        want, _ = made(u)
        _, state = made(u[:, :-1])
        got, _ = made.step(u[:, -1:], state)
    assert state.recent.shape == (2, taps - 1, 48)
    assert reference.rms_error(got[:, 0], want[:, -1]) < 1e-12


@pytest.mark.parametrize("numbers", [{}, REAL], ids=str)
@pytest.mark.parametrize("rotation", CHOICES["rotation"])
def test_all_tokens_at_once_are_single_steps_by_every_rotation(rotation, numbers):
    """Outputs, and a state whose angle lies in one turn whatever was gone round before."""
    made, u = randomised(8, 4, rotation=rotation, **numbers).double(), noise(2, 37, 16, seed=1)
    with torch.no_grad():
        want, end = made(u)
        first, state = made(u[:, :1])
        steps = [first]
        for t in range(1, u.shape[1]):
            got, state = made.step(u[:, t : t + 1], state)
            steps.append(got)
    assert reference.rms_error(torch.cat(steps, 1), want) < 1e-12
    assert reference.rms_error(state.matrix, end.matrix) < 1e-12
    assert reference.rms_error(*(torch.polar(torch.ones_like(x.angle), x.angle) for x in (state, end))) < 1e-12
    assert end.angle.shape == state.angle.shape == (2, made.n_heads, made.head_width // 2)
    assert (end.angle >= 0).all()
    assert (end.angle < 2 * math.pi).all()
    assert end.angle.any() == (rotation != "none")


@needs_kernels
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("compiled", "autocast"), MODES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cuda_kernels_are_the_pytorch_form(options, autocast, compiled, monkeypatch):
    """As near to float64 as the PyTorch form, up to the luck of rounding, in outputs, state and every gradient."""
    torch.compiler.reset()
    for batch, tokens, d_model, heads in SIZES[: 1 if compiled else None]:
        if "numbers" in options and (heads % 2 or (2 * d_model // heads) % 2):
            continue
        if autocast and tokens < 10:
            continue  # the rounding of products outside of the kernels decides
        made = randomised(d_model, heads, **options).to(DEVICE)
        u = noise(batch, tokens, 2 * d_model, seed=7).float().to(DEVICE)
        want = everything(copy.deepcopy(made).double(), u.double())
        context = torch.autocast(DEVICE, autocast) if autocast else contextlib.nullcontext()
        with context:
            got = everything(made, u, torch.compile(made, fullgraph=True, backend=BACKEND) if compiled else None)
            with monkeypatch.context() as patch:
                patch.setattr(qkv, "qkv_triton", None)
                patch.setattr(gate, "gate_triton", None)
                plain = everything(copy.deepcopy(made), u)
        for name, value in got.items():
            assert (value.dtype, value.shape) == (plain[name].dtype, plain[name].shape), name
            if value.numel() and want[name].any():
                luck = 3e-2 if autocast else 2e-4  # the gradient of what turns adds up T angles
                bound = 4 * reference.rms_error(plain[name], want[name]) + luck
                assert reference.rms_error(value, want[name]) < bound, (name, batch, tokens, d_model, heads)
            else:
                assert not value.any(), name


@needs_kernels
@pytest.mark.usefixtures("kernels")
def test_cuda_kernels_give_the_served_form_and_equal_sums_in_equal_runs():
    batch, tokens, d_model, heads = SIZES[0]
    made, u = randomised(d_model, heads).to(DEVICE), noise(batch, tokens, 2 * d_model, seed=7).float().to(DEVICE)
    first, again = everything(made, u), everything(copy.deepcopy(made), u)
    for name in ("taps", "turn_bias", "norm_gain"):
        assert torch.equal(first[name], again[name])
    with torch.no_grad(), planar.cpu_compute("storage"):
        served, state = copy.deepcopy(made).half()(u.half())
    assert served.dtype == state.recent.dtype == torch.float16
    assert reference.rms_error(served, first["out"]) < 2e-2


@needs_kernels
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("planes", "width"), [(2, 704), (1, 1500), (2, 5)])
def test_cuda_gate_is_the_pytorch_form(planes, width, dtype):
    inputs = [noise(3, 7, n * width, seed=n).to(DEVICE, dtype).requires_grad_() for n in (planes, 1)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, want = (gate.gated(*x, planes) for x in (inputs, exact))
    upstream = noise(*got.shape, seed=5).to(got)
    pairs = zip(
        (got, *torch.autograd.grad(got, inputs, upstream)),
        (want, *torch.autograd.grad(want, exact, upstream.double())),
        strict=True,
    )
    for value, expected in pairs:
        assert value.dtype == dtype
        assert reference.rms_error(value, expected) < {2: 1e-2, 4: 1e-6}[dtype.itemsize]
