"""Rotation by the token: a memory that each token turns by angles of its own, so that it can count.

    theta_t = pi tanh(W u_t / sqrt(2 D))     per head and rotating channel, summed over tokens in float32
    k_t is multiplied by 2 sigmoid(w u_t)    per head: a token may write nothing at all

Sums modulo m need a turn of 2 pi / m for each token, whatever came before (Mamba-3, arXiv:2603.15569; selective
rotation, 2511.17388): no fixed frequency and no pace of one sign can make it. Both matrices start at zero, where the
memory is that of `rotation="none"`. What an optimizer changes of an angle adds up over all tokens between a write and
its reading: a normed u has length sqrt(2 D), by which W u is divided so that one step turns a token by little at any
width. Letters are those of `linear_attention`. On CUDA the kernels of `qkv_triton` take the cumulated angles as they
take those of `rotation="data"`.

A module of its own, so that trainings of models without it keep their keys.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from muse.catalog import ANGLES
from muse.ops.exact_product import exact_product

from .adapters import matrix_of
from .linear_attention import MemoryMixer, RealLinear
from .memory_options import MemoryOptions


@dataclass(frozen=True)
class AngleOptions(MemoryOptions):
    """What the memory is made of, turned by angles from the token; all else as in MemoryOptions."""

    rotation: str = ANGLES

    def __post_init__(self) -> None:
        if self.rotation != ANGLES:
            raise ValueError(f"rotation must be {ANGLES!r} in a model that rotates by angles, got {self.rotation!r}")
        MemoryOptions(**asdict(self) | {"rotation": "fixed"})  # its ValueErrors are ours

    def feed_forward_width(self, d_model: int) -> int:
        """F, given or as much narrower as pays for the matrix of the angles."""
        return self.d_ff or max(1, super().feed_forward_width(d_model) - self.planes * d_model // 6)


def angles_of(turned: Tensor, channels: int) -> Tensor:
    """theta in radians, in (-pi, pi), from W u, where u has so many real channels."""
    return math.pi * torch.tanh(turned / math.sqrt(channels))


class AngleMixer(MemoryMixer):
    """The memory of a `MemoryMixer`, with all its parameters but the frequencies, rotated by the token."""

    def __init__(self, mixer: MemoryMixer) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(mixer))
        like = mixer.norm_gain
        self.turn_bias = None
        width, pairs = 2 * len(like), self.n_heads * self.head_width // 2
        self.turning = RealLinear(width, pairs).to(like.device, like.dtype)
        self.writes = RealLinear(width, self.n_heads).to(like.device, like.dtype)
        for layer in (self.turning, self.writes):
            nn.init.zeros_(layer.weight)

    def angles(self, u: Tensor) -> Tensor:
        """theta_t in radians, in (-pi, pi) and float32: u r(B T 2D) -> r(B H T X/2)."""
        turned = exact_product(u, matrix_of(self.turning, RealLinear))
        return angles_of(turned, u.shape[-1]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    @property
    def by_token(self) -> bool:
        """It has all the say."""
        return True

    def turned(self, u: Tensor) -> Tensor:
        """As in the memory, by the sum of the angles."""
        return self.angles(u).cumsum(2)

    def frequencies(self) -> Tensor:
        """1 for each head and channel (H X/2): a token gives all of its angle."""
        return torch.ones_like(super().frequencies())

    def weighed(self, k: Tensor, u: Tensor) -> Tensor:
        """Keys (B H T X) times how much each token writes, in (0, 2) and 1 at the start: u r(B T 2D)."""
        write = 2 * torch.sigmoid(exact_product(u, matrix_of(self.writes, RealLinear)))
        return k * write.transpose(1, 2)[..., None].to(k.dtype)
