"""What follows the matrix memory, and the gate of a feed-forward: norm per head, silu gates.

    written(y, g) = head_norm(y) silu(g) gain,   gated(value, g) = value silu(g)

B batch, T positions, H heads, X channels a head; planes is 2 for complex numbers, 1 for real ones. This is the form to
read. On CUDA the kernels of `gate_triton` do the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import planar
from .operator import has_kernels

try:
    from . import gate_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    gate_triton = None


def written(
    y: Tensor, gate: Tensor | None, gain: Tensor, planes: int, eps: float, dtype: torch.dtype, product: torch.dtype
) -> Tensor:
    """What the heads read, y (B H T X), normed per head, times silu(gate) r(B T D) and gain r(D): r(B T planes D).

    The result has the `dtype` of the stream; from the kernel, which rounds once, that of the `product` that follows.
    """
    if has_kernels(gate_triton, y):
        return gate_triton.write(y, gate, gain, planes, eps, product)
    y = F.rms_norm(y.to(planar.accumulate_dtype(y.dtype)), y.shape[-1:], eps=eps).to(dtype)
    y = y.unflatten(-1, (planes, -1)).permute(0, 2, 3, 1, 4).flatten(-2)  # (B T planes D)
    factor = gain if gate is None else F.silu(gate) * gain
    return (y * factor.unsqueeze(-2)).flatten(-2).to(dtype)


def gated(value: Tensor, gate: Tensor, planes: int) -> Tensor:
    """value r(.. planes F) times silu(gate) r(.. F)."""
    if has_kernels(gate_triton, value):
        return gate_triton.gated(value, gate, planes)
    return (value.unflatten(-1, (planes, -1)) * F.silu(gate).unsqueeze(-2)).flatten(-2)
