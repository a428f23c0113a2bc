"""What `gate` computes point by point behind the matrix memory, as CUDA kernels, forward and backward.

    write:   out = head_norm(y) silu(g) gain
    gated:   out = value silu(g), the same gate without a memory

The PyTorch form in `gate` is the reference; pairs, programs and sums are as in `qkv_triton`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operator import Operator
from .tile_triton import Tile, contiguous, load, store, tile

WRITE_PAIRS, WRITE_WARPS, WRITE_BATCHES = 1024, 4, 1
WRITE_BACKWARD_PAIRS, WRITE_BACKWARD_WARPS, WRITE_BACKWARD_BATCHES = 512, 4, 4
GATED_COLUMNS, GATED_WARPS = 1024, 4  # channels of one token that a program of `gated` holds, and its warps


def _write(y: Tensor, gate: Tensor | None, gain: Tensor, planes: int, eps: float, dtype: torch.dtype) -> Tensor:
    y, gate, gain = contiguous(y, gate, gain)
    batch, heads, tokens, width = y.shape
    out = torch.empty(batch, tokens, heads * width, dtype=dtype, device=y.device)
    tile = Tile(y, planes, WRITE_PAIRS, WRITE_WARPS, WRITE_BATCHES)
    tile.launch(_write_kernel, y, gate, gain, out, EPS=eps, HAS_GATE=gate is not None)
    return out


def _write_backward(
    grad: Tensor, y: Tensor, gate: Tensor | None, gain: Tensor, planes: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    grad, y, gate, gain = contiguous(grad, y, gate, gain)
    grad_y, grad_gate = torch.empty_like(y), y.new_empty(0) if gate is None else torch.empty_like(gate)
    tile = Tile(y, planes, WRITE_BACKWARD_PAIRS, WRITE_BACKWARD_WARPS, WRITE_BACKWARD_BATCHES)
    sums = torch.empty(tile.programs, *gain.shape, dtype=torch.float32, device=y.device)
    given = grad, y, gate, gain, grad_y, grad_gate, sums
    tile.launch(_write_backward_kernel, *given, EPS=eps, HAS_GATE=gate is not None)
    return grad_y, grad_gate, sums.sum(0).to(gain.dtype)


def _gated(value: Tensor, gate: Tensor, planes: int) -> Tensor:
    value, gate = contiguous(value, gate)
    out = torch.empty_like(value)
    _launch_gated(_gated_kernel, gate, planes, value, gate, out)
    return out


def _gated_backward(grad: Tensor, value: Tensor, gate: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    grad, value, gate = contiguous(grad, value, gate)
    grad_value, grad_gate = torch.empty_like(value), torch.empty_like(gate)
    _launch_gated(_gated_backward_kernel, gate, planes, grad, value, gate, grad_value, grad_gate)
    return grad_value, grad_gate


def _launch_gated(kernel, gate: Tensor, planes: int, *tensors: Tensor) -> None:
    width = gate.shape[-1]
    columns = min(GATED_COLUMNS, triton.next_power_of_2(width))
    if gate.numel():
        with torch.cuda.device_of(gate):
            kernel[(gate.numel() // width, triton.cdiv(width, columns))](
                *tensors,
                WIDTH=width,
                PLANES=planes,
                COLUMNS=columns,
                num_warps=max(1, min(GATED_WARPS, columns // 128)),
            )


def _write_fake(y: Tensor, gate: Tensor | None, gain: Tensor, planes: int, eps: float, dtype: torch.dtype) -> Tensor:
    batch, heads, tokens, width = y.shape
    return y.new_empty(batch, tokens, heads * width, dtype=dtype)


write = Operator(
    "mixer_write",
    "(Tensor y, Tensor? gate, Tensor gain, int planes, float eps, ScalarType dtype) -> Tensor",
    _write,
    _write_fake,
    _write_backward,
)
"""What the heads read, y (B H T X), normed per head, times silu(gate) r(B T D) and gain r(D): (B T planes D)."""

gated = Operator(
    "mixer_gated",
    "(Tensor value, Tensor gate, int planes) -> Tensor",
    _gated,
    lambda value, gate, planes: value.new_empty(value.shape),
    _gated_backward,
)
"""value (.. planes F) times silu(gate) r(.. F), in the dtype of value."""


# Triton's constants are capitals, its tuples know + but no star, and an `if` on a constant leaves out a branch.
# ruff: noqa: N803, N806


@triton.jit
def _normed(y, place, inside, K: tl.constexpr, EPS: tl.constexpr):
    """Both members of a head's pairs over their root mean square, and its inverse for each token."""
    a, b = load(y, place, inside), load(y, place + K, inside)
    rstd = 1.0 / tl.sqrt(tl.sum(a * a + b * b, 1)[:, None] / (2 * K) + EPS)
    return a * rstd, b * rstd, rstd


@triton.jit(do_not_specialize=["tokens", "batch"])
def _write_kernel(
    y, gate, gain, out,
    tokens, batch,
    H: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr, BATCHES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, EPS: tl.constexpr, HAS_GATE: tl.constexpr,
):
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = D if PLANES == 2 else K
    head = tl.program_id(0)
    start, first, last = tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    near_gain = load(gain, channel, column < K)
    far_gain = near_gain
    if PLANES == 1:
        far_gain = load(gain, channel + K, column < K)
    for b in range(first, last):
        token = b * tokens.to(tl.int64)
        lane = (b * H + head) * tokens.to(tl.int64)
        u, v, _ = _normed(y + lane * (2 * K), row * (2 * K) + column, inside, K, EPS)
        u *= near_gain
        v *= far_gain
        if HAS_GATE:
            g = load(gate + token * D, row * D + channel, inside)
            u *= g * tl.sigmoid(g)
            if PLANES == 1:
                g = load(gate + token * D, row * D + channel + K, inside)
            v *= g * tl.sigmoid(g)
        place = row * (PLANES * D) + channel
        store(out + token * (PLANES * D), place, u, inside)
        store(out + token * (PLANES * D), place + SECOND, v, inside)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _write_backward_kernel(
    grad, y, gate, gain, grad_y, grad_gate, grad_gain,
    tokens, batch,
    H: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr, BATCHES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, EPS: tl.constexpr, HAS_GATE: tl.constexpr,
):
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = D if PLANES == 2 else K
    head = tl.program_id(0)
    start, first, last = tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    near_gain = load(gain, channel, column < K)
    near_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    if PLANES == 1:
        far_gain = load(gain, channel + K, column < K)
        far_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for b in range(first, last):
        token = b * tokens.to(tl.int64)
        lane = (b * H + head) * tokens.to(tl.int64) * (2 * K)
        a, c, rstd = _normed(y + lane, row * (2 * K) + column, inside, K, EPS)
        place = row * (PLANES * D) + channel
        u = load(grad + token * (PLANES * D), place, inside)
        v = load(grad + token * (PLANES * D), place + SECOND, inside)
        if PLANES == 2:
            factor, share = _gate_backward(
                gate, grad_gate, token * D, row * D + channel, inside, u * a + v * c, near_gain, HAS_GATE
            )
            near_sum += share
            u *= factor
            v *= factor
        else:
            factor, share = _gate_backward(
                gate, grad_gate, token * D, row * D + channel, inside, u * a, near_gain, HAS_GATE
            )
            near_sum += share
            u *= factor
            factor, share = _gate_backward(
                gate, grad_gate, token * D, row * D + channel + K, inside, v * c, far_gain, HAS_GATE
            )
            far_sum += share
            v *= factor
        along = tl.sum(u * a + v * c, 1)[:, None] / (2 * K)
        store(grad_y + lane, row * (2 * K) + column, rstd * (u - a * along), inside)
        store(grad_y + lane, row * (2 * K) + column + K, rstd * (v - c * along), inside)
    sums = grad_gain + tl.program_id(1).to(tl.int64) * D
    store(sums, channel, tl.sum(near_sum, 0)[None, :], column < K)
    if PLANES == 1:
        store(sums, channel + K, tl.sum(far_sum, 0)[None, :], column < K)


@triton.jit
def _gate_backward(gate, grad_gate, token, place, inside, along, gain, HAS_GATE: tl.constexpr):
    """silu(g) gain, and what dL/d(silu(g) gain) = along gives to dL/dgain; dL/dg is stored."""
    factor = gain
    if HAS_GATE:
        g = load(gate + token, place, inside)
        open = tl.sigmoid(g)
        factor = g * open * gain
        store(grad_gate + token, place, along * gain * open * (1.0 + g * (1.0 - open)), inside)
        along *= g * open
    return factor, along


@triton.jit
def _gated_kernel(value, gate, out, WIDTH: tl.constexpr, PLANES: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    g = load(gate + token * WIDTH, column, inside)
    g *= tl.sigmoid(g)
    for plane in tl.static_range(PLANES):
        row = (token * PLANES + plane) * WIDTH
        store(out + row, column, g * load(value + row, column, inside), inside)


@triton.jit
def _gated_backward_kernel(
    grad, value, gate, grad_value, grad_gate, WIDTH: tl.constexpr, PLANES: tl.constexpr, COLUMNS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    g = load(gate + token * WIDTH, column, inside)
    open = tl.sigmoid(g)
    along = tl.zeros((COLUMNS,), tl.float32)
    for plane in tl.static_range(PLANES):
        row = (token * PLANES + plane) * WIDTH
        u = load(grad + row, column, inside)
        along += u * load(value + row, column, inside)
        store(grad_value + row, column, u * g * open, inside)
    store(grad_gate + token * WIDTH, column, along * open * (1.0 + g * (1.0 - open)), inside)
