"""Complex gated linear attention: a matrix memory that rotates, fades and learns one outer product per token.

    M_t = exp(-gamma_t + i theta_t) M_{t-1} + k_t* v_t,    y_t = q_t M_t,    M_0 = 0

Gated linear attention (arXiv:2312.06635) whose decay is one real number a head, as in RetNet (2307.08621), times
a rotation, fixed or from the token as in selective rotation (2511.17388) and Mamba-3 (2603.15569). M is c(K K) for each
head: theta_t rotates each of its K rows at its own rate, gamma_t fades all of them alike.

Glossary: B batch, T positions, H heads, K head width in complex channels, X = 2K real channels of a planar head, C
chunk length, N = ceil(T / C) chunks. Both forms run on real matrix products:
- the rotation is moved to the inputs, q_t exp(i Theta_t) and k_t exp(i Theta_t) with Theta_t the sum of theta up to t;
- a complex write k* v is the two real writes k v and (ik)(iv), and a complex state is the planar r(K 2K), [Re M, Im M].
With `imaginary_scores=False` only Re(q k*) acts on v, as in any real linear attention of width X; its state is r(X X).
Angles, decays, their sums and the states are float32 (float64 stays); every exponential has an argument <= 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import planar
from .operator import has_kernels

try:
    from . import linear_attention_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    linear_attention_triton = None

CHUNK_TOKENS = 64


def times_i(z: Tensor) -> Tensor:
    """i z: planar r(... 2K)."""
    real, imag = planar.unpack(z)
    return torch.cat([-imag, real], dim=-1)


def doubled(z: Tensor) -> Tensor:
    """Rows z, then rows i z: planar r(... R 2K) to r(... 2R 2K)."""
    return torch.cat([z, times_i(z)], dim=-2)


def rotate(z: Tensor, angle: Tensor) -> Tensor:
    """exp(i angle) z in the dtype of z: planar r(... 2K), angle in radians broadcastable to r(... K)."""
    real, imag = planar.unpack(z)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([real * cos - imag * sin, real * sin + imag * cos], dim=-1).to(z.dtype)


def memory_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, imaginary_scores: bool = True
) -> tuple[Tensor, Tensor]:
    """Advance one token: q k v (B H X), log_decay (B H) -> new state, y (B H X) in the dtype of the state."""
    q, k, v = (x.to(state.dtype).unsqueeze(-2) for x in (q, k, v))
    state = log_decay.exp()[..., None, None] * state + _written(k, v, imaginary_scores)
    return state, (q @ _readable(state, imaginary_scores)).squeeze(-2)


def by_kernels(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, imaginary_scores: bool
) -> tuple[Tensor, Tensor] | None:
    """What the CUDA kernels give for `memory_chunked`: y and the final state; None where they do not serve."""
    given, kernels = (q, k, v, log_decay, imaginary_scores), linear_attention_triton
    return kernels.remembered(*given) if has_kernels(kernels, v) and kernels.suits(*given) else None


def memory_chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, imaginary_scores: bool = True, chunk_tokens: int = CHUNK_TOKENS
) -> tuple[Tensor, Tensor]:
    """All T tokens at once, the same numbers as T calls of `memory_step` from a zero state.

    q k v (B H T X), log_decay (B H T) -> y (B H T X) in the dtype of v, final state. Within a chunk the memory is a
    masked, decayed q k*; between chunks it is a state, and all N states come from one N x N matrix of decays: no loop.
    On CUDA heads of the usual widths go to the kernels of `linear_attention_triton`, which choose their own chunks.
    """
    num_tokens, dtype = q.shape[2], v.dtype
    chunk = min(chunk_tokens, num_tokens)
    compute, _ = planar.product_dtypes(v)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.to(compute) for x in (q, k, v))
        wide = log_decay.to(planar.accumulate_dtype(log_decay.dtype))
        if found := by_kernels(q, k, v, wide, imaginary_scores):
            return found[0].to(dtype), found[1]
        q, k, v = (_split_chunks(x, chunk) for x in (q, k, v))
        elapsed = _split_chunks(wide[..., None], chunk).squeeze(-1).cumsum(-1)  # (B H N C)
        y = _within_chunks(q, k, v, elapsed, imaginary_scores)
        total = elapsed[..., -1:]
        fading = (total - elapsed).exp().to(compute)  # what is left of each write at the end of its chunk
        written = _written(k * fading[..., None], v, imaginary_scores)
        end = total.squeeze(-1).cumsum(-1)
        if q.shape[2] > 1:
            y = y + _from_earlier_chunks(q, written, end, elapsed, imaginary_scores)
        final = ((end[..., -1:] - end).exp()[..., None, None] * written).sum(2)
    return y.flatten(2, 3)[:, :, :num_tokens].to(dtype), final


def _split_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B H T X) -> (B H N C X), zero tokens appended to fill the last chunk: they write nothing and do not fade."""
    padding = -x.shape[2] % chunk
    if padding:
        x = F.pad(x, (0, 0, 0, padding))
    return x.unflatten(2, (-1, chunk))


def _written(k: Tensor, v: Tensor, imaginary_scores: bool) -> Tensor:
    """The sum over C tokens of k* v, or of the real outer product k v: k v (.. C X) -> state (.. K X) or (.. X X)."""
    if imaginary_scores:
        k, v = doubled(k)[..., : k.shape[-1] // 2], doubled(v)
    return k.transpose(-1, -2) @ v


def _readable(state: Tensor, imaginary_scores: bool) -> Tensor:
    """The real matrix (.. X X) that q is multiplied with."""
    return doubled(state) if imaginary_scores else state


def _causal_decay(rows: Tensor, columns: Tensor, diagonal: int = 0) -> Tensor:
    """exp(rows_i - columns_j) for j <= i + diagonal, else 0: cumulated exponents (.. C) twice -> (.. C C)."""
    length = rows.shape[-1]
    visible = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril(diagonal)
    exponent = rows[..., :, None] - columns[..., None, :]
    return exponent.masked_fill(~visible, -math.inf).exp()


def _within_chunks(q: Tensor, k: Tensor, v: Tensor, elapsed: Tensor, imaginary_scores: bool) -> Tensor:
    """What each token reads from its own chunk: (B H N C X)."""
    if imaginary_scores:
        k, v = doubled(k), doubled(v)
    scores = (q @ k.transpose(-1, -2)).unflatten(-1, (-1, elapsed.shape[-1]))  # real, then imaginary: (.. C 2 C)
    weights = scores * _causal_decay(elapsed, elapsed)[..., None, :]
    return weights.flatten(-2).to(v.dtype) @ v


def _from_earlier_chunks(q: Tensor, written: Tensor, end: Tensor, elapsed: Tensor, imaginary_scores: bool) -> Tensor:
    """What each token reads from the state its chunk starts with: (B H N C X)."""
    # The state before chunk n holds what chunk m < n wrote, faded by the chunks strictly between them.
    kept = _causal_decay(F.pad(end[..., :-1], (1, 0)), end, diagonal=-1)  # (B H N N)
    states = (kept @ written.to(kept.dtype).flatten(-2)).unflatten(-1, written.shape[-2:]).to(q.dtype)
    return (q * elapsed.exp().to(q.dtype)[..., None]) @ _readable(states, imaginary_scores)
