from __future__ import annotations

import gc
import math

import pytest
import reference
import torch
import torch.nn.functional as F
from devices import CUDA, DEVICE, INTERPRETED, needs_cuda, needs_kernels
from torch.autograd import gradcheck

from muse.ops import cross_entropy, cross_entropy_blocks, logits, planar

N, D, V = 23, 11, 53
kernels = cross_entropy.cross_entropy_triton
needs_kernels = needs_kernels(kernels)


def head_problem(dtype=torch.float64, tokens=N, width=D, vocab=V, bias=True, ignored=True, seed=0):
    """Features, weight, bias (or None) and targets with some ignored; leaves that want gradients."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(tokens, width), (vocab, width), (vocab,)]
    leaves = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    targets = torch.randint(vocab, (tokens,), generator=g)
    if ignored:
        targets[::5] = cross_entropy.IGNORE_INDEX
    return leaves[0], leaves[1], leaves[2] if bias else None, targets


def double_copies(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def reduced(nll, targets, reduction):
    return {"none": nll, "sum": nll.sum(), "mean": nll.sum() / (targets != cross_entropy.IGNORE_INDEX).sum()}[reduction]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("chunk", "multiple"), [(None, 1), (1, 1), (7, 1), (7, 64), (100, 8)])
def test_loss_and_gradients_match_cross_entropy(bias, ignored, reduction, chunk, multiple, monkeypatch):
    monkeypatch.setitem(logits.VOCAB_MULTIPLE, "cpu", multiple)
    x, weight, b, targets = head_problem(bias=bias, ignored=ignored)
    got = cross_entropy.head_loss(x, weight, b, targets, reduction=reduction, chunk_tokens=chunk)
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
        assert reference.rms_error(cross_entropy.head_loss(x, weight, b, targets, reduction=reduction), want) < 1e-14


@pytest.mark.parametrize("mode", ["float32", "storage"])
@pytest.mark.parametrize("multiple", [1, 64])
def test_a_chunk_in_small_pieces_gives_what_it_gives_as_a_whole(mode, multiple, monkeypatch):
    monkeypatch.setitem(logits.VOCAB_MULTIPLE, "cpu", multiple)
    found = []
    for rows, added in ((N, V + multiple), (3, 5)):
        monkeypatch.setattr(cross_entropy, "CACHED_NUMEL", rows * V + 1)
        monkeypatch.setattr(cross_entropy, "ADDED_ROWS", added)
        *leaves, targets = head_problem(torch.float16)
        with planar.cpu_compute(mode):
            loss = cross_entropy.head_loss(*leaves, targets, chunk_tokens=N // 2 + 1)
            found.append((loss, *torch.autograd.grad(loss, leaves)))
    for whole, pieces in zip(*found, strict=True):
        assert reference.rms_error(pieces, whole) < 1e-6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_few_rows_at_a_time_multiply_to_what_all_rows_do(grad, bias, monkeypatch):
    """And every chunk of logits, the last and smaller one too, in the same memory: none reaches a later result."""
    found = []
    for rows, mapped in ((V, 2**25), (4, 0)):
        monkeypatch.setattr(cross_entropy_blocks, "PRODUCT_ROWS", rows)
        monkeypatch.setattr(cross_entropy_blocks, "PRODUCT_TOKENS", 2)
        monkeypatch.setattr(logits, "MAPPED_BYTES", mapped)
        x, weight, b, targets = head_problem(torch.float32, bias=bias)
        leaves = [leaf for leaf in (x, weight, b) if leaf is not None]
        with torch.set_grad_enabled(grad):
            loss = cross_entropy.head_loss(x, weight, b, targets, chunk_tokens=N // 2 + 1)
            results = [loss, *(torch.autograd.grad(loss, leaves) if grad else [])]
            kept = [result.clone() for result in results]
            other = cross_entropy.head_loss(-x, weight, b, targets, chunk_tokens=N // 2 + 1)
            scores = logits.head_logits(x, weight, b)
        assert other != loss
        assert all(map(torch.equal, results, kept))
        found.append([*results, other, scores])
    for whole, pieces in zip(*found, strict=True):
        assert reference.rms_error(pieces, whole) < 1e-6


@pytest.mark.parametrize("shape", [(D,), (N, D), (2, 3, D), (0, D)])
@pytest.mark.parametrize("block", [(1, V), (2, 5), (N, 1), (2 * N, 2 * V)])
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_logits_by_blocks_are_rounded_as_the_whole_is(shape, block, compute, monkeypatch):
    """Whole numbers whose sums are exact in any order, up to where float16 rounds them (bfloat16 always fits in it)."""
    monkeypatch.setattr(logits, "LOGIT_TOKENS", block[0])
    monkeypatch.setattr(logits, "LOGIT_ROWS", block[1])
    monkeypatch.setattr(planar, "product_dtypes", lambda z: (compute, torch.float16))
    generator, largest = torch.Generator().manual_seed(1), {torch.bfloat16: 4, torch.float32: 64}[compute]

    def whole_numbers(*shape):
        return torch.randint(-largest, largest + 1, shape, generator=generator).half().requires_grad_()

    for with_bias in (True, False):
        features, weight = whole_numbers(*shape), whole_numbers(V, D)
        bias = whole_numbers(V) if with_bias else None
        want = F.linear(features.to(compute), weight.to(compute), bias.to(compute) if with_bias else None).half()
        assert torch.equal(logits.head_logits(features, weight, bias), want)
        with torch.no_grad():
            assert torch.equal(logits.head_logits(features, weight, bias), want)


def test_large_logits_have_the_values_of_small_ones_and_outlive_the_call(monkeypatch):
    monkeypatch.setattr(planar, "product_dtypes", lambda z: (torch.float32, torch.float16))
    features, weight, bias = (torch.randn(shape).half() for shape in ((40, D), (5 * V, D), (5 * V,)))
    with torch.no_grad():
        want = logits.head_logits(features, weight, bias)
        monkeypatch.setattr(logits, "MAPPED_BYTES", 0)
        mapped = logits.head_logits(features, weight, bias)
        other = logits.head_logits(features + 1, weight, bias)  # another mapping, not the same memory
    gc.collect()
    assert torch.equal(mapped, want)
    assert not torch.equal(other, want)
    mapped += 1  # theirs to write to
    assert torch.equal(mapped, want + 1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction):
    x, weight, b, targets = head_problem(tokens=5, width=3, vocab=7)

    def call(*leaves):
        return cross_entropy.head_loss(*leaves, targets, reduction=reduction, chunk_tokens=2)

    assert gradcheck(call, (x, weight, b))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("dtype", "cpu_compute", "loss_bound", "grad_bound"),
    [
        (torch.float32, "auto", 1e-6, 1e-6),
        (torch.float16, "float32", 1e-3, 1.5e-3),
        (torch.float16, "auto", 1e-2, 2e-2),
    ],
)
def test_precision(reduction, dtype, cpu_compute, loss_bound, grad_bound):
    """Logits of about 8 stored in float16 are off by 2e-3, which moves gradients by 1e-3 whatever multiplies them."""
    leaves = head_problem(dtype, tokens=131, width=61, vocab=251)
    doubles = double_copies(*leaves[:3])
    targets = leaves[3]
    want = F.cross_entropy(F.linear(*doubles), targets, reduction=reduction)
    with planar.cpu_compute(cpu_compute):
        got = cross_entropy.head_loss(*leaves, reduction=reduction, chunk_tokens=37)
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
            got = cross_entropy.head_loss(x, weight, b, targets)
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
    loss = cross_entropy.head_loss(x, weight, None, torch.zeros(64, dtype=torch.int64))
    (loss * 65536).backward()
    want = math.exp(-19) / (1 + (vocab - 1) * math.exp(-19)) * 65536
    assert weight.grad[1:].double().flatten().tolist() == pytest.approx([want] * (vocab - 1), rel=bound)


def test_autocast():
    x, weight, b, targets = head_problem(torch.float32, tokens=67, width=61, vocab=251)
    want = F.cross_entropy(F.linear(x, weight, b), targets)
    want_grads = torch.autograd.grad(want, (x, weight, b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cross_entropy.head_loss(x, weight, b, targets, chunk_tokens=32)
        assert logits.head_logits(x, weight, b).dtype == torch.bfloat16
    assert got.dtype == torch.float32
    assert reference.rms_error(got, want) < 1e-2
    for got_grad, want_grad in zip(torch.autograd.grad(got, (x, weight, b)), want_grads, strict=True):
        assert got_grad.dtype == torch.float32
        assert reference.rms_error(got_grad, want_grad) < 2e-2


@pytest.mark.parametrize("multiple", [1, 64])
def test_logits(multiple, monkeypatch):
    monkeypatch.setitem(logits.VOCAB_MULTIPLE, "cpu", multiple)
    for bias in (True, False):
        x, weight, b, _ = head_problem(bias=bias)
        x = x.reshape(1, N, D)
        got = logits.head_logits(x, weight, b)
        assert got.shape == (1, N, V)
        assert reference.rms_error(got, F.linear(x, weight, b)) < 1e-15
        got.square().sum().backward()
        (want_grad,) = torch.autograd.grad(F.linear(x, weight, b).square().sum(), weight)
        assert reference.rms_error(weight.grad, want_grad) < 1e-14


def test_uniform_logits_have_perplexity_v():
    x, weight, _, targets = head_problem()
    loss = cross_entropy.head_loss(x, torch.zeros_like(weight), torch.zeros(V, dtype=torch.float64), targets)
    assert loss.exp().item() == pytest.approx(V)


@pytest.mark.parametrize("cpu_compute", ["auto", "float32"])
def test_a_nan_or_an_overflow_of_the_stored_logits_reaches_the_loss(cpu_compute):
    x, weight, b, targets = head_problem(torch.float16, ignored=False)
    with torch.no_grad(), planar.cpu_compute(cpu_compute):
        x[3, 2] = torch.nan
        x[7] = 300.0
        weight[5] = 300.0
        nll = cross_entropy.head_loss(x, weight, b, targets, reduction="none")
        assert not cross_entropy.head_loss(x[4:], weight, b, targets[4:]).isfinite()
    assert nll.isfinite().logical_not().nonzero().flatten().tolist() == [3, 7]


def test_backward_twice_gives_the_same_gradients():
    x, weight, b, targets = head_problem()
    loss = cross_entropy.head_loss(x, weight, b, targets)
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
            cross_entropy.head_loss(x, weight, b, targets, reduction=reduction, chunk_tokens=64).sum().backward()
        assert seen.numel == 64 * 101


def test_per_token_losses_keep_no_logits_for_the_backward_pass():
    kept = []
    x, weight, b, targets = head_problem(torch.float32, tokens=640, width=3, vocab=101)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        cross_entropy.head_loss(x, weight, b, targets, reduction="none", chunk_tokens=64).sum().backward()
    assert max(kept) <= x.numel()


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 256), (2048, 256), (4096, 512), (65536, 4096)])
def test_default_chunk(tokens, chunk):
    assert cross_entropy.default_chunk_tokens(tokens) == chunk
    assert cross_entropy.default_chunk_tokens(tokens, on_cpu=True) == max(chunk, 512)


def test_bad_arguments_say_what_is_wrong():
    x, weight, b, targets = head_problem()
    with pytest.raises(ValueError, match="got 'average'"):
        cross_entropy.head_loss(x, weight, b, targets, reduction="average")
    with pytest.raises(ValueError, match="must agree"):
        cross_entropy.head_loss(x, weight, b, targets[:-1])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cross_entropy.head_loss(x, weight, b, targets, chunk_tokens=0)
    for bad in (V, -1):
        targets[3] = bad
        with pytest.raises(ValueError, match=f"got {bad}"):
            cross_entropy.head_loss(x, weight, b, targets)


def test_the_division_by_n_is_not_rounded_to_half_precision():
    """The mean's gradients are the sum's over N to float32 precision, though the products themselves are bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((7, 16), (13, 16)))
    y = torch.randint(13, (7,), generator=generator)
    gradients = {}
    for reduction in ("sum", "mean"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy.head_loss(x, w, None, y, reduction=reduction)
        gradients[reduction] = torch.autograd.grad(loss, (x, w))
    for total, mean in zip(gradients["sum"], gradients["mean"], strict=True):
        torch.testing.assert_close(mean, total / 7, rtol=1e-6, atol=0)


def by_blocks(leaves, targets, chunk=None, upstream=1.0):
    """Summed loss and gradients of the path over blocks of the vocabulary, which CPU tensors do not choose."""
    loss = cross_entropy_blocks.SummedLoss.apply(*leaves, targets, chunk)
    wanted = [t for t in leaves if t is not None]
    return loss, torch.autograd.grad(loss, wanted, loss.new_tensor(upstream))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 7, 23, 100])
@pytest.mark.parametrize(("rows", "multiple"), [(8, 1), (8, 8), (16, 64), (53, 1), (64, 64)])
def test_blocks_of_the_vocabulary_match_cross_entropy(bias, chunk, rows, multiple, monkeypatch):
    monkeypatch.setattr(cross_entropy_blocks, "BLOCK_ROWS", rows)
    monkeypatch.setattr(cross_entropy_blocks, "ROW_MULTIPLE", multiple)
    *leaves, targets = head_problem(bias=bias)
    targets[1:4] = torch.tensor([0, V - 1, min(rows, V - 1)])
    loss, gradients = by_blocks(leaves, targets, chunk, upstream=0.3)
    want = F.cross_entropy(F.linear(*leaves), targets, reduction="sum")
    assert reference.rms_error(loss, want) < 1e-14
    wanted = [t for t in leaves if t is not None]
    for got, exact in zip(gradients, torch.autograd.grad(want * 0.3, wanted), strict=True):
        assert reference.rms_error(got, exact) < 1e-13


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("upstream", [1 / 515, 1024 / 515, 2.0**-20, 64.0])
def test_blocks_keep_half_precision_gradients_in_range(dtype, bound, upstream, monkeypatch):
    """Features and counts so large that GRADIENT_SCALE dW exceeds 65504, and upstream gradients of all sizes."""
    monkeypatch.setattr(cross_entropy_blocks, "BLOCK_ROWS", 64)
    x, weight, b, targets = head_problem(torch.float64, tokens=515, width=61, vocab=251)
    leaves = [(t.detach() * scale).to(dtype).requires_grad_() for t, scale in ((x, 8), (weight, 0.02), (b, 1))]
    with torch.no_grad():
        leaves[0] += 4  # so that the sum over tokens is not one of random signs
    targets[100:] = 77
    doubles = double_copies(*leaves)
    loss, gradients = by_blocks(leaves, targets, chunk=200, upstream=upstream)
    want = F.cross_entropy(F.linear(*doubles), targets, reduction="sum")
    assert abs(loss.item() - want.item()) / 515 < bound
    exact = torch.autograd.grad(want * upstream, doubles)
    assert exact[1].abs().max() / upstream * cross_entropy.GRADIENT_SCALE > 65504
    for got, wanted in zip(gradients, exact, strict=True):
        representable = wanted.abs() > torch.finfo(dtype).tiny
        fits = representable & (wanted.abs() < 65504)
        assert got.dtype == dtype
        if fits.any():
            assert reference.rms_error(got[fits], wanted[fits]) < 4 * bound


def test_blocks_answer_a_second_backward_pass_and_let_nan_through(monkeypatch):
    monkeypatch.setattr(cross_entropy_blocks, "BLOCK_ROWS", 16)
    *leaves, targets = head_problem()
    loss = cross_entropy_blocks.SummedLoss.apply(*leaves, targets, 5)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(f, s) and f.data_ptr() != s.data_ptr() for f, s in zip(first, second, strict=True))
    for bad in (torch.nan, torch.inf):
        with torch.no_grad():
            leaves[0][3] = bad
        loss, gradients = by_blocks(leaves, targets)
        assert not loss.isfinite()
        assert all(not g.isfinite().any() for g in gradients[1:])
        assert gradients[0].isfinite().all(1).tolist() == [i != 3 for i in range(N)]


def test_blocks_hold_one_block_of_logits_and_of_float32_gradients(monkeypatch):
    """What is alive at a time, by size: the table's gradient in its own precision and no other tensor as large."""
    monkeypatch.setattr(cross_entropy_blocks, "BLOCK_ROWS", 64)
    *leaves, targets = head_problem(torch.bfloat16, tokens=96, width=32, vocab=1001)
    made = []

    class Made(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() > 96 * 64:
                made.append((func.overloadpacket.__name__, out.dtype))
            return out

    with Made():
        by_blocks(leaves, targets)
    assert made[0] == ("empty_like", torch.bfloat16)
    assert {name for name, _ in made[1:]} <= {"mul_", "detach", "view", "alias"}


ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3 if CUDA else 8e-3}  # interpreted: cut off


def plain_kernels(z, targets, block):
    """What the two kernels leave, in float64 from the same logits: log sums, picked, gradient and its sum."""
    log_sums, picked = z.new_empty(len(z)), z.new_full((len(z),), 7.0)
    cross_entropy_blocks._measure_(z, targets, block, log_sums, picked)
    g = z.clone()
    summed = cross_entropy_blocks._differentiate_(g, targets, block, log_sums + 0.5)
    return log_sums, picked, g, summed


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("tokens", "width", "columns"),
    [(13, 1, 1), (13, 64, 53), (13, 1152, 1105), (37 if INTERPRETED else 131, 576, 530), (1, 2048, 2048)],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of an interpreted token that is not there: inf - inf
def test_kernels_of_the_loss(tokens, width, columns, bias, dtype):
    generator = torch.Generator().manual_seed(width)
    z, first = torch.randn(tokens, width, generator=generator).mul(4).to(dtype), 70
    b = torch.randn(width, generator=generator) if bias else None
    targets = torch.randint(first + columns + 90, (tokens,), generator=generator)
    special = torch.tensor([cross_entropy.IGNORE_INDEX, first, first - 1, first + columns - 1, first + columns, 0])
    targets[: len(special)] = special[:tokens]
    z[tokens // 2] -= 30
    exact = z.double() + (b.double() if bias else 0)
    want = plain_kernels(exact, targets, cross_entropy_blocks.Block(first, columns, z, z[0]))
    targets, logits, b = targets.to(DEVICE), z.to(DEVICE), b.to(DEVICE) if bias else None
    log_sums, picked = (torch.full((tokens,), 7.0, device=DEVICE) for _ in range(2))
    kernels.log_sum_(logits, b, targets, first, columns, log_sums, picked)
    assert torch.equal(logits.cpu(), z)
    given = logits, b, targets, first, columns, log_sums + 0.5, cross_entropy.IGNORE_INDEX, 256.0
    again = logits.clone()
    summed = kernels.gradient_(*given, summed=True)
    torch.testing.assert_close(log_sums.cpu().double(), want[0], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(picked.cpu().double(), want[1], rtol=1e-6, atol=1e-6)
    assert logits.dtype == dtype
    assert (logits[:, columns:] == 0).all()
    assert (logits[0] == 0).all()
    torch.testing.assert_close(logits.cpu().double(), want[2], rtol=ROUNDING[dtype], atol=2e-6)
    torch.testing.assert_close(summed.cpu().double(), want[3], rtol=1e-5, atol=1e-3)  # of terms up to 256
    assert kernels.gradient_(again, *given[1:], summed=False) is None
    assert torch.equal(again, logits)


@needs_kernels
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pieces", [1, 2])
def test_kernels_give_a_chunk_its_loss_and_gradients(pieces, bias):
    """The weight whole, or as its full rows and a padded rest, to which the kernels add the bias."""
    x, weight, b, targets = (t if t is None else t.detach() for t in head_problem(torch.float32, bias=bias))
    padded = F.pad(weight, (0, 0, 0, 64 - V)), None if b is None else F.pad(b, (0, 64 - V))
    weights = padded[0].to(DEVICE).split([64] if pieces == 1 else [48, 16])
    late = None if b is None else padded[1].to(DEVICE)
    found = cross_entropy._chunk_loss_by_kernels(x.to(DEVICE), weights, late, targets.to(DEVICE), V, True)
    exact = [t if t is None else t.double() for t in (x, padded[0], padded[1])]
    want = cross_entropy._chunk_loss(exact[0], (exact[1],), exact[2], targets, V, torch.float64, True)
    for got, expected in zip(found, (want[0], F.pad(want[1][:, :V], (0, 64 - V)), want[2]), strict=True):
        assert got is expected or reference.rms_error(got.cpu(), expected) < 1e-6


def cuda_problem(tokens, width, vocab, dtype, weight_dtype, bias=True):
    """A head_problem on the GPU with logits of about unit size, its loss and gradients in float64, and N."""
    x, weight, b, targets = head_problem(tokens=tokens, width=width, vocab=vocab, bias=bias)
    made = [
        (x, dtype),
        (weight.detach() * width**-0.5, weight_dtype),
        (None if b is None else b.detach() * 0.1, weight_dtype),
    ]
    leaves = [None if t is None else t.detach().to("cuda", d).requires_grad_() for t, d in made]
    targets = targets.cuda()
    doubles = double_copies(*leaves)
    want = F.cross_entropy(F.linear(*doubles), targets)
    return leaves, targets, want.item(), torch.autograd.grad(want * 1024, [t for t in doubles if t is not None])


@needs_cuda
@pytest.mark.parametrize(
    ("compute", "loss_bound", "bound"), [(torch.float16, 1e-4, 1e-3), (torch.bfloat16, 1e-3, 8e-3), (None, 1e-5, 1e-5)]
)
@pytest.mark.parametrize("weight_dtype", ["float32", "compute"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("vocab", [1003, 1024, 20011])
def test_cuda_gradients_by_tokens_and_by_blocks(vocab, bias, weight_dtype, compute, loss_bound, bound):
    """float32 masters, padded as a whole; weights in the compute dtype, uncopied; above 8,192 rows by blocks."""
    stored = compute if weight_dtype == "compute" and compute else torch.float32
    leaves, targets, want, want_grads = cuda_problem(700, 128, vocab, stored, stored, bias)
    served = cross_entropy_blocks.serves(leaves[0], leaves[1], compute or torch.float32)
    assert served == (stored.itemsize == 2 and vocab > 8192)
    for reduction, chunk in (("mean", None), ("sum", 300)):
        counted = 1 if reduction == "mean" else (targets != cross_entropy.IGNORE_INDEX).sum()
        with torch.autocast("cuda", dtype=compute or torch.float16, enabled=compute is not None):
            loss = cross_entropy.head_loss(*leaves, targets, reduction=reduction, chunk_tokens=chunk) / counted
            with torch.no_grad():
                assert abs(cross_entropy.head_loss(*leaves, targets).item() - want) < loss_bound
        assert abs(loss.item() - want) < loss_bound
        wanted = [t for t in leaves if t is not None]
        for leaf, got, exact in zip(wanted, torch.autograd.grad(loss * 1024, wanted), want_grads, strict=True):
            assert got.dtype == leaf.dtype
            assert reference.rms_error(got, exact) < bound


@needs_cuda
@pytest.mark.parametrize("chunk", [None, 1024])
def test_cuda_float16_blocks_at_full_size(chunk):
    leaves, targets, want, want_grads = cuda_problem(2048, 512, 50257, torch.float16, torch.float16)
    loss = cross_entropy.head_loss(*leaves, targets, chunk_tokens=chunk)
    assert abs(loss.item() - want) < 1e-5
    first = torch.autograd.grad(loss * 1024, leaves, retain_graph=True)
    second = torch.autograd.grad(loss * 1024, leaves)
    for got, again, exact in zip(first, second, want_grads, strict=True):
        assert reference.rms_error(got, exact) < 5e-4
        assert reference.rms_error(again, exact) < 5e-4


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_blocks_need_less_than_a_float32_table(dtype):
    x, weight, b, targets = head_problem(torch.float32, tokens=512, width=1024, vocab=50257)
    leaves = [t.detach().to("cuda", dtype).requires_grad_() for t in (x, weight, b)]
    targets = targets.cuda()
    for _ in range(2):  # the first one leaves the libraries' workspaces behind
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = torch.autograd.grad(cross_entropy.head_loss(*leaves, targets), leaves)
        peak = torch.cuda.max_memory_allocated() - before
        del gradients
    assert peak < 4 * weight.numel()
