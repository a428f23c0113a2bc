"""Dissipative Hebbian memory: an associative matrix that learns one outer product per token and forgets at a rate.

    M_t = exp(-Gamma_t dt) M_{t-1} + eta k_t v_tᵀ,    y_t = q_t M_t,    M_0 = 0

Glossary: B batch, T positions, H heads, K head width, C chunk length, N = ceil(T / C) chunks. `log_decay` is the
exponent -Gamma_t dt <= 0. States, decays and their cumulated exponents are float32 (float64 stays float64) whatever the
dtype of q, k, v; every exponential that is evaluated has a non-positive argument, so none can overflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse.ops.linear_attention import memory_chunked, memory_step

CHUNK_TOKENS = 128


def hebbian_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, eta: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance one token: state (B H K K), q k v (B H K), log_decay (B H), eta (H) -> new state, y (B H K)."""
    return memory_step(state, q, eta[:, None] * k, v, log_decay, imaginary_scores=False)


def hebbian_chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, eta: Tensor, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """All T tokens at once, the same numbers as T calls of `hebbian_step` from a zero state.

    q k v (B H T K), log_decay (B H T), eta (H) -> y (B H T K) in the dtype of v; see `memory_chunked`.
    """
    q = q * eta[:, None, None].to(q.dtype)
    return memory_chunked(q, k, v, log_decay, imaginary_scores=False, chunk_tokens=chunk_tokens)[0]


class HebbianMemory(nn.Module):
    """q, k, v and output projections (no biases) around the memory, H heads of width K = D / H.

    The rate Gamma_t is given by the caller, one value for each group of heads; every head scales it by its own learned
    step dt > 0, initially log-spaced so that the heads remember `shortest_tokens` .. `longest_tokens` at the rate
    `initial_rate`. eta is learned, one per head, initially 1/sqrt(K).
    """

    def __init__(
        self, d_model: int, n_heads: int, *, initial_rate: float, shortest_tokens: float, longest_tokens: float
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.initial_rate, self.span_tokens = initial_rate, (shortest_tokens, longest_tokens)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.log_dt = nn.Parameter(torch.empty(n_heads))
        self.eta = nn.Parameter(torch.empty(n_heads))

    def initialise(self, generator: torch.Generator, std: float, output_std: float) -> None:
        """Draw the projections and set dt and eta."""
        nn.init.normal_(self.qkv.weight, std=std, generator=generator)
        nn.init.normal_(self.output.weight, std=output_std, generator=generator)
        shortest, longest = (math.log(tokens) for tokens in self.span_tokens)
        positions = (torch.arange(self.n_heads) + 0.5) / self.n_heads
        with torch.no_grad():
            self.log_dt.copy_(-(shortest + (longest - shortest) * positions) - math.log(self.initial_rate))
            self.eta.fill_((self.qkv.in_features // self.n_heads) ** -0.5)

    def forward(self, u: Tensor, rate: Tensor) -> Tensor:
        """u (B T D), rate Gamma (B T G) with G dividing H -> r(B T D)."""
        q, k, v = self.qkv(u).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B H T K)
        y = hebbian_chunked(q, k, v, self.log_decay(rate).transpose(1, 2), self.eta)
        return self.output(y.transpose(1, 2).flatten(2))

    def step(self, state: Tensor | None, u: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """One token: state (B H K K) or None for zero, u (B D), rate (B G) -> new state, r(B D)."""
        q, k, v = self.qkv(u).unflatten(-1, (3, self.n_heads, -1)).unbind(1)  # each (B H K)
        if state is None:
            state = q.new_zeros(*q.shape, q.shape[-1])
        state, y = hebbian_step(state, q, k, v, self.log_decay(rate), self.eta)
        return state, self.output(y.flatten(1))

    def log_decay(self, rate: Tensor) -> Tensor:
        """-Gamma dt for every head: (.. G) -> (.. H), consecutive heads sharing a rate."""
        shared = self.n_heads // rate.shape[-1]
        return -rate.repeat_interleave(shared, dim=-1) * self.log_dt.exp()
