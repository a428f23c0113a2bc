"""The parts of a Stepper: products with one token, the table, the blocks' steps and the head.

Symbols as in `stepper`, which says how weights are laid out and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.ops import planar
from muse.ops.norms import modrelu
from muse.ops.qkv import NORM_EPS

from . import layers, memory_block
from .angles import angles_of
from .linear_attention import MemoryMixer, MixerState, RealLinear, log_spaced
from .memory_block import EMBEDDING_SCALE

PIECE_NUMEL = 2**17  # weights that are rounded at a time


class Product:
    """Several matrices in one product: z planar r(B I) to r(B planes O), O that of all of them together.

    Complex layers come before real ones, which fill the first plane only and leave a second one without meaning. A
    `gain` r(I / planes) scales the channels of z before.
    """

    def __init__(self, matrices: Sequence[nn.Module], compute: torch.dtype, gain: Tensor | None = None) -> None:
        self.planes = 2 if isinstance(matrices[0], layers.ComplexLinear) else 1
        self.weight = torch.cat([_rows(matrix, self.planes, compute) for matrix in matrices])
        width = self.weight.shape[1]
        signs = self.weight.new_ones(self.planes, width, dtype=planar.accumulate_dtype(compute))
        self.order, self.factor = _swapped(width, self.weight.device), signs
        if self.planes == 2:
            signs[0, width // 2 :] = -1  # [x, -y], then [y, x]
        if gain is not None:
            self.factor = signs * gain.repeat(width // len(gain))
        self.weighted, self.gain = self.planes == 2 or gain is not None, gain

    def __call__(self, z: Tensor) -> Tensor:
        if self.planes == 2:
            z = z.index_select(1, self.order)
        z = z.view(len(z), self.planes, -1)
        z = z * self.factor if self.weighted else z
        return multiplied(self.weight, z.flatten(0, 1)).unflatten(0, (-1, self.planes))


def _swapped(width: int, device: torch.device) -> Tensor:
    """Where [z, i z] = [x, y, y, x], but for signs, stands in z = [x, y] of so many channels."""
    channels = torch.arange(width, device=device)
    return torch.cat([channels, channels.roll(width // 2)])


def unit(z: Tensor, eps: float) -> Tensor:
    """z / sqrt(mean z^2 + eps) over the last axis: F.rms_norm, in fewer operations."""
    return z * (torch.linalg.vecdot(z, z).unsqueeze(-1) / z.shape[-1] + eps).rsqrt()


def multiplied(weight: Tensor, x: Tensor) -> Tensor:
    """W x in the dtype of W, which sums in float32, and back: r(O I), r(n I) to r(n O)."""
    x, dtype = x.to(weight.dtype), x.dtype
    if weight.dtype != torch.bfloat16 or weight.is_cuda:
        return F.linear(x, weight).to(dtype)
    if len(x) == 1:  # in bfloat16 half as long as by F.linear or by a product with one column
        return torch.mv(weight, x[0]).to(dtype)[None]
    return torch.mm(weight, x.t()).to(dtype).t()  # and so are a few columns


def _rows(matrix: nn.Module, planes: int, compute: torch.dtype) -> Tensor:
    """What a layer adds to a product of so many planes: r(O 2I), or r(O I) of a real matrix alone."""
    if isinstance(matrix, layers.ComplexLinear):
        return torch.cat([rounded(matrix.weight_real, compute), rounded(matrix.weight_imag, compute)], 1)
    weight = rounded(matrix.weight, compute)
    if planes == 1:
        return weight
    real, imag = weight.chunk(2, 1)
    return torch.cat([real, -imag], 1)


def rounded(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in this dtype, in memory of its own only where its dtype is another one; by pieces that caches hold."""
    parameter = parameter.detach()
    if parameter.dtype == dtype:
        return parameter
    found = torch.empty(parameter.shape, dtype=dtype, device=parameter.device)
    rows = max(1, PIECE_NUMEL // parameter.shape[1])
    for piece, target in zip(parameter.split(rows), found.split(rows), strict=True):
        target.copy_(planar.rounded(piece, dtype))
    return found


class Table:
    """Token ids (B) at positions (B) to the stream r(B 2D)."""

    def __init__(self, model: nn.Module, compute: torch.dtype, wide: torch.dtype) -> None:
        table = model.embedding
        self.weight, self.wide, self.width = table.weight.detach(), wide, 2 * model.config.d_model
        self.scale = math.sqrt(table.rank) / EMBEDDING_SCALE
        self.lift = None if table.lift is None else Product([table.lift], compute)
        self.positions = None if model.positions is None else model.positions.detach()

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        z = F.embedding(ids, self.weight).to(self.wide) * self.scale
        z = F.pad(z, (0, self.width - z.shape[1])) if self.lift is None else self.lift(z).flatten(1)
        if self.positions is None:
            return z
        return z + F.pad(F.embedding(positions, self.positions).to(self.wide), (0, self.width // 2))


class Head:
    """The stream r(B 2D) to logits r(B V)."""

    def __init__(self, model: nn.Module, compute: torch.dtype, wide: torch.dtype) -> None:
        norm, table, (weight, bias) = model.norm, model.embedding, model.head_parameters()
        self.gain_real, self.gain_imag = norm.gain_real.detach().to(wide), None
        self.gain, self.turned, self.order = self.gain_real, None, None
        if norm.gain_imag is not None:
            self.gain_imag = imag = norm.gain_imag.detach().to(wide)
            self.gain, self.turned = self.gain.repeat(2), torch.cat([-imag, imag])
            self.order = torch.arange(len(self.gain), device=imag.device).roll(len(imag))
        self.projection = None
        if model.head_projection is not None:
            self.projection = Product([model.head_projection], compute)
        elif model.config.memory.adjoint_head:
            self.projection = Product([_adjoint(table.lift, math.sqrt(table.rank / len(self.gain)))], compute)
        self.weight, self.bias = rounded(weight, compute), bias.detach().to(wide)

    def __call__(self, z: Tensor) -> Tensor:
        normed = unit(z, NORM_EPS)
        z = normed * self.gain
        if self.turned is not None:
            z = torch.addcmul(z, normed.index_select(1, self.order), self.turned)
        if self.projection is not None:
            z = self.projection(z).flatten(1)
        return multiplied(self.weight, z[:, : self.weight.shape[1]]) + self.bias


def _adjoint(lift: nn.Module, size: float) -> nn.Module:
    """A layer whose matrix is `size` times the conjugate transpose of this one's."""
    if isinstance(lift, RealLinear):
        adjoint = RealLinear(*lift.weight.shape)
        adjoint.weight = nn.Parameter(size * lift.weight.t())
        return adjoint
    adjoint = layers.ComplexLinear(*lift.weight_real.shape, bias=False)
    adjoint.weight_real = nn.Parameter(size * lift.weight_real.t())
    adjoint.weight_imag = nn.Parameter(-size * lift.weight_imag.t())
    return adjoint


class BlockStep:
    """One token through a block: z r(B 2D) to r(B 2D)."""

    def __init__(
        self, block: memory_block.MemoryBlock, state: MixerState, compute: torch.dtype, wide: torch.dtype
    ) -> None:
        feed = block.feed
        self.mixer = MixerStep(block.memory, state, block.memory_norm.gain.detach().to(wide), compute, wide)
        read = [feed.value, *([] if feed.gate is None else [feed.gate])]
        self.reading = Product(read, compute, block.feed_norm.gain.detach().to(wide))
        self.bias = None if feed.activation is None else feed.activation.bias.detach().to(wide)
        self.writing = Product([feed.writing], compute)

    def __call__(self, z: Tensor, turn: Turn | None) -> Tensor:
        z = z + self.mixer(unit(z, NORM_EPS), turn)
        value = self.reading(unit(z, NORM_EPS))
        if self.bias is None:
            value, gate = value.chunk(2, -1)
            return z + self.writing((value * F.silu(gate[:, :1])).flatten(1)).flatten(1)
        return z + self.writing(modrelu(value.flatten(1), self.bias)).flatten(1)


class MixerStep:
    """One token through a mixer, whose memory it keeps: normed u r(B 2D), whose channels are still to be scaled by a
    gain, to r(B 2D).
    """

    def __init__(
        self, mixer: MemoryMixer, state: MixerState, gain: Tensor, compute: torch.dtype, wide: torch.dtype
    ) -> None:
        self.options, self.planes, self.n_heads = mixer.options, mixer.options.planes, mixer.n_heads
        self.width, self.eps, self.rate_cap = mixer.head_width, mixer.eps, mixer.rate_cap
        self.channels = len(mixer.norm_gain)
        self.reading = Product([mixer.qkv, *([] if mixer.gate is None else [mixer.gate])], compute, gain)
        self.writing = Product([mixer.writing], compute, mixer.norm_gain.detach().to(wide))
        self.taps = None if mixer.taps is None else mixer.taps.detach().to(wide).t().repeat(1, self.planes)
        gain = gain.repeat(2 * self.channels // len(gain))
        by_token = mixer.decay, mixer.pace, getattr(mixer, "turning", None), getattr(mixer, "writes", None)
        self.decay, self.pace, self.turning, self.writes = (
            None if layer is None else layer.weight.detach().to(wide) * gain for layer in by_token
        )
        self.logit = None if mixer.decay_bias is None else _logit(mixer).to(wide)
        ones = gain.new_ones(self.width)
        self.order, self.plus_minus = _swapped(self.width, gain.device), ones.clone()
        self.plus_minus[self.width // 2 :] = -1
        self.unturned = torch.cat([ones, self.plus_minus])  # v, and -i v as [y, -x]
        own = partial(torch.Tensor.to, dtype=wide, copy=True, memory_format=torch.contiguous_format)
        self.matrix, self.recent = own(state.matrix), own(state.recent)

    def __call__(self, u: Tensor, turn: Turn | None) -> Tensor:
        read = self.reading(u)  # (B planes 3D), and D of the gate
        y = self._remembered(self._convolved(read[..., : 3 * self.channels].flatten(1)), u, turn)
        y = unit(y, self.eps).unflatten(-1, (self.planes, -1)).transpose(1, 2).flatten(-2)
        if self.options.output_gate:
            y = y * F.silu(read[:, :1, 3 * self.channels :])
        return self.writing(y.flatten(1)).flatten(1)

    def _convolved(self, seen: Tensor) -> Tensor:
        """q, k, v (3 B H X) after the short convolution."""
        if self.taps is not None:
            whole = torch.cat([self.recent, seen.unsqueeze(1)], 1)
            self.recent.copy_(whole[:, 1:])
            seen = (whole * self.taps).sum(1)
        split = seen.view(len(seen), self.planes, 3, self.n_heads, -1)
        return split.permute(2, 0, 3, 1, 4).flatten(-2)

    def _remembered(self, qkv: Tensor, u: Tensor, turn: Turn | None) -> Tensor:
        """What the heads read (B H X): the memory fades, learns k* v in place, and is read by q."""
        decay, qk, v = self._decay(u), qkv[:2], qkv[2]
        if self.options.qk_norm:
            qk = qk * qk.square().sum(-1, keepdim=True).add(NORM_EPS).rsqrt()
        q, k = self._turned(qk, u, turn).flatten(1, 2).unbind(0)
        if decay is not None:
            self.matrix.mul_(decay[..., None, None])
            if self.options.input_scaling:
                k = k * (1 - decay.square()).sqrt().view(-1, 1)
        if self.writes is not None:
            k = k * (2 * torch.sigmoid(F.linear(u, self.writes))).view(-1, 1)
        memory = self.matrix.flatten(0, 1)  # a view, (B H) as one
        if not self.options.imaginary_scores:
            memory.baddbmm_(k.unsqueeze(2), v.flatten(0, 1).unsqueeze(1))
            return torch.bmm(q.unsqueeze(1), memory).view(v.shape)
        values = v.flatten(0, 1).index_select(1, self.order) * self.unturned
        memory.baddbmm_(k.view(len(k), 2, -1).transpose(1, 2), values.view(len(k), 2, -1))
        read = torch.bmm(q.view(len(q), 2, -1), memory)  # by the real parts of q, by the imaginary ones
        turned = read[:, 1].index_select(1, self.order[self.width :])
        return torch.addcmul(read[:, 0], turned, self.plus_minus, value=-1).view(v.shape)

    def _decay(self, u: Tensor) -> Tensor | None:
        """exp(-gamma) r(B H), or None where nothing is forgotten."""
        if self.logit is None:
            return None
        logit = self.logit if self.decay is None else F.linear(u, self.decay, self.logit)
        return torch.exp(-self.rate_cap * torch.sigmoid(logit)).expand(len(u), -1)

    def _turned(self, qk: Tensor, u: Tensor, turn: Turn | None) -> Tensor:
        """Queries and keys (2 B H X) rotated by the sum of the angles so far, divided by X."""
        if turn is None:
            return qk / self.width
        pace = None if self.pace is None else 2 * torch.sigmoid(F.linear(u, self.pace)).unsqueeze(-1)
        if self.turning is not None:
            pace = angles_of(F.linear(u, self.turning), u.shape[-1]).unflatten(-1, (self.n_heads, -1))
        cos, sin = turn.tables(pace)
        swapped = qk.flatten(0, 2).index_select(1, self.order[self.width :]).view(qk.shape)
        return torch.addcmul(qk * cos, swapped, sin)


class Turns:
    """The cumulated rotation of every layer: angles r(L B H K) and their cosines and sines, over X."""

    def __init__(self, mixers: Sequence[MemoryMixer], states: Sequence[MixerState], wide: torch.dtype) -> None:
        self.angle = torch.stack([state.angle for state in states]).to(wide)
        self.frequencies = torch.stack([mixer.frequencies() for mixer in mixers]).unsqueeze(1)
        self.by_token = mixers[0].by_token
        self.width = mixers[0].head_width
        self.known: tuple[Tensor, Tensor] | None = None

    def advance(self) -> list[Turn]:
        """One token further, for all layers at once where the token has no say in it."""
        if not self.by_token:
            self.known = self._advanced(slice(None), 1.0)
        return [Turn(self, layer) for layer in range(len(self.angle))]

    def of_layer(self, layer: int, pace: Tensor | None) -> tuple[Tensor, Tensor]:
        """[cos, cos] and [-sin, sin] over X, r(B H X), after this token, whose pace r(B H 1) or r(B H K) may count."""
        if pace is not None:
            return self._advanced(layer, pace)
        return self.known[0][layer], self.known[1][layer]

    def _advanced(self, layers_: int | slice, pace: Tensor | float) -> tuple[Tensor, Tensor]:
        angle = self.angle[layers_]
        angle.add_(self.frequencies[layers_] * pace).remainder_(2 * math.pi)
        cos, sin = angle.cos() / self.width, angle.sin() / self.width
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


@dataclass(frozen=True)
class Turn:
    """One layer of Turns."""

    turns: Turns
    layer: int

    def tables(self, pace: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.turns.of_layer(self.layer, pace)


def _logit(mixer: MemoryMixer) -> Tensor:
    """What the sigmoid of the forgetting rate reads beside the token r(H)."""
    rate = 1 / log_spaced(*mixer.span_tokens, mixer.decay_bias)
    return (rate / (mixer.rate_cap - rate)).log() + mixer.decay_bias.detach()
