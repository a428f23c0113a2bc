"""A product in float32 whatever autocast says: the few numbers of a token that say how its memory fades and turns.

In half precision rates would be noise. I channels in, O out. This is the form to read; on CUDA the kernels of
`exact_product_triton` read u as it is, where a library's product first makes a float32 copy of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import planar
from .operator import by_hand, has_kernels

try:
    from . import exact_product_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    exact_product_triton = None


def exact_product(u: Tensor, weight: Tensor) -> Tensor:
    """W u in float32 (float64 stays): u r(.. I), weight r(O I) to r(.. O). It keeps u as it is."""
    if has_kernels(exact_product_triton, u, weight) and len(weight) <= exact_product_triton.MOST_OUTPUTS:
        return exact_product_triton.product(u, weight)
    return _exact(u, weight)


def _exact_formula(u: Tensor, weight: Tensor) -> tuple[Tensor]:
    dtype = planar.accumulate_dtype(u.dtype)
    with torch.autocast(u.device.type, enabled=False):
        return (F.linear(u.to(dtype), weight.to(dtype)),)


def _exact_gradient(needed: tuple, grad: Tensor, u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(u.device.type, enabled=False):
        grad_u = grad @ weight.to(grad.dtype)
        grad_weight = grad.flatten(0, -2).t() @ u.to(grad.dtype).flatten(0, -2)
    return grad_u.to(u.dtype), grad_weight.to(weight.dtype)


_exact = by_hand(_exact_formula, _exact_gradient)
