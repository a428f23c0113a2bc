"""Output head and cross entropy that never hold a (tokens x vocabulary) tensor larger than one chunk.

N tokens, D width, V vocabulary; features x r(N D), weight W r(V D), bias b r(V), targets y (N,), logits Wx + b.
The gradient of the summed loss with respect to the logits is p - y, known as soon as they are: each chunk's part of
dx, dW and db is computed in the forward pass, and the backward pass only scales them. Each product is done once.

fp16: p - y is kept times GRADIENT_SCALE, without the mean's 1/N, until after the products; dW and db are summed in
float32, where 1/N is applied. A parameter gradient that is itself stored as fp16 still underflows below 6e-8 for a
large N: multiply the loss by a power of two before backward(), and divide the gradients by it in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muse import planar

IGNORE_INDEX = -100
GRADIENT_SCALE = 256.0  # p - y in fp16: probabilities down to 1e-10 stay non-zero, sums stay far from 65504
REDUCTIONS = ("mean", "sum", "none")
VOCAB_MULTIPLE = {"cuda": 64}  # an odd number of columns makes the CUDA fp16 product several times slower


def default_chunk_tokens(num_tokens: int) -> int:
    """An eighth of the tokens, within 256 .. 4096: up to 32k tokens dW is read and written at most nine times."""
    return min(max(num_tokens // 8, 256), 4096)


def _padded(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """W and b in `dtype` with V rounded up to the device's multiple; the added logits are -inf, their probability 0."""
    extra = -weight.shape[0] % VOCAB_MULTIPLE.get(weight.device.type, 1)
    if bias is None and extra:
        bias = weight.new_zeros(weight.shape[0])
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if extra:
        weight, bias = F.pad(weight, (0, 0, 0, extra)), F.pad(bias, (0, extra), value=-torch.inf)
    return weight, bias


def _log_probabilities(x: Tensor, weight: Tensor, bias: Tensor | None, storage: torch.dtype) -> Tensor:
    """log softmax(W x + b) in the accumulation dtype, r(n V), of logits rounded to the storage dtype."""
    logits = F.linear(x.to(weight.dtype), weight, bias).to(storage)
    return torch.log_softmax(logits, dim=-1, dtype=planar.accumulate_dtype(storage))


def _picked_nll(log_p: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target, 0 where the target is IGNORE_INDEX: r(n)."""
    nll = -log_p.gather(1, targets.clamp_min(0)[:, None])[:, 0]
    return nll.masked_fill(targets == IGNORE_INDEX, 0.0)


@torch.library.custom_op("muse::add_weight_gradient", mutates_args=("total",))
def _add_weight_gradient(total: Tensor, g: Tensor, x: Tensor) -> None:
    """total += g^T x for g r(n V), x r(n D), summed in total's dtype; an op since compilers refuse a mixed addmm."""
    if g.is_cuda and g.dtype != total.dtype:
        torch.addmm(total, g.t(), x, out_dtype=total.dtype, out=total)
    else:
        total.add_(g.t() @ x)


class _SummedLoss(torch.autograd.Function):
    """sum of -log p_y over tokens, with dx, dW and db computed on the way."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, chunk_tokens, compute, storage):
        accumulate = planar.accumulate_dtype(storage)
        w, b = _padded(weight, bias, compute)
        loss = torch.zeros((), dtype=accumulate, device=x.device)
        dx = torch.empty(x.shape, dtype=compute, device=x.device)
        one_chunk = x.shape[0] <= chunk_tokens and not x.is_cuda  # nothing to sum: the product is dW itself
        dw = None if one_chunk else torch.zeros(w.shape, dtype=accumulate, device=x.device)
        db = torch.zeros(w.shape[0], dtype=accumulate, device=x.device)
        for start in range(0, x.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            x_part, y = x[part].to(compute), targets[part]
            log_p = _log_probabilities(x_part, w, b, storage)
            loss += _picked_nll(log_p, y).sum()
            g = log_p.exp_()  # p, then GRADIENT_SCALE (p - y), 0 for ignored targets
            g.scatter_add_(1, y.clamp_min(0)[:, None], g.new_full((1, 1), -1.0).expand(y.shape[0], 1))
            g.mul_((y != IGNORE_INDEX)[:, None] * GRADIENT_SCALE)
            db += g.sum(0)
            g = g.to(compute)
            dx[part] = g @ w
            if one_chunk:
                dw = g.t() @ x_part
            else:
                _add_weight_gradient(dw, g, x_part)
        ctx.save_for_backward(dx, dw[: weight.shape[0]], db[: weight.shape[0]])
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    def backward(ctx, grad):
        scale = grad / GRADIENT_SCALE
        scaled = [
            None if dtype is None else torch.mul(total.to(scale.dtype), scale, out=torch.empty_like(total, dtype=dtype))
            for total, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None


def _nll(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, storage: torch.dtype) -> Tensor:
    """-log p of each target, r(n): one chunk."""
    return _picked_nll(_log_probabilities(x, weight, bias, storage), targets)


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
    if type(targets) is Tensor and targets.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = (targets >= weight.shape[0]) | ((targets < 0) & (targets != IGNORE_INDEX))
        if bad.any():
            raise ValueError(
                f"targets must lie in [0, {weight.shape[0]}) or be {IGNORE_INDEX}, got {targets[bad][0].item()}"
            )


def head_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b: features r(... D), weight r(V D), bias r(V) to logits r(... V) in the storage (autocast: compute) dtype.

    On CUDA the result is a view of a buffer whose rows are padded to a multiple of 64 columns.
    """
    compute, storage = planar.product_dtypes(features)
    w, b = _padded(weight, bias, compute)
    return F.linear(features.to(compute), w, b).to(storage)[..., : weight.shape[0]]


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
    on CPU (CUDA and compiled code: not checked).
    """
    _check(features, weight, targets, reduction, chunk_tokens)
    x, y = features.reshape(-1, features.shape[-1]), targets.reshape(-1).long()
    chunk_tokens = chunk_tokens or default_chunk_tokens(x.shape[0])
    compute, storage = planar.product_dtypes(x)
    wants_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if reduction != "none" and wants_grad:
        loss = _SummedLoss.apply(x, weight, bias, y, chunk_tokens, compute, storage)
    else:
        w, b = _padded(weight, bias, compute)
        parts = [
            (x_part, w, b, y_part, storage)
            for x_part, y_part in zip(x.split(chunk_tokens), y.split(chunk_tokens), strict=True)
        ]
        nll = torch.cat([checkpoint(_nll, *part, use_reentrant=False) if wants_grad else _nll(*part) for part in parts])
        if reduction == "none":
            return nll.reshape(targets.shape)
        loss = nll.sum()
    return loss / (y != IGNORE_INDEX).sum() if reduction == "mean" else loss
