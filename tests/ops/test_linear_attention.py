from __future__ import annotations

import pytest
import reference
import reference_memory
import torch

from muse.ops.linear_attention import doubled, memory_chunked, memory_step, rotate, times_i


def drawn(length, batch=2, heads=3, width=5, seed=0, dtype=torch.float64):
    """Planar q, k, v (B H T 2K), gamma (B H T) > 0 and theta (B H T K)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (normal(batch, heads, length, 2 * width).to(dtype).requires_grad_() for _ in range(3))
    gamma = (normal(batch, heads, length).exp() * 0.3).to(dtype).requires_grad_()
    theta = normal(batch, heads, length, width).to(dtype).requires_grad_()
    return q, k, v, gamma, theta


def chunked(q, k, v, gamma, theta, imaginary_scores=True, chunk_tokens=64):
    angle = theta.cumsum(2)
    return memory_chunked(rotate(q, angle), rotate(k, angle), v, -gamma, imaginary_scores, chunk_tokens)


def naive(q, k, v, gamma, theta, imaginary_scores=True):
    complex_ = [reference.native(x) for x in (q, k, v)]
    return reference.planes(reference_memory.memory(*complex_, gamma.double(), theta.double(), imaginary_scores))


@pytest.mark.parametrize("imaginary_scores", [True, False])
@pytest.mark.parametrize(("length", "chunk_tokens"), [(1, 64), (5, 1), (7, 7), (13, 5), (13, 6), (17, 64), (31, 4)])
def test_chunked_form_and_its_gradients_are_the_recurrence(length, chunk_tokens, imaginary_scores):
    inputs = drawn(length)
    want, got = naive(*inputs, imaginary_scores), chunked(*inputs, imaginary_scores, chunk_tokens)[0]
    assert reference.rms_error(got, want) < 1e-12
    upstream = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # the first decay and turn have nothing to act on, so their true gradients are zero and rounding decides their error
    for a, b in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (got, want)), strict=True):
        assert (a - b).abs().max() < 1e-11 * (1 + b.abs().max())


@pytest.mark.parametrize("imaginary_scores", [True, False])
@pytest.mark.parametrize(("length", "chunk_tokens"), [(1, 3), (11, 3), (12, 4)])
def test_steps_are_the_chunked_form_and_leave_its_state(length, chunk_tokens, imaginary_scores):
    q, k, v, gamma, theta = drawn(length)
    want, final = chunked(q, k, v, gamma, theta, imaginary_scores, chunk_tokens)
    angle = theta.cumsum(2)
    q, k = rotate(q, angle), rotate(k, angle)
    state, out = torch.zeros(2, 3, 5 if imaginary_scores else 10, 10, dtype=q.dtype), []
    for t in range(length):
        state, y = memory_step(state, q[:, :, t], k[:, :, t], v[:, :, t], -gamma[:, :, t], imaginary_scores)
        out.append(y)
    assert reference.rms_error(torch.stack(out, 2), want) < 1e-12
    assert state.shape == final.shape == (2, 3, 5 if imaginary_scores else 10, 10)
    assert reference.rms_error(state, final) < 1e-12


def test_one_number_by_hand():
    """K = 1: a second token reads its own write and the first, faded to half and turned by a quarter."""
    q, k, v = (torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]) for _ in range(3))
    theta, gamma = torch.tensor([[[[0.0], [torch.pi / 2]]]]), torch.tensor([[[0.0, 0.5]]]).log().neg()
    gamma[..., 0] = 0.0
    assert torch.allclose(chunked(q, k, v, gamma, theta)[0], torch.tensor([[[[1.0, 0.0], [1.0, 0.5]]]]), atol=1e-6)


def test_planar_arithmetic():
    z = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = torch.tensor([0.3, -2.0, 7.0], dtype=torch.float64)
    c = reference.native(z)
    assert torch.equal(times_i(z), reference.planes(1j * c))
    assert torch.equal(doubled(z), torch.cat([z, times_i(z)]))
    assert reference.rms_error(rotate(z, angle), reference.planes(torch.exp(1j * angle) * c)) < 1e-15


def test_phases_of_queries_keys_and_values_pass_through():
    """y turns with q and v and against k: f(e^{ia} q, e^{ib} k, e^{ic} v) = e^{i(a - b + c)} f(q, k, v)."""
    q, k, v, gamma, theta = drawn(9)
    y = chunked(q, k, v, gamma, theta, chunk_tokens=4)[0]
    a, b, c = (torch.tensor(x, dtype=torch.float64) for x in (0.7, -1.1, 2.3))
    assert (
        reference.rms_error(
            chunked(rotate(q, a), rotate(k, b), rotate(v, c), gamma, theta, chunk_tokens=4)[0], rotate(y, a - b + c)
        )
        < 1e-12
    )


@pytest.mark.parametrize("imaginary_scores", [True, False])
def test_causal_and_mixing(imaginary_scores):
    inputs = drawn(13)
    before = chunked(*inputs, imaginary_scores, 5)[0]
    for which, changed in enumerate(inputs):
        moved = changed.detach().clone()
        moved[:, :, 6] += 0.5
        after = chunked(*inputs[:which], moved, *inputs[which + 1 :], imaginary_scores, 5)[0]
        difference = (after - before).abs().amax((0, 1, 3))
        assert difference[:6].max() < 1e-13
        assert difference[6 : 7 if which == 0 else None].min() > 1e-6  # a query acts on its own token only
        assert which or difference[7:].max() == 0


def test_gradcheck():
    q, k, v, gamma, theta = drawn(4, batch=1, heads=1, width=1)
    assert torch.autograd.gradcheck(lambda *x: chunked(*x, True, 3), (q, k, v, gamma, theta))
    assert torch.autograd.gradcheck(lambda *x: chunked(*x, False, 2), (q, k, v, gamma, theta))


def test_sudden_forgetting_is_finite_and_exact():
    q, k, v, gamma, theta = drawn(12, dtype=torch.float32)
    gamma = gamma.detach().clone()
    gamma[:, :, 6] = 40.0
    gamma.requires_grad_()
    y = chunked(q, k, v, gamma, theta, chunk_tokens=4)[0]
    alone = chunked(*(x[:, :, 6:] for x in (q, k, v, gamma, theta)), chunk_tokens=4)[0]
    assert reference.rms_error(y[:, :, 6:], alone) < 1e-5
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (q, k, v, gamma, theta)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)])
def test_low_precision_inputs(dtype, bound):
    q, k, v, gamma, theta = drawn(70, width=8)
    want = naive(*(x.to(dtype).double() for x in (q, k, v)), gamma, theta)
    got, state = chunked(*(x.to(dtype) for x in (q, k, v)), gamma.float(), theta.float(), chunk_tokens=16)
    assert got.dtype == dtype
    assert state.dtype == torch.float32
    assert reference.rms_error(got, want) < bound


def test_autocast_keeps_decays_in_float32():
    q, k, v, gamma, theta = (x.float() for x in drawn(70, width=8))
    want = naive(q, k, v, gamma, theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = chunked(q, k, v, gamma, theta, chunk_tokens=16)[0]
    assert reference.rms_error(got, want) < 2e-2
