"""The arms of the counting bench: models of equal size that differ in what they remember with.

Every arm reads a first token of its own, then the elements of a group, and gives at each position a logit for each
element. Those of `mixers` share all else: token table, norms, feed-forward, head. The feed-forward of each arm is
as wide as makes its scalars as many as those of the largest arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse import catalog
from muse.models.angle_model import AngleConfig, AngleModel
from muse.models.gpt2 import Gpt2Config, Gpt2Model
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model

from .mixers import Counts, Diagonal, Gru, Householder, Turning

LARGEST = "real_householder_2"
UNASKED = -100  # an answer that nobody asks for
FEED_FORWARD = 2  # its width over that of the stream, in the largest arm


@dataclass(frozen=True)
class Sizes:
    """What all arms of a bench share."""

    order: int  # tokens, and answers
    width: int  # D, real scalars of the stream
    state: int  # N, real scalars of a recurrence's state
    layers: int
    length: int  # of the training sequences
    longest: int  # of those that are tested

    def __post_init__(self) -> None:
        for name, of in (("width", 8), ("state", 16)):
            if getattr(self, name) < of or getattr(self, name) % of:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a multiple of {of}")


MIXERS: dict[str, Callable[[Sizes], nn.Module]] = {
    "complex_angles": lambda s: Turning(s.width, s.state, "angles", "complex"),
    "complex_fixed": lambda s: Turning(s.width, s.state, "fixed", "complex"),
    "complex_none": lambda s: Turning(s.width, s.state, "none", "complex"),
    "real_rotations": lambda s: Turning(s.width, s.state, "angles", "real"),
    "real_decay": lambda s: Diagonal(s.width, s.state, signed=False),
    "real_signed": lambda s: Diagonal(s.width, s.state, signed=True),
    "real_householder": lambda s: Householder(s.width, s.state, 1),
    LARGEST: lambda s: Householder(s.width, s.state, 2),
    "gru": lambda s: Gru(s.width),
    "counts": lambda s: Counts(s.width, s.length),
}


class Block(nn.Module):
    """A recurrence and a feed-forward, each behind an RMS norm and added to the stream r(B T D)."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.mixer_norm, self.feed_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.mixer = mixer
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.mixer(self.mixer_norm(z))
        return z + self.feed(self.feed_norm(z))


class Recurrence(nn.Module):
    """Token ids (B T), the first token of all being `order`, to logits r(B T order)."""

    def __init__(self, make: Callable[[Sizes], nn.Module], sizes: Sizes, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sizes.order + 1, sizes.width)
        self.blocks = nn.ModuleList(Block(make(sizes), sizes.width, hidden) for _ in range(sizes.layers))
        self.norm, self.head = nn.RMSNorm(sizes.width, eps=1e-6), nn.Linear(sizes.width, sizes.order)

    def forward(self, token_ids: Tensor) -> Tensor:
        z = self.table(token_ids)
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z))

    def angles(self, token_ids: Tensor) -> Tensor | None:
        """What each token turns the planes of the first layer by, radians r(B T N/2); None where nothing does so."""
        block = self.blocks[0]
        if getattr(block.mixer, "turning", None) is None:
            return None
        return block.mixer.angles(block.mixer_norm(self.table(token_ids)))


class Library(nn.Module):
    """A model of this project as an arm: its logits of the group's elements."""

    def __init__(self, model: nn.Module, order: int) -> None:
        super().__init__()
        self.model, self.order = model, order

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.model(token_ids)[..., : self.order]

    def angles(self, token_ids: Tensor) -> Tensor | None:
        """As in Recurrence: all heads and planes of the first layer."""
        if not isinstance(self.model, AngleModel):
            return None
        block = self.model.blocks[0]
        found = block.memory.angles(block.memory_norm(self.model.embed(token_ids)))
        return found.transpose(1, 2).flatten(2)


def build_arm(name: str, sizes: Sizes, seed: int) -> nn.Module:
    """Return a fresh arm; equal seeds give equal weights. ValueError for a name that is none."""
    if name not in catalog.ARMS:
        raise ValueError(f"arm: got {name!r}, expected one of {', '.join(catalog.ARMS)}")
    most = num_scalars(_made(LARGEST, sizes, FEED_FORWARD * sizes.width, 0))
    hidden = widest(lambda hidden: num_scalars(_made(name, sizes, hidden, 0)), most)
    return _made(name, sizes, hidden, seed)


def widest(count: Callable[[int], int], most: int) -> int:
    """The largest number whose count, which grows with it, is at most `most`; at least 1."""
    low, high = 1, 2
    while count(high) <= most:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= most else (low, middle)
    return low


def num_scalars(model: nn.Module) -> int:
    """Trained scalars of an arm, without a table of positions: it has a row for each place of the longest test."""
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "wpe" not in name)


def _made(name: str, sizes: Sizes, hidden: int, seed: int) -> nn.Module:
    """An arm whose free width is `hidden`: of its feed-forward, or for GPT-2 half that of its stream."""
    shared = {"vocab_size": sizes.order + 1, "n_layers": sizes.layers, "n_seq": sizes.longest + 1}
    if name == "attention":
        return Library(Gpt2Model(Gpt2Config(**shared, d_model=2 * hidden, n_heads=2), seed=seed), sizes.order)
    if name in ("memory_angles", "memory_fixed"):
        memory = {"n_heads": 4, "d_ff": hidden}
        about = {"d_model": sizes.width // 2, "mixer": "memory", "use_complex32": False, "memory": memory}
        if name == "memory_angles":
            return Library(AngleModel(AngleConfig(**shared, **about), seed=seed), sizes.order)
        return Library(Phase3Stage1Model(Phase3Stage1Config(**shared, **about), seed=seed), sizes.order)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Recurrence(MIXERS[name], sizes, hidden)


def loss(model: nn.Module, token_ids: Tensor, answers: Tensor) -> Tensor:
    """Mean cross entropy in nats at every position behind the first token: ids (B 1+T), answers (B T).

    Positions whose answer is UNASKED do not count.
    """
    return F.cross_entropy(model(token_ids)[:, 1:].flatten(0, 1), answers.flatten(), ignore_index=UNASKED)


def nearest_turn(angles: Tensor, order: int) -> tuple[float, float]:
    """How far the best plane's angles r(order planes) are from j times one whole share of the circle, in radians.

    Mean and spread, over uniform tokens j, of the plane and the share 2 pi k / order, k coprime to the order, that
    come nearest: what a sum drifts by with each token.
    """
    tokens = torch.arange(order, dtype=torch.float64)
    shares = torch.tensor([k for k in range(1, order) if math.gcd(k, order) == 1], dtype=torch.float64)
    wanted = 2 * math.pi / order * shares[:, None] * tokens  # (shares order)
    off = angles.double().t()[:, None] - wanted
    off = torch.remainder(off + math.pi, 2 * math.pi) - math.pi  # (planes shares order)
    best = off.square().mean(-1).flatten().argmin()
    found = off.flatten(0, 1)[best]
    return found.mean().item(), found.std(correction=0).item()


def breaks_at(mean: float, spread: float, order: int) -> float:
    """Tokens after which a sum that drifts so is off by half a share of the circle, one standard deviation counted."""
    limit, mean = math.pi / order, abs(mean)
    if mean == 0:
        return (limit / spread) ** 2 if spread else math.inf
    return ((math.sqrt(spread**2 + 4 * mean * limit) - spread) / (2 * mean)) ** 2
