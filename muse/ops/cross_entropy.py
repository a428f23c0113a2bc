"""Output head and cross entropy that never hold a (tokens x vocabulary) tensor larger than one chunk.

N tokens, D width, V vocabulary; features x r(N D), weight W r(V D), bias b r(V), targets y (N,), logits Wx + b.
The gradient of the summed loss with respect to the logits is p - y, known as soon as they are: each chunk's part of
dx, dW and db is computed in the forward pass, and the backward pass only scales them. Each product is done once.

fp16: p - y is kept times GRADIENT_SCALE, without the mean's 1/N, until after the products; dW and db are summed in
float32, where 1/N is applied. A parameter gradient that is itself stored as fp16 still underflows below 6e-8 for a
large N: multiply the loss by a power of two before backward(), and divide the gradients by it in float32.
Weights stored in half precision have such a gradient: on CUDA `head_blocks` then sums it without a float32 table.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from . import cross_entropy_blocks, planar
from .cross_entropy_blocks import GRADIENT_SCALE, IGNORE_INDEX, cross_entropy_triton
from .logits import CACHED_NUMEL, cut, products, room_for, wants_grad
from .operator import has_kernels, readable, transformed

REDUCTIONS = ("mean", "sum", "none")
SCALED_ROWS = 2048  # rows of dW that a CPU scales at a time
ADDED_ROWS = 8192  # rows of dW that a CPU multiplies and adds at a time, where it cannot add while it multiplies


def default_chunk_tokens(num_tokens: int, on_cpu: bool = False) -> int:
    """An eighth of the tokens, within 256 .. 4096: up to 32k tokens dW is read and written at most nine times.

    A CPU takes 512 at least: of 2,048 tokens' float32 head that saves 7 % of the time, for 50 MB more.
    """
    return min(max(num_tokens // 8, 512 if on_cpu else 256), 4096)


def _log_probabilities(logits: Tensor, storage: torch.dtype) -> Tensor:
    """log softmax in the accumulation dtype, r(n V), of logits rounded to the storage dtype."""
    return torch.log_softmax(planar.rounded(logits, storage), dim=-1, dtype=planar.accumulate_dtype(storage))


def _picked_nll(log_p: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target, 0 where the target is IGNORE_INDEX: r(n)."""
    nll = -log_p.gather(1, targets.clamp_min(0)[:, None])[:, 0]
    return nll.masked_fill(targets == IGNORE_INDEX, 0.0)


def _chunk_loss(x, pieces, bias, targets, vocab: int, storage: torch.dtype, gradient: bool, room: Tensor | None = None):
    """-log p of each target, r(n), g = GRADIENT_SCALE (p - y), r(n V) with V as padded, 0 if ignored, and its sum r(V).

    x r(n D), pieces of W and the bias as cut returns them, targets (n,). Without `gradient`, None for the last two;
    without a bias, for the last one. g overwrites the logits, which on a CPU take the first rows of `room`.
    """
    if has_kernels(cross_entropy_triton, x):
        return _chunk_loss_by_kernels(x, pieces, bias, targets, vocab, gradient)
    logits = products(x, pieces, bias, room)
    nll = x.new_empty(len(x), dtype=planar.accumulate_dtype(storage))
    summed = nll.new_zeros(vocab) if gradient and bias is not None else None
    rows = len(x) if x.is_cuda else max(1, CACHED_NUMEL // vocab)
    for z, y, out in zip(logits[:, :vocab].split(rows), targets.split(rows), nll.split(rows), strict=True):
        log_p = _log_probabilities(z, storage)
        out.copy_(_picked_nll(log_p, y))
        if gradient:
            g = log_p.exp_()  # p
            g.scatter_add_(1, y.clamp_min(0)[:, None], g.new_full((1, 1), -1.0).expand(len(y), 1))
            z.copy_(g.mul_((y != IGNORE_INDEX)[:, None] * GRADIENT_SCALE))
            if summed is not None:
                summed += g.sum(0)
    return nll, logits if gradient else None, summed


def _chunk_loss_by_kernels(x, pieces, bias, targets, vocab: int, gradient: bool):
    """The same on CUDA."""
    whole = len(pieces) == 1  # a product that fills its buffer adds the bias for nothing
    logits, late_bias = products(x, pieces, bias if whole else None), None if whole else bias
    log_sums, picked = (x.new_zeros(len(x), dtype=torch.float32) for _ in range(2))
    cross_entropy_triton.log_sum_(logits, late_bias, targets, 0, vocab, log_sums, picked)
    nll = (log_sums - picked).masked_fill(targets == IGNORE_INDEX, 0.0)
    if not gradient:
        return nll, None, None
    scaling = IGNORE_INDEX, GRADIENT_SCALE
    given = logits, late_bias, targets, 0, vocab, log_sums, *scaling
    summed = cross_entropy_triton.gradient_(*given, summed=bias is not None)
    return nll, logits, None if summed is None else summed[:vocab]


def _room_for_logits(x: Tensor, chunk_tokens: int, pieces: tuple[Tensor, ...]) -> Tensor | None:
    """What every chunk of x r(N D) has its logits in; None on CUDA, whose allocator keeps what is freed."""
    rows, columns = min(len(x), chunk_tokens), sum(map(len, pieces))
    return None if x.is_cuda else room_for(x, rows, columns, pieces[0].dtype)


def _add_weight_gradient(total: Tensor, g: Tensor, x: Tensor, first: bool) -> None:
    """total += g^T x for g r(n V), x r(n D), or total = g^T x if these are the first; summed in total's dtype."""
    if g.is_cuda or g.dtype == total.dtype:
        cross_entropy_blocks.accumulate_(total, g.t(), x, first)
        return
    for rows, columns in zip(total.split(ADDED_ROWS), g.split(ADDED_ROWS, dim=1), strict=True):
        product = columns.t() @ x
        rows.copy_(product) if first else rows.add_(product)


def _loss_and_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk_tokens: int,
    compute: torch.dtype,
    storage: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss, and GRADIENT_SCALE times its dx r(N D), dW r(V D) and db r(V) (empty without a bias)."""
    accumulate, vocab = planar.accumulate_dtype(storage), weight.shape[0]
    pieces, bias = cut(weight, bias, compute)
    padded = sum(map(len, pieces))
    loss = torch.zeros((), dtype=accumulate, device=x.device)
    dx = torch.empty(x.shape, dtype=compute, device=x.device)
    one_chunk = x.shape[0] <= chunk_tokens and not x.is_cuda  # nothing to sum: the product is dW itself
    dw = None if one_chunk else torch.empty(padded, x.shape[1], dtype=accumulate, device=x.device)
    db = torch.zeros(0 if bias is None else vocab, dtype=accumulate, device=x.device)
    room = _room_for_logits(x, chunk_tokens, pieces)
    for start in range(0, x.shape[0], chunk_tokens):
        part = slice(start, start + chunk_tokens)
        x_part = x[part].to(compute)
        nll, g, summed = _chunk_loss(x_part, pieces, bias, targets[part], vocab, storage, gradient=True, room=room)
        loss += nll.sum()
        if summed is not None:
            db += summed
        torch.mm(g[:, : len(pieces[0])], pieces[0], out=dx[part])
        if len(pieces) > 1:
            dx[part].addmm_(g[:, len(pieces[0]) :], pieces[1])
        if one_chunk:
            dw = g.t() @ x_part
        else:
            _add_weight_gradient(dw, g, x_part, first=start == 0)
        del g  # before the next chunk makes its own
    return loss, dx, dw[:vocab], db


def _scaled(total: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale total in `dtype`, rounded once; rows by the cacheful on a CPU, whose mixed-precision products are slow."""
    out = torch.empty_like(total, dtype=dtype)
    if total.is_cuda:
        return torch.mul(total.to(scale.dtype), scale, out=out)
    for out_rows, rows in zip(out.split(SCALED_ROWS), total.split(SCALED_ROWS), strict=True):
        out_rows.copy_(rows.to(scale.dtype) * scale)
    return out


class _SummedLoss(torch.autograd.Function):
    """sum of -log p_y over tokens, with dx, dW and db computed on the way."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, chunk_tokens, compute, storage):
        loss, *gradients = _loss_and_gradients(x, weight, bias, targets, chunk_tokens, compute, storage)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        scale = grad / GRADIENT_SCALE
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        found = (None if dtype is None else _scaled(total, scale, dtype) for total, dtype in pairs)
        return *found, None, None, None, None


def _nll(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, storage: torch.dtype) -> Tensor:
    """-log p of each target, r(n): one chunk."""
    return _picked_nll(_log_probabilities(F.linear(x, weight, bias), storage), targets)


def _chunked_nll(x, weight, bias, targets, chunk_tokens, compute, storage, wanted) -> Tensor:
    """-log p of each target, r(N), chunk by chunk; a backward pass, but of torch.func, computes their logits again."""
    parts = zip(x.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    if wanted:
        w, b = weight.to(compute), None if bias is None else bias.to(compute)
        call = _nll if transformed() else partial(checkpoint, _nll, use_reentrant=False)  # which torch.func cannot see
        return torch.cat([call(x_.to(compute), w, b, y, storage) for x_, y in parts])
    (pieces, b), vocab = cut(weight, bias, compute), weight.shape[0]
    room = _room_for_logits(x, chunk_tokens, pieces)
    chunks = [_chunk_loss(x_.to(compute), pieces, b, y, vocab, storage, gradient=False, room=room) for x_, y in parts]
    return torch.cat([nll for nll, *_ in chunks])


def _check(features: Tensor, weight: Tensor, targets: Tensor, reduction: str, chunk_tokens: int | None) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if features.shape[:-1] != targets.shape or features.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"features (..., {weight.shape[1]}) and targets (...) must agree, got "
            f"{tuple(features.shape)} and {tuple(targets.shape)}"
        )
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if readable(targets):
        bad = (targets >= weight.shape[0]) | ((targets < 0) & (targets != IGNORE_INDEX))
        if bad.any():
            raise ValueError(
                f"targets must lie in [0, {weight.shape[0]}) or be {IGNORE_INDEX}, got {targets[bad][0].item()}"
            )


def head_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    reduction: str = "mean",
    chunk_tokens: int | None = None,
) -> Tensor:
    """Cross entropy in nats of features r(... D) against targets (...): float32 (float64 for float64 features).

    weight is r(V D), bias r(V) or None. Targets equal to IGNORE_INDEX count nothing; the mean is over the others.
    "none" gives r(...) and recomputes each chunk's logits in its backward pass. Targets out of range are a ValueError
    on CPU (CUDA, compiled code and torch.func: not checked). Autograd refuses a second derivative of "mean" and "sum"
    and has that of "none"; torch.func has all, and holds the logits for them.
    """
    if torch.compiler.is_compiling():  # a loop of library products and one kernel: nothing for a compiler to gain
        eager = torch.compiler.disable(head_loss)
        return eager(features, weight, bias, targets, reduction=reduction, chunk_tokens=chunk_tokens)
    _check(features, weight, targets, reduction, chunk_tokens)
    x, y = features.reshape(-1, features.shape[-1]), targets.reshape(-1).long()
    if not len(y):  # no chunk: the formula has a sum of 0, a mean of NaN as PyTorch's, and zeros as gradients
        nll = _nll(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), y, x.dtype)
        return {"none": nll.reshape(targets.shape), "sum": nll.sum(), "mean": nll.mean()}[reduction]
    compute, storage = planar.product_dtypes(x)
    wanted = wants_grad(x, weight, bias)
    at_once = reduction != "none" and wanted and not transformed()  # the gradients on the way to the loss
    tokens = chunk_tokens or default_chunk_tokens(x.shape[0], on_cpu=not x.is_cuda)
    if at_once and cross_entropy_blocks.serves(x, weight, compute):
        loss = cross_entropy_blocks.SummedLoss.apply(x, weight, bias, y, chunk_tokens)
    elif at_once:
        loss = _SummedLoss.apply(x, weight, bias, y, tokens, compute, storage)
    else:
        nll = _chunked_nll(x, weight, bias, y, tokens, compute, storage, wanted)
        if reduction == "none":
            return nll.reshape(targets.shape)
        loss = nll.sum()
    return loss / (y != IGNORE_INDEX).sum() if reduction == "mean" else loss
