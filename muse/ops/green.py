"""Left Green's function of a chain: a continued fraction over the positions, evaluated by a parallel scan.

Glossary: B batch, T positions, N chains, S = B N independent chains, d = a - z the diagonal, beta the coupling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .operator import Operator, has_kernels

try:
    from . import green_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    green_triton = None

LEVELS_PER_NORMALISATION = 2  # a factor of 1e-3 per map and its square stay far from float32 underflow


def left_green(diagonal_real: Tensor, diagonal_imag: Tensor, coupling: Tensor) -> tuple[Tensor, Tensor]:
    """Left Green's function G_t = 1 / (d_t - beta_{t-1} G_{t-1}) of the diagonal d = a - z, real and imaginary parts.

    diagonal (B T N) with diagonal_imag < 0, coupling beta >= 0 broadcastable to (B T N), where beta_t joins t to t+1
    -> two (B T N). G_t is the last diagonal element of the inverse of the leading t x t block of the tridiagonal matrix
    with diagonal d and off-diagonal products beta. Evaluated in log2(T) doublings, with exact gradients.
    """
    batch, _, chains = diagonal_real.shape
    coupling = coupling.expand_as(diagonal_real)
    planes = [x.transpose(0, 1).flatten(1).contiguous() for x in (diagonal_real, diagonal_imag, coupling)]
    green = _green(*planes).unflatten(2, (batch, chains)).transpose(1, 2)
    return green[0], green[1]


def _formula(diagonal_real: Tensor, diagonal_imag: Tensor, coupling: Tensor) -> tuple[Tensor]:
    """G r(2 T S) of real planes (T S), S independent chains; complex inside."""
    diagonal, before = torch.complex(diagonal_real, diagonal_imag), _delayed(coupling)
    green = _moebius_scan(diagonal, before)
    # One step of the recursion itself: it contracts the rounding of the scan, and |G| <= 1 / |Im d| holds.
    green = (diagonal - before * _delayed(green)).reciprocal()
    return (torch.stack([green.real, green.imag]),)


def _forward(diagonal_real: Tensor, diagonal_imag: Tensor, coupling: Tensor) -> Tensor:
    if _has_kernel(coupling):
        return green_triton.forward(diagonal_real, diagonal_imag, coupling)
    return _formula(diagonal_real, diagonal_imag, coupling)[0]


def _backward(grad: Tensor, green: Tensor, diagonal_real: Tensor, diagonal_imag: Tensor, coupling: Tensor) -> Tensor:
    """dL/d(diagonal_real, diagonal_imag, coupling): (3 T S); a complex gradient is dL/dRe + i dL/dIm."""
    grad = grad.contiguous()
    if _has_kernel(coupling):
        return green_triton.backward(green, coupling, grad)
    value, before = torch.complex(*green), _delayed(coupling)
    square = (value * value).conj()  # conj of -dG_t/dd_t, and of dG_t/d(beta_{t-1} G_{t-1})
    adjoint = _reverse_linear_scan(_advanced(before * square), torch.complex(*grad))
    slope = square * adjoint
    grad_before = (slope * _delayed(value).conj()).real
    return torch.stack([-slope.real, -slope.imag, _advanced(grad_before)])


def _has_kernel(planes: Tensor) -> bool:
    return has_kernels(green_triton, planes, float64=True) and planes.shape[0] <= green_triton.MOST_TOKENS


# Opaque to torch.compile, which would unroll the doublings into one enormous expression. On CUDA it is one kernel.
_green = Operator(
    "left_green",
    "(Tensor diagonal_real, Tensor diagonal_imag, Tensor coupling) -> Tensor",
    _forward,
    lambda diagonal_real, diagonal_imag, coupling: coupling.new_empty(2, *coupling.shape),
    _backward,
    lambda grad, green, diagonal_real, diagonal_imag, coupling: coupling.new_empty(3, *coupling.shape),
    found=1,
    split=tuple,
    formula=_formula,
)


def _moebius_scan(diagonal: Tensor, before: Tensor) -> Tensor:
    """Prefix products of the maps G -> 1 / (d_t - beta_{t-1} G), applied to G = 0: c(T S), beta_{t-1} r(T S) -> c(T S).

    A map is the matrix [[0, 1], [-beta, d]] up to a factor, all of them c(2 2 T S); windows double at every level.
    """
    scale = (1 + before + diagonal.abs()).reciprocal()
    zero = torch.zeros_like(diagonal)
    maps = torch.stack([zero, zero + scale, zero - before * scale, diagonal * scale]).unflatten(0, (2, 2))
    for level, shift in enumerate(_doublings(before.shape[0])):
        product = (maps[:, :, None, shift:] * maps[None, :, :, :-shift]).sum(1)
        if level % LEVELS_PER_NORMALISATION == LEVELS_PER_NORMALISATION - 1:
            product = product / product.abs().amax((0, 1))
        maps = torch.cat([maps[:, :, :shift], product], dim=2)
    return maps[0, 1] / maps[1, 1]


def _reverse_linear_scan(factor: Tensor, x: Tensor) -> Tensor:
    """y_t = x_t + factor_t y_{t+1}, all c(T S), by doubling the window ahead of every position."""
    for shift in _doublings(x.shape[0]):
        x = torch.cat([torch.addcmul(x[:-shift], factor[:-shift], x[shift:]), x[-shift:]])
        factor = torch.cat([factor[:-shift] * factor[shift:], factor[-shift:]])
    return x


def _doublings(length: int) -> list[int]:
    """1, 2, 4, .. below length."""
    return [1 << level for level in range((length - 1).bit_length())]


def _delayed(x: Tensor) -> Tensor:
    """x_{t-1}, zero at the first position: (T S) -> (T S)."""
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def _advanced(x: Tensor) -> Tensor:
    """x_{t+1}, zero at the last position: (T S) -> (T S)."""
    return torch.cat([x[1:], torch.zeros_like(x[:1])])
