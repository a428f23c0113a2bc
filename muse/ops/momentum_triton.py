"""Momentum in and weights out as CUDA kernels, one launch each for all matrices of a shape.

Every number is read and written once: gradient and momentum become the momentum after them and what is multiplied, in
its dtype; weights move by the directions as the products left them, in whatever order they lie in memory.
"""

# ruff: noqa: N803 - Triton's constants are written in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile_triton import load, store

BLOCK, WARPS = 2048, 4  # numbers of a matrix that a program takes, warps that share them


def look_ahead_(kept: list[Tensor], gradients: list[Tensor], momentum: float, ahead: Tensor) -> None:
    """kept and ahead (N P R C) as `momentum.look_ahead_` says."""
    gradients = tuple(g.contiguous() for g in gradients)
    _launch(_look_ahead_kernel, ahead, (tuple(kept), gradients, ahead, 1 - momentum))


def move_(weights: list[Tensor], directions: Tensor, lr: Tensor, factor: float, decay: float) -> None:
    """weights as `momentum.move_` says; rows of directions (N P R C) are contiguous, or become so."""
    directions = directions if directions.stride(-1) == 1 else directions.contiguous()
    strides = directions.stride()[:-1]
    _launch(_move_kernel, directions, (tuple(weights), directions, lr, factor, decay, *strides), C=directions.shape[-1])


def _launch(kernel, stacked: Tensor, given: tuple, **constants: int) -> None:
    """A program for each block of each plane of each matrix of stacked (N P R C)."""
    count, planes, rows, columns = stacked.shape
    if stacked.numel():
        with torch.cuda.device_of(stacked):
            grid = triton.cdiv(rows * columns, BLOCK), count * planes
            kernel[grid](*given, N=count, P=planes, NUMEL=rows * columns, BLOCK=BLOCK, num_warps=WARPS, **constants)


@triton.jit
def _place(NUMEL: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return place, place < NUMEL


@triton.jit
def _look_ahead_kernel(
    kept, gradients, ahead, share,
    N: tl.constexpr, P: tl.constexpr, NUMEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place, inside = _place(NUMEL, BLOCK)
    for matrix in tl.static_range(N * P):
        if tl.program_id(1) == matrix:
            first = ((matrix % N) * P + matrix // N) * tl.cast(NUMEL, tl.int64)
            g, before = load(gradients[matrix], place, inside), load(kept[matrix], place, inside)
            after = before + (g - before) * share
            store(kept[matrix], place, after, inside)
            store(ahead + first, place, after + (g - after) * share, inside)


@triton.jit(do_not_specialize=["factor", "decay"])
def _move_kernel(
    weights, directions, lr, factor, decay, of_matrix, of_plane, of_row,
    N: tl.constexpr, P: tl.constexpr, NUMEL: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    place, inside = _place(NUMEL, BLOCK)
    rate = tl.load(lr).to(tl.float32)
    there = place // C * of_row + place % C
    for matrix in tl.static_range(N * P):
        if tl.program_id(1) == matrix:
            first = (matrix % N) * tl.cast(of_matrix, tl.int64) + (matrix // N) * of_plane
            w = load(weights[matrix], place, inside)
            moved = factor * load(directions + first, there, inside) + decay * w
            store(weights[matrix], place, w - rate * moved, inside)
