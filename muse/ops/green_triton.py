"""The two operators of `green` as one CUDA kernel each: an associative scan within a program, one program per chain.

The PyTorch form in `green` is the reference; it needs some fifty launches of tiny operations where these need one.
Planes are contiguous real (T S); every letter is as in `green`.
"""

# ruff: noqa: N803 - Triton's constants are written in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 8192  # a chain has to fit into one program


def forward(diagonal_real: Tensor, diagonal_imag: Tensor, coupling: Tensor) -> Tensor:
    """G as (2 T S), real plane first."""
    tokens, chains = coupling.shape
    green = torch.empty(2, tokens, chains, dtype=coupling.dtype, device=coupling.device)
    with torch.cuda.device_of(coupling):
        _forward_kernel[(chains,)](
            diagonal_real, diagonal_imag, coupling, green, tokens, chains, triton.next_power_of_2(tokens)
        )
    return green


def backward(green: Tensor, coupling: Tensor, grad: Tensor) -> Tensor:
    """dL/d(diagonal_real, diagonal_imag, coupling) as (3 T S)."""
    tokens, chains = coupling.shape
    grads = torch.empty(3, tokens, chains, dtype=coupling.dtype, device=coupling.device)
    with torch.cuda.device_of(coupling):
        _green_backward_kernel[(chains,)](green, coupling, grad, grads, tokens, chains, triton.next_power_of_2(tokens))
    return grads


@triton.jit
def _compose(p0, p1, q0, q1, r0, r1, s0, s1, P0, P1, Q0, Q1, R0, R1, S0, S1):
    """[[P, Q], [R, S]] [[p, q], [r, s]], complex, divided by its largest part."""
    a0 = P0 * p0 - P1 * p1 + Q0 * r0 - Q1 * r1
    a1 = P0 * p1 + P1 * p0 + Q0 * r1 + Q1 * r0
    b0 = P0 * q0 - P1 * q1 + Q0 * s0 - Q1 * s1
    b1 = P0 * q1 + P1 * q0 + Q0 * s1 + Q1 * s0
    c0 = R0 * p0 - R1 * p1 + S0 * r0 - S1 * r1
    c1 = R0 * p1 + R1 * p0 + S0 * r1 + S1 * r0
    d0 = R0 * q0 - R1 * q1 + S0 * s0 - S1 * s1
    d1 = R0 * q1 + R1 * q0 + S0 * s1 + S1 * s0
    upper = tl.maximum(tl.maximum(tl.abs(a0), tl.abs(a1)), tl.maximum(tl.abs(b0), tl.abs(b1)))
    lower = tl.maximum(tl.maximum(tl.abs(c0), tl.abs(c1)), tl.maximum(tl.abs(d0), tl.abs(d1)))
    scale = 1.0 / tl.maximum(upper, lower)
    return a0 * scale, a1 * scale, b0 * scale, b1 * scale, c0 * scale, c1 * scale, d0 * scale, d1 * scale


@triton.jit
def _forward_kernel(diagonal_real, diagonal_imag, coupling, green, tokens, chains, BLOCK: tl.constexpr):
    t = tl.arange(0, BLOCK)
    here = t * chains + tl.program_id(0)
    inside = t < tokens
    # Position t scans the maps up to t - 1, so the scan gives G_{t-1}, and the recursion itself gives G_t.
    known = inside & (t > 0)
    d0 = tl.load(diagonal_real + here - chains, known, other=1.0)
    d1 = tl.load(diagonal_imag + here - chains, known, other=0.0)
    earlier = tl.load(coupling + here - 2 * chains, inside & (t > 1), other=0.0)
    zero = tl.zeros_like(d0)
    q0 = tl.where(known, 1.0, zero)  # without a position: the identity
    p0 = 1.0 - q0
    _p0, _p1, q0, q1, _r0, _r1, s0, s1 = tl.associative_scan((p0, zero, q0, zero, -earlier, zero, d0, d1), 0, _compose)
    size = s0 * s0 + s1 * s1
    before = tl.load(coupling + here - chains, known, other=0.0)
    e0 = tl.load(diagonal_real + here, inside, other=1.0) - before * (q0 * s0 + q1 * s1) / size
    e1 = tl.load(diagonal_imag + here, inside, other=0.0) - before * (q1 * s0 - q0 * s1) / size
    size = e0 * e0 + e1 * e1
    tl.store(green + here, e0 / size, inside)
    tl.store(green + tokens * chains + here, -e1 / size, inside)


@triton.jit
def _chain(f0, f1, x0, x1, F0, F1, X0, X1):
    """y -> x + f y followed by y -> X + F y."""
    return F0 * f0 - F1 * f1, F0 * f1 + F1 * f0, X0 + F0 * x0 - F1 * x1, X1 + F0 * x1 + F1 * x0


@triton.jit
def _green_backward_kernel(green, coupling, grad, grads, tokens, chains, BLOCK: tl.constexpr):
    t = tokens - 1 - tl.arange(0, BLOCK)  # from the last position to the first
    plane = tokens * chains
    here = t * chains + tl.program_id(0)
    inside = t >= 0
    followed = inside & (t < tokens - 1)
    n0 = tl.load(green + here + chains, followed, other=0.0)
    n1 = tl.load(green + plane + here + chains, followed, other=0.0)
    beta = tl.load(coupling + here, followed, other=0.0)
    x0 = tl.load(grad + here, inside, other=0.0)
    x1 = tl.load(grad + plane + here, inside, other=0.0)
    f0 = beta * (n0 * n0 - n1 * n1)  # beta_t conj(G_{t+1}^2)
    f1 = -2.0 * beta * n0 * n1
    f0, f1, x0, x1 = tl.associative_scan((f0, f1, x0, x1), 0, _chain)
    g0 = tl.load(green + here, inside, other=0.0)
    g1 = tl.load(green + plane + here, inside, other=0.0)
    square0 = g0 * g0 - g1 * g1
    square1 = -2.0 * g0 * g1
    slope0 = square0 * x0 - square1 * x1
    slope1 = square0 * x1 + square1 * x0
    preceded = inside & (t > 0)
    b0 = tl.load(green + here - chains, preceded, other=0.0)
    b1 = tl.load(green + plane + here - chains, preceded, other=0.0)
    tl.store(grads + here, -slope0, inside)
    tl.store(grads + plane + here, -slope1, inside)
    tl.store(grads + 2 * plane + here - chains, slope0 * b0 + slope1 * b1, preceded)
    tl.store(grads + 2 * plane + here, tl.zeros_like(x0), t == tokens - 1)
