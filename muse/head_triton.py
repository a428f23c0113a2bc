"""Cross entropy of a chunk of logits and its gradient in one CUDA kernel, in place.

A program has one token, or two where they can share what it loads of a bias. The PyTorch form in `head` is the
reference; it writes float32 tensors of the logits' size where this one reads the half-precision logits twice (the
second time mostly from the cache) and overwrites them once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, BLOCK, WARPS = 2, 1024, 4  # tokens of a program, logits of each that it holds at a time, warps that share them


def nll_and_gradient_(
    logits: Tensor, bias: Tensor | None, targets: Tensor, vocab: int, ignore_index: int, gradient_scale: float
) -> Tensor:
    """-log p of each target, float32 r(n); logits r(n V) become gradient_scale (p - y).

    logits may have padded columns beyond `vocab`: they do not count and become 0. bias r(V) is added first. Where the
    target is `ignore_index` both results are 0. A scale of 0 leaves the logits as they are.
    """
    tokens, padded = logits.shape
    nll = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    if tokens:
        block = min(BLOCK, triton.next_power_of_2(padded))
        rows = ROWS if bias is not None else 1  # what a program loads of the bias serves all of its tokens
        with torch.cuda.device_of(logits):
            _kernel[(triton.cdiv(tokens, rows),)](
                logits,
                logits if bias is None else bias,
                targets,
                nll,
                tokens,
                vocab,
                padded,
                ignore_index,
                gradient_scale,
                HAS_BIAS=bias is not None,
                WRITES=gradient_scale != 0,
                ROWS=rows,
                BLOCK=block * (ROWS // rows),
                num_warps=max(1, min(WARPS, block // 64)),
            )
    return nll


LOWEST = tl.constexpr(-1e30)  # where a lane starts: finite, so that -inf is no special case


@triton.jit
def _kernel(
    logits,
    bias,
    targets,
    nll,
    tokens,
    vocab,
    padded,
    ignore_index,
    scale,
    HAS_BIAS: tl.constexpr,  # noqa: N803 - Triton's constants are written like this
    WRITES: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < tokens
    target = tl.load(targets + row, mask=present, other=ignore_index)
    counted = present & (target != ignore_index)
    logits += row[:, None] * padded
    columns = tl.arange(0, BLOCK)[None, :]
    # Every lane sums exp(z - its own largest z): no waiting in the loop.
    largest = tl.full((ROWS, BLOCK), LOWEST, tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        z = tl.load(logits + start + columns, mask=present[:, None] & inside, other=-float("inf")).to(tl.float32)
        if HAS_BIAS:
            z += tl.load(bias + start + columns, mask=inside, other=0.0).to(tl.float32)
        ratio = tl.exp(-tl.abs(z - largest))
        total = tl.where(z > largest, total * ratio + 1.0, total + ratio)
        largest = tl.maximum(largest, z)
    top = tl.max(largest, 1)
    log_sum = top + tl.log(tl.sum(total * tl.exp(largest - top[:, None]), 1))
    here = tl.where(counted, target, 0)
    picked = tl.load(logits + here[:, None], mask=counted[:, None], other=0.0).to(tl.float32)
    if HAS_BIAS:
        picked += tl.load(bias + here, mask=counted, other=0.0).to(tl.float32)[:, None]
    tl.store(nll + row, tl.where(counted, log_sum - tl.sum(picked, 1), 0.0), mask=present)
    if WRITES:
        tl.debug_barrier()  # the picked logits are read before another thread overwrites them
        scale = tl.where(counted, scale, 0.0)[:, None]
        for start in range(0, padded, BLOCK):
            inside = start + columns < vocab
            z = tl.load(logits + start + columns, mask=present[:, None] & inside, other=-float("inf")).to(tl.float32)
            if HAS_BIAS:
                z += tl.load(bias + start + columns, mask=inside, other=0.0).to(tl.float32)
            p = tl.exp(z - log_sum[:, None]) - tl.where(start + columns == target[:, None], 1.0, 0.0)
            p = (p * scale).to(logits.dtype.element_ty)
            tl.store(logits + start + columns, p, mask=present[:, None] & (start + columns < padded))
