"""Phase 3 Stage 1, the reference: complex layers that act on each position alone, so it is a bigram model.

B batch, T positions, D width (complex channels), V vocabulary, L blocks; c(B T D) is a planar real tensor r(B T 2D).

    z = E[ids] + P            token table c(V D), frozen zeta positions r(T D) on the real part
    z = norm2(z + dropout(modrelu(W norm1(z) + w)))        L times
    logits = H Re(norm(z)) + h

`mixer="memory"` puts the blocks of `muse.models.memory_block` in their place, drops the positions and ties the head to
the token table: logits = Re<E_v, norm(z)> + h. That model mixes positions and generates with a state of fixed size.
With a low-rank table u r(V R) the rows are E_v = W u_v, W c(D R/2), and logits = Re<u_v, W' norm(z)> + h, W' c(R/2 D).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.ops import cross_entropy, logits, norms, planar

from . import layers, memory_block, zeta
from .generate import generate
from .linear_attention import reading
from .memory_options import MemoryOptions
from .sizes import check_largest

MIXERS = ("none", "memory")


@dataclass(frozen=True)
class Phase3Stage1Config:
    """Sizes and storage of Stage 1; the defaults are the published model."""

    vocab_size: int = 50257  # V, number of token ids
    d_model: int = 512  # D, complex channels
    n_layers: int = 6  # L, number of blocks
    n_seq: int = 1024  # longest sequence, rows of the position table
    use_complex32: bool = True  # store parameters and activations as float16 pairs, else as float32 pairs
    dropout: float = 0.0  # probability of dropping a complex element of a block's output, in training
    mixer: str = "none"  # what mixes positions; "none" is the published model, "memory" the one that remembers
    memory: MemoryOptions = field(default_factory=MemoryOptions)  # what the memory is made of; unused for mixer "none"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_seq"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_largest(self)
        if self.d_model % 2:
            raise ValueError(f"d_model must be even, got {self.d_model}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.mixer not in MIXERS:
            raise ValueError(f"mixer must be one of {MIXERS}, got {self.mixer!r}")
        if isinstance(self.memory, Mapping):  # as read back from a record
            object.__setattr__(self, "memory", MemoryOptions(**self.memory))
        if self.mixer == "memory":
            self.memory.heads(self.d_model)  # a ValueError where they do not fit
            if self.memory.table_rank > 2 * self.d_model:
                rank = self.memory.table_rank
                raise ValueError(f"table_rank must be at most 2 d_model = {2 * self.d_model}, got {rank}")


class Block(nn.Module):
    """norm2(z + dropout(modrelu(W norm1(z) + w))): planar r(B T 2D) to planar r(B T 2D)."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = layers.ComplexLayerNorm(d_model)
        self.linear = layers.ComplexLinear(d_model, d_model)
        self.activation = layers.ModReLU(d_model)
        self.norm2 = layers.ComplexLayerNorm(d_model)

    def forward(self, z: Tensor) -> Tensor:
        _, storage = planar.product_dtypes(z)  # under autocast the norm rounds to what the product reads
        h = self.linear(self.norm1(z, storage))
        keep = norms.dropout_mask(h, self.dropout, self.training)
        return norms.residual_norm(z, h, keep, self.activation, self.norm2)

    def advance(
        self, z: Tensor, n: Tensor, following: layers.ComplexLayerNorm, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """From z and n = norm1(z) to the block's output and the norm that follows it, in `dtype`."""
        h = self.linear(n)
        keep = norms.dropout_mask(h, self.dropout, self.training)
        return norms.residual_norms(z, h, keep, self.activation, self.norm2, following, dtype)


class Phase3Stage1Model(nn.Module):
    """Token ids (B T) to next-token logits r(B T V); equal seeds give equal weights.

    Built on the CPU, or without values where torch's default device is meta.
    """

    def __init__(self, config: Phase3Stage1Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # blocks keep only their input for the backward pass and compute the rest again
        with torch.device("meta"):  # shapes only; init_weights draws every value once
            memory = config.memory if config.mixer == "memory" else None
            if memory is None:
                self.embedding = layers.ComplexEmbedding(config.vocab_size, config.d_model)
                self.blocks = nn.ModuleList(Block(config.d_model, config.dropout) for _ in range(config.n_layers))
                self.norm = layers.ComplexLayerNorm(config.d_model)
            else:
                self.embedding = memory_block.TokenTable(config.vocab_size, config.d_model, memory, config.dropout)
                self.blocks = memory_block.make_blocks(config)
                self.norm = memory_block.OutputNorm(config.d_model, memory.planes)
            self.positions = self.head_weight = self.head_projection = None
            if memory is not None and memory.table_rank and not memory.adjoint_head:
                planes = memory.table_planes
                self.head_projection = reading(planes, config.d_model, memory.table_rank // planes)
            if memory is None or memory.positions:
                self.positions = nn.Parameter(torch.empty(config.n_seq, config.d_model), requires_grad=False)
            if memory is None or not memory.tied:
                self.head_weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
            self.head_bias = nn.Parameter(torch.empty(config.vocab_size))
        if torch.get_default_device().type != "meta":  # there shapes are all that is wanted
            self.to_empty(device="cpu")
            self.init_weights(torch.Generator().manual_seed(seed))
        if config.use_complex32:
            self.half()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw every parameter: layers as in layers.initialise, head real Xavier (variance 2 / (D + V)), bias 0."""
        for module in self.modules():
            layers.initialise(module, generator)
        if self.config.mixer == "memory":
            memory_block.initialise(self, generator)
        if self.positions is not None:
            self.positions.copy_(zeta.position_table(*self.positions.shape))
        if self.head_weight is not None:
            self.head_weight.normal_(0, math.sqrt(2 / sum(self.head_weight.shape)), generator=generator)
        self.head_bias.zero_()

    def embed(self, token_ids: Tensor, start: int = 0) -> Tensor:
        """Ids (B T) at positions start, start + 1, ... to planar r(B T 2D)."""
        z = self.embedding(token_ids)
        if self.positions is None:
            return z
        return z + F.pad(self.positions[start : start + token_ids.shape[1]], (0, self.config.d_model))

    def read(self, z: Tensor) -> Tensor:
        """The head's input: the last norm of planar r(B T 2D), all of it where the head is tied, else its real part.

        With a low-rank table it is projected to r(B T R).
        """
        z = self.norm(z)
        if self.head_projection is not None:
            return self.head_projection(z)
        if self.config.memory.adjoint_head:
            return self.embedding.lowered(z)
        return z if self.head_weight is None else planar.unpack(z)[0]

    def features(self, token_ids: Tensor) -> Tensor:
        """The head's input: ids (B T) to r(B T D); where the head is the token table r(B T 2D), or r(B T R)."""
        layers.check_token_ids(token_ids, self.config.vocab_size, self.config.n_seq)
        z, again = self.embed(token_ids), layers.compute_again(self)
        if self.config.mixer == "none" and z.is_cuda and not again:
            return self._features_with_kernels(z)
        return self.read(layers.run_blocks(self.blocks, z, again))

    def _features_with_kernels(self, z: Tensor) -> Tensor:
        """The same, each block handing the norm of its output to the next one: both come from one kernel."""
        _, storage = planar.product_dtypes(z)
        n = self.blocks[0].norm1(z, storage)
        for block, following in zip(self.blocks, self.blocks[1:], strict=False):
            z, n = block.advance(z, n, following.norm1, storage)
        return planar.unpack(self.blocks[-1].advance(z, n, self.norm, z.dtype)[1])[0]

    def head_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight r(V D), tied: r(V 2D) or r(V R), and bias r(V) that turn features into logits."""
        return self.embedding.weight if self.head_weight is None else self.head_weight, self.head_bias

    def forward(self, token_ids: Tensor) -> Tensor:
        """Ids (B T) to logits r(B T V) in the storage dtype (under autocast: its dtype)."""
        return logits.head_logits(self.features(token_ids), *self.head_parameters())

    def loss(self, token_ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy in nats of ids (B T) against targets (B T) without a (B T V) tensor; "none" gives (B T)."""
        return cross_entropy.head_loss(self.features(token_ids), *self.head_parameters(), targets, reduction=reduction)

    def parameter_groups(self) -> dict[str, int]:
        """Number of real parameters of each component, the frozen positions included."""
        projection = () if self.head_projection is None else self.head_projection.parameters()
        groups = {
            "embedding": self.embedding.parameters(),
            "positions": [self.positions],
            "blocks": self.blocks.parameters(),
            "norm": self.norm.parameters(),
            "head": [self.head_weight, self.head_bias, *projection],
        }
        return {name: sum(p.numel() for p in parameters if p is not None) for name, parameters in groups.items()}

    def generate(self, token_ids: Tensor, n_new: int, **choices) -> Iterator[Tensor]:
        """Stream n_new tokens (B,) after the prompt (B T); `choices` as in muse.generate.generate."""
        return generate(self, token_ids, n_new, **choices)

    def to_complex32(self) -> Phase3Stage1Model:
        """A copy with the same weights rounded to float16: from float32 masters to the served form."""
        served = copy.deepcopy(self).half()
        served.config = dataclasses.replace(self.config, use_complex32=True)
        return served
