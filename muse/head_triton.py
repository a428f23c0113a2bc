"""Cross entropy of a chunk of logits and its gradient in one CUDA kernel, in place: one program per token.

The PyTorch form in `head` is the reference; it writes float32 tensors of the logits' size where this one reads the
half-precision logits twice (the second time mostly from the cache) and overwrites them once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 4  # logits that a program holds at a time, and the warps that share them


def nll_and_gradient_(
    logits: Tensor, bias: Tensor | None, targets: Tensor, vocab: int, ignore_index: int, gradient_scale: float
) -> Tensor:
    """-log p of each target, float32 r(n); logits r(n V) become gradient_scale (p - y).

    logits may have padded columns beyond `vocab`: they do not count and become 0. bias r(V) is added first. Where the
    target is `ignore_index` both results are 0. A scale of 0 leaves the logits as they are.
    """
    nll = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    if logits.shape[0]:
        block = min(BLOCK, triton.next_power_of_2(logits.shape[1]))
        with torch.cuda.device_of(logits):
            _kernel[(logits.shape[0],)](
                logits,
                logits if bias is None else bias,
                targets,
                nll,
                vocab,
                logits.shape[1],
                ignore_index,
                gradient_scale,
                HAS_BIAS=bias is not None,
                WRITES=gradient_scale != 0,
                BLOCK=block,
                num_warps=max(1, min(WARPS, block // 128)),
            )
    return nll


LOWEST = tl.constexpr(-1e30)  # where a lane starts: finite, so that -inf is no special case


@triton.jit
def _kernel(
    logits,
    bias,
    targets,
    nll,
    vocab,
    padded,
    ignore_index,
    scale,
    HAS_BIAS: tl.constexpr,  # noqa: N803 - Triton's constants are written like this
    WRITES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * padded
    target = tl.load(targets + row)
    columns = tl.arange(0, BLOCK)
    largest = tl.full(
        (BLOCK,), LOWEST, tl.float32
    )  # every lane sums exp(z - its own largest z): no waiting in the loop
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        z = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        if HAS_BIAS:
            z += tl.load(bias + start + columns, mask=inside, other=0.0).to(tl.float32)
        ratio = tl.exp(-tl.abs(z - largest))
        total = tl.where(z > largest, total * ratio + 1.0, total + ratio)
        largest = tl.maximum(largest, z)
    top = tl.max(largest, 0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
    counted = target != ignore_index
    picked = tl.load(logits + target, mask=counted, other=0.0).to(tl.float32)
    if HAS_BIAS:
        picked += tl.load(bias + target, mask=counted, other=0.0).to(tl.float32)
    tl.store(nll + row, tl.where(counted, log_sum - picked, 0.0))
    if WRITES:
        tl.debug_barrier()  # the picked logit is read before another thread overwrites it
        scale = tl.where(counted, scale, 0.0)
        for start in range(0, padded, BLOCK):
            inside = start + columns < vocab
            z = tl.load(logits + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
            if HAS_BIAS:
                z += tl.load(bias + start + columns, mask=inside, other=0.0).to(tl.float32)
            p = tl.exp(z - log_sum) - tl.where(start + columns == target, 1.0, 0.0)
            p = (p * scale).to(logits.dtype.element_ty)
            tl.store(logits + start + columns, p, mask=start + columns < padded)
