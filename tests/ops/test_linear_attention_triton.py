"""The memories' CUDA kernels against the recurrence in float64; with TRITON_INTERPRET=1 without a GPU, too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import reference
import torch
from devices import CUDA, DEVICE, INTERPRETED, needs_cuda, needs_kernels

from muse.models import hebbian
from muse.ops import linear_attention, operator, planar

kernels = linear_attention.linear_attention_triton
needs_kernels = needs_kernels(kernels)
DTYPES = [torch.float32, torch.float16, torch.bfloat16][: 3 if CUDA else 2]  # the interpreter has no bfloat16 products
BOUNDS = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
HEADS = [(16, False), (32, True), (64, False), (64, True), (128, False), (128, True)][: 2 if INTERPRETED else None]
LENGTHS = [1, 37] if INTERPRETED else [1, 31, 64, 131]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """As many chunks as on CUDA for the shorter texts of the interpreter."""
    if INTERPRETED:
        monkeypatch.setattr(kernels, "CHUNK", dict.fromkeys(kernels.CHUNK, 16))


def some(tokens):
    """So many on CUDA; an interpreted program takes some 0.1 s."""
    return min(tokens, 20) if INTERPRETED else tokens


def drawn(tokens, width, dtype, decay=0.3, batch=1 if INTERPRETED else 2, heads=3, device=DEVICE):
    """q, k, v (B H T X) as views of one projection (B T 3 H X), and log_decay (B H T) of (B T H)."""
    generator = torch.Generator().manual_seed(tokens + width)
    qkv = torch.randn(batch, tokens, 3, heads, width, generator=generator, dtype=torch.float64)
    log_decay = -decay * torch.randn(batch, tokens, heads, generator=generator, dtype=torch.float64).exp()
    q, k, v = qkv.to(device, dtype).permute(2, 0, 3, 1, 4)
    return [x.detach().requires_grad_() for x in (q, k, v, log_decay.to(device, torch.float32).transpose(1, 2))]


def steps(q, k, v, log_decay, imaginary_scores):
    rows, width = q.shape[-1] // (1 + imaginary_scores), q.shape[-1]
    state, out = q.new_zeros(*q.shape[:2], rows, width, dtype=planar.accumulate_dtype(q.dtype)), []
    for t in range(q.shape[2]):
        given = (x[:, :, t] for x in (q, k, v, log_decay))
        state, y = linear_attention.memory_step(state, *given, imaginary_scores)
        out.append(y)
    return torch.stack(out, 2), state


def upstream(*outputs):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype) for y in outputs]


def exact(inputs, *options, of=steps):
    """Values and gradients of the recurrence in float64, from the same inputs, on the CPU."""
    inputs = [x.detach().cpu().double().requires_grad_() for x in inputs]
    outputs = of(*inputs, *options)
    return outputs, inputs


def compare(got, want, bound):
    for a, b in zip(got, want, strict=True):
        assert a.isfinite().all()
        size = b.abs().max()  # the decay of a single token acts on nothing
        assert reference.rms_error(a.cpu(), b) < bound if size > 0 else a.abs().max() < bound


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "imaginary_scores"), HEADS)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_cuda_kernels_and_their_gradients_are_the_recurrence(tokens, width, imaginary_scores, dtype):
    inputs = drawn(tokens, width, dtype, batch=2)
    got = kernels.remembered(*inputs, imaginary_scores)
    assert (got[0].dtype, got[1].dtype) == (dtype, torch.float32)
    want, wide = exact(inputs, imaginary_scores)
    weights = upstream(*got)
    gradients = torch.autograd.grad(got, inputs, weights)
    assert [(g.dtype, g.shape) for g in gradients] == [(x.dtype, x.shape) for x in inputs]
    compare(got, want, BOUNDS[dtype])
    compare(gradients, torch.autograd.grad(want, wide, [w.cpu().double() for w in weights]), 2 * BOUNDS[dtype])


@needs_kernels
@pytest.mark.parametrize(("decay", "bound"), [(0.0, 5e-6), (1e-3, 5e-6), (20.0, 1e-4)])
@pytest.mark.parametrize("imaginary_scores", [True, False])
def test_cuda_kernels_with_weak_and_strong_decays(decay, bound, imaginary_scores):
    inputs = drawn(some(131), 32, torch.float32, decay)
    want, wide = exact(inputs, imaginary_scores)
    got = kernels.remembered(*inputs, imaginary_scores)
    weights = upstream(*got)
    compare(got, want, bound)
    gradients = torch.autograd.grad(got, inputs, weights)
    compare(gradients, torch.autograd.grad(want, wide, [w.cpu().double() for w in weights]), bound)


@needs_kernels
@pytest.mark.parametrize("imaginary_scores", [True, False])
def test_cuda_kernels_follow_the_precision_of_float32_products(imaginary_scores):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        inputs = drawn(some(67), 64, torch.float32)
        got = kernels.remembered(*inputs, imaginary_scores)
        gradients = torch.autograd.grad(got, inputs, weights := upstream(*got))
    finally:
        torch.set_float32_matmul_precision(before)
    want, wide = exact(inputs, imaginary_scores)
    compare(got, want, 3e-3)
    compare(gradients, torch.autograd.grad(want, wide, [w.cpu().double() for w in weights]), 5e-3)


@needs_kernels
def test_cuda_kernels_survive_total_forgetting():
    q, k, v, log_decay = drawn(some(67), 32, torch.float32)
    log_decay = torch.full_like(log_decay, -1e4).requires_grad_()
    y, _ = kernels.remembered(q, k, v, log_decay, False)
    compare([y], [((q * k).sum(-1, keepdim=True) * v).detach().cpu()], 1e-6)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (q, k, v, log_decay)))


@needs_kernels
@pytest.mark.parametrize("which", [0, 1])
def test_cuda_kernels_take_the_gradient_of_either_result_alone(which):
    inputs = drawn(some(45), 32, torch.float32)
    want, wide = exact(inputs, True)
    got = kernels.remembered(*inputs, True)
    (weight,) = upstream(got[which])
    gradients = torch.autograd.grad(got[which], inputs, weight, allow_unused=True)
    expected = torch.autograd.grad(want[which], wide, weight.cpu().double(), allow_unused=True)
    compare(gradients[which:], expected[which:], 1e-5)  # queries do not act on the state
    assert which == 0 or gradients[0].count_nonzero() == 0


@needs_kernels
def test_cuda_kernels_take_any_strides():
    plain = drawn(some(45), 32, torch.float32)
    odd = [x.detach().mT.contiguous().mT if x.ndim == 4 else x.detach() for x in plain]
    odd = [x.requires_grad_() for x in odd]
    results = []
    for inputs in (plain, odd):
        y, _ = kernels.remembered(*inputs, True)
        results.append([y, *torch.autograd.grad(y.sum(), inputs)])  # an expanded gradient
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_kernels
def test_cuda_operators_are_well_formed():
    inputs = drawn(20, 32, torch.float32)
    torch.library.opcheck(kernels.remembered.op, (*inputs, True))
    torch.library.opcheck(kernels.remembered.op, (*drawn(20, 16, torch.float32), False))


@needs_kernels
def test_kernels_are_for_their_device_and_widths(monkeypatch):
    for width, dtype, complex_, suits in [
        (32, torch.float32, True, True),
        (16, torch.bfloat16, False, True),
        (16, torch.bfloat16, True, False),
        (48, torch.bfloat16, True, False),
        (256, torch.bfloat16, True, False),
    ]:
        assert kernels.suits(*drawn(4, width, dtype), complex_) == suits
    monkeypatch.setattr(operator, "KERNEL_DEVICE", DEVICE)
    assert linear_attention.by_kernels(*drawn(4, 32, torch.float32), True) is not None
    assert linear_attention.by_kernels(*drawn(4, 32, torch.float64), True) is None
    monkeypatch.setattr(operator, "KERNEL_DEVICE", "another")
    assert linear_attention.by_kernels(*drawn(4, 32, torch.float32), True) is None


@pytest.mark.parametrize("cast", [None, torch.bfloat16])
def test_both_memories_hand_the_kernels_what_they_expect(monkeypatch, cast):
    """With the recurrence in the kernels' place: values, gradients and dtypes stay those of the PyTorch forms."""

    def remembered(q, k, v, log_decay, complex_):
        assert q.dtype == k.dtype == v.dtype == (cast or torch.float32)
        assert log_decay.dtype == torch.float32
        y, state = steps(q.float(), k.float(), v.float(), log_decay, complex_)
        return y.to(v.dtype), state

    def forms(inputs, eta):
        with torch.autocast("cpu", cast, enabled=cast is not None):
            yield from linear_attention.memory_chunked(*inputs, True, 8)
            yield from linear_attention.memory_chunked(*inputs, False, 8)
            yield hebbian.hebbian_chunked(*(x.to(cast or x.dtype) for x in inputs[:3]), inputs[3], eta, 8)

    inputs, eta = drawn(21, 12, torch.float32, device="cpu"), torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    want = list(forms(inputs, eta))
    stub = SimpleNamespace(suits=lambda *_: True, remembered=remembered)
    monkeypatch.setattr(linear_attention, "linear_attention_triton", stub)
    got = list(forms(inputs, eta))
    bound = BOUNDS[cast or torch.float32]
    assert [(x.dtype, x.shape) for x in got] == [(x.dtype, x.shape) for x in want]
    compare(got, want, bound)
    weights = upstream(*want)
    compare(*(torch.autograd.grad(x, [*inputs, eta], weights) for x in (got, want)), 2 * bound)


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_memories_on_cuda_are_those_in_float64(dtype):
    inputs = drawn(389, 64, dtype)
    eta = torch.tensor([0.5, 1.0, 2.0], device="cuda", requires_grad=True)
    for imaginary_scores in (True, False):
        got = linear_attention.memory_chunked(*inputs, imaginary_scores)
        want, wide = exact(inputs, imaginary_scores, of=linear_attention.memory_chunked)
        weights = upstream(*got)
        compare(got, want, BOUNDS[dtype])
        compare(
            torch.autograd.grad(got, inputs, weights),
            torch.autograd.grad(want, wide, [w.cpu().double() for w in weights]),
            2 * BOUNDS[dtype],
        )
    y = hebbian.hebbian_chunked(*inputs, eta)
    want, wide = exact([*inputs, eta], of=hebbian.hebbian_chunked)
    (weight,) = upstream(y)
    compare([y], [want], 2 * BOUNDS[dtype])
    gradients = torch.autograd.grad(y, [*inputs, eta], weight)
    compare(gradients, torch.autograd.grad(want, wide, weight.cpu().double()), 3 * BOUNDS[dtype])


def loss_and_gradients(function, inputs):
    y = function(*inputs)
    (weight,) = upstream(y)
    return [y, *torch.autograd.grad(y, inputs, weight)]


@needs_cuda
@pytest.mark.parametrize("imaginary_scores", [True, False])
def test_compiled_on_cuda_the_memory_is_the_eager_one(imaginary_scores):
    torch.compiler.reset()

    def around(q, k, v, log_decay):
        return torch.tanh(linear_attention.memory_chunked(q * 0.1, k.sin(), v, log_decay - 0.01, imaginary_scores)[0])

    inputs = drawn(131, 64, torch.bfloat16)
    eager = loss_and_gradients(around, inputs)
    compiled = loss_and_gradients(torch.compile(around, fullgraph=True), inputs)
    compare(compiled, [x.cpu() for x in eager], 1e-2)


@needs_cuda
@pytest.mark.parametrize("imaginary_scores", [True, False])
def test_runs_of_the_cuda_kernels_are_equal_and_can_be_captured(imaginary_scores):
    inputs = drawn(389, 128, torch.bfloat16)

    def call():
        return loss_and_gradients(lambda *x: kernels.remembered(*x, imaginary_scores)[0], inputs)

    def captured():
        """Of leaves of its own, since those of `call` were first used on another stream than the one that captures."""
        leaves = [x.detach().requires_grad_() for x in inputs]
        y = kernels.remembered(*leaves, imaginary_scores)[0]
        return [y, *torch.autograd.grad(y, leaves, weight)]

    first = call()
    assert all(torch.equal(a, b) for a, b in zip(first, call(), strict=True))
    (weight,) = upstream(first[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = captured()
    with torch.no_grad():
        inputs[1].mul_(-0.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(replayed, call(), strict=True))
    assert not torch.equal(replayed[0], first[0])


@needs_cuda
@pytest.mark.parametrize("imaginary_scores", [True, False])
def test_long_texts_on_cuda_need_memory_in_proportion(imaginary_scores):
    peaks, ends = [], []
    for tokens in (4096, 8192):
        inputs = drawn(8192, 128, torch.bfloat16, 1e-3)
        inputs = [x.detach()[:, :, -tokens:].requires_grad_() for x in inputs]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y, state = linear_attention.memory_chunked(*inputs, imaginary_scores)
        y.backward(torch.ones_like(y))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        assert peaks[-1] < 14 * y.nbytes
        del y, inputs
        ends.append(state)
    assert peaks[1] < 2.1 * peaks[0]
    compare([ends[1]], [ends[0].cpu()], 1e-2)  # half the text has faded by then
