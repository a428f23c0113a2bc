"""The chunked memories of Stage 1 and of Phase 2 as CUDA kernels: time and memory grow with T alone.

    S_t = exp(log_decay_t) S_{t-1} + sum of k_t v_t^T over the writes of token t,    y_t = q_t S_t,    S_0 = 0

The PyTorch forms are the reference. A real head makes one write, its state is r(X X). A complex one makes two, (k, v)
and (i k, i v), so only the K = X / 2 first rows of the state are kept: r(K X) in memory, the others are i times these.

Glossary: B batch, H heads, T positions, X real channels of a head, R rows of the state (X or K), C chunk length, N =
ceil(T / C) chunks, e_t the log_decays summed from the chunk's start up to t, G the gradient of the state.
Forward: a walk over the chunks leaves the state before each; then every chunk is a program of its own,
    y_t = sum over s <= t of exp(e_t - e_s) (q_t k_s) v_s + exp(e_t) q_t S.
Backward: the first walk again, because states are as large as q or twice that and the walk is cheap; a walk from the
end leaves G behind each chunk; then again a program per chunk, which also gives the gradient of every e.
Products are in the dtype of q, sums, walks and decays in float32, exponents are <= 0, nothing is summed by atomics.
"""

# ruff: noqa: N803 - Triton's constants are written in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operator import Operator

WIDTHS = (16, 32, 64, 128)  # X of a real head; complex ones start at 32, because a product needs 16 rows
CHUNK = {"half": 64, "tf32": 32, "tf32x3": 16}  # C by kind of product: what fits into registers
COLUMNS = 64  # at most, that a program multiplies at a time
WALK_COLUMNS = 64  # at most, of the state that a program walks with
WALK_WARPS, WALK_STAGES = 4, 3
FORWARD_WARPS = 4
BACKWARD_WARPS = {"half": 4, "tf32": 8, "tf32x3": 4}


def suits(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, complex_: bool) -> bool:
    """Whether the kernels take q k v (B H T X) and log_decay (B H T)."""
    if not v.dtype == k.dtype == q.dtype or log_decay.dtype != torch.float32:
        return False
    return v.shape[-1] in WIDTHS[complex_:] and v.numel() > 0


def _remembered(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, complex_: bool) -> tuple[Tensor, Tensor]:
    q, k, v = (_rows(x) for x in (q, k, v))
    y, final = _results(q, k, v, log_decay, complex_)
    states = _walk(k, v, log_decay, final, complex_)
    _launch(_read_kernel, (q, k, v, log_decay, y), (states,), complex_, num_warps=FORWARD_WARPS)
    return y, final


def _results(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, complex_: bool) -> tuple[Tensor, Tensor]:
    """Room for y, laid out as v, and for the final state."""
    final = v.new_empty(*v.shape[:2], _state_rows(v.shape[-1], complex_), v.shape[-1], dtype=torch.float32)
    return torch.empty_like(_rows(v)), final


def _backward(
    grad: Tensor | None, grad_final: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, complex_: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, grad = (_rows(x) for x in (q, k, v, torch.zeros_like(v) if grad is None else grad))
    found = _gradients(grad, grad_final, q, k, v, log_decay, complex_)
    states = _walk(k, v, log_decay, None, complex_), _walk(q, grad, log_decay, grad_final, complex_, reverse=True)
    options = {"HOLD": v.itemsize == 2, "num_warps": BACKWARD_WARPS[_options(v, complex_)["PRECISION"]]}
    _launch(_backward_kernel, (q, k, v, log_decay, grad, *found), states, complex_, **options)
    return found


def _gradients(grad, grad_final, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, complex_: bool) -> tuple:
    """Room for the gradients of the inputs, laid out as these."""
    return *(torch.empty_like(_rows(x)) for x in (q, k, v)), log_decay.new_empty(log_decay.shape)


def _launch(kernel, strided: tuple[Tensor, ...], states: tuple[Tensor, ...], complex_: bool, **options: object) -> None:
    """A program for each chunk of each head; `strided` are passed with their strides and begin with q, k, v."""
    v = strided[2]
    (batch, heads, tokens, _), shared = v.shape, _options(v, complex_)
    pairs = (part for x in strided for part in (x, _strides(x)))
    with torch.cuda.device_of(v):
        kernel[(batch * heads * triton.cdiv(tokens, shared["C"]),)](
            *pairs, *states, heads, tokens, **shared, BLOCK=min(COLUMNS, shared["R"]), **options
        )


remembered = Operator(
    "memory",
    "(Tensor q, Tensor k, Tensor v, Tensor log_decay, bool complex_) -> (Tensor, Tensor)",
    _remembered,
    _results,
    _backward,
    _gradients,
    absent_grads=True,  # in training nobody reads the final state
)
"""q k v (B H T X), log_decay float32 (B H T) -> y as v, final state float32 (B H R X)."""


def _rows(x: Tensor) -> Tensor:
    """x with the channels of a head side by side: any other strides go to the kernels as they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Steps of batch, head and token."""
    return x.stride()[:3]


def _state_rows(width: int, complex_: bool) -> int:
    return width // 2 if complex_ else width


def _options(v: Tensor, complex_: bool) -> dict:
    """Constants that all kernels share."""
    # Exact float32 products are three of tf32 each: Triton has no others on matrix units, and registers do not last.
    exact = torch.get_float32_matmul_precision() == "highest"
    precision = "half" if v.itemsize == 2 else "tf32x3" if exact else "tf32"
    rows = _state_rows(v.shape[-1], complex_)
    return {"X": v.shape[-1], "R": rows, "C": CHUNK[precision], "COMPLEX": complex_, "PRECISION": precision}


def _walk(
    k: Tensor, v: Tensor, log_decay: Tensor, edge: Tensor | None, complex_: bool, *, reverse: bool = False
) -> Tensor:
    """The states before each chunk, in the dtype of v: (B H N R X); `edge` receives the final one.

    In reverse k, v and edge are q, the gradient of y and that of the final state; the result is G behind each chunk.
    """
    batch, heads, tokens, width = v.shape
    options = _options(v, complex_)
    chunks, block = triton.cdiv(tokens, options["C"]), min(WALK_COLUMNS, options["R"])
    states = v.new_empty(batch, heads, chunks, options["R"], width)
    edge = None if edge is None else edge.contiguous()
    with torch.cuda.device_of(v):
        _walk_kernel[(width // block, batch * heads)](
            *(k, _strides(k), v, _strides(v), log_decay, _strides(log_decay), states),
            *(states if edge is None else edge, heads, tokens),
            **options,
            BLOCK=block,
            REVERSE=reverse,
            HAS_EDGE=edge is not None,
            STAGES=WALK_STAGES,
            num_warps=WALK_WARPS,
        )
    return states


@triton.jit
def _chunk(x, strides, head, heads, first):
    """Where the rows of a chunk start that begins at token `first` of a head."""
    return x + (head // heads) * strides[0] + (head % heads) * strides[1] + first.to(tl.int64) * strides[2]


@triton.jit
def _tile(x, stride, length, first, C: tl.constexpr, WIDTH: tl.constexpr):
    """C rows of x, the columns from `first`; rows from `length` on are 0."""
    row = tl.arange(0, C)[:, None]
    return tl.load(x + row * stride + first + tl.arange(0, WIDTH)[None, :], mask=row < length, other=0.0)


@triton.jit
def _across(first: tl.constexpr, X: tl.constexpr):
    """Where the columns of z from `first` on are found in i z = [-imag, real]: they change sign if first < X / 2."""
    return (first + X // 2) % X


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision="tf32" if PRECISION == "half" else PRECISION)  # no effect on half precision


@triton.jit
def _plus(total, a, b, PLUS: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b, or total - a b."""
    if PLUS:
        return total + _dot(a, b, PRECISION)
    return total - _dot(a, b, PRECISION)


@triton.jit
def _elapsed(log_decay, stride, length, C: tl.constexpr):
    """e of a chunk's tokens and at its end; tokens that are not there do not fade."""
    t = tl.arange(0, C)
    steps = tl.load(log_decay + t * stride, mask=t < length, other=0.0)
    elapsed = tl.cumsum(steps, 0)
    return elapsed, tl.sum(tl.where(t == C - 1, elapsed, 0.0), 0)  # the last one itself, so that e_C - e_C is 0


@triton.jit
def _causal_decay(elapsed, C: tl.constexpr):
    """exp(e_t - e_s) for s <= t, else 0."""
    t = tl.arange(0, C)
    decay = tl.exp(tl.minimum(elapsed[:, None] - elapsed[None, :], 0.0))
    return tl.where(t[:, None] >= t[None, :], decay, 0.0)


@triton.jit
def _met(scores, scores_i, tile, k, stride, length, c, C: tl.constexpr, X: tl.constexpr, R: tl.constexpr,
         BLOCK: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr):
    """The scores q k, and q (i k) of a complex head, with what the columns of q from c on, `tile`, give to them."""
    scores += _dot(tile, tl.trans(_tile(k, stride, length, c, C, BLOCK)), PRECISION)
    if COMPLEX:
        across = _tile(k, stride, length, _across(c, X), C, BLOCK)
        scores_i = _plus(scores_i, tile, tl.trans(across), c >= R, PRECISION)
    return scores, scores_i


@triton.jit
def _walk_kernel(
    k, k_strides, v, v_strides, log_decay, decay_strides, states, edge,
    heads, tokens,
    X: tl.constexpr, R: tl.constexpr, C: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, REVERSE: tl.constexpr, HAS_EDGE: tl.constexpr, STAGES: tl.constexpr,
):
    """BLOCK columns of the state, S <- exp(e_C) S + sum of exp(e_C - e_t) k_t v_t^T; in reverse exp(e_t) q_t g_t^T."""
    first = tl.program_id(0) * BLOCK
    head = tl.program_id(1).to(tl.int64)
    chunks = tl.cdiv(tokens, C)
    # The second write is k_imag^T (-i v): v_imag, then -v_real.
    across, sign = tl.where(first < R, first + R, first - R), tl.where(first < R, 1.0, -1.0)
    here = tl.arange(0, R)[:, None] * X + first + tl.arange(0, BLOCK)[None, :]
    state = tl.zeros((R, BLOCK), tl.float32)
    if REVERSE and HAS_EDGE:
        state = tl.load(edge + head * R * X + here).to(tl.float32)
    for step in tl.range(0, chunks, num_stages=STAGES):
        chunk = chunks - 1 - step if REVERSE else step
        tl.store(states + (head * chunks + chunk) * R * X + here, state.to(states.dtype.element_ty))
        start = chunk * C
        length = tokens - start
        keys = _chunk(k, k_strides, head, heads, start)
        values = _chunk(v, v_strides, head, heads, start)
        elapsed, total = _elapsed(_chunk(log_decay, decay_strides, head, heads, start), decay_strides[2], length, C)
        kept = tl.exp(elapsed if REVERSE else tl.minimum(total - elapsed, 0.0))[:, None]
        written = (_tile(keys, k_strides[2], length, 0, C, R) * kept).to(v.dtype.element_ty)
        new = _dot(tl.trans(written), _tile(values, v_strides[2], length, first, C, BLOCK), PRECISION)
        if COMPLEX:
            written = (_tile(keys, k_strides[2], length, R, C, R) * kept * sign).to(v.dtype.element_ty)
            new += _dot(tl.trans(written), _tile(values, v_strides[2], length, across, C, BLOCK), PRECISION)
        state = tl.exp(total) * state + new
    if HAS_EDGE and not REVERSE:
        tl.store(edge + head * R * X + here, state)


@triton.jit
def _read_kernel(
    q, q_strides, k, k_strides, v, v_strides, log_decay, decay_strides, y, y_strides, states,
    heads, tokens,
    X: tl.constexpr, R: tl.constexpr, C: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y of one chunk."""
    chunks = tl.cdiv(tokens, C)
    head = (tl.program_id(0) // chunks).to(tl.int64)
    start = tl.program_id(0) % chunks * C
    length = tokens - start
    states += tl.program_id(0).to(tl.int64) * R * X
    q = _chunk(q, q_strides, head, heads, start)
    k = _chunk(k, k_strides, head, heads, start)
    v = _chunk(v, v_strides, head, heads, start)
    y = _chunk(y, y_strides, head, heads, start)
    elapsed, _total = _elapsed(_chunk(log_decay, decay_strides, head, heads, start), decay_strides[2], length, C)
    dtype: tl.constexpr = y.dtype.element_ty

    scores = tl.zeros((C, C), tl.float32)
    scores_i = scores
    for c in tl.static_range(0, X, BLOCK):
        tile = _tile(q, q_strides[2], length, c, C, BLOCK)
        scores, scores_i = _met(scores, scores_i, tile, k, k_strides[2], length, c, C, X, R, BLOCK, COMPLEX, PRECISION)
    decay = _causal_decay(elapsed, C)
    weights, weights_i = (scores * decay).to(dtype), (scores_i * decay).to(dtype)

    kept = tl.exp(elapsed)[:, None]
    before = (_tile(q, q_strides[2], length, 0, C, R) * kept).to(dtype)
    if COMPLEX:
        before_i = (_tile(q, q_strides[2], length, R, C, R) * kept).to(dtype)
    row = tl.arange(0, C)[:, None]
    y_tiles = ()
    for c in tl.static_range(0, X, BLOCK):
        out = _dot(weights, _tile(v, v_strides[2], length, c, C, BLOCK), PRECISION)
        out += _dot(before, _tile(states, X, R, c, R, BLOCK), PRECISION)
        if COMPLEX:
            across = _tile(v, v_strides[2], length, _across(c, X), C, BLOCK)
            out = _plus(out, weights_i, across, c >= R, PRECISION)
            out = _plus(out, before_i, _tile(states, X, R, _across(c, X), R, BLOCK), c >= R, PRECISION)
        y_tiles += (out.to(dtype),)
    for c in tl.static_range(0, X // BLOCK):  # after all reading: a tile that is read twice is still the same
        here = y + row * y_strides[2] + c * BLOCK + tl.arange(0, BLOCK)[None, :]
        tl.store(here, y_tiles[c], mask=row < length)


@triton.jit
def _toward_rows(
    g, g_stride, states, fading, q, q_stride, k, k_stride, slopes, slopes_i, grad_fading, length,
    C: tl.constexpr, X: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, COMPLEX: tl.constexpr,
    PRECISION: tl.constexpr, ADJOINT: tl.constexpr,
):
    """The gradient of q by tiles of BLOCK columns, and what its part from the state adds to that of the exponents.

    With ADJOINT that of k: v, G, k, q stand for g, S, q, k.
    """
    tiles = ()
    for r in tl.static_range(0, X, BLOCK):
        out = tl.zeros((C, BLOCK), tl.float32)
        for c in tl.static_range(0, X, BLOCK):
            column_of_state = c if r < R else _across(c, X)
            state_tile = _tile(states + r % R * X, X, R, column_of_state, BLOCK, BLOCK)
            g_tile = _tile(g, g_stride, length, c, C, BLOCK)
            out = _plus(out, g_tile, tl.trans(state_tile), r < R or c >= R, PRECISION)
        out *= fading
        grad_fading += tl.sum(out * _tile(q, q_stride, length, r, C, BLOCK), 1)
        out += _dot(slopes, _tile(k, k_stride, length, r, C, BLOCK), PRECISION)
        if COMPLEX:
            across = _tile(k, k_stride, length, _across(r, X), C, BLOCK)
            out = _plus(out, slopes_i, across, r < R if ADJOINT else r >= R, PRECISION)
        tiles += (out.to(g.dtype.element_ty),)
    return tiles, grad_fading


@triton.jit
def _backward_kernel(
    q, q_strides, k, k_strides, v, v_strides, log_decay, decay_strides, grad, grad_strides, grad_q, grad_q_strides,
    grad_k, grad_k_strides, grad_v, grad_v_strides, grad_decay, grad_decay_strides, states, grad_states,
    heads, tokens,
    X: tl.constexpr, R: tl.constexpr, C: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, HOLD: tl.constexpr,
):
    """Gradients of one chunk. The adjoint of i is -i: what meets i k or i v on the way there, meets -i q, -i g back."""
    chunks = tl.cdiv(tokens, C)
    head = (tl.program_id(0) // chunks).to(tl.int64)
    start = tl.program_id(0) % chunks * C
    length = tokens - start
    states += tl.program_id(0).to(tl.int64) * R * X
    grad_states += tl.program_id(0).to(tl.int64) * R * X
    q = _chunk(q, q_strides, head, heads, start)
    k = _chunk(k, k_strides, head, heads, start)
    v = _chunk(v, v_strides, head, heads, start)
    grad = _chunk(grad, grad_strides, head, heads, start)
    grad_q = _chunk(grad_q, grad_q_strides, head, heads, start)
    grad_k = _chunk(grad_k, grad_k_strides, head, heads, start)
    grad_v = _chunk(grad_v, grad_v_strides, head, heads, start)
    grad_decay = _chunk(grad_decay, grad_decay_strides, head, heads, start)
    elapsed, total = _elapsed(_chunk(log_decay, decay_strides, head, heads, start), decay_strides[2], length, C)
    dtype: tl.constexpr = v.dtype.element_ty

    scores = tl.zeros((C, C), tl.float32)
    scores_i, slopes, slopes_i = scores, scores, scores  # slopes: gradients of the scores that have faded
    for c in tl.static_range(0, X, BLOCK):
        q_tile = _tile(q, q_strides[2], length, c, C, BLOCK)
        g_tile = _tile(grad, grad_strides[2], length, c, C, BLOCK)
        scores, scores_i = _met(
            scores, scores_i, q_tile, k, k_strides[2], length, c, C, X, R, BLOCK, COMPLEX, PRECISION
        )
        slopes, slopes_i = _met(
            slopes, slopes_i, g_tile, v, v_strides[2], length, c, C, X, R, BLOCK, COMPLEX, PRECISION
        )
    decay = _causal_decay(elapsed, C)
    scores, scores_i = scores * decay, scores_i * decay
    t, s = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    meeting = tl.where(t > s, scores * slopes + scores_i * slopes_i, 0.0)  # dL / d(e_t - e_s)
    grad_elapsed = tl.sum(meeting, 1) - tl.sum(meeting, 0)
    weights, weights_i = tl.trans(scores.to(dtype)), tl.trans(scores_i.to(dtype))
    slopes, slopes_i = (slopes * decay).to(dtype), (slopes_i * decay).to(dtype)

    # e_t fades what token t reads of S, e_C - e_t what it leaves for G, e_C what S leaves for G.
    kept, left = tl.exp(elapsed)[:, None], tl.exp(tl.minimum(total - elapsed, 0.0))[:, None]
    row, column = tl.arange(0, C)[:, None], tl.arange(0, BLOCK)[None, :]
    passed = tl.zeros((R,), tl.float32)
    k_real = _tile(k, k_strides[2], length, 0, C, R)
    if COMPLEX:
        k_imag = _tile(k, k_strides[2], length, R, C, R)
    v_tiles = ()
    if not HOLD:
        tl.debug_barrier()
    for c in tl.static_range(0, X, BLOCK):
        state_tile = _tile(grad_states, X, R, c, R, BLOCK)
        passed += tl.sum(state_tile.to(tl.float32) * _tile(states, X, R, c, R, BLOCK).to(tl.float32), 1)
        out = _dot(k_real, state_tile, PRECISION)
        if COMPLEX:
            across = _tile(grad_states, X, R, _across(c, X), R, BLOCK)
            out = _plus(out, k_imag, across, c >= R, PRECISION)
        out *= left
        out += _dot(weights, _tile(grad, grad_strides[2], length, c, C, BLOCK), PRECISION)
        if COMPLEX:
            across = _tile(grad, grad_strides[2], length, _across(c, X), C, BLOCK)
            out = _plus(out, weights_i, across, c < R, PRECISION)
        v_tiles += (out.to(dtype),)

    if not HOLD:
        tl.debug_barrier()
    q_tiles, grad_elapsed = _toward_rows(
        grad, grad_strides[2], states, kept, q, q_strides[2], k, k_strides[2], slopes, slopes_i, grad_elapsed, length,
        C, X, R, BLOCK, COMPLEX, PRECISION, ADJOINT=False,
    )
    slopes, slopes_i = tl.trans(slopes), tl.trans(slopes_i)
    if not HOLD:
        tl.debug_barrier()
    k_tiles, grad_left = _toward_rows(
        v, v_strides[2], grad_states, left, k, k_strides[2], q, q_strides[2], slopes, slopes_i,
        tl.zeros((C,), tl.float32), length, C, X, R, BLOCK, COMPLEX, PRECISION, ADJOINT=True,
    )

    # Nothing is stored before here, so the compiler sees that a tile it has read is still the same and holds it; where
    # that asks for too many registers (HOLD is off), barriers make it read the tile again.
    for c in tl.static_range(0, X // BLOCK):
        inside = row < length
        tl.store(grad_q + row * grad_q_strides[2] + c * BLOCK + column, q_tiles[c], mask=inside)
        tl.store(grad_k + row * grad_k_strides[2] + c * BLOCK + column, k_tiles[c], mask=inside)
        tl.store(grad_v + row * grad_v_strides[2] + c * BLOCK + column, v_tiles[c], mask=inside)
    # A log_decay acts on e from its own token on, on what earlier tokens leave, and on what S passes on.
    out = tl.cumsum(grad_elapsed, 0, reverse=True) + tl.exp(total) * tl.sum(passed, 0)
    out += tl.sum(tl.where(t > s, grad_left[None, :], 0.0), 1)
    t = tl.arange(0, C)
    tl.store(grad_decay + t * grad_decay_strides[2], out, mask=t < length)
