from __future__ import annotations

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from muse import head, planar

N, D, V = 23, 11, 53


def head_problem(dtype=torch.float64, tokens=N, width=D, vocab=V, bias=True, ignored=True, seed=0):
    """Features, weight, bias (or None) and targets with some ignored; leaves that want gradients."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(tokens, width), (vocab, width), (vocab,)]
    leaves = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    targets = torch.randint(vocab, (tokens,), generator=g)
    if ignored:
        targets[::5] = head.IGNORE_INDEX
    return leaves[0], leaves[1], leaves[2] if bias else None, targets


def double_copies(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def reduced(nll, targets, reduction):
    return {"none": nll, "sum": nll.sum(), "mean": nll.sum() / (targets != head.IGNORE_INDEX).sum()}[reduction]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("chunk", "multiple"), [(None, 1), (1, 1), (7, 1), (7, 64), (100, 8)])
def test_loss_and_gradients_match_cross_entropy(bias, ignored, reduction, chunk, multiple, monkeypatch):
    monkeypatch.setitem(head.VOCAB_MULTIPLE, "cpu", multiple)
    x, weight, b, targets = head_problem(bias=bias, ignored=ignored)
    got = head.head_loss(x, weight, b, targets, reduction=reduction, chunk_tokens=chunk)
    want = F.cross_entropy(F.linear(x, weight, b), targets, reduction=reduction)
    naive = reduced(reference.cross_entropy(F.linear(x, weight, b), targets), targets, reduction)
    assert got.shape == want.shape
    assert reference.rms_error(got, want) < 1e-14
    assert reference.rms_error(got, naive) < 1e-14
    upstream = torch.randn_like(got)
    leaves = [t for t in (x, weight, b) if t is not None]
    got_grads = torch.autograd.grad(got, leaves, upstream)
    want_grads = torch.autograd.grad(want, leaves, upstream)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        assert reference.rms_error(got_grad, want_grad) < 1e-13
    with torch.no_grad():
        assert reference.rms_error(head.head_loss(x, weight, b, targets, reduction=reduction), want) < 1e-14


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction):
    x, weight, b, targets = head_problem(tokens=5, width=3, vocab=7)

    def call(*leaves):
        return head.head_loss(*leaves, targets, reduction=reduction, chunk_tokens=2)

    assert gradcheck(call, (x, weight, b))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("dtype", "cpu_compute", "loss_bound", "grad_bound"),
    [(torch.float32, "auto", 1e-6, 1e-6), (torch.float16, "float32", 1e-3, 1e-3), (torch.float16, "auto", 1e-2, 2e-2)],
)
def test_precision(reduction, dtype, cpu_compute, loss_bound, grad_bound):
    leaves = head_problem(dtype, tokens=131, width=61, vocab=251)
    doubles = double_copies(*leaves[:3])
    targets = leaves[3]
    want = F.cross_entropy(F.linear(*doubles), targets, reduction=reduction)
    with planar.cpu_compute(cpu_compute):
        got = head.head_loss(*leaves, reduction=reduction, chunk_tokens=37)
        assert got.dtype == torch.float32
        (got.sum() * 64).backward()
    (want.sum() * 64).backward()
    assert reference.rms_error(got, want) < loss_bound
    for leaf, double in zip(leaves[:3], doubles, strict=True):
        assert leaf.grad.dtype == dtype
        assert reference.rms_error(leaf.grad, double.grad) < grad_bound


def test_loss_of_float16_logits_is_not_summed_in_float16():
    """Thousands of tokens near ln V: a float16 running sum would be wrong in the second digit."""
    x, weight, b, targets = head_problem(torch.float16, tokens=4001, ignored=False)
    with torch.no_grad():
        want = F.cross_entropy(F.linear(x.double(), weight.double(), b.double()), targets)
        with planar.cpu_compute("float32"):
            got = head.head_loss(x, weight, b, targets)
    assert abs(got.item() - want.item()) < 1e-4 * want.item()


@pytest.mark.parametrize(("compute", "bound"), [(torch.float32, 2e-3), (torch.float16, 5e-2)])
def test_small_float16_gradients_do_not_underflow_inside(compute, bound, monkeypatch):
    """Probabilities near 1e-8 still reach the weight gradient, because p - y is scaled and divided by N last."""
    monkeypatch.setattr(planar, "compute_dtype", lambda storage, device: compute)
    vocab = 8
    x = torch.ones(64, 1).half().requires_grad_()
    weight = torch.full((vocab, 1), -19.0).half()
    weight[0] = 0.0
    weight.requires_grad_()
    loss = head.head_loss(x, weight, None, torch.zeros(64, dtype=torch.int64))
    (loss * 65536).backward()
    want = math.exp(-19) / (1 + (vocab - 1) * math.exp(-19)) * 65536
    assert weight.grad[1:].double().flatten().tolist() == pytest.approx([want] * (vocab - 1), rel=bound)


def test_autocast():
    x, weight, b, targets = head_problem(torch.float32, tokens=67, width=61, vocab=251)
    want = F.cross_entropy(F.linear(x, weight, b), targets)
    want_grads = torch.autograd.grad(want, (x, weight, b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head.head_loss(x, weight, b, targets, chunk_tokens=32)
        assert head.head_logits(x, weight, b).dtype == torch.bfloat16
    assert got.dtype == torch.float32
    assert reference.rms_error(got, want) < 1e-2
    for got_grad, want_grad in zip(torch.autograd.grad(got, (x, weight, b)), want_grads, strict=True):
        assert got_grad.dtype == torch.float32
        assert reference.rms_error(got_grad, want_grad) < 2e-2


@pytest.mark.parametrize("multiple", [1, 64])
def test_logits(multiple, monkeypatch):
    monkeypatch.setitem(head.VOCAB_MULTIPLE, "cpu", multiple)
    for bias in (True, False):
        x, weight, b, _ = head_problem(bias=bias)
        x = x.reshape(1, N, D)
        got = head.head_logits(x, weight, b)
        assert got.shape == (1, N, V)
        assert reference.rms_error(got, F.linear(x, weight, b)) < 1e-15
        got.square().sum().backward()
        (want_grad,) = torch.autograd.grad(F.linear(x, weight, b).square().sum(), weight)
        assert reference.rms_error(weight.grad, want_grad) < 1e-14


def test_uniform_logits_have_perplexity_v():
    x, weight, _, targets = head_problem()
    loss = head.head_loss(x, torch.zeros_like(weight), torch.zeros(V, dtype=torch.float64), targets)
    assert loss.exp().item() == pytest.approx(V)


@pytest.mark.parametrize("cpu_compute", ["auto", "float32"])
def test_a_nan_or_an_overflow_of_the_stored_logits_reaches_the_loss(cpu_compute):
    x, weight, b, targets = head_problem(torch.float16, ignored=False)
    with torch.no_grad(), planar.cpu_compute(cpu_compute):
        x[3, 2] = torch.nan
        x[7] = 300.0
        weight[5] = 300.0
        nll = head.head_loss(x, weight, b, targets, reduction="none")
        assert not head.head_loss(x[4:], weight, b, targets[4:]).isfinite()
    assert nll.isfinite().logical_not().nonzero().flatten().tolist() == [3, 7]


def test_backward_twice_gives_the_same_gradients():
    x, weight, b, targets = head_problem()
    loss = head.head_loss(x, weight, b, targets)
    first = torch.autograd.grad(loss, (x, weight, b), retain_graph=True)
    second = torch.autograd.grad(loss, (x, weight, b))
    assert all(torch.equal(f, s) for f, s in zip(first, second, strict=True))


def test_no_tensor_is_larger_than_one_chunk_of_logits():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.numel = max([self.numel, *sizes])
            return out

    x, weight, b, targets = head_problem(torch.float32, tokens=640, width=3, vocab=101)
    for reduction in ("mean", "none"):
        with Largest() as seen:
            head.head_loss(x, weight, b, targets, reduction=reduction, chunk_tokens=64).sum().backward()
        assert seen.numel == 64 * 101


def test_per_token_losses_keep_no_logits_for_the_backward_pass():
    kept = []
    x, weight, b, targets = head_problem(torch.float32, tokens=640, width=3, vocab=101)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        head.head_loss(x, weight, b, targets, reduction="none", chunk_tokens=64).sum().backward()
    assert max(kept) <= x.numel()


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 256), (2048, 256), (4096, 512), (65536, 4096)])
def test_default_chunk(tokens, chunk):
    assert head.default_chunk_tokens(tokens) == chunk


def test_bad_arguments_say_what_is_wrong():
    x, weight, b, targets = head_problem()
    with pytest.raises(ValueError, match="got 'average'"):
        head.head_loss(x, weight, b, targets, reduction="average")
    with pytest.raises(ValueError, match="must agree"):
        head.head_loss(x, weight, b, targets[:-1])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        head.head_loss(x, weight, b, targets, chunk_tokens=0)
    for bad in (V, -1):
        targets[3] = bad
        with pytest.raises(ValueError, match=f"got {bad}"):
            head.head_loss(x, weight, b, targets)


def test_the_division_by_n_is_not_rounded_to_half_precision():
    """The mean's gradients are the sum's over N to float32 precision, though the products themselves are bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((7, 16), (13, 16)))
    y = torch.randint(13, (7,), generator=generator)
    gradients = {}
    for reduction in ("sum", "mean"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = head.head_loss(x, w, None, y, reduction=reduction)
        gradients[reduction] = torch.autograd.grad(loss, (x, w))
    for total, mean in zip(gradients["sum"], gradients["mean"], strict=True):
        torch.testing.assert_close(mean, total / 7, rtol=1e-6, atol=0)
