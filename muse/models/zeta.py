"""Position table from the non-trivial zeros 1/2 + i gamma_n of the Riemann zeta function."""

from __future__ import annotations

import math
from functools import cache
from importlib import resources

import torch
from torch import Tensor


@cache
def _shipped_zeros() -> tuple[float, ...]:
    """Imaginary parts of the first zeros, one a line in zeta_zeros.txt, computed with mpmath.zetazero."""
    text = resources.files(__package__).joinpath("zeta_zeros.txt").read_text("ascii")
    return tuple(float(line) for line in text.split())


def zeros(count: int) -> Tensor:
    """Imaginary parts gamma_1 < gamma_2 < ... of the first `count` non-trivial zeros: float64 (count,)."""
    shipped = _shipped_zeros()
    if not 0 <= count <= len(shipped):
        raise ValueError(f"0 to {len(shipped)} zeros of the zeta function are shipped, got a request for {count}")
    return torch.tensor(shipped[:count], dtype=torch.float64, device="cpu")


def frequencies(count: int) -> Tensor:
    """omega_n = pi gamma_n / gamma_count x count / (count + 1) in radians per position: float64 (count,), all below pi.

    Below pi per step no two frequencies look alike at whole positions (the sampling theorem).
    """
    gamma = zeros(count)
    return gamma * (math.pi * count / ((count + 1) * gamma[-1]))


def position_table(n_seq: int, d_model: int) -> Tensor:
    """sin(t omega_n) in the first d_model/2 columns, cos(t omega_n) in the others: float32 (n_seq, d_model)."""
    if n_seq < 1 or d_model < 2 or d_model % 2:
        raise ValueError(f"position table needs n_seq >= 1 and an even d_model >= 2, got {n_seq} and {d_model}")
    angle = torch.arange(n_seq, dtype=torch.float64, device="cpu")[:, None] * frequencies(d_model // 2)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
