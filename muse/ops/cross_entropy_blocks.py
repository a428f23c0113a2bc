"""The head's loss over blocks of the vocabulary, for weights stored in half precision: no float32 table of gradients.

`cross_entropy` goes over chunks of tokens and sums dW r(V D) in float32, twice the size of a half-precision table. Here
each block of R rows W_j meets every token before the next one does, so that only the block's dW_j r(R D) is ever
float32, for one product more than there:
    pass 1: z = W_j x + b_j, its log sum exp, and z_y if y is in the block; over all blocks -log p_y = log Z - z_y
    pass 2: z again, overwritten by g = GRADIENT_SCALE (p - y); dW_j = g^T x, db_j = the sum of g, dx += g W_j
Sums are float32 (float64 for float64). N tokens, D width, V vocabulary; symbols as in `cross_entropy`.

fp16: a sum over tokens of g x can exceed 65504, the same divided by N would underflow, and the caller's loss scale is
not known yet. So each row of dW is divided by its own largest value / PEAK before it is rounded. The backward pass
multiplies by that and by the incoming gradient in float32: what it rounds is the gradient as the caller scaled it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import planar
from .operator import has_kernels

try:
    from . import cross_entropy_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    cross_entropy_triton = None

IGNORE_INDEX = -100
GRADIENT_SCALE = 256.0  # p - y in fp16: probabilities down to 1e-10 stay non-zero, sums stay far from 65504
BLOCK_ROWS = 8192  # R: rows of W that meet all tokens at a time
BUFFER_NUMEL = 2**25  # logits held at a time: 4,096 tokens, 64 MiB
PRODUCT_ROWS, PRODUCT_TOKENS = 512, 32  # a CPU takes so many rows of W at a time in float32, from so many tokens on
ROW_MULTIPLE = 64  # the last block is padded to it: an odd number of columns makes a CUDA product several times slower
PEAK = 2.0**14  # largest entry of each row of dW as kept: fp16 is then exact to 11 bits down to 2^-28 of it
SMALLEST = 1e-30  # largest entry that a row of zeros is taken to have


class Block(NamedTuple):
    """Rows first .. first + columns of W as r(R D), of b as r(R) or None; R is columns rounded up, by rows of 0."""

    first: int
    columns: int
    weight: Tensor
    bias: Tensor | None


class Gradients(NamedTuple):
    """GRADIENT_SCALE times dx r(N D), dW r(V D) over row_scale r(V 1), and db r(V), empty without a bias."""

    dx: Tensor
    dw: Tensor
    row_scale: Tensor
    db: Tensor


def serves(x: Tensor, weight: Tensor, compute: torch.dtype) -> bool:
    """Whether blocks save memory: half-precision weights on CUDA that are multiplied as they are, of several blocks."""
    stored = weight.dtype == compute and compute.itemsize == 2  # one block would cost a product for nothing
    return has_kernels(cross_entropy_triton, x) and stored and len(weight) > BLOCK_ROWS and len(x) > 0


def accumulate_(total: Tensor, a: Tensor, b: Tensor, first: bool = False) -> None:
    """total += a b, or total = a b if this is the first one; summed in total's dtype."""
    beta = 0 if first else 1
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype), beta=beta)


def product_(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """out = W x + b: out r(n R), x r(n D), weight r(R D), bias r(R) or None, all of one dtype.

    By the transpose of 50,000 rows MKL multiplies at two thirds of the speed that it has with 512.
    """
    if not x.is_cuda and x.dtype == torch.float32 and len(x) >= PRODUCT_TOKENS and len(weight) > PRODUCT_ROWS:
        for start in range(0, len(weight), PRODUCT_ROWS):
            part = slice(start, start + PRODUCT_ROWS)
            product_(out[:, part], x, weight[part], None if bias is None else bias[part])
        return out
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)  # cuBLASLt adds it to a contiguous result before it is rounded


def _blocks(weight: Tensor, bias: Tensor | None) -> list[Block]:
    blocks = []
    for first in range(0, len(weight), BLOCK_ROWS):
        w = weight[first : first + BLOCK_ROWS]
        b = None if bias is None else bias[first : first + BLOCK_ROWS].to(w.dtype)
        columns, missing = len(w), -len(w) % ROW_MULTIPLE
        if missing:
            w, b = F.pad(w, (0, 0, 0, missing)), None if b is None else F.pad(b, (0, missing))
        blocks.append(Block(first, columns, w, b))
    return blocks


def _buffer(x: Tensor, blocks: list[Block], parts: list[slice]) -> Tensor:
    """Room for the logits of the largest block and part."""
    return x.new_empty(parts[0].stop * len(blocks[0].weight))


def _logits(x: Tensor, block: Block, parts: list[slice], buffer: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Each part of the tokens with its W x + b, r(n R), which overwrites that of the part before."""
    for part in parts:
        rows = x[part]
        logits = buffer[: len(rows) * len(block.weight)].view(len(rows), len(block.weight))
        yield part, product_(logits, rows, block.weight, block.bias)


def _measure_(logits: Tensor, targets: Tensor, block: Block, log_sums: Tensor, picked: Tensor) -> None:
    """log_sums r(n) becomes log sum exp of the block's logits; picked r(n) the target's logit where it is in there."""
    if logits.is_cuda:
        cross_entropy_triton.log_sum_(logits, None, targets, block.first, block.columns, log_sums, picked)
        return
    z, local = logits[:, : block.columns].to(log_sums.dtype), targets - block.first
    log_sums.copy_(torch.logsumexp(z, 1))
    here = z.gather(1, local.clamp(0, block.columns - 1)[:, None])[:, 0]
    picked.copy_(torch.where((local >= 0) & (local < block.columns), here, picked))


def _differentiate_(logits: Tensor, targets: Tensor, block: Block, log_sums: Tensor) -> Tensor | None:
    """logits r(n R) become g = GRADIENT_SCALE (p - y), 0 for ignored targets and in padded columns.

    Returns the sum of g over tokens, r(R), where the block has a bias.
    """
    if logits.is_cuda:
        place = block.first, block.columns
        return cross_entropy_triton.gradient_(
            logits, None, targets, *place, log_sums, IGNORE_INDEX, GRADIENT_SCALE, summed=block.bias is not None
        )
    p = torch.exp(logits.to(log_sums.dtype) - log_sums[:, None])
    p -= (targets[:, None] == block.first + torch.arange(p.shape[1], device=p.device)).to(p.dtype)
    p *= (targets != IGNORE_INDEX)[:, None] * GRADIENT_SCALE
    p[:, block.columns :] = 0
    logits.copy_(p)
    return None if block.bias is None else p.sum(0)


def _nll(x, blocks: list[Block], targets: Tensor, parts: list[slice], accumulate: torch.dtype) -> tuple[Tensor, Tensor]:
    """-log p of each target, 0 where ignored, and log Z: both r(N)."""
    log_sums = x.new_empty(len(blocks), len(x), dtype=accumulate)
    picked = x.new_zeros(len(x), dtype=accumulate)
    buffer = _buffer(x, blocks, parts)
    for block, sums in zip(blocks, log_sums, strict=True):
        for part, logits in _logits(x, block, parts, buffer):
            _measure_(logits, targets[part], block, sums[part], picked[part])
    log_sum = torch.logsumexp(log_sums, 0)
    return (log_sum - picked).masked_fill(targets == IGNORE_INDEX, 0.0), log_sum


def _keep_rows(total: Tensor, dw: Tensor, row_scale: Tensor) -> None:
    """dw row_scale = total, where each row of dw has the largest entry PEAK; a row that is not finite stays so."""
    torch.linalg.vector_norm(total, torch.inf, dim=1, keepdim=True, out=row_scale)
    row_scale.clamp_min_(SMALLEST).div_(PEAK)
    torch.div(total, row_scale, out=dw)


def _gradients(x, weight, bias, blocks, targets, log_sum, parts) -> Gradients:
    """The second pass: log_sum is log Z r(N)."""
    dx = torch.empty_like(x, dtype=log_sum.dtype)
    dw, row_scale = torch.empty_like(weight), log_sum.new_empty(len(weight), 1)
    db = log_sum.new_zeros(0 if bias is None else len(weight))
    total = log_sum.new_empty(len(blocks[0].weight), x.shape[1])
    buffer = _buffer(x, blocks, parts)
    for block in blocks:
        rows, block_total = slice(block.first, block.first + block.columns), total[: len(block.weight)]
        for part, g in _logits(x, block, parts, buffer):
            summed = _differentiate_(g, targets[part], block, log_sum[part])
            accumulate_(block_total, g.t(), x[part], first=part.start == 0)
            accumulate_(dx[part], g, block.weight, first=block.first == 0)
            if summed is not None:
                db[rows] += summed[: block.columns]
        _keep_rows(block_total[: block.columns], dw[rows], row_scale[rows])
    return Gradients(dx.to(x.dtype), dw, row_scale, db)


def loss_and_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk_tokens: int | None
) -> tuple[Tensor, Gradients]:
    """Summed loss and its gradients for x r(N D), weight r(V D) of x's dtype, bias r(V) or None and targets (N,).

    `chunk_tokens` is how many tokens meet a block at a time, None what fits BUFFER_NUMEL.
    """
    blocks = _blocks(weight, bias)
    step = chunk_tokens or max(BUFFER_NUMEL // len(blocks[0].weight), 1)
    parts = [slice(start, min(start + step, len(x))) for start in range(0, len(x), step)]
    nll, log_sum = _nll(x, blocks, targets, parts, planar.accumulate_dtype(x.dtype))
    return nll.sum(), _gradients(x, weight, bias, blocks, targets, log_sum, parts)


class SummedLoss(torch.autograd.Function):
    """sum of -log p_y over tokens, with dx, dW and db computed on the way.

    The backward pass scales dW in place and gives it away: no second table. Asked again, it computes everything again.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, targets, chunk_tokens):
        ctx.save_for_backward(x, weight, bias, targets)
        ctx.chunk_tokens = chunk_tokens
        loss, ctx.gradients = loss_and_gradients(x.to(weight.dtype), weight, bias, targets, chunk_tokens)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradients, ctx.gradients = ctx.gradients, None
        x, weight, bias, targets = ctx.saved_tensors
        if gradients is None:
            _, gradients = loss_and_gradients(x.to(weight.dtype), weight, bias, targets, ctx.chunk_tokens)
        dx, dw, row_scale, db = gradients
        scale = grad / GRADIENT_SCALE
        for rows, of_rows in zip(dw.split(BLOCK_ROWS), (row_scale * scale).split(BLOCK_ROWS), strict=True):
            rows.mul_(of_rows)
        dx = (dx.to(scale.dtype) * scale).to(x.dtype)
        return dx, dw, None if bias is None else (db * scale).to(bias.dtype), None, None
