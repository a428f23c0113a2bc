"""Cross entropy of logits and its gradient as CUDA kernels, in place.

For a chunk of tokens with all of their logits one kernel does both: a program has one token, or two where they can
share what it loads of a bias. It reads the half-precision logits twice (the second time mostly from the cache) and
overwrites them once. For all tokens with a block of their logits there is one kernel for each pass of `head_blocks`.
The PyTorch forms in `head` and `head_blocks` are the reference; they write float32 tensors of the logits' size.
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
        block, warps = _shape_of_program(padded)
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
                num_warps=warps,
            )
    return nll


def block_log_sum_(logits: Tensor, targets: Tensor, first: int, columns: int, log_sums: Tensor, picked: Tensor) -> None:
    """log_sums r(n) becomes log sum exp of the first `columns` of logits r(n R), which are those from `first` on.

    picked r(n) becomes the target's logit where that is one of them, and stays as it is elsewhere.
    """
    block, warps = _shape_of_program(columns)
    with torch.cuda.device_of(logits):
        _log_sum_kernel[(len(logits),)](
            logits, targets, log_sums, picked, first, columns, logits.shape[1], BLOCK=block, num_warps=warps
        )


def block_gradient_(
    logits: Tensor, targets: Tensor, first: int, columns: int, log_sums: Tensor, ignore_index: int, scale: float
) -> None:
    """logits r(n R) become scale (p - y), 0 for ignored targets and beyond `columns`.

    They are the logits from `first` on; log_sums r(n) is over all blocks.
    """
    block, warps = _shape_of_program(logits.shape[1])
    with torch.cuda.device_of(logits):
        _gradient_kernel[(len(logits), triton.cdiv(logits.shape[1], block))](
            logits,
            targets,
            log_sums,
            first,
            columns,
            logits.shape[1],
            ignore_index,
            scale,
            BLOCK=block,
            num_warps=warps,
        )


def _shape_of_program(width: int) -> tuple[int, int]:
    """How many logits of a token a program holds at a time, and how many warps share them."""
    block = min(BLOCK, triton.next_power_of_2(width))
    return block, max(1, min(WARPS, block // 64))


LOWEST = tl.constexpr(-1e30)  # where a lane starts: finite, so that -inf is no special case


@triton.jit
def _added(z, largest, total):
    """Every lane sums exp(z - its own largest z), so that lanes need not wait for each other."""
    ratio = tl.exp(-tl.abs(z - largest))
    return tl.maximum(largest, z), tl.where(z > largest, total * ratio + 1.0, total + ratio)


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
    largest = tl.full((ROWS, BLOCK), LOWEST, tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        z = tl.load(logits + start + columns, mask=present[:, None] & inside, other=-float("inf")).to(tl.float32)
        if HAS_BIAS:
            z += tl.load(bias + start + columns, mask=inside, other=0.0).to(tl.float32)
        largest, total = _added(z, largest, total)
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


@triton.jit
def _log_sum_kernel(
    logits,
    targets,
    log_sums,
    picked,
    first,
    columns,
    width,
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    lanes = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        z = tl.load(logits + start + lanes, mask=start + lanes < columns, other=-float("inf")).to(tl.float32)
        largest, total = _added(z, largest, total)
    top = tl.max(largest, 0)
    tl.store(log_sums + row, top + tl.log(tl.sum(total * tl.exp(largest - top), 0)))
    target = tl.load(targets + row) - first
    inside = (target >= 0) & (target < columns)
    tl.store(picked + row, tl.load(logits + target, mask=inside, other=0.0).to(tl.float32), mask=inside)


@triton.jit
def _gradient_kernel(
    logits,
    targets,
    log_sums,
    first,
    columns,
    width,
    ignore_index,
    scale,
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits += row * width
    target = tl.load(targets + row)
    z = tl.load(logits + lanes, mask=lanes < columns, other=-float("inf")).to(tl.float32)
    p = tl.exp(z - tl.load(log_sums + row)) - tl.where(first + lanes == target, 1.0, 0.0)
    # Beyond `columns` lie the logits of no token: where the target is in a later block, its id may be met there.
    p = tl.where((target != ignore_index) & (lanes < columns), p * scale, 0.0)
    tl.store(logits + lanes, p.to(logits.dtype.element_ty), mask=lanes < width)
