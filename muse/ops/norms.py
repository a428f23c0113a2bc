"""What stands between products on planar tensors r(B T 2D): ModReLU, the complex norm, dropout of whole elements.

Norm statistics and magnitudes are computed in float32 (float64 for float64), results take the dtype of the input.
ModReLU and the norm keep only their input for the backward pass, which is written out by hand. On CUDA the norm, and
what ends a block of Stage 1, are kernels of `norms_triton`; a compiler gets the formulas and derives the rest itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import planar
from .operator import by_hand, has_kernels

try:
    from . import norms_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    norms_triton = None


NORM_EPS = 1e-5
MAGNITUDE_EPS = 1e-4


def _check(z: Tensor, channels: int) -> None:
    """Raise ValueError unless z is planar, floating-point, with `channels` complex channels."""
    if z.ndim < 1 or z.shape[-1] != 2 * channels:
        raise ValueError(f"z must have 2 x {channels} planar channels, got shape {tuple(z.shape)}")
    if not z.is_floating_point():
        raise ValueError(f"planar numbers must be floating-point, got {z.dtype}")


def _magnitude(z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z as planes (... 2 D), bias (D) and r = sqrt(x^2 + y^2 + eps^2) (... 1 D), all in the accumulation dtype."""
    dtype = planar.accumulate_dtype(z.dtype)
    planes = z.to(dtype).unflatten(-1, (2, -1))
    r = _length(planes)
    return planes, bias.to(dtype), r


def _length(planes: Tensor) -> Tensor:
    """sqrt(x^2 + y^2 + eps^2) of planes (... 2 D), (... 1 D), without squares that overflow."""
    x, y = planes.split(1, dim=-2)
    return torch.hypot(torch.hypot(x, x.new_full((), MAGNITUDE_EPS)), y)  # in this order its gradient is finite at 0


def _modrelu_formula(z: Tensor, bias: Tensor) -> tuple[Tensor]:
    """f = s z with s = relu(r + b) / r."""
    planes, b, r = _magnitude(z, bias)
    return ((planes * (torch.relu(r + b) / r)).flatten(-2).to(z.dtype),)


def _modrelu_gradient(needed: tuple, grad: Tensor, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    planes, b, r = _magnitude(z, bias)
    g = grad.to(planes.dtype).unflatten(-1, (2, -1))
    open_ = (r + b > 0).to(planes.dtype)
    radial = open_ * (g * planes).sum(-2, keepdim=True) / r  # df/db, and the part of g along z
    grad_z = g * (torch.relu(r + b) / r) - planes * (radial * b / r.square())
    return grad_z.flatten(-2).to(z.dtype), _summed(radial.squeeze(-2)).to(bias.dtype)


_modrelu = by_hand(_modrelu_formula, _modrelu_gradient)


def _summed(x: Tensor) -> Tensor:
    """The sum over all tokens: (... D) to (D)."""
    return x.reshape(-1, x.shape[-1]).sum(0)


def _norm_formula(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y = gamma n + beta with n = (z - mu) / sqrt(E|z - mu|^2 + eps), in the dtype of z.

    Also mu (... 2 1) and 1 / sqrt(..) (... 1 1), in the accumulation dtype.
    """
    dtype = planar.accumulate_dtype(z.dtype)
    planes = z.to(dtype).unflatten(-1, (2, -1))
    mean = planes.mean(-1, keepdim=True)
    centred = planes - mean
    rstd = (centred.square().mean(-1, keepdim=True).sum(-2, keepdim=True) + eps).rsqrt()
    y = centred * rstd * gamma.to(dtype)
    y = (y + torch.stack([beta, torch.zeros_like(beta)]).to(dtype)).flatten(-2).to(z.dtype)
    return y, mean, rstd


def _norm_gradient(needed: tuple, grad: Tensor, z, gamma, beta, eps, mean, rstd) -> tuple[Tensor | None, ...]:
    n = (z.to(mean.dtype).unflatten(-1, (2, -1)) - mean) * rstd
    g = grad.to(mean.dtype).unflatten(-1, (2, -1))
    grad_gamma = _summed((g * n).sum(-2))
    grad_beta = _summed(g.select(-2, 0))
    g = g * gamma.to(mean.dtype)
    along = (g * n).mean(-1, keepdim=True).sum(-2, keepdim=True)
    grad_z = rstd * (g - g.mean(-1, keepdim=True) - n * along)
    return grad_z.flatten(-2).to(z.dtype), grad_gamma.to(gamma.dtype), grad_beta.to(beta.dtype), None


_norm = by_hand(_norm_formula, _norm_gradient)


def _has_kernel(*planes: Tensor) -> bool:
    """Whether `norms_triton` computes with planar tensors r(... 2D)."""
    return has_kernels(norms_triton, *planes) and planes[0].shape[-1] <= 2 * norms_triton.MOST_CHANNELS


def modrelu(z: Tensor, bias: Tensor) -> Tensor:
    """relu(|z| + b) z / |z| (arXiv:1511.06464): planar r(... 2D), bias r(D).

    |z| is sqrt(x^2 + y^2 + eps^2), which keeps the gradient at z = 0 finite and leaves b = 0 the exact identity.
    ValueError for another width than 2D and for integers.
    """
    _check(z, len(bias))
    return _modrelu(z, bias)


def complex_layer_norm(
    z: Tensor, gamma: Tensor, beta: Tensor, eps: float = NORM_EPS, dtype: torch.dtype | None = None
) -> Tensor:
    """gamma (z - mu) / sqrt(E|z - mu|^2 + eps) + beta per token: planar r(... 2D), gamma and beta r(D).

    mu is the complex mean over channels; beta is real. The result has the dtype of z unless another is given. Unlike
    Trabelsi et al. (arXiv:1705.09792) there is one variance and no 2x2 whitening, so the norm commutes with a rotation
    of the phase. ValueError for another width than 2D and for integers.
    """
    _check(z, len(gamma))
    dtype = dtype or z.dtype
    if _has_kernel(z):
        return norms_triton.complex_layer_norm(z, gamma, beta, eps, dtype)
    return _norm(z, gamma, beta, eps).to(dtype)


def residual_norm(z: Tensor, h: Tensor, keep: Tensor | None, activation: nn.Module, norm: nn.Module) -> Tensor:
    """norm(z + keep activation(h)): planar z and h r(... 2D), keep from `dropout_mask`.

    The modules are a ModReLU and a ComplexLayerNorm. On CUDA it is one kernel, without what stands between, and without
    hooks of the two.
    """
    if z.shape != h.shape:
        raise ValueError(f"z and h must have one shape, got {tuple(z.shape)} and {tuple(h.shape)}")
    _check(z, len(norm.gamma))
    if _has_kernel(z, h):
        vectors = activation.bias, norm.gamma, norm.beta
        return norms_triton.residual_norm(z, h, keep, *vectors, norm.eps, MAGNITUDE_EPS)
    return norm(z + _masked(activation(h), keep))


def residual_norms(
    z: Tensor,
    h: Tensor,
    keep: Tensor | None,
    activation: nn.Module,
    norm: nn.Module,
    following: nn.Module,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """y = residual_norm(z, h, keep, activation, norm) and following(y) in `dtype`; on CUDA still one kernel."""
    if not _has_kernel(z, h) or norm.eps != following.eps:
        y = residual_norm(z, h, keep, activation, norm)
        return y, following(y, dtype)
    vectors, next_vectors = (activation.bias, norm.gamma, norm.beta), (following.gamma, following.beta)
    return norms_triton.residual_norms(z, h, keep, *vectors, *next_vectors, norm.eps, MAGNITUDE_EPS, dtype)


def dropout_mask(z: Tensor, probability: float, training: bool) -> Tensor | None:
    """Factors for the complex elements of planar r(... 2D): r(... D), 0 or 1 / (1 - p); None where none is dropped."""
    if not training or probability == 0.0:
        return None
    return F.dropout(torch.ones_like(z.unflatten(-1, (2, -1)).select(-2, 0)), probability)


def _masked(z: Tensor, keep: Tensor | None) -> Tensor:
    return z if keep is None else (z.unflatten(-1, (2, -1)) * keep.unsqueeze(-2)).flatten(-2)


def dropout(z: Tensor, probability: float, training: bool) -> Tensor:
    """Drop whole complex elements of planar r(... 2D): both parts of an element stay or go together."""
    return _masked(z, dropout_mask(z, probability, training))
