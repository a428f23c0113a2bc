"""One token's step: the end of it, and whether kernels compute what lies between its products.

The form to read of all but the end is `muse.models.step_parts`, which also serves where `step_triton` does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import has_kernels

try:
    from . import step_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    step_triton = None


def serves(x: Tensor, wide: torch.dtype, pairs: int) -> bool:
    """Whether kernels compute a step where x lies, numbers between products in `wide`, K pairs of channels a head."""
    return has_kernels(step_triton, x) and wide == torch.float32 and pairs <= step_triton.MOST_PAIRS


def chosen(scores: Tensor, token: Tensor | None, index: Tensor, bad: Tensor) -> None:
    """Writes the likeliest token of logits r(B V) to `token` (B), where there is one, and counts the step in index (B).

    Where a row is not finite and bad (B) is below 0, the step's number goes there.
    """
    if has_kernels(step_triton, scores):
        step_triton.chosen(scores, token, index, bad)
        return
    worse = ~scores.isfinite().all(-1) & (bad < 0)
    bad.copy_(torch.where(worse, index, bad))
    index.add_(1)
    if token is not None:
        token.copy_(scores.argmax(-1))
