"""What the memory block is made of: the model by default, its ablations by other values."""

from __future__ import annotations

from dataclasses import dataclass

from muse.ops.linear_attention import CHUNK_TOKENS

from .sizes import check_largest

FIRST_RATE_CAP = 4.0  # largest gamma of the first layer: exp(-4) keeps 2 %
CHOICES = {
    "numbers": ("complex", "real"),
    "feed_forward": ("gated", "modrelu"),
    "decay": ("data", "fixed", "none"),
    "rotation": ("data", "fixed", "none"),
    "table": ("complex", "real"),
}


# d_ff / d_model that fills the published parameter budget, by (feed_forward, output_gate)
FEED_FORWARD_RATIO = {
    ("gated", True): 11 / 8,
    ("gated", False): 7 / 4,
    ("modrelu", True): 17 / 8,
    ("modrelu", False): 21 / 8,
}


@dataclass(frozen=True)
class MemoryOptions:
    """What the memory block is made of; the defaults are the model, the other values its ablations."""

    numbers: str = "complex"  # "real": the twin with real numbers at the same parameter budget
    n_heads: int = 0  # H; 0: heads of 64 complex channels, at least four
    d_ff: int = 0  # F; 0: what fills the published budget
    feed_forward: str = "gated"  # or "modrelu": one complex layer, ModReLU, no gate
    decay: str = "data"  # gamma from the token, "fixed" per head, or "none": nothing is forgotten
    rotation: str = "fixed"  # theta per head and channel, times a pace from the token with "data", or "none"
    imaginary_scores: bool = True  # q k* acts on v as a complex number; False: its real part only
    output_gate: bool = True  # what is read from the memory is gated by the token
    convolution: int = 4  # taps of the causal convolution over q, k, v; 1: none
    qk_norm: bool = False  # q and k of unit length in each head
    input_scaling: bool = False  # writes scaled by sqrt(1 - exp(-2 gamma)): a stationary memory
    head_norm_eps: float = 3e-4  # of the norm per head, times X^-2; its root is a fifth of what a fresh head reads
    last_rate_cap: float = FIRST_RATE_CAP  # largest gamma of the last layer; those between are log-spaced
    tied: bool = True  # the head is the token table; False: real token table and real head, half the width each
    table_rank: int = 0  # R, real scalars of a token in a low-rank table that two matrices join to the stream; 0: 2 D
    table: str = "complex"  # or "real": real rows in a low-rank table, joined to the complex stream by real matrices
    adjoint_head: bool = False  # the head reads through the conjugate transpose of what lifts the low-rank rows
    positions: bool = False  # add the frozen zeta position table to the real part
    chunk_tokens: int = CHUNK_TOKENS  # C; no effect on the result

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name, least in (("n_heads", 0), ("d_ff", 0), ("convolution", 1), ("chunk_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        check_largest(self)
        if self.table_rank and (self.table_rank % 2 or self.table_rank < 2 or not self.tied):
            raise ValueError(
                "table_rank must be 0 or an even number of at least 2, of a tied table: got "
                f"{self.table_rank} with tied={self.tied}"
            )
        if not self.table_rank and (self.table == "real" or self.adjoint_head):
            raise ValueError(
                "table and adjoint_head change a low-rank table, expected a table_rank: got "
                f"table={self.table!r}, adjoint_head={self.adjoint_head}, table_rank=0"
            )
        if not self.head_norm_eps > 0:
            raise ValueError(f"head_norm_eps must be above 0, got {self.head_norm_eps}")
        if not 0 < self.last_rate_cap <= FIRST_RATE_CAP:
            raise ValueError(f"last_rate_cap must lie in (0, {FIRST_RATE_CAP}], got {self.last_rate_cap}")
        if self.numbers == "real" and (self.imaginary_scores or self.feed_forward == "modrelu"):
            raise ValueError(
                "real numbers have no imaginary scores and no ModReLU: got numbers='real' with "
                f"imaginary_scores={self.imaginary_scores}, feed_forward={self.feed_forward!r}"
            )

    @property
    def planes(self) -> int:
        """Real numbers per inner channel: 2 for complex, 1 for real."""
        return 2 if self.numbers == "complex" else 1

    @property
    def table_planes(self) -> int:
        """Real numbers per channel of a token's row: those of the stream, or 1 where the table is real."""
        return self.planes if self.table == "complex" else 1

    def heads(self, d_model: int) -> int:
        """Number of heads; the real twin has half as many, twice as wide, so that its state has as many scalars."""
        heads = self.n_heads or max(h for h in range(1, max(4, d_model // 64) + 1) if d_model % h == 0)
        if self.planes == 1:
            heads = max(1, heads // 2)
        if d_model % heads or (self.planes * d_model // heads) % 2:
            raise ValueError(f"d_model must split into {heads} heads of equal, even width, got {d_model}")
        return heads

    def feed_forward_width(self, d_model: int) -> int:
        """F, given or the share of d_model that fills the published budget."""
        return self.d_ff or max(1, int(FEED_FORWARD_RATIO[self.feed_forward, self.output_gate] * d_model))
