"""Projections to queries, keys and values of the matrix memory: short causal convolution, rotation, scale.

    q, k, v = split(convolution(W_qkv u)),   q and k rotated by exp(i angle) and divided by X

B batch, T positions, D width, H heads, X channels a head in real numbers; planes is 2 for complex heads, 1 for real.
This is the form to read. On CUDA the kernels of `qkv_triton` do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import planar
from .linear_attention import rotate
from .operator import by_hand, has_kernels

try:
    from . import qkv_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    qkv_triton = None

NORM_EPS = 1e-6


def by_kernels(
    seen: Tensor, taps: Tensor | None, frequencies: Tensor | None, angle: Tensor | None, planes: int, heads: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """q, k, v (B H T X) of projections r(B T 3 planes D) before which there is nothing; None where no kernel serves.

    q and k rotate by an angle r(B H T X/2), or by the number of tokens so far times frequencies r(H X/2), or not at
    all. Both given is a ValueError.
    """
    if not has_kernels(qkv_triton, seen):
        return None
    return qkv_triton.prepare(seen, taps, frequencies, angle, planes, heads)


def prepared(
    seen: Tensor, taps: Tensor | None, angle: Tensor | None, planes: int, heads: int, qk_norm: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B H T X) of projections r(B taps-1+T 3 planes D); q and k rotated by angle r(B H T X/2).

    With `qk_norm` queries and keys have length 1 before they rotate.
    """
    split = convolved(seen, taps, planes).unflatten(-1, (planes, 3, heads, -1))
    split = split.permute(3, 0, 4, 1, 2, 5).flatten(-2)  # (3 B H T X), planes apart within a head
    qk, v = split[:2], split[2]
    if qk_norm:
        wide = qk.to(planar.accumulate_dtype(qk.dtype))
        qk = (wide * wide.square().sum(-1, keepdim=True).add(NORM_EPS).rsqrt()).to(qk.dtype)
    if angle is not None:
        qk = rotate(qk, angle)
    # Without it, the memory of a trained model overflows float16; the norm per head takes both factors out again.
    q, k = (qk / v.shape[-1]).unbind(0)
    return q, k, v


def convolved(seen: Tensor, taps: Tensor | None, planes: int) -> Tensor:
    """Causal convolution of each channel by taps r(3D taps): r(B taps-1+T 3 planes D) to r(B T 3 planes D)."""
    if taps is None:
        return seen
    return _convolution(seen, taps.t().repeat(1, planes).to(seen.dtype))


def _sum_of_taps(seen: Tensor, weight: Tensor) -> tuple[Tensor]:
    """Channels times their weights r(taps C), of which each row is one stretch of memory, summed over the taps."""
    length = seen.shape[1] - len(weight) + 1
    found = seen[:, :length] * weight[0]
    for i in range(1, len(weight)):
        found = torch.addcmul(found, seen[:, i : i + length], weight[i])
    return (found,)


def _sum_of_taps_gradient(
    needed: tuple[bool, bool], grad: Tensor, seen: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Autograd would fill as many tensors as there are taps with zeros, and add them up."""
    length, of_seen, of_weight = grad.shape[1], None, None
    if needed[0]:
        of_seen = torch.zeros_like(seen)
        for i, row in enumerate(weight):
            of_seen[:, i : i + length].addcmul_(grad, row)
    if needed[1]:
        of_weight = torch.stack([(grad * seen[:, i : i + length]).sum((0, 1)) for i in range(len(weight))])
    return of_seen, of_weight


_convolution = by_hand(_sum_of_taps, _sum_of_taps_gradient)
