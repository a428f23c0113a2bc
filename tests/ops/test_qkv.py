"""The kernels before the matrix memory against their PyTorch form, above all where tokens bring their own rotation."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F
from devices import DEVICE, INTERPRETED, interpret, needs_kernels

from muse.ops import qkv

kernels = qkv.qkv_triton
BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-3}
FORMS = [(2, 4), (1, 1), (1, 3), (2, 1)]  # planes, taps
BATCH, TOKENS, WIDTH, HEADS = (3, 11, 12, 2) if INTERPRETED else (9, 131, 192, 3)
needs_kernels = needs_kernels(kernels)


@pytest.fixture(autouse=True)
def kernels_serve(monkeypatch):
    """As on CUDA with the interpreter, too: tokens and batch still make several programs."""
    if INTERPRETED:
        sizes = {"PREPARE_PAIRS": 64, "PREPARE_BATCHES": 2, "PREPARE_BACKWARD_PAIRS": 16, "PREPARE_BACKWARD_TOKENS": 4}
        for name, value in sizes.items():
            monkeypatch.setattr(kernels, name, value)
        interpret(monkeypatch)


def drawn(planes, taps, dtype):
    """Projections, taps or None, and an angle that grows by up to half a turn a token in each head and channel."""
    generator = torch.Generator().manual_seed(planes + taps)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)

    seen = noise(BATCH, TOKENS, 3 * planes * WIDTH).to(dtype)
    weights = noise(3 * WIDTH, taps).float() if taps > 1 else None
    angle = (torch.pi * noise(BATCH, HEADS, TOKENS, planes * WIDTH // HEADS // 2).tanh()).cumsum(2).float()
    return seen, weights, angle


def plain(seen, taps, angle, planes):
    """The PyTorch form, of projections before which there is nothing."""
    preceded = seen if taps is None else F.pad(seen, (0, 0, taps.shape[1] - 1, 0))
    return qkv.prepared(preceded, taps, angle, planes, HEADS)


def results(call, *inputs):
    """q, k, v, then the gradients of those inputs that are there, for fixed gradients of q, k and v."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    out = call(*leaves)
    generator = torch.Generator().manual_seed(99)
    upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in out]
    return [*out, *torch.autograd.grad(out, [x for x in leaves if x is not None], upstream)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("planes", "taps", "tokens"), [(2, 4, 5), (1, 3, 1), (2, 1, 7)])
def test_a_convolution_by_hand_is_that_of_each_channel(planes, taps, tokens, needed, dtype, bound):
    generator = torch.Generator().manual_seed(taps)
    seen = torch.randn(3, taps - 1 + tokens, 9 * planes, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(9, taps, generator=generator, dtype=torch.float64)
    wide = [x.double().requires_grad_(wants) for x, wants in zip((seen, weights), needed, strict=True)]
    groups = {"weight": wide[1].repeat(planes, 1)[:, None], "groups": 9 * planes}
    want = F.conv1d(wide[0].transpose(1, 2), **groups).transpose(1, 2)
    leaves = [x.detach().requires_grad_(wants) for x, wants in zip((seen, weights), needed, strict=True)]
    got = qkv.convolved(*leaves, planes)
    assert (got.dtype, got.shape) == (dtype, (3, tokens, 9 * planes))
    upstream = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    want.backward(upstream)
    got.backward(upstream.to(dtype))
    for value, expected in [(got, want), *((x.grad, y.grad) for x, y in zip(leaves, wide, strict=True))]:
        assert (value is None) == (expected is None)
        assert expected is None or reference.rms_error(value, expected) < bound


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("planes", "taps"), FORMS)
def test_an_angle_of_each_token_rotates_as_in_float64_with_every_gradient(planes, taps, dtype):
    inputs = drawn(planes, taps, dtype)
    got = results(lambda seen, taps, angle: qkv.by_kernels(seen, taps, None, angle, planes, HEADS), *inputs)
    wide = [None if x is None else x.double() for x in inputs]
    want = results(lambda *given: plain(*given, planes), *wide)
    inputs = [x for x in inputs if x is not None]
    assert [x.dtype for x in got] == [dtype] * 3 + [x.dtype for x in inputs]
    for value, expected in zip(got, want, strict=True):
        assert value.shape == expected.shape
        assert reference.rms_error(value, expected) < BOUNDS[dtype]


@needs_kernels
@pytest.mark.parametrize(("planes", "taps"), FORMS[:2])
def test_frequencies_rotate_as_the_angle_that_they_give(planes, taps):
    """And as the plain form of it; the gradient of frequencies comes from another kernel than that of an angle."""
    seen, weights, angle = drawn(planes, taps, torch.float32)
    frequencies = angle[0, :, 0].abs() / 4
    count = torch.arange(1.0, TOKENS + 1, device=DEVICE)[:, None]

    def by_angle(seen, taps, frequencies):
        turned = (count * frequencies[:, None]).expand(BATCH, -1, -1, -1)
        return qkv.by_kernels(seen, taps, None, turned, planes, HEADS)

    fixed = results(lambda *given: qkv.by_kernels(*given, None, planes, HEADS), seen, weights, frequencies)
    *turned, by_sum = results(by_angle, seen, weights, frequencies)
    for got, want in zip(fixed[:-1], turned, strict=True):
        assert reference.rms_error(got, want) < 2e-6
    assert reference.rms_error(fixed[-1], by_sum) < 5e-6, "a sum over all tokens, each times its count"
    want = plain(seen, weights, count * frequencies[:, None], planes)
    for value, expected in zip(fixed[:3], want, strict=True):
        assert reference.rms_error(value, expected) < 1e-6


@needs_kernels
@pytest.mark.parametrize(("planes", "taps"), FORMS[:2])
def test_with_neither_frequencies_nor_an_angle_nothing_rotates(planes, taps):
    seen, weights, angle = drawn(planes, taps, torch.float32)
    got = results(lambda *given: qkv.by_kernels(*given, None, None, planes, HEADS), seen, weights)
    want = results(lambda *given: plain(*given, None, planes), seen, weights)
    for value, expected in zip(got, want, strict=True):
        assert reference.rms_error(value, expected) < 1e-6
    turned = kernels.prepare(seen, weights, None, angle, planes, HEADS)
    assert reference.rms_error(turned[0], got[0]) > 0.1


@needs_kernels
def test_frequencies_and_an_angle_exclude_each_other():
    seen, weights, angle = drawn(2, 4, torch.float32)
    with pytest.raises(ValueError, match=r"by frequencies or by an angle, not by both: got frequencies \("):
        kernels.prepare(seen, weights, angle[0, :, 0], angle, 2, HEADS)


@needs_kernels
@pytest.mark.parametrize(("batch", "tokens"), [(0, TOKENS), (BATCH, 0)])
def test_no_texts_and_texts_without_tokens_have_gradients_of_nothing(batch, tokens):
    seen, taps, _ = drawn(2, 4, torch.float32)
    frequencies = torch.ones(HEADS, WIDTH // HEADS, device=DEVICE)
    found = results(lambda *given: qkv.by_kernels(*given, None, 2, HEADS), seen[:batch, :tokens], taps, frequencies)
    assert found[0].shape == (batch, HEADS, tokens, 2 * WIDTH // HEADS)
    assert found[3].shape == (batch, tokens, 6 * WIDTH)
    assert not found[4].any()
    assert not found[5].any()
