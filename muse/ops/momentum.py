"""What Muon does around its products: gradients into momentum and into what is multiplied, and the result into weights.

N matrices of equal shape, P planes each (2 of a complex one), R rows, C columns. Lists hold NP tensors (R C), those of
the first plane before those of the second. This is the form to read; on CUDA the kernels of `momentum_triton` read and
write each number once, where these passes over lists keep copies in float32 between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import has_kernels

try:
    from . import momentum_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    momentum_triton = None


def look_ahead_(
    kept: list[Tensor], gradients: list[Tensor], momentum: float, dtype: torch.dtype, planes: int
) -> Tensor:
    """kept <- mu kept + (1 - mu) g; returns (1 - mu) g + mu kept, Nesterov's, stacked (N P R C) in `dtype`."""
    shape = len(kept) // planes, planes, *kept[0].shape
    ahead = kept[0].new_empty(shape, dtype=dtype)
    if has_kernels(momentum_triton, *kept, *gradients):
        momentum_triton.look_ahead_(kept, gradients, momentum, ahead)
        return ahead
    torch._foreach_lerp_(kept, gradients, 1 - momentum)
    torch._foreach_copy_(_matrices(ahead), torch._foreach_lerp(gradients, kept, momentum))
    return ahead


def move_(weights: list[Tensor], directions: Tensor, lr: Tensor | float, factor: float, decay: float) -> None:
    """w <- w - lr (factor d + decay w) for directions (N P R C) in any dtype; lr may be a tensor on their device."""
    if has_kernels(momentum_triton, *weights, directions):
        lr = lr if isinstance(lr, Tensor) else directions.new_full((), lr, dtype=torch.float32)
        momentum_triton.move_(weights, directions, lr, factor, decay)
        return
    moved = weights[0].new_empty(directions.shape).copy_(directions)
    # w - lr factor (d + decay / factor w) in one pass, in which lr may be a tensor.
    torch._fused_sgd_(
        weights,
        _matrices(moved),
        [],
        lr=lr * factor,
        weight_decay=decay / factor,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _matrices(x: Tensor) -> list[Tensor]:
    """Those of (N P R C), every matrix of the first plane before the second's."""
    return [matrix for plane in x.unbind(1) for matrix in plane.unbind()]
