"""What a complex memory reads, holds, writes and forgets on one text: the terms behind `memory_chunked`, one by one.

    y_t = sum over s <= t of w_ts v_s,   w_ts = exp(-(gamma_{s+1} + .. + gamma_t)) q_t k_s*

T tokens, L layers, H heads, X = 2K real channels a head. Everything is computed from a model's own layers in float64,
without its chunks: what they give is what the terms must add up to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.models.states import turned_by
from muse.ops import planar, qkv
from muse.ops.linear_attention import memory_step, times_i

from .common import device_of


@dataclass(frozen=True)
class Read:
    """What one head reads at one position, and what each token up to it contributes."""

    contributions: Tensor  # float64 (S X), planar: token s gave w_s v_s, the last one is the reading token itself
    total: Tensor  # float64 (X,): what is read, their sum
    weights: Tensor  # complex128 (S,): w_s, its size how much of v_s is read, its phase by how much v_s is turned

    @property
    def signed(self) -> Tensor:
        """float64 (S,): the real part of each contribution along the read, as a share of it; the sum is 1.

        A negative one points against the read: that token is in the way.
        """
        return self.contributions @ self.total / self.total.square().sum().clamp_min(1e-300)


@dataclass(frozen=True)
class Traffic:
    """What a memory keeps, takes in and holds, token by token; float64 (L H T)."""

    kept: Tensor  # exp(-gamma): the share that a token leaves of what was there
    written: Tensor  # size of the k* v that a token writes (Frobenius norm, one unit within a head)
    held: Tensor  # size of the memory after the token

    @property
    def new(self) -> Tensor:
        """Size of a write over that of the memory after it: 1 where nothing else is in it, more where they cancel."""
        return self.written / self.held.clamp_min(1e-300)

    @property
    def forgotten(self) -> Tensor:
        """Share that a token takes from what was there, 1 - kept."""
        return 1 - self.kept


@torch.no_grad()
def read_at(
    model: nn.Module, token_ids: Tensor, layer: int, head: int, position: int, *, rotated: bool = True
) -> Read:
    """Return what a head of a layer reads at a position (all counted from 0) of token_ids int64 (T,).

    With `rotated=False` queries and keys of this head are left as they are before the rotation; all else, the layers
    below too, stays. ValueError for a model without complex memory and for a place that is not there.
    """
    wide = _double(model)
    places = {"layer": (layer, len(wide.blocks)), "head": (head, wide.blocks[0].memory.n_heads)}
    for name, (got, count) in (places | {"position": (position, len(token_ids))}).items():
        if not 0 <= got < count:
            raise ValueError(f"{name}: got {got}, expected 0 to {count - 1}")
    memory, u = _inputs(wide, token_ids)[layer]
    return _read(memory, _terms(memory, u, rotated), head, position)


@torch.no_grad()
def reads_at(model: nn.Module, token_ids: Tensor, position: int) -> dict[tuple[int, int], tuple[Read, Read]]:
    """Return `read_at` of every (layer, head) at a position, with rotation and without."""
    found = {}
    for layer, (memory, u) in enumerate(_inputs(_double(model), token_ids)):
        both = [_terms(memory, u, rotated) for rotated in (True, False)]
        found |= {
            (layer, head): tuple(_read(memory, terms, head, position) for terms in both)
            for head in range(memory.n_heads)
        }
    return found


def most_turned(found: Mapping[tuple[int, int], tuple[Read, Read]]) -> tuple[int, int]:
    """Return the (layer, head) of `reads_at` whose read rotation moves furthest, beside all that its layer reads."""
    sizes: dict[int, float] = {}
    for (layer, _), (rotated, _) in found.items():
        sizes[layer] = sizes.get(layer, 0.0) + float(rotated.total.square().sum())
    moved = {
        place: float((rotated.total - plain.total).square().sum()) / max(sizes[place[0]], 1e-300)
        for place, (rotated, plain) in found.items()
    }
    return max(moved, key=moved.get)


def _read(memory: nn.Module, terms: tuple[Tensor, ...], head: int, position: int) -> Read:
    """One read of a layer's memory from its `_terms`."""
    q, k, v, log_decay = (x[0, head] for x in terms)
    q, k, v, log_decay = q[position], k[: position + 1], v[: position + 1], log_decay[: position + 1]
    elapsed = log_decay.cumsum(0)
    faded = (elapsed[-1] - elapsed).exp()
    real, imag = faded * (k @ q), faded * (times_i(k) @ q)
    if not memory.options.imaginary_scores:
        imag = torch.zeros_like(imag)
    contributions = real[:, None] * v + imag[:, None] * times_i(v)
    return Read(contributions.cpu(), contributions.sum(0).cpu(), torch.complex(real, imag).cpu())


@torch.no_grad()
def states(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Return the stream of token_ids int64 (T,) as complex128 (L+1 T D): the embedding, then behind each layer.

    ValueError for a model without complex numbers.
    """
    return torch.stack([planar.to_complex(z)[0] for z in _streams(_double(model), token_ids)]).cpu()


@torch.no_grad()
def traffic(model: nn.Module, token_ids: Tensor) -> Traffic:
    """Return what each head keeps, writes and holds along token_ids int64 (T,); ValueError as in `states`."""
    places = _inputs(_double(model), token_ids)
    layers = [_traffic(*_terms(memory, u), memory.options.imaginary_scores) for memory, u in places]
    return Traffic(*(torch.stack(parts).cpu() for parts in zip(*layers, strict=True)))


def _traffic(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, imaginary_scores: bool) -> tuple[Tensor, ...]:
    """kept, written, held (H T) of one layer: q k v (1 H T X), log_decay (1 H T); the memory goes step by step."""
    width = k.shape[-1] // 2 if imaginary_scores else k.shape[-1]
    state, held = k.new_zeros(1, k.shape[1], width, v.shape[-1]), []
    for t in range(k.shape[2]):
        state, _ = memory_step(state, q[:, :, t], k[:, :, t], v[:, :, t], log_decay[:, :, t], imaginary_scores)
        held.append(state.flatten(-2).norm(dim=-1))
    return log_decay.exp()[0], (k.norm(dim=-1) * v.norm(dim=-1))[0], torch.stack(held, -1)[0]


def complex_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a model with complex memory; ValueError for any other model."""
    blocks = getattr(model, "blocks", ())
    memories = [getattr(block, "memory", None) for block in blocks]
    if not blocks or any(getattr(getattr(m, "options", None), "planes", 0) != 2 for m in memories):
        raise ValueError(f"model: got {type(model).__name__} without complex memory, expected a Stage 1 with memory")
    return blocks


def _double(model: nn.Module) -> nn.Module:
    """A copy of a model with complex memory, in float64 and evaluation mode."""
    complex_blocks(model)
    return copy.deepcopy(model).double().eval()


def _streams(model: nn.Module, token_ids: Tensor) -> Iterator[Tensor]:
    """The stream planar r(1 T 2D): what the embedding gives, then what each block does."""
    if token_ids.ndim != 1 or not 1 <= len(token_ids) <= model.config.n_seq:
        raise ValueError(f"token_ids: got shape {tuple(token_ids.shape)}, expected 1 to {model.config.n_seq} tokens")
    z = model.embed(token_ids[None].long().to(device_of(model)))
    yield z
    for block in model.blocks:
        z = block(z)
        yield z


def _inputs(model: nn.Module, token_ids: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Every layer's memory with what it is given, u planar r(1 T 2D)."""
    streams = [*_streams(model, token_ids)]
    return [(block.memory, block.memory_norm(z)) for block, (z, _) in zip(model.blocks, pairwise(streams), strict=True)]


def _terms(memory: nn.Module, u: Tensor, rotated: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v (1 H T X) and log_decay (1 H T), as the memory's formula has them."""
    options, log_decay, angle = memory.options, memory.log_decay(u), None
    if rotated and options.rotation != "none":
        angle = turned_by(memory, u)
    seen = F.pad(memory.qkv(u), (0, 0, options.convolution - 1, 0))
    q, k, v = qkv.prepared(seen, memory.taps, angle, options.planes, memory.n_heads, options.qk_norm)
    if options.input_scaling and options.decay != "none":
        k = k * (-torch.expm1(2 * log_decay)).sqrt()[..., None]
    return q, memory.weighed(k, u), v, log_decay
