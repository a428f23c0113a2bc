"""What the kernels around the matrix memory share: tiles of tokens and channels, loads and stores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile:
    """How the tokens and pairs of x (B H T X) are shared out: `programs` for each head.

    A program holds `pairs` of neighbouring tokens and goes through `batches` of the batch; or, given `tokens`, holds
    pairs of some of the batch and goes through as many tokens.
    """

    def __init__(self, x: Tensor, planes: int, pairs: int, warps: int, batches: int = 0, tokens: int = 0) -> None:
        self.batch, self.heads, self.tokens, width = x.shape
        columns = triton.next_power_of_2(width // 2)
        held = max(1, min(pairs // columns, triton.next_power_of_2(self.batch if tokens else self.tokens)))
        rows, batches = (tokens, held) if tokens else (held, batches)
        self.programs = triton.cdiv(self.tokens, rows) * triton.cdiv(self.batch, batches)
        self.constants = {
            "H": self.heads,
            "K": width // 2,
            "PLANES": planes,
            "BATCHES": batches,
            "ROWS": rows,
            "COLUMNS": columns,
            "num_warps": max(1, min(warps, held * columns // 128)),
        }

    def launch(self, kernel, *tensors: Tensor | None, **constants: object) -> None:
        """An absent tensor is passed as the first one, which its switch keeps unread."""
        tensors = [tensors[0] if x is None else x for x in tensors]
        if self.programs:
            with torch.cuda.device_of(tensors[0]):
                kernel[(self.heads, self.programs)](*tensors, self.tokens, self.batch, **self.constants, **constants)


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)


# Triton's constants are capitals, its tuples know + but no star, and an `if` on a constant leaves out a branch.
# ruff: noqa: N803


@triton.jit
def tile(tokens, batch, BATCHES: tl.constexpr, ROWS: tl.constexpr):
    """First row of a program's tokens, and the group of the batch that it goes through."""
    blocks = tl.cdiv(tokens, ROWS)
    group = tl.program_id(1) // blocks
    return tl.program_id(1) % blocks * ROWS, group * BATCHES, tl.minimum(group * BATCHES + BATCHES, batch)


@triton.jit
def load(pointer, place, inside):
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, place, value, inside):
    tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask=inside)
