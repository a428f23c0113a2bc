"""What a model has read, as states of its blocks: the same size after any number of tokens.

A state is read on from, in pieces of any length and with texts of different lengths side by side; it can be copied,
saved, and continued on another device. What is added up between two pieces is what the blocks' own forms add up:

    memory   y_t += q_t exp(sum of log decays) M,   M' = exp(sum of all of them) M + what the piece writes
    Phase 2  d_1 -= beta G,   since G_1 = 1 / (d_1 - beta G) with G that of the token before

Glossary: B batch, T positions, D width, H heads, X real channels a head, K head width, N chains, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from muse.host.files import replaced
from muse.ops import linear_attention, logits, planar
from muse.ops.green import left_green

from .adapters import matrix_of
from .hebbian import HebbianMemory
from .layers import check_token_ids
from .linear_attention import MemoryMixer, MixerState
from .memory_block import MemoryBlock
from .phase2 import LEAST_RATE, BKCore, Phase2Block

CHUNK_TOKENS = 1024  # of a prompt that are read at a time: memory does not grow with its length


@dataclass(frozen=True)
class Phase2State:
    """What a block of Phase 2 remembers."""

    green: Tensor  # (B 2 N), real and imaginary part of G at the last token
    matrix: Tensor  # (B H K K)


@dataclass(frozen=True)
class State:
    """What a model has read, row by row, and what it says of the next token."""

    blocks: tuple[MixerState | Phase2State, ...]
    lengths: Tensor  # int64 (B), tokens read by each row
    logits: Tensor  # r(B V) of the next token, zero before the first one
    random: Tensor | None = None  # uint8 (R S), of the generators that the text was drawn with: one, or one a row

    @property
    def num_bytes(self) -> int:
        """Bytes of the blocks' states, all rows together."""
        return sum(x.nbytes for block in self.blocks for x in vars(block).values())

    def copy(self) -> State:
        """The same in memory of its own."""
        return self._mapped(torch.clone)

    def to(self, device: torch.device | str) -> State:
        """The same on another device; generators do not go along."""
        return dataclasses.replace(self._mapped(lambda x: x.to(device)), random=None)

    def rows(self, indices: Sequence[int]) -> State:
        """These rows, in this order, as often as they are named; IndexError for one that is not there."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.lengths.device)
        found = self._mapped(lambda x: x.index_select(0, index))
        own = self.random is not None and len(self.random) == len(self.lengths) > 1
        return dataclasses.replace(found, random=self.random[index.cpu()] if own else self.random)

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file, whole or not at all."""
        named = {f"blocks.{i}.{name}": x for i, block in enumerate(self.blocks) for name, x in vars(block).items()}
        named |= {"lengths": self.lengths, "logits": self.logits}
        named |= {} if self.random is None else {"random": self.random}
        with replaced(Path(path)) as new:
            new.write_bytes(save({name: x.detach().cpu().contiguous() for name, x in named.items()}))

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> State:
        """Read what `save` wrote, onto the device of the model; ValueError, in a line, where it is no state of it."""
        try:
            named = load(Path(path).read_bytes())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: no state can be read there: {error}") from error
        if "lengths" not in named:
            raise ValueError(f"{path}: holds no state of a model that has read a text")
        random, device = named.pop("random", None), model_device(model)
        wanted = empty_state(model, len(named["lengths"]))
        names = {f"blocks.{i}.{name}": x for i, block in enumerate(wanted.blocks) for name, x in vars(block).items()}
        names |= {"lengths": wanted.lengths, "logits": wanted.logits}
        for name in sorted(names.keys() | named.keys()):
            got, want = ("nothing" if name not in x else tuple(x[name].shape) for x in (named, names))
            if got != want:
                raise ValueError(f"{path}: {name}: got {got}, expected {want} of this model")
        blocks = tuple(
            type(block)(**{name: named[f"blocks.{i}.{name}"].to(device) for name in vars(block)})
            for i, block in enumerate(wanted.blocks)
        )
        return cls(blocks, named["lengths"].to(device), named["logits"].to(device), random)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> State:
        blocks = tuple(mapped(function, block) for block in self.blocks)
        return State(blocks, function(self.lengths), function(self.logits), self.random)


def mapped(function: Callable[..., Tensor], *states: MixerState | Phase2State) -> MixerState | Phase2State:
    """A state of a block made of those of several, tensor by tensor."""
    names = vars(states[0])
    return type(states[0])(**{name: function(*(getattr(state, name) for state in states)) for name in names})


def joined(states: Sequence[State]) -> State:
    """The rows of several states one after the other."""
    blocks = tuple(mapped(lambda *x: torch.cat(x), *rows) for rows in zip(*(s.blocks for s in states), strict=True))
    return State(blocks, torch.cat([s.lengths for s in states]), torch.cat([s.logits for s in states]))


def recurrent(model: nn.Module) -> bool:
    """Whether every block keeps a state of fixed size that is known here, and nothing was put around its parts."""
    blocks = getattr(model, "blocks", None)
    return bool(blocks) and all(isinstance(block, MemoryBlock) or _plain_phase2(block) for block in blocks)


def _plain_phase2(block: nn.Module) -> bool:
    """What is read here in another order than the block's own forward does must be the block's own."""
    if type(block) is not Phase2Block:
        return False
    parts = (block, block.core, block.memory)
    own = (type(block.core), type(block.memory)) == (BKCore, HebbianMemory)
    return own and not any(p._forward_hooks or p._forward_pre_hooks or "forward" in vars(p) for p in parts)


def ends(model: nn.Module) -> bool:
    """Whether a table of positions ends after n_seq tokens."""
    return getattr(model, "positions", None) is not None


def model_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def empty_state(model: nn.Module, batch: int) -> State:
    """The state of `batch` texts before their first token, on the device of the model."""
    weight, _ = model.head_parameters()
    lengths = torch.zeros(batch, dtype=torch.int64, device=weight.device)
    blocks = tuple(
        _empty_mixer(block.memory, batch) if isinstance(block, MemoryBlock) else _empty_phase2(block, batch)
        for block in model.blocks
    )
    return State(blocks, lengths, torch.zeros(batch, len(weight), dtype=weight.dtype, device=weight.device))


def _empty_mixer(mixer: MemoryMixer, batch: int) -> MixerState:
    gain, heads, width, planes = mixer.norm_gain, mixer.n_heads, mixer.head_width, mixer.options.planes
    wide = planar.accumulate_dtype(gain.dtype)
    rows = width // 2 if mixer.options.imaginary_scores else width
    return MixerState(
        matrix=gain.new_zeros(batch, heads, rows, width, dtype=wide),
        angle=gain.new_zeros(batch, heads, width // 2, dtype=wide),
        recent=gain.new_zeros(batch, mixer.options.convolution - 1, 3 * planes * len(gain)),
    )


def _empty_phase2(block: Phase2Block, batch: int) -> Phase2State:
    eta, chains = block.memory.eta, len(block.core.z_real)
    wide, width = planar.accumulate_dtype(eta.dtype), block.core.output.out_features // block.memory.n_heads
    green = eta.new_zeros(batch, 2, chains, dtype=wide)
    return Phase2State(green, eta.new_zeros(batch, block.memory.n_heads, width, width, dtype=wide))


@torch.no_grad()
def read(
    model: nn.Module,
    token_ids: Tensor,
    state: State | None = None,
    *,
    lengths: Sequence[int] | Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> State:
    """The state after token_ids (B T), read on from `state` or from an empty one; the given one stays as it is.

    Of row b only the first `lengths[b]` ids count, 0 to T of them, and the row is as if it were read alone. Prompts
    are read `chunk_tokens` at a time, which bounds the memory it takes. The model is in evaluation mode meanwhile.
    ValueError for ids, lengths or a state that do not fit, and where a table of positions ends.
    """
    _check(model, token_ids, state, chunk_tokens)
    lengths = None if lengths is None else _lengths(lengths, token_ids)
    _check_positions(model, token_ids, state, lengths)
    start, training = state, model.training
    model.eval()
    try:
        for first in range(0, token_ids.shape[1], chunk_tokens):
            ids = token_ids[:, first : first + chunk_tokens]
            counts = None if lengths is None else (lengths - first).clamp(0, ids.shape[1])
            start = _piece(model, ids, start, counts)
    finally:
        model.train(training)
    return start


def _check(model: nn.Module, ids: Tensor, state: State | None, chunk_tokens: int) -> None:
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    longest = model.config.n_seq if ends(model) else max(ids.shape[-1], 1)
    check_token_ids(ids, model.config.vocab_size, longest)
    if state is not None and len(state.lengths) != len(ids):
        raise ValueError(f"token_ids must have as many rows as the state, {len(state.lengths)}, got {len(ids)}")


def _lengths(lengths: Sequence[int] | Tensor, ids: Tensor) -> Tensor:
    found = torch.as_tensor(lengths, dtype=torch.int64, device=ids.device)
    if found.shape != ids.shape[:1] or bool((found < 0).any()) or bool((found > ids.shape[1]).any()):
        given = found.tolist()
        raise ValueError(f"lengths must be {len(ids)} numbers from 0 to {ids.shape[1]}, got {given}")
    return found


def _check_positions(model: nn.Module, ids: Tensor, state: State | None, lengths: Tensor | None) -> None:
    if not ends(model) or (state is None and lengths is None):
        return
    read = 0 if state is None else state.lengths
    longest = int((read + (ids.shape[1] if lengths is None else lengths)).max())
    if longest > model.config.n_seq:
        raise ValueError(f"the position table ends at n_seq={model.config.n_seq}, got {longest} tokens")


def _piece(model: nn.Module, ids: Tensor, state: State | None, counts: Tensor | None) -> State:
    """One piece of a prompt, of whose rows `counts` (B) ids count, all of them for None."""
    z, blocks = advanced(model, ids, state, counts)
    before = empty_state(model, len(ids)) if state is None else state
    if counts is None:
        return State(blocks, before.lengths + ids.shape[1], head(model, z[:, -1:])[:, 0])
    found = head(model, _at(z, (counts - 1).clamp(min=0)).unsqueeze(1))[:, 0]
    return State(blocks, before.lengths + counts, torch.where(counts[:, None] > 0, found, before.logits))


def advanced(
    model: nn.Module, ids: Tensor, state: State | None, counts: Tensor | None = None
) -> tuple[Tensor, tuple[MixerState | Phase2State, ...]]:
    """The stream r(B T ..) after the blocks and their states, in the mode of the model and with gradients."""
    fresh = state is None
    state = empty_state(model, len(ids)) if fresh else state
    z = _embedded(model, ids, state.lengths)
    blocks = []
    for block, old in zip(model.blocks, state.blocks, strict=True):
        if not isinstance(block, MemoryBlock):
            z, new = _phase2(block, z, old, counts)
        elif fresh and counts is None:
            z, new = block.prefill(z)
        elif counts is None and ids.shape[1] == 1:
            z, new = block.step(z, dataclasses.replace(old, recent=old.recent.to(z.dtype)))
        else:
            z, new = _memory(block, z, old, counts)
        blocks.append(new)
    return z, tuple(blocks)


def head(model: nn.Module, z: Tensor) -> Tensor:
    """Logits r(B T V) of the stream r(B T ..) after the blocks."""
    if hasattr(model, "read"):
        features = model.read(z)
    else:
        features = model.norm(z)
        features = features if model.head_projection is None else model.head_projection(features)
    return logits.head_logits(features, *model.head_parameters())


def _at(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b]] of every row: (B T ...) -> (B ...)."""
    return x[torch.arange(len(x), device=x.device), index]


def _embedded(model: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    z = model.embedding(ids)
    lift = getattr(model, "lift", None)
    z = z if lift is None else lift(z)
    if not ends(model):
        return z
    dropped = getattr(model, "embedding_dropout", None) or nn.Identity()
    positions = lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
    rows = model.positions[positions.clamp(max=model.config.n_seq - 1)]  # of ids that do not count, any will do
    return dropped(z + F.pad(rows, (0, z.shape[-1] - rows.shape[-1])))


def _memory(block: MemoryBlock, z: Tensor, state: MixerState, counts: Tensor | None) -> tuple[Tensor, MixerState]:
    """A piece through a block of Stage 1 with memory: z r(B T 2D)."""
    u = block.memory_norm(z)
    y, state = _remembered(block.memory, u, state, counts)
    return block._fed(z + block._dropped(block.memory._write(y, u))), state


def turned_by(mixer: MemoryMixer, u: Tensor) -> Tensor:
    """The rotation since the piece began, after each token of it: u r(B T 2D) -> radians r(.. H T X/2)."""
    found = mixer.turned(u)
    return mixer._counted(u.shape[1]) if found is None else found


def _remembered(mixer: MemoryMixer, u: Tensor, old: MixerState, counts: Tensor | None) -> tuple[Tensor, MixerState]:
    """What the heads read (B H T X) from the piece and from what was there before it, and what they remember then."""
    imaginary, seen = mixer.options.imaginary_scores, mixer.qkv(u)
    seen, log_decay = torch.cat([old.recent.to(seen.dtype), seen], dim=1), mixer.log_decay(u)
    angle = old.angle[:, :, None] + turned_by(mixer, u)
    q, k, v = mixer._prepared(seen, log_decay, angle)
    k, log_decay = _counting(mixer.weighed(k, u), log_decay, counts)
    y, written = linear_attention.memory_chunked(q, k, v, log_decay, imaginary, mixer.options.chunk_tokens)
    y, matrix = _with_earlier(y, written, q, log_decay, old.matrix, imaginary)
    taps = old.recent.shape[1]
    if counts is None:
        return y, MixerState(matrix, torch.remainder(angle[:, :, -1], 2 * math.pi), seen[:, seen.shape[1] - taps :])
    angle = _at(torch.cat([old.angle[:, :, None], angle], 2).transpose(1, 2), counts)
    recent = [_at(seen, counts + tap) for tap in range(taps)]
    recent = torch.stack(recent, 1) if recent else old.recent
    return y, MixerState(matrix, torch.remainder(angle, 2 * math.pi), recent)


def _counting(k: Tensor, log_decay: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ids that do not count write nothing and let nothing fade: k (B H T X), log_decay (B H T)."""
    if counts is None:
        return k, log_decay
    kept = (torch.arange(k.shape[2], device=k.device) < counts[:, None])[:, None]
    return k * kept[..., None], log_decay * kept


def _with_earlier(
    y: Tensor, written: Tensor, q: Tensor, log_decay: Tensor, matrix: Tensor, imaginary: bool
) -> tuple[Tensor, Tensor]:
    """Reads (B H T X) and the state, each with what the state before the piece adds to it."""
    elapsed = log_decay.to(matrix.dtype).cumsum(-1)
    earlier = (q.to(matrix.dtype) * elapsed.exp()[..., None]) @ linear_attention._readable(matrix, imaginary)
    return (y + earlier).to(y.dtype), written + elapsed[..., -1].exp()[..., None, None] * matrix


def _phase2(block: Phase2Block, x: Tensor, state: Phase2State, counts: Tensor | None) -> tuple[Tensor, Phase2State]:
    """A piece through a block of Phase 2: x r(B T D)."""
    resonance, rate, green = _resonance(block.core, block.core_norm(x), state.green)
    x = (x + block.dropout(resonance)).to(x.dtype)
    y, matrix = _associated(block.memory, block.memory_norm(x), rate, state.matrix, counts)
    last = green[:, -1] if counts is None else _at(torch.cat([state.green[:, None], green], 1), counts)
    return block._fed((x + block.dropout(y)).to(x.dtype)), Phase2State(last, matrix)


def _resonance(core: BKCore, u: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the core adds r(B T D), its rates r(B T N) and G r(B T 2 N) after a token with G = `before` r(B 2 N)."""
    with torch.autocast(u.device.type, enabled=False):
        weight = matrix_of(core.potential_rate)
        wide = planar.accumulate_dtype(weight.dtype)
        potential, raw_rate = F.linear(u.to(wide), weight.to(wide)).chunk(2, dim=-1)
        rate, coupling = F.softplus(raw_rate) + LEAST_RATE, F.softplus(core.coupling_raw.to(wide))
        diagonal = torch.stack([potential - core.z_real, -rate - F.softplus(core.z_imag_raw)], 2)
        diagonal[:, 0] -= coupling * before
        if u.shape[1] == 1:  # 1 / d is conj(d) / |d|^2
            green = diagonal / diagonal.square().sum(2, keepdim=True)
            green = torch.stack([green[:, :, 0], -green[:, :, 1]], 2)
        else:
            green = torch.stack(left_green(diagonal[:, :, 0], diagonal[:, :, 1], coupling), 2)
    return core.output(green.flatten(2).to(core.output.weight.dtype)), rate, green


def _associated(
    memory: HebbianMemory, u: Tensor, rate: Tensor, matrix: Tensor, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the Hebbian memory adds r(B T D), and its state: u r(B T D), rate r(B T N), matrix r(B H K K)."""
    q, k, v = memory.qkv(u).unflatten(-1, (3, memory.n_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B H T K)
    k = k * memory.eta[:, None, None].to(k.dtype)
    k, log_decay = _counting(k, memory.log_decay(rate).transpose(1, 2), counts)
    if u.shape[1] == 1:
        heads = (x.squeeze(2) for x in (q, k, v, log_decay))
        matrix, y = linear_attention.memory_step(matrix, *heads, imaginary_scores=False)
        return memory.output(y.flatten(1).to(u.dtype))[:, None], matrix
    y, written = linear_attention.memory_chunked(q, k, v, log_decay, imaginary_scores=False)
    y, matrix = _with_earlier(y, written, q, log_decay, matrix, False)
    return memory.output(y.transpose(1, 2).flatten(2)), matrix
