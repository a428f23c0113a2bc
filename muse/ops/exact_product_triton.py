"""The product of `exact_product` as CUDA kernels, forward and backward, for few outputs: they only read and write u.

Products are three of tf32 each, in which u in half precision is exact; sums are float32. Rows are tokens, R of them in
all. The gradient of the weight is summed by groups of rows, and then over the groups: nothing is summed by atomics.
"""

# ruff: noqa: N803 - Triton's constants are written in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operator import Operator
from .tile_triton import contiguous, load, store

MOST_OUTPUTS = 32
ROWS, WARPS = 64, 4
COLUMN_BYTES = 256  # of a row of u that a program holds at a time; twice as many do not fit on small cards
TILES = 8  # of rows that a program of the backward pass goes through


def _product(u: Tensor, weight: Tensor) -> Tensor:
    u, weight = contiguous(u, weight)
    out = u.new_empty(*u.shape[:-1], len(weight), dtype=torch.float32)
    if out.numel():
        rows, constants = _rows(u, weight)
        with torch.cuda.device_of(u):
            _product_kernel[(triton.cdiv(rows, ROWS),)](u, weight, out, rows, **constants)
    return out


def _backward(grad: Tensor, u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    grad, u, weight = contiguous(grad, u, weight)
    grad_u, (rows, constants) = torch.empty_like(u), _rows(u, weight)
    groups = triton.cdiv(rows, ROWS * TILES)
    sums = torch.empty(groups, *weight.shape, dtype=torch.float32, device=u.device)
    if sums.numel():
        with torch.cuda.device_of(u):
            grid = triton.cdiv(weight.shape[1], constants["COLUMNS"]), groups
            _product_backward_kernel[grid](grad, u, weight, grad_u, sums, rows, TILES=TILES, **constants)
    return grad_u, sums.sum(0).to(weight.dtype)


def _rows(u: Tensor, weight: Tensor) -> tuple[int, dict[str, int]]:
    """R, and the constants that both kernels share."""
    count, width = weight.shape
    padded = max(16, triton.next_power_of_2(count))  # a product needs 16
    constants = {"WIDTH": width, "COUNT": count, "OUTPUTS": padded, "ROWS": ROWS}
    constants["COLUMNS"] = COLUMN_BYTES // u.element_size()
    return u.numel() // width, constants | {"num_warps": WARPS}


product = Operator(
    "exact_product",
    "(Tensor u, Tensor weight) -> Tensor",
    _product,
    lambda u, weight: u.new_empty(*u.shape[:-1], len(weight), dtype=torch.float32),
    _backward,
)
"""W u: u r(.. I), weight r(O I) to float32 (.. O)."""


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit(do_not_specialize=["rows"])
def _product_kernel(
    u, weight, out, rows,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    output = tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        channel = first + tl.arange(0, COLUMNS)[None, :]
        a = load(u, row * WIDTH + channel, (row < rows) & (channel < WIDTH))
        w = load(weight, output[:, None] * WIDTH + channel, (output[:, None] < COUNT) & (channel < WIDTH))
        total += _dot(a, tl.trans(w))
    store(out, row * COUNT + output[None, :], total, (row < rows) & (output[None, :] < COUNT))


@triton.jit(do_not_specialize=["rows"])
def _product_backward_kernel(
    grad, u, weight, grad_u, sums, rows,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """A program has COLUMNS channels and goes through a group of rows."""
    output = tl.arange(0, OUTPUTS)
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    of_weight = (output[:, None] < COUNT) & (channel < WIDTH)
    w = load(weight, output[:, None] * WIDTH + channel, of_weight)
    total = tl.zeros((OUTPUTS, COLUMNS), tl.float32)
    for tile in range(TILES):
        row = ((tl.program_id(1) * TILES + tile) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < rows) & (channel < WIDTH)
        g = load(grad, row * COUNT + output[None, :], (row < rows) & (output[None, :] < COUNT))
        store(grad_u, row * WIDTH + channel, _dot(g, w), inside)
        total += _dot(tl.trans(g), load(u, row * WIDTH + channel, inside))
    place = (tl.program_id(1) * COUNT + output[:, None]) * WIDTH + channel
    store(sums, place, total, of_weight)
