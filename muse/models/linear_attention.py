"""The mixer of Stage 1 with memory: what writes to, reads from and times a matrix memory, and the ablations' switches.

    q, k, v = short causal convolution of W_qkv u
    gamma_t = cap sigmoid(w u_t + b)             per head
    theta = log-spaced x exp(b')                 per head and rotating channel
    out = W_o [silu(G u) head_norm(memory(q / X, k / X, v))]

Glossary: B batch, T positions, D width (complex channels), H heads, X real channels per head. W are complex, G and w
real matrices that read both planes of u, planar r(B T 2D). With `numbers="real"` a complex D x E matrix becomes a real
2D x E one (and E x D becomes E x 2D): the same number of scalars everywhere. What is computed point by point around the
memory is written plainly here; on CUDA kernels of `qkv_triton` do the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.ops import gate, planar, qkv
from muse.ops.exact_product import exact_product
from muse.ops.linear_attention import memory_chunked, memory_step

from . import layers
from .adapters import matrix_of
from .memory_options import MemoryOptions

SHORTEST_TOKENS = 2  # initial memory of the fastest head, 1 / gamma
SLOWEST_ROTATION = 1e-4  # radians per token; the fastest channel rotates by about 1


@dataclass(frozen=True)
class MixerState:
    """What a mixer remembers of the past, the same size after any number of tokens."""

    matrix: Tensor  # (B H K 2K), or (B H X X) without imaginary scores
    angle: Tensor  # (B H X/2) radians in [0, 2 pi), the cumulated rotation
    recent: Tensor  # (B taps-1 3 planes D), what the convolution still sees


class RealLinear(nn.Module):
    """W x: r(... I) to r(... O), weight r(O I), products in the compute dtype of planar's table."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))

    def forward(self, x: Tensor) -> Tensor:
        return real_product(x, self.weight)


def real_product(x: Tensor, weight: Tensor) -> Tensor:
    """W x: r(... I) to r(... O), weight r(O I), in the compute dtype of planar's table."""
    compute, storage = planar.product_dtypes(x)
    return F.linear(x.to(compute), weight.to(compute)).to(storage)


def reading(planes: int, d_model: int, channels: int) -> nn.Module:
    """Matrix from the stream to inner channels of 2 (complex) or 1 (real) planes: 2 D E scalars."""
    if planes == 2:
        return layers.ComplexLinear(d_model, channels, bias=False)
    return RealLinear(2 * d_model, channels)


def writing(planes: int, channels: int, d_model: int) -> nn.Module:
    """Matrix from inner channels of 2 (complex) or 1 (real) planes to the stream: 2 E D scalars."""
    if planes == 2:
        return layers.ComplexLinear(channels, d_model, bias=False)
    return RealLinear(channels, 2 * d_model)


class MemoryMixer(nn.Module):
    """Complex gated linear attention between a reading and a writing projection: u planar r(B T 2D) to r(B T 2D)."""

    def __init__(self, d_model: int, options: MemoryOptions, longest_tokens: float, rate_cap: float) -> None:
        super().__init__()
        self.options, self.rate_cap = options, rate_cap
        self.n_heads = options.heads(d_model)
        self.head_width = options.planes * d_model // self.n_heads  # X
        self.eps = options.head_norm_eps / self.head_width**2  # of the norm per head, whose input is small by X^2
        shortest = max(SHORTEST_TOKENS, 2 / rate_cap)
        self.span_tokens = shortest, max(longest_tokens, shortest)
        self.qkv = reading(options.planes, d_model, 3 * d_model)
        self.taps = nn.Parameter(torch.empty(3 * d_model, options.convolution)) if options.convolution > 1 else None
        self.gate = RealLinear(2 * d_model, d_model) if options.output_gate else None
        self.norm_gain = nn.Parameter(torch.empty(d_model))
        self.writing = writing(options.planes, d_model, d_model)
        self.decay = RealLinear(2 * d_model, self.n_heads) if options.decay == "data" else None
        self.decay_bias = nn.Parameter(torch.empty(self.n_heads)) if options.decay != "none" else None
        self.pace = RealLinear(2 * d_model, self.n_heads) if options.rotation == "data" else None
        rotates = options.rotation != "none"
        self.turn_bias = nn.Parameter(torch.empty(self.n_heads, self.head_width // 2)) if rotates else None

    def forward(self, u: Tensor) -> tuple[Tensor, MixerState]:
        """All T tokens from an empty memory: u r(B T 2D) -> r(B T 2D), state after the last token."""
        y, state = self.remembered(u)
        return self._write(y, u), state

    def remembered(self, u: Tensor) -> tuple[Tensor, MixerState]:
        """What the heads read before norm and gate: u r(B T 2D) -> y (B H T X), state after the last token."""
        seen, log_decay, angle, prepared = self.qkv(u), self.log_decay(u), self.turned(u), None
        if not (self.options.qk_norm or self.options.input_scaling):
            frequencies = self.frequencies() if self.options.rotation == "fixed" else None
            prepared = qkv.by_kernels(seen, self.taps, frequencies, angle, self.options.planes, self.n_heads)
        if prepared is None:
            turned = self._counted(u.shape[1]) if angle is None else angle
            prepared = self._prepared(self._preceded(seen), log_decay, turned)
        q, k, v = prepared[0], self.weighed(prepared[1], u), prepared[2]
        y, matrix = memory_chunked(q, k, v, log_decay, self.options.imaginary_scores, self.options.chunk_tokens)
        last = u.shape[1] * self.frequencies() if angle is None else angle[:, :, -1]
        angle = torch.remainder(last, 2 * math.pi).expand(u.shape[0], -1, -1)
        recent = self._preceded(seen[:, max(0, u.shape[1] - self.options.convolution + 1) :])
        return y, MixerState(matrix, angle, recent[:, recent.shape[1] - self.options.convolution + 1 :])

    def step(self, u: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """One token: u r(B 1 2D) -> r(B 1 2D), new state."""
        seen = torch.cat([state.recent, self.qkv(u)], dim=1)
        log_decay, turned = self.log_decay(u), self.turned(u)
        angle = state.angle + (self.frequencies() if turned is None else turned.squeeze(2))
        angle = torch.remainder(angle, 2 * math.pi)
        q, k, v = self._prepared(seen, log_decay, angle[:, :, None])
        q, k, v = (x.squeeze(2) for x in (q, self.weighed(k, u), v))
        matrix, y = memory_step(state.matrix, q, k, v, log_decay.squeeze(-1), self.options.imaginary_scores)
        return self._write(y.unsqueeze(2), u), MixerState(matrix, angle, seen[:, 1:])

    def log_decay(self, u: Tensor) -> Tensor:
        """-gamma_t in float32: u r(B T 2D) -> r(B H T)."""
        shape = u.shape[0], self.n_heads, u.shape[1]
        if self.decay_bias is None:
            return u.new_zeros(shape, dtype=planar.accumulate_dtype(u.dtype))
        rate = 1 / log_spaced(*self.span_tokens, self.decay_bias)
        logit = (rate / (self.rate_cap - rate)).log() + self.decay_bias
        if self.decay is None:
            return (-self.rate_cap * torch.sigmoid(logit))[:, None].expand(shape)
        by_token = exact_product(u, matrix_of(self.decay, RealLinear))
        return -self.rate_cap * torch.sigmoid(by_token + logit).transpose(1, 2)

    def frequencies(self) -> Tensor:
        """theta in radians per token, float32 (H X/2): log-spaced times exp(turn_bias)."""
        dtype = planar.accumulate_dtype(self.norm_gain.dtype)
        if self.turn_bias is None:
            return self.norm_gain.new_zeros(self.n_heads, self.head_width // 2, dtype=dtype)
        return log_spaced(1.0, SLOWEST_ROTATION, self.turn_bias) * self.turn_bias.to(dtype).exp()

    @property
    def by_token(self) -> bool:
        """Whether the token has a say in the rotation."""
        return self.pace is not None

    def turned(self, u: Tensor) -> Tensor | None:
        """The rotation since the first token, after each, in float32 radians: u r(B T 2D) -> r(B H T X/2).

        None where the token has no say in it. Each turns by a pace per head, in (0, 2) and 1 at the start.
        """
        if self.pace is None:
            return None
        pace = 2 * torch.sigmoid(exact_product(u, matrix_of(self.pace, RealLinear))).transpose(1, 2)
        return pace.cumsum(-1)[..., None] * self.frequencies()[:, None]

    def weighed(self, k: Tensor, u: Tensor) -> Tensor:
        """Keys (B H T X) times how much each token writes, which is all the same here: u r(B T 2D)."""
        return k

    def _counted(self, tokens: int) -> Tensor:
        """The cumulated rotation after each token, by fixed frequencies (1 H T X/2)."""
        frequencies = self.frequencies()
        count = torch.ones(1, 1, tokens, 1, device=frequencies.device, dtype=frequencies.dtype).cumsum(2)
        return count * frequencies[:, None]

    def _preceded(self, seen: Tensor) -> Tensor:
        """Projections (B T 3 planes D) with taps-1 zeros before them, what the convolution of the first token sees."""
        return seen if self.taps is None else F.pad(seen, (0, 0, self.taps.shape[1] - 1, 0))

    def _prepared(self, seen: Tensor, log_decay: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B H T X) from projections (B taps-1+T 3 planes D); q and k rotated by angle (B H T X/2)."""
        options, angle = self.options, None if self.options.rotation == "none" else angle
        q, k, v = qkv.prepared(seen, self.taps, angle, options.planes, self.n_heads, options.qk_norm)
        if options.input_scaling and options.decay != "none":
            k = k * (-torch.expm1(2 * log_decay)).sqrt()[..., None].to(k.dtype)
        return q, k, v

    def _write(self, y: Tensor, u: Tensor) -> Tensor:
        """What the heads read, normed per head, gated by u and projected: y (B H T X), u r(B T 2D) -> r(B T 2D)."""
        g = None if self.gate is None else self.gate(u)
        dtypes = u.dtype, planar.product_dtypes(u)[0]
        return self.writing(gate.written(y, g, self.norm_gain, self.options.planes, self.eps, *dtypes))


def log_spaced(first: float, last: float, like: Tensor) -> Tensor:
    """Middles of equal steps of the logarithm from first to last, as many as the last axis of `like`."""
    count, dtype = like.shape[-1], planar.accumulate_dtype(like.dtype)
    middles = (torch.arange(count, device=like.device, dtype=dtype) + 0.5) / count
    return first * (middles * math.log(last / first)).exp()
