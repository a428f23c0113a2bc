"""Cross entropy of logits and its gradient as CUDA kernels, in place.

One kernel takes the log sum exp of each token's logits, one turns logits into gradients and sums those over tokens on
the way, which is the bias' gradient: the half-precision logits are read twice and overwritten once. Both work on all
logits of a chunk of tokens and on a block of the vocabulary alike. The PyTorch forms in `cross_entropy` and
`cross_entropy_blocks` are the reference; they write float32 tensors of the logits' size.
"""

# ruff: noqa: N803 - Triton's constants are written in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG_SUM_COLUMNS, LOG_SUM_WARPS = 2048, 4  # logits of one token that a program holds at a time, warps that share them
LOG_SUM_BYTES = 16  # of those, that a thread adds up at a time
LOG_SUM_STAGES, GRADIENT_STAGES = 1, 3  # how many such pieces are worked on or on their way; 1 waits for them
GRADIENT_ROWS, GRADIENT_COLUMNS, GRADIENT_WARPS = 2, 1024, 4  # the same for some tokens and some columns
GRADIENT_PASSES = 16  # how many such groups of tokens a program goes through: it sums them in registers


def log_sum_(
    logits: Tensor, bias: Tensor | None, targets: Tensor, first: int, columns: int, log_sums: Tensor, picked: Tensor
) -> None:
    """log_sums r(n) becomes log sum exp of the first `columns` of logits r(n R), which are those from `first` on.

    picked r(n) becomes the target's logit where that is one of them, and stays as it is elsewhere. bias r(R) is added
    to the logits first.
    """
    block = min(LOG_SUM_COLUMNS, triton.next_power_of_2(columns))
    if not len(logits):
        return
    with torch.cuda.device_of(logits):
        _log_sum_kernel[(len(logits),)](
            logits,
            logits if bias is None else bias,
            targets,
            log_sums,
            picked,
            first,
            columns,
            logits.shape[1],
            HAS_BIAS=bias is not None,
            BLOCK=block,
            EACH=min(block, LOG_SUM_BYTES // logits.element_size()),
            STAGES=LOG_SUM_STAGES,
            num_warps=max(1, min(LOG_SUM_WARPS, block // 64)),
        )


def gradient_(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    columns: int,
    log_sums: Tensor,
    ignore_index: int,
    scale: float,
    summed: bool,
) -> Tensor | None:
    """logits r(n R) become scale (p - y), 0 for ignored targets and beyond `columns`; with `summed` their sum r(R).

    They are the logits from `first` on, bias r(R) is added to them first; log_sums r(n) is over all blocks. The sum
    over tokens is float32, of what is not rounded yet.
    """
    tokens, width = logits.shape
    block = min(GRADIENT_COLUMNS, triton.next_power_of_2(width))
    groups = triton.cdiv(tokens, GRADIENT_ROWS * GRADIENT_PASSES)
    sums = torch.empty(groups if summed else 0, width, dtype=torch.float32, device=logits.device)
    if tokens:
        with torch.cuda.device_of(logits):
            _gradient_kernel[(triton.cdiv(width, block), groups)](
                logits,
                logits if bias is None else bias,
                targets,
                log_sums,
                sums,
                tokens,
                first,
                columns,
                width,
                ignore_index,
                scale,
                HAS_BIAS=bias is not None,
                SUMMED=summed,
                ROWS=GRADIENT_ROWS,
                PASSES=GRADIENT_PASSES,
                BLOCK=block,
                STAGES=GRADIENT_STAGES,
                num_warps=max(1, min(GRADIENT_WARPS, block // 64)),
            )
    return sums.sum(0) if summed else None


LOWEST = tl.constexpr(-1e30)  # where a lane starts: finite, so that -inf is no special case
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)  # exp and log are of base 2 in there


@triton.jit
def _logits(place, bias_place, within, HAS_BIAS: tl.constexpr):
    """Logits in float32. `within` the row, whose width is a multiple of a wide load; a narrower mask would split it."""
    z = tl.load(place, mask=within, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_place, mask=within, other=0.0).to(tl.float32)
    return z


@triton.jit
def _added(z, largest, total):
    """Every row of z adds to the sum of a lane, 2^(z log2 e - largest), and may raise its largest exponent so far."""
    top = tl.maximum(tl.max(z, 1) * LOG2_E, largest)
    return top, total * tl.exp2(largest - top) + tl.sum(tl.exp2(z * LOG2_E - top[:, None]), 1)


@triton.jit
def _log_sum_kernel(
    logits, bias, targets, log_sums, picked,
    first, columns, width,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr, EACH: tl.constexpr, STAGES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    lane = tl.arange(0, BLOCK // EACH)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    largest = tl.full((BLOCK // EACH,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK // EACH,), tl.float32)
    whole = columns // BLOCK * BLOCK  # in here no logit has to be left out
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        z = _logits(logits + start + lane, bias + start + lane, start + lane < width, HAS_BIAS)
        largest, total = _added(z, largest, total)
    if whole < columns:
        z = _logits(logits + whole + lane, bias + whole + lane, whole + lane < width, HAS_BIAS)
        largest, total = _added(tl.where(whole + lane < columns, z, -float("inf")), largest, total)
    top = tl.max(largest, 0)
    tl.store(log_sums + row, (top + tl.log2(tl.sum(total * tl.exp2(largest - top), 0))) * LN_2)
    target = tl.load(targets + row) - first
    here = (target >= 0) & (target < columns)
    tl.store(picked + row, _logits(logits + target, bias + target, here, HAS_BIAS), mask=here)


@triton.jit
def _gradient_kernel(
    logits, bias, targets, log_sums, sums,
    tokens, first, columns, width, ignore_index, scale,
    HAS_BIAS: tl.constexpr, SUMMED: tl.constexpr, ROWS: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    group = tl.program_id(1)
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < columns
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in tl.range(0, PASSES, num_stages=STAGES):
        row = (group * PASSES + i) * ROWS + tl.arange(0, ROWS)
        present = row < tokens
        target = tl.load(targets + row, mask=present, other=ignore_index)
        log_sum = tl.load(log_sums + row, mask=present, other=0.0)
        place = logits + row.to(tl.int64)[:, None] * width + lanes[None, :]
        within = present[:, None] & (lanes < width)[None, :]
        p = tl.exp(_logits(place, bias + lanes[None, :], within, HAS_BIAS) - log_sum[:, None])
        p -= tl.where(first + lanes[None, :] == target[:, None], 1.0, 0.0)
        # Beyond `columns` lie the logits of no token: where the target is in a later block, its id may be met there.
        p = tl.where((target != ignore_index)[:, None] & inside[None, :], p * scale, 0.0)
        tl.store(place, p.to(logits.dtype.element_ty), mask=within)
        total += p
    if SUMMED:
        tl.store(sums + group.to(tl.int64) * width + lanes, tl.sum(total, 0), mask=lanes < width)
