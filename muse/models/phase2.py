"""Phase 2, the real-valued baseline: a causal resonance feature and a dissipative Hebbian memory in every block.

    x = table[token] + zeta positions;  L blocks of
    x += BK core(LN x);  x += Hebbian memory(LN x, Gamma of the BK core);  x += W2 gelu(W1 LN x);  logits = W LN x

Glossary: B batch, T positions, D width, H heads, V vocabulary, L layers, N BK chains in a block. Everything is float32
outside autocast; the BK core, the decays and the memory states are float32 inside it and in half-precision copies too.

The published Phase 2 also had an SNR filter and a "memory resonance" acting on state carried from one batch to the
next. Both are left out: state carried between unrelated sequences leaks targets into evaluation. Its BK core used the
two-sided inverse, which sees the future; this one is the left, causal recursion only, with its true gradients.
Here dt and eta are learned, one per head, and one chain (N = 1) gives the rate Gamma_t that all heads of a block share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.ops import planar
from muse.ops.cross_entropy import head_loss
from muse.ops.green import left_green
from muse.ops.logits import head_logits

from .adapters import matrix_of
from .hebbian import HebbianMemory
from .layers import check_token_ids, compute_again, run_blocks
from .sizes import check_largest
from .zeta import position_table

LEAST_RATE = 1e-3  # Gamma >= this, so the BK core is bounded: |G| <= 1 / (Gamma + Im z)
HEAD_STD = 0.02  # keeps the initial loss near ln V
INITIAL_GAIN = 0.45  # projections start with a standard deviation of gain / sqrt(D), 0.02 at the default width
EMBEDDING_STD = 2.0  # tokens louder than the positions (rms 0.7) they are added to: trains much faster than 0.02


@dataclass(frozen=True)
class Phase2Config:
    """Sizes of Phase 2; zero in n_heads or d_ff means the size derived from d_model."""

    vocab_size: int = 50257  # V
    d_model: int = 512  # D
    n_layers: int = 6  # L
    n_seq: int = 1024  # longest T
    n_heads: int = 0  # H; 0: heads of width 64, at least one
    d_ff: int = 0  # feed-forward width; 0: 4 D
    n_chains: int = 1  # N; each BK chain gives its rate Gamma to H / N heads
    dropout: float = 0.0  # on the embedding and on what each sub-layer adds
    table_rank: int = 0  # R, numbers of a token in a low-rank table and a low-rank head, each with a matrix; 0: D

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_heads", self.n_heads or max(1, self.d_model // 64))
        object.__setattr__(self, "d_ff", self.d_ff or 4 * self.d_model)
        for name in ("vocab_size", "d_model", "n_layers", "n_seq", "n_heads", "d_ff", "n_chains"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_largest(self)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads, got {self.d_model} and {self.n_heads}")
        if self.table_rank and not (2 <= self.table_rank <= self.d_model and self.table_rank % 2 == 0):
            raise ValueError(f"table_rank must be 0 or even, 2 to d_model = {self.d_model}, got {self.table_rank}")
        if self.n_heads % self.n_chains:
            raise ValueError(f"n_heads must be a multiple of n_chains, got {self.n_heads} and {self.n_chains}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


class BKCore(nn.Module):
    """V_t = w_v.u_t, Gamma_t = softplus(w_g.u_t) + 0.001, G of the diagonal V - i Gamma - z, and [Re G, Im G] -> D.

    z = E + i softplus(.) and beta = softplus(.) are learned, one each per chain.
    """

    def __init__(self, d_model: int, n_chains: int) -> None:
        super().__init__()
        self.potential_rate = nn.Linear(d_model, 2 * n_chains, bias=False)  # rows w_v, then rows w_g
        self.z_real = nn.Parameter(torch.empty(n_chains))
        self.z_imag_raw = nn.Parameter(torch.empty(n_chains))
        self.coupling_raw = nn.Parameter(torch.empty(n_chains))
        self.output = nn.Linear(2 * n_chains, d_model)

    def initialise(self, generator: torch.Generator, std: float, output_std: float) -> None:
        """Draw the projections; z = 0.1 i and beta = 1, the unit hopping. `output_std` is that for D inputs."""
        few_inputs = math.sqrt(self.output.out_features / self.output.in_features)
        nn.init.normal_(self.potential_rate.weight, std=std, generator=generator)
        nn.init.normal_(self.output.weight, std=output_std * few_inputs, generator=generator)
        nn.init.zeros_(self.output.bias)
        nn.init.zeros_(self.z_real)
        nn.init.constant_(self.z_imag_raw, _inverse_softplus(0.1))
        nn.init.constant_(self.coupling_raw, _inverse_softplus(1.0))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u (B T D) -> what the block adds r(B T D), rate Gamma r(B T N)."""
        with torch.autocast(u.device.type, enabled=False):  # half-precision rates would make the decays noise
            weight = matrix_of(self.potential_rate)
            wide = planar.accumulate_dtype(weight.dtype)
            potential, raw_rate = F.linear(u.to(wide), weight.to(wide)).chunk(2, dim=-1)
            rate = F.softplus(raw_rate) + LEAST_RATE
            coupling = F.softplus(self.coupling_raw.to(wide))
            green = left_green(potential - self.z_real, -rate - F.softplus(self.z_imag_raw), coupling)
        return self.output(torch.cat(green, dim=-1).to(self.output.weight.dtype)), rate


class Phase2Block(nn.Module):
    """BK core, Hebbian memory and feed-forward, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, config: Phase2Config) -> None:
        super().__init__()
        width = config.d_model
        self.core_norm = nn.LayerNorm(width)
        self.core = BKCore(width, config.n_chains)
        self.memory_norm = nn.LayerNorm(width)
        self.memory = HebbianMemory(
            width,
            config.n_heads,
            initial_rate=math.log(2) + LEAST_RATE,  # softplus(0): what the BK core gives a centred input
            shortest_tokens=2,
            longest_tokens=max(2, config.n_seq / 2),
        )
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, config.d_ff)
        self.feed_out = nn.Linear(config.d_ff, width)
        self.dropout = nn.Dropout(config.dropout)

    def initialise(self, generator: torch.Generator, std: float, output_std: float) -> None:
        """Draw every weight of the block; LayerNorms keep ones and zeros."""
        self.core.initialise(generator, std, output_std)
        self.memory.initialise(generator, std, output_std)
        nn.init.normal_(self.feed_in.weight, std=std, generator=generator)
        nn.init.normal_(self.feed_out.weight, std=output_std, generator=generator)
        nn.init.zeros_(self.feed_in.bias)
        nn.init.zeros_(self.feed_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B T D) -> r(B T D)."""
        return self._fed(self._mixed(x))

    def halves(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """The functions of x that the block is made of, one after the other."""
        return self._mixed, self._fed

    def _mixed(self, x: Tensor) -> Tensor:
        resonance, rate = self.core(self.core_norm(x))
        x = _added(x, self.dropout(resonance))
        return _added(x, self.dropout(self.memory(self.memory_norm(x), rate)))

    def _fed(self, x: Tensor) -> Tensor:
        return _added(x, self.dropout(self.feed_out(F.gelu(self.feed_in(self.feed_norm(x))))))


class Phase2Model(nn.Module):
    """Causal language model, stateless between calls; the same seed gives the same weights."""

    def __init__(self, config: Phase2Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # blocks keep only their input for the backward pass and compute the rest again
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation is drawn, then replaced
            rank, low = config.table_rank or config.d_model, bool(config.table_rank)
            self.embedding = nn.Embedding(config.vocab_size, rank)
            self.lift = nn.Linear(rank, config.d_model, bias=False) if low else None
            positions = position_table(config.n_seq, config.d_model).to(torch.get_default_device())
            self.positions = nn.Parameter(positions, requires_grad=False)
            self.embedding_dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Phase2Block(config) for _ in range(config.n_layers))
            self.norm = nn.LayerNorm(config.d_model)
            self.head_projection = nn.Linear(config.d_model, rank, bias=False) if low else None
            self.head = nn.Linear(rank, config.vocab_size, bias=False)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        std = INITIAL_GAIN / math.sqrt(self.config.d_model)
        output_std = std / math.sqrt(3 * self.config.n_layers)  # a block adds three times
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD, generator=generator)
        for block in self.blocks:
            block.initialise(generator, std, output_std)
        for matrix in filter(None, (self.lift, self.head_projection)):  # channels keep their size on the way
            nn.init.normal_(matrix.weight, std=matrix.in_features**-0.5, generator=generator)
        head_std = HEAD_STD * math.sqrt(self.config.d_model / self.head.in_features)
        nn.init.normal_(self.head.weight, std=head_std, generator=generator)

    def features(self, token_ids: Tensor) -> Tensor:
        """What the head reads: int64 (B T) -> r(B T D), of low rank r(B T R)."""
        check_token_ids(token_ids, self.config.vocab_size, self.config.n_seq)
        x = self.embedding(token_ids)
        x = (x if self.lift is None else self.lift(x)) + self.positions[: token_ids.shape[1]]
        x = self.norm(run_blocks(self.blocks, self.embedding_dropout(x), compute_again(self)))
        return x if self.head_projection is None else self.head_projection(x)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits of the next token: int64 (B T) -> r(B T V)."""
        return head_logits(self.features(token_ids), *self.head_parameters())

    def loss(self, token_ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy in nats, float32, without logits-sized buffers; reduction mean, sum or none (B T)."""
        return head_loss(self.features(token_ids), *self.head_parameters(), targets, reduction=reduction)

    def head_parameters(self) -> tuple[Tensor, None]:
        """Weight (V D), of low rank (V R), of the untied head, which has no bias."""
        return matrix_of(self.head), None

    def parameter_groups(self) -> dict[str, int]:
        """Elements by component, the frozen positions included."""
        parts = {
            "embedding": (self.embedding, self.lift),
            "blocks": (self.blocks,),
            "norm": (self.norm,),
            "head": (self.head_projection, self.head),
        }
        counts = {
            name: sum(p.numel() for part in modules if part is not None for p in part.parameters())
            for name, modules in parts.items()
        }
        return {"embedding": counts.pop("embedding"), "positions": self.positions.numel(), **counts}


def _added(x: Tensor, y: Tensor) -> Tensor:
    """x + y in the dtype of x, that of the weights, also where autocast computes y in another one."""
    return (x + y).to(x.dtype)


def _inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))
