"""The block of Stage 1 with memory: a matrix memory and a gated feed-forward on a residual stream of complex channels.

    z += W_o [silu(G u) head_norm(memory(q / X, k / X, v))],   q, k, v = short_convolution(W_qkv u),   u = norm z
    z += W_d [silu(G' u) W_u u],                                                              u = norm z

Glossary: B batch, T positions, D width (complex channels), F feed-forward width, L layers, X real channels per head. W
are complex, G real matrices that read both planes (the real part of a complex product). With `numbers="real"` the
stream is 2D real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.ops import norms, planar
from muse.ops.gate import gated
from muse.ops.operator import by_hand
from muse.ops.qkv import NORM_EPS

from . import layers
from .linear_attention import MemoryMixer, MixerState, RealLinear, reading, real_product, writing
from .memory_options import FIRST_RATE_CAP, MemoryOptions

EMBEDDING_SCALE = 0.64  # norm of an initial token row, and of what multiplies it back to unit channels
OUTPUT_GAIN = 0.5  # initial size of the features' channels: logits start with variance (0.64 x 0.5)^2


def _norm_formula(z: Tensor, gain: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    """y = gain z / sqrt(mean z^2 + eps) in the dtype of z, and 1 / sqrt(..) (... 1) in the accumulation dtype.

    z r(... E), gain r(E / planes), the same for each plane.
    """
    wide = z.to(planar.accumulate_dtype(z.dtype))
    rstd = (wide.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    return (wide * rstd * gain.repeat(planes)).to(z.dtype), rstd


def _norm_gradient(needed: tuple, grad: Tensor, z: Tensor, gain: Tensor, planes: int, rstd: Tensor) -> tuple:
    n, g = z.to(rstd.dtype) * rstd, grad.to(rstd.dtype)
    grad_gain = (g * n).flatten(0, -2).sum(0).unflatten(0, (planes, -1)).sum(0)
    g = g * gain.to(rstd.dtype).repeat(planes)
    grad_z = rstd * (g - n * (g * n).mean(-1, keepdim=True))
    return grad_z.to(z.dtype), grad_gain.to(gain.dtype), None


_norm = by_hand(_norm_formula, _norm_gradient)  # keeps one number per token, where autograd would keep float32 copies


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) (arXiv:1910.07467) and one real gain per channel: it commutes with a common rotation."""

    def __init__(self, channels: int, planes: int) -> None:
        super().__init__()
        self.planes = planes
        self.gain = nn.Parameter(torch.empty(channels * 2 // planes))

    def forward(self, z: Tensor) -> Tensor:
        return _norm(z, self.gain, self.planes)


class OutputNorm(nn.Module):
    """RMS norm, then a gain per channel that rotates (complex) or not (real): planar r(B T 2D) to the head's features.

    With a tied head z would predict its own token. Initial phases (signs) spread evenly over the channels cancel that.
    """

    def __init__(self, channels: int, planes: int) -> None:
        super().__init__()
        self.gain_real = nn.Parameter(torch.empty(channels * 2 // planes))
        self.gain_imag = nn.Parameter(torch.empty(channels)) if planes == 2 else None

    def forward(self, z: Tensor) -> Tensor:
        dtype = planar.accumulate_dtype(z.dtype)
        normed = F.rms_norm(z.to(dtype), z.shape[-1:], eps=NORM_EPS)
        if self.gain_imag is None:
            return (normed * self.gain_real).to(z.dtype)
        x, y = planar.unpack(normed)
        return planar.pack(x * self.gain_real - y * self.gain_imag, x * self.gain_imag + y * self.gain_real).to(z.dtype)


class TokenTable(nn.Module):
    """Token rows r(V 2D), the real parts, then the imaginary parts; r(V D) where the head is not tied to it.

    One parameter, so that it is the weight of the tied head, Re<e_v, z> = one real product, without a copy. With a
    `table_rank` the rows are r(V R), and a complex (real) matrix lifts them into the stream.
    """

    def __init__(self, vocab_size: int, d_model: int, options: MemoryOptions, dropout: float) -> None:
        super().__init__()
        self.d_model, self.planes, self.dropout = d_model, options.planes, dropout
        self.rank = options.table_rank or 2 * d_model
        self.weight = nn.Parameter(torch.empty(vocab_size, self.rank if options.tied else d_model))
        planes = options.table_planes
        self.lift = writing(planes, self.rank // planes, d_model) if options.table_rank else None

    @property
    def weight_real(self) -> Tensor:
        """View of the real parts, r(V D), or r(V R/2)."""
        return self.weight[:, : self.rank // 2]

    @property
    def weight_imag(self) -> Tensor:
        """View of the imaginary parts, r(V D), or r(V R/2); empty where the table is real."""
        return self.weight[:, self.rank // 2 :]

    def forward(self, ids: Tensor) -> Tensor:
        z = F.embedding(ids, self.weight) * (math.sqrt(self.rank) / EMBEDDING_SCALE)
        z = F.pad(z, (0, 2 * self.d_model - z.shape[-1])) if self.lift is None else self.lift(z)
        return drop(z, self.dropout, self.training, self.planes)

    def lowered(self, z: Tensor) -> Tensor:
        """The stream r(B T 2D) by the conjugate transpose of the lift, r(B T R), as large as by a matrix of its own."""
        size = math.sqrt(self.rank / (2 * self.d_model))
        if isinstance(self.lift, RealLinear):
            return size * real_product(z, self.lift.weight.t())
        return size * planar.linear(z, self.lift.weight_real.t(), -self.lift.weight_imag.t())


class FeedForward(nn.Module):
    """W_d [silu(G u) W_u u], or W_d modrelu(W_u u): u planar r(B T 2D) to r(B T 2D)."""

    def __init__(self, d_model: int, options: MemoryOptions) -> None:
        super().__init__()
        width = options.feed_forward_width(d_model)
        self.planes = options.planes
        self.value = reading(options.planes, d_model, width)
        self.gate = RealLinear(2 * d_model, width) if options.feed_forward == "gated" else None
        self.activation = layers.ModReLU(width) if options.feed_forward == "modrelu" else None
        self.writing = writing(options.planes, width, d_model)

    def forward(self, u: Tensor) -> Tensor:
        value = self.value(u)
        if self.gate is None:
            return self.writing(self.activation(value))
        return self.writing(gated(value, self.gate(u), self.planes))


class MemoryBlock(nn.Module):
    """Memory and feed-forward, each behind an RMS norm and added to the residual stream z, planar r(B T 2D)."""

    def __init__(
        self, d_model: int, options: MemoryOptions, dropout: float, longest_tokens: float, rate_cap: float
    ) -> None:
        super().__init__()
        self.dropout, self.planes = dropout, options.planes
        self.memory_norm = RMSNorm(d_model, options.planes)
        self.memory = MemoryMixer(d_model, options, longest_tokens, rate_cap)
        self.feed_norm = RMSNorm(d_model, options.planes)
        self.feed = FeedForward(d_model, options)

    def forward(self, z: Tensor) -> Tensor:
        return self._fed(self._remembered(z))

    def halves(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """The functions of z that the block is made of, one after the other."""
        return self._remembered, self._fed

    def _remembered(self, z: Tensor) -> Tensor:
        return z + self._dropped(self.memory(self.memory_norm(z))[0])

    def prefill(self, z: Tensor) -> tuple[Tensor, MixerState]:
        """All T tokens from an empty memory: z r(B T 2D) -> r(B T 2D), state after the last token."""
        update, state = self.memory(self.memory_norm(z))
        return self._fed(z + self._dropped(update)), state

    def step(self, z: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """One token: z r(B 1 2D) -> r(B 1 2D), new state."""
        update, state = self.memory.step(self.memory_norm(z), state)
        return self._fed(z + self._dropped(update)), state

    def _fed(self, z: Tensor) -> Tensor:
        return z + self._dropped(self.feed(self.feed_norm(z)))

    def _dropped(self, update: Tensor) -> Tensor:
        return drop(update, self.dropout, self.training, self.planes)


def drop(z: Tensor, probability: float, training: bool, planes: int) -> Tensor:
    """Dropout of whole numbers: complex ones lose both planes together."""
    return norms.dropout(z, probability, training) if planes == 2 else F.dropout(z, probability, training)


def make_blocks(config) -> nn.ModuleList:
    """The L blocks of a Stage 1 configuration; the cap of the forgetting rate falls log-spaced from first to last."""
    options, depth = config.memory, max(1, config.n_layers - 1)
    ratio = options.last_rate_cap / FIRST_RATE_CAP
    caps = [FIRST_RATE_CAP * ratio ** (layer / depth) for layer in range(config.n_layers)]
    return nn.ModuleList(MemoryBlock(config.d_model, options, config.dropout, config.n_seq / 2, cap) for cap in caps)


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter: matrices keep unit channels, those that write to the stream share its growth."""
    writers = 2 * sum(isinstance(module, MemoryBlock) for module in model.modules())
    for name, module in model.named_modules():
        shrink = writers**-0.5 if name.endswith("writing") else 1.0
        if isinstance(module, layers.ComplexLinear):
            std = shrink / math.sqrt(2 * module.weight_real.shape[1])
            module.weight_real.normal_(0, std, generator=generator)
            module.weight_imag.normal_(0, std, generator=generator)
        elif isinstance(module, RealLinear):
            module.weight.normal_(0, shrink / math.sqrt(module.weight.shape[1]), generator=generator)
        elif isinstance(module, RMSNorm):
            module.gain.fill_(1.0)
        elif isinstance(module, TokenTable):
            module.weight.normal_(0, EMBEDDING_SCALE / math.sqrt(module.rank), generator=generator)
        elif isinstance(module, OutputNorm):
            _spread(module)
    for module in model.modules():
        if isinstance(module, MemoryMixer):
            _initialise_mixer(module)


def _spread(norm: OutputNorm) -> None:
    """Gains of equal size whose phases (signs, for real numbers) add up to zero."""
    channel = torch.arange(len(norm.gain_real))
    if norm.gain_imag is None:
        norm.gain_real.copy_(OUTPUT_GAIN * (1 - 2 * (channel % 2)))
        return
    phase = channel * (2 * math.pi / len(channel))
    norm.gain_real.copy_(OUTPUT_GAIN * phase.cos())
    norm.gain_imag.copy_(OUTPUT_GAIN * phase.sin())


def _initialise_mixer(mixer: MemoryMixer) -> None:
    """Learned corrections start at zero: decays and frequencies are log-spaced, the convolution is the identity."""
    mixer.norm_gain.fill_(1.0)
    for correction in (mixer.decay_bias, mixer.turn_bias):
        if correction is not None:
            correction.zero_()
    for projection in (mixer.decay, mixer.pace):
        if projection is not None:
            projection.weight.zero_()
    if mixer.taps is not None:
        mixer.taps.zero_()
        mixer.taps[:, -1] = 1.0
