"""What `mixer` computes point by point around the matrix memory, as CUDA kernels, one forward and one backward each.

    prepare: q, k, v = short convolution of the projections, q and k turned by exp(i angle) and divided by X
    write:   out = head_norm(y) silu(g) gain
    gated:   out = value silu(g), the same gate without a memory

The PyTorch form in `mixer` is the reference, letters are as there, K = X/2 pairs of channels per head. A program holds
some tokens of one head and goes through a group of the batch, so that fixed angles are computed once per group. All
arithmetic is float32 in registers, rounded once; nothing but inputs is kept for the backward pass, which computes the
rest again. Gradients of parameters are summed over a program's tokens, then over programs by PyTorch: no atomics, equal
runs give equal sums. For torch.compile each is one opaque step.

A pair is the real and imaginary part of a complex channel (planes = 2), or channels j and j + K of a real head
(planes = 1). Within the D channels of q, k or v its first member is h X / planes + j.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# pairs that a program holds at a time, the warps that share them, and how much of the batch it goes through
PREPARE_PAIRS, PREPARE_WARPS, PREPARE_BATCHES = 1024, 8, 4
PREPARE_BACKWARD_PAIRS, PREPARE_BACKWARD_WARPS, PREPARE_BACKWARD_BATCHES = 512, 4, 8
WRITE_PAIRS, WRITE_WARPS, WRITE_BATCHES = 1024, 4, 1
WRITE_BACKWARD_PAIRS, WRITE_BACKWARD_WARPS, WRITE_BACKWARD_BATCHES = 512, 4, 4
GATED_COLUMNS, GATED_WARPS = 1024, 4  # channels of one token that a program of `gated` holds, and its warps


def prepare(
    seen: Tensor, taps: Tensor | None, frequencies: Tensor | None, elapsed: Tensor | None, planes: int, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B H T X) in the dtype of the projections `seen` (B T 3 planes D), before which there is nothing.

    taps r(3D taps) or None; the pairs of q and k turn by elapsed x frequencies: elapsed r(B H T), or the number of
    tokens so far where it is None, frequencies r(H K) or None, both float32.
    """
    call = _prepare_op if torch.compiler.is_compiling() else _Prepare.apply
    return call(seen, taps, frequencies, elapsed, planes, heads)


def write(y: Tensor, gate: Tensor | None, gain: Tensor, planes: int, eps: float, dtype: torch.dtype) -> Tensor:
    """What the heads read, y (B H T X), normed per head, times silu(gate) r(B T D) and gain r(D): (B T planes D)."""
    call = _write_op if torch.compiler.is_compiling() else _Write.apply
    return call(y, gate, gain, planes, eps, dtype)


def gated(value: Tensor, gate: Tensor, planes: int) -> Tensor:
    """value (.. planes F) times silu(gate) r(.. F), in the dtype of value."""
    call = _gated_op if torch.compiler.is_compiling() else _Gated.apply
    return call(value, gate, planes)


def _prepare(
    seen: Tensor, taps: Tensor | None, frequencies: Tensor | None, elapsed: Tensor | None, planes: int, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    seen, taps, frequencies, elapsed = _contiguous(seen, None if taps is None else taps.t(), frequencies, elapsed)
    batch, tokens, width = seen.shape
    q, k, v = (seen.new_empty(batch, heads, tokens, width // (3 * heads)) for _ in range(3))
    tile = _Tile(q, planes, PREPARE_PAIRS, PREPARE_WARPS, PREPARE_BATCHES)
    tile.launch(_prepare_kernel, seen, taps, frequencies, elapsed, q, k, v, **_switches(taps, frequencies, elapsed))
    return q, k, v


def _prepare_backward(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    seen: Tensor,
    taps: Tensor | None,
    frequencies: Tensor | None,
    elapsed: Tensor | None,
    planes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dL/dseen, and in float32 dL/d(taps, frequencies, elapsed), each empty where there is no such input."""
    grads = _contiguous(grad_q, grad_k, grad_v)
    seen, taps, frequencies, elapsed = _contiguous(seen, None if taps is None else taps.t(), frequencies, elapsed)
    switches = _switches(taps, frequencies, elapsed)
    grad_seen = torch.empty_like(seen)
    tile = _Tile(grads[0], planes, PREPARE_BACKWARD_PAIRS, PREPARE_BACKWARD_WARPS, PREPARE_BACKWARD_BATCHES)
    wide = {"dtype": torch.float32, "device": seen.device}
    grad_taps, grad_frequencies, grad_elapsed = (torch.empty(0, **wide) for _ in range(3))
    if taps is not None:
        grad_taps = torch.empty(tile.programs, *taps.shape, **wide)
    if frequencies is not None:
        grad_frequencies = torch.empty(tile.programs, *frequencies.shape, **wide)
    if switches["HAS_ELAPSED"]:  # of q and of k, from each tap
        grad_elapsed = torch.zeros(2 * switches["TAPS"], *elapsed.shape, **wide)
    tile.launch(
        _prepare_backward_kernel,
        *grads,
        seen,
        taps,
        frequencies,
        elapsed,
        grad_seen,
        grad_taps,
        grad_frequencies,
        grad_elapsed,
        **switches,
    )
    grad_taps, *sums = (x.sum(0) if x.ndim > 1 else x for x in (grad_taps, grad_frequencies, grad_elapsed))
    return grad_seen, grad_taps if taps is None else grad_taps.t().contiguous(), *sums


def _write(y: Tensor, gate: Tensor | None, gain: Tensor, planes: int, eps: float, dtype: torch.dtype) -> Tensor:
    y, gate, gain = _contiguous(y, gate, gain)
    batch, heads, tokens, width = y.shape
    out = torch.empty(batch, tokens, heads * width, dtype=dtype, device=y.device)
    tile = _Tile(y, planes, WRITE_PAIRS, WRITE_WARPS, WRITE_BATCHES)
    tile.launch(_write_kernel, y, gate, gain, out, EPS=eps, HAS_GATE=gate is not None)
    return out


def _write_backward(
    grad: Tensor, y: Tensor, gate: Tensor | None, gain: Tensor, planes: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dy as y, dL/dgate as gate (empty without one), dL/dgain in float32."""
    grad, y, gate, gain = _contiguous(grad, y, gate, gain)
    grad_y, grad_gate = torch.empty_like(y), y.new_empty(0) if gate is None else torch.empty_like(gate)
    tile = _Tile(y, planes, WRITE_BACKWARD_PAIRS, WRITE_BACKWARD_WARPS, WRITE_BACKWARD_BATCHES)
    grad_gain = torch.empty(tile.programs, *gain.shape, dtype=torch.float32, device=y.device)
    tile.launch(
        _write_backward_kernel,
        grad,
        y,
        gate,
        gain,
        grad_y,
        grad_gate,
        grad_gain,
        EPS=eps,
        HAS_GATE=gate is not None,
    )
    return grad_y, grad_gate, grad_gain.sum(0)


def _gated(value: Tensor, gate: Tensor, planes: int) -> Tensor:
    value, gate = _contiguous(value, gate)
    out = torch.empty_like(value)
    _launch_gated(_gated_kernel, gate, planes, value, gate, out)
    return out


def _gated_backward(grad: Tensor, value: Tensor, gate: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    """dL/dvalue as value, dL/dgate as gate."""
    grad, value, gate = _contiguous(grad, value, gate)
    grad_value, grad_gate = torch.empty_like(value), torch.empty_like(gate)
    _launch_gated(_gated_backward_kernel, gate, planes, grad, value, gate, grad_value, grad_gate)
    return grad_value, grad_gate


def _launch_gated(kernel, gate: Tensor, planes: int, *tensors: Tensor) -> None:
    width = gate.shape[-1]
    columns = min(GATED_COLUMNS, triton.next_power_of_2(width))
    if gate.numel():
        with torch.cuda.device_of(gate):
            kernel[(gate.numel() // width, triton.cdiv(width, columns))](
                *tensors,
                WIDTH=width,
                PLANES=planes,
                COLUMNS=columns,
                num_warps=max(1, min(GATED_WARPS, columns // 128)),
            )


class _Tile:
    """How the tokens and pairs of x (B H T X) are shared out: `programs` for each head."""

    def __init__(self, x: Tensor, planes: int, pairs: int, warps: int, batches: int) -> None:
        self.batch, self.heads, self.tokens, width = x.shape
        columns = triton.next_power_of_2(width // 2)
        rows = min(max(1, pairs // columns), triton.next_power_of_2(self.tokens))
        self.programs = triton.cdiv(self.tokens, rows) * triton.cdiv(self.batch, batches)
        self.constants = {
            "H": self.heads,
            "K": width // 2,
            "PLANES": planes,
            "BATCHES": batches,
            "ROWS": rows,
            "COLUMNS": columns,
            "num_warps": max(1, min(warps, rows * columns // 128)),
        }

    def launch(self, kernel, *tensors: Tensor | None, **constants: object) -> None:
        """An absent tensor is passed as the first one, which its switch keeps unread."""
        tensors = [tensors[0] if x is None else x for x in tensors]
        if self.programs:
            with torch.cuda.device_of(tensors[0]):
                kernel[(self.heads, self.programs)](*tensors, self.tokens, self.batch, **self.constants, **constants)


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)


def _switches(taps: Tensor | None, frequencies: Tensor | None, elapsed: Tensor | None) -> dict[str, object]:
    """Constants of the two kernels of `prepare`; taps as r(taps 3D), so that neighbours lie side by side."""
    turns = frequencies is not None
    return {
        "TAPS": 1 if taps is None else taps.shape[0],
        "HAS_TAPS": taps is not None,
        "TURNS": turns,
        "HAS_ELAPSED": turns and elapsed is not None,
    }


def _op(function: Callable, schema: str):
    """A custom operator: one opaque step for torch.compile."""
    name = f"muse::mixer{function.__name__}"
    return torch.library.custom_op(name, function, mutates_args=(), schema=schema)


_prepare_op = _op(
    _prepare,
    "(Tensor seen, Tensor? taps, Tensor? frequencies, Tensor? elapsed, int planes, int heads)"
    " -> (Tensor, Tensor, Tensor)",
)
_prepare_backward_op = _op(
    _prepare_backward,
    "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor seen, Tensor? taps, Tensor? frequencies, Tensor? elapsed,"
    " int planes) -> (Tensor, Tensor, Tensor, Tensor)",
)
_write_op = _op(_write, "(Tensor y, Tensor? gate, Tensor gain, int planes, float eps, ScalarType dtype) -> Tensor")
_write_backward_op = _op(
    _write_backward,
    "(Tensor grad, Tensor y, Tensor? gate, Tensor gain, int planes, float eps) -> (Tensor, Tensor, Tensor)",
)

_gated_op = _op(_gated, "(Tensor value, Tensor gate, int planes) -> Tensor")
_gated_backward_op = _op(_gated_backward, "(Tensor grad, Tensor value, Tensor gate, int planes) -> (Tensor, Tensor)")


@_prepare_op.register_fake
def _(seen, taps, frequencies, elapsed, planes, heads):
    batch, tokens, width = seen.shape
    return tuple(seen.new_empty(batch, heads, tokens, width // (3 * heads)) for _ in range(3))


@_prepare_backward_op.register_fake
def _(grad_q, grad_k, grad_v, seen, taps, frequencies, elapsed, planes):
    parameters = taps, frequencies, None if frequencies is None else elapsed
    sums = (seen.new_empty(0 if x is None else x.shape, dtype=torch.float32) for x in parameters)
    return seen.new_empty(seen.shape), *sums


@_write_op.register_fake
def _(y, gate, gain, planes, eps, dtype):
    batch, heads, tokens, width = y.shape
    return y.new_empty(batch, tokens, heads * width, dtype=dtype)


@_write_backward_op.register_fake
def _(grad, y, gate, gain, planes, eps):
    grad_gate = y.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return y.new_empty(y.shape), grad_gate, gain.new_empty(gain.shape, dtype=torch.float32)


@_gated_op.register_fake
def _(value, gate, planes):
    return value.new_empty(value.shape)


@_gated_backward_op.register_fake
def _(grad, value, gate, planes):
    return value.new_empty(value.shape), gate.new_empty(gate.shape)


def _save_prepare(ctx, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.planes, _ = inputs
    ctx.save_for_backward(*tensors)


def _prepare_gradients(backward: Callable, ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    grad_seen, *sums = backward(*grads, *inputs, ctx.planes)
    found = (g.to(x.dtype) if x is not None and g.numel() else None for g, x in zip(sums, inputs[1:], strict=True))
    return grad_seen, *found, None, None


def _save_write(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.planes, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors)


def _write_gradients(backward: Callable, ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, gate, gain = ctx.saved_tensors
    grad_y, grad_gate, grad_gain = backward(grad, y, gate, gain, ctx.planes, ctx.eps)
    return grad_y, None if gate is None else grad_gate, grad_gain.to(gain.dtype), None, None, None


def _save_gated(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.planes = inputs
    ctx.save_for_backward(*tensors)


def _gated_gradients(backward: Callable, ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(grad, *ctx.saved_tensors, ctx.planes), None


_prepare_op.register_autograd(partial(_prepare_gradients, _prepare_backward_op), setup_context=_save_prepare)
_write_op.register_autograd(partial(_write_gradients, _write_backward_op), setup_context=_save_write)
_gated_op.register_autograd(partial(_gated_gradients, _gated_backward_op), setup_context=_save_gated)


class _Prepare(torch.autograd.Function):
    """_prepare_op for eager code, which spares the host what an operator costs."""

    forward = staticmethod(_prepare)
    setup_context = staticmethod(_save_prepare)
    backward = staticmethod(once_differentiable(partial(_prepare_gradients, _prepare_backward)))


class _Write(torch.autograd.Function):
    """_write_op for eager code."""

    forward = staticmethod(_write)
    setup_context = staticmethod(_save_write)
    backward = staticmethod(once_differentiable(partial(_write_gradients, _write_backward)))


class _Gated(torch.autograd.Function):
    """_gated_op for eager code."""

    forward = staticmethod(_gated)
    setup_context = staticmethod(_save_gated)
    backward = staticmethod(once_differentiable(partial(_gated_gradients, _gated_backward)))


# Triton's constants are capitals, its tuples know + but no star, and an `if` on a constant leaves out a branch.
# ruff: noqa: N803, N806, RUF005, SIM108


@triton.jit
def _tile(tokens, batch, BATCHES: tl.constexpr, ROWS: tl.constexpr):
    """First row of a program's tokens, and the group of the batch that it goes through."""
    blocks = tl.cdiv(tokens, ROWS)
    group = tl.program_id(1) // blocks
    return tl.program_id(1) % blocks * ROWS, group * BATCHES, tl.minimum(group * BATCHES + BATCHES, batch)


@triton.jit
def _load(pointer, place, inside):
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, place, value, inside):
    tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _cos_sin(elapsed, frequency):
    angle = elapsed * frequency
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def _weights(taps, channel, inside, WIDTH: tl.constexpr, TAPS: tl.constexpr, HAS_TAPS: tl.constexpr):
    """The taps r(TAPS WIDTH) of some channels by how far they look back, each (1 COLUMNS)."""
    weights = ()
    for lag in tl.static_range(TAPS):
        if HAS_TAPS:
            weights = weights + (_load(taps, (TAPS - 1 - lag) * WIDTH + channel, inside),)
        else:
            weights = weights + (1.0,)
    return weights


@triton.jit(do_not_specialize=["tokens", "batch"])
def _prepare_kernel(
    seen,
    taps,
    frequencies,
    elapsed,
    q,
    k,
    v,
    tokens,
    batch,
    H: tl.constexpr,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    BATCHES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    HAS_TAPS: tl.constexpr,
    TURNS: tl.constexpr,
    HAS_ELAPSED: tl.constexpr,
):
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = 3 * D if PLANES == 2 else K  # from a pair's first member to its second
    head = tl.program_id(0)
    start, first, last = _tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    if TURNS:
        frequency = _load(frequencies, head * K + column, column < K)
        if not HAS_ELAPSED:
            cos, sin = _cos_sin((row + 1).to(tl.float32), frequency)
    for part in tl.static_range(3):
        if part == 0:
            out = q
        elif part == 1:
            out = k
        else:
            out = v
        near = _weights(taps, part * D + channel, column < K, 3 * D, TAPS, HAS_TAPS)
        if PLANES == 1:
            far = _weights(taps, part * D + channel + K, column < K, 3 * D, TAPS, HAS_TAPS)
        else:
            far = near
        for b in range(first, last):
            source = seen + b * tokens.to(tl.int64) * (3 * PLANES * D) + part * D
            x = tl.zeros((ROWS, COLUMNS), tl.float32)
            y = tl.zeros((ROWS, COLUMNS), tl.float32)
            for lag in tl.static_range(TAPS):
                place = (row - lag) * (3 * PLANES * D) + channel
                there = inside & (row >= lag)
                x += near[lag] * _load(source, place, there)
                y += far[lag] * _load(source, place + SECOND, there)
            if TURNS and part < 2:
                if HAS_ELAPSED:
                    time = _load(elapsed + (b * H + head) * tokens.to(tl.int64), row, row < tokens)
                    cos, sin = _cos_sin(time, frequency)
                x, y = x * cos - y * sin, x * sin + y * cos
            if part < 2:
                x, y = x * (0.5 / K), y * (0.5 / K)
            target = out + (b * H + head) * tokens.to(tl.int64) * (2 * K)
            _store(target, row * (2 * K) + column, x, inside)
            _store(target, row * (2 * K) + column + K, y, inside)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _prepare_backward_kernel(
    grad_q,
    grad_k,
    grad_v,
    seen,
    taps,
    frequencies,
    elapsed,
    grad_seen,
    grad_taps,
    grad_frequencies,
    grad_elapsed,
    tokens,
    batch,
    H: tl.constexpr,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    BATCHES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    HAS_TAPS: tl.constexpr,
    TURNS: tl.constexpr,
    HAS_ELAPSED: tl.constexpr,
):
    """A projection of token t went into the convolutions of t + lag: their gradients are turned back and come home.

    d/dangle is Im(conj(c) dL/dc) for the complex result c of a convolution, the sum of what each tap gave to it.
    """
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = 3 * D if PLANES == 2 else K
    head = tl.program_id(0)
    start, first, last = _tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    zero = tl.zeros((ROWS, COLUMNS), tl.float32)
    if TURNS:
        turning = zero
        frequency = _load(frequencies, head * K + column, column < K)
        if not HAS_ELAPSED:
            cos_here, sin_here = _cos_sin((row + 1).to(tl.float32), frequency)
            cos_next, sin_next = _cos_sin(1.0, frequency)
    for part in tl.static_range(3):
        if part == 0:
            grad = grad_q
        elif part == 1:
            grad = grad_k
        else:
            grad = grad_v
        near = _weights(taps, part * D + channel, column < K, 3 * D, TAPS, HAS_TAPS)
        near_sums = (zero,) * TAPS
        if PLANES == 1:
            far = _weights(taps, part * D + channel + K, column < K, 3 * D, TAPS, HAS_TAPS)
            far_sums = (zero,) * TAPS
        else:
            far = near
        for b in range(first, last):
            offset = b * tokens.to(tl.int64) * (3 * PLANES * D) + part * D
            lane = (b * H + head) * tokens.to(tl.int64)
            place = row * (3 * PLANES * D) + channel
            x = _load(seen + offset, place, inside)
            y = _load(seen + offset, place + SECOND, inside)
            dx = zero
            dy = zero
            near_new = ()
            far_new = ()
            for lag in tl.static_range(TAPS):
                there = inside & (row + lag < tokens)
                u = _load(grad + lane * (2 * K), (row + lag) * (2 * K) + column, there)
                v = _load(grad + lane * (2 * K), (row + lag) * (2 * K) + column + K, there)
                if part < 2:
                    u, v = u * (0.5 / K), v * (0.5 / K)
                if TURNS and part < 2:
                    if HAS_ELAPSED:
                        time = _load(elapsed + lane, row + lag, row + lag < tokens)
                        cos, sin = _cos_sin(time, frequency)
                    else:
                        time = (row + (lag + 1)).to(tl.float32)
                        if lag == 0:
                            cos, sin = cos_here, sin_here
                        else:
                            cos, sin = cos * cos_next - sin * sin_next, sin * cos_next + cos * sin_next
                    u, v = u * cos + v * sin, v * cos - u * sin
                    along = near[lag] * x * v - far[lag] * y * u
                    turning += time * along
                    if HAS_ELAPSED:
                        sums = grad_elapsed + (part * TAPS + lag) * batch.to(tl.int64) * H * tokens + lane
                        _store(sums, row + lag, tl.sum(along * frequency, 1)[:, None], row + lag < tokens)
                dx += near[lag] * u
                dy += far[lag] * v
                if PLANES == 1:
                    near_new = near_new + (near_sums[lag] + x * u,)
                    far_new = far_new + (far_sums[lag] + y * v,)
                else:
                    near_new = near_new + (near_sums[lag] + x * u + y * v,)
            if HAS_TAPS:
                near_sums = near_new
                if PLANES == 1:
                    far_sums = far_new
            _store(grad_seen + offset, place, dx, inside)
            _store(grad_seen + offset, place + SECOND, dy, inside)
        if HAS_TAPS:
            sums = grad_taps + tl.program_id(1).to(tl.int64) * (TAPS * 3 * D) + part * D
            for lag in tl.static_range(TAPS):
                at = (TAPS - 1 - lag) * (3 * D) + channel
                _store(sums, at, tl.sum(near_sums[lag], 0)[None, :], column < K)
                if PLANES == 1:
                    _store(sums, at + K, tl.sum(far_sums[lag], 0)[None, :], column < K)
    if TURNS:
        sums = grad_frequencies + (tl.program_id(1) * H + head).to(tl.int64) * K
        _store(sums, column, tl.sum(turning, 0)[None, :], column < K)


@triton.jit
def _normed(y, place, inside, K: tl.constexpr, EPS: tl.constexpr):
    """Both members of a head's pairs over their root mean square, and its inverse for each token."""
    a, b = _load(y, place, inside), _load(y, place + K, inside)
    rstd = 1.0 / tl.sqrt(tl.sum(a * a + b * b, 1)[:, None] / (2 * K) + EPS)
    return a * rstd, b * rstd, rstd


@triton.jit(do_not_specialize=["tokens", "batch"])
def _write_kernel(
    y,
    gate,
    gain,
    out,
    tokens,
    batch,
    H: tl.constexpr,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    BATCHES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EPS: tl.constexpr,
    HAS_GATE: tl.constexpr,
):
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = D if PLANES == 2 else K
    head = tl.program_id(0)
    start, first, last = _tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    near_gain = _load(gain, channel, column < K)
    far_gain = near_gain
    if PLANES == 1:
        far_gain = _load(gain, channel + K, column < K)
    for b in range(first, last):
        token = b * tokens.to(tl.int64)
        lane = (b * H + head) * tokens.to(tl.int64)
        u, v, _ = _normed(y + lane * (2 * K), row * (2 * K) + column, inside, K, EPS)
        u *= near_gain
        v *= far_gain
        if HAS_GATE:
            g = _load(gate + token * D, row * D + channel, inside)
            u *= g * tl.sigmoid(g)
            if PLANES == 1:
                g = _load(gate + token * D, row * D + channel + K, inside)
            v *= g * tl.sigmoid(g)
        place = row * (PLANES * D) + channel
        _store(out + token * (PLANES * D), place, u, inside)
        _store(out + token * (PLANES * D), place + SECOND, v, inside)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _write_backward_kernel(
    grad,
    y,
    gate,
    gain,
    grad_y,
    grad_gate,
    grad_gain,
    tokens,
    batch,
    H: tl.constexpr,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    BATCHES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EPS: tl.constexpr,
    HAS_GATE: tl.constexpr,
):
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = D if PLANES == 2 else K
    head = tl.program_id(0)
    start, first, last = _tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    near_gain = _load(gain, channel, column < K)
    near_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    if PLANES == 1:
        far_gain = _load(gain, channel + K, column < K)
        far_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for b in range(first, last):
        token = b * tokens.to(tl.int64)
        lane = (b * H + head) * tokens.to(tl.int64) * (2 * K)
        a, c, rstd = _normed(y + lane, row * (2 * K) + column, inside, K, EPS)
        place = row * (PLANES * D) + channel
        u = _load(grad + token * (PLANES * D), place, inside)
        v = _load(grad + token * (PLANES * D), place + SECOND, inside)
        if PLANES == 2:
            factor, share = _gate_backward(
                gate, grad_gate, token * D, row * D + channel, inside, u * a + v * c, near_gain, HAS_GATE
            )
            near_sum += share
            u *= factor
            v *= factor
        else:
            factor, share = _gate_backward(
                gate, grad_gate, token * D, row * D + channel, inside, u * a, near_gain, HAS_GATE
            )
            near_sum += share
            u *= factor
            factor, share = _gate_backward(
                gate, grad_gate, token * D, row * D + channel + K, inside, v * c, far_gain, HAS_GATE
            )
            far_sum += share
            v *= factor
        along = tl.sum(u * a + v * c, 1)[:, None] / (2 * K)
        _store(grad_y + lane, row * (2 * K) + column, rstd * (u - a * along), inside)
        _store(grad_y + lane, row * (2 * K) + column + K, rstd * (v - c * along), inside)
    sums = grad_gain + tl.program_id(1).to(tl.int64) * D
    _store(sums, channel, tl.sum(near_sum, 0)[None, :], column < K)
    if PLANES == 1:
        _store(sums, channel + K, tl.sum(far_sum, 0)[None, :], column < K)


@triton.jit
def _gate_backward(gate, grad_gate, token, place, inside, along, gain, HAS_GATE: tl.constexpr):
    """silu(g) gain, and what dL/d(silu(g) gain) = along gives to dL/dgain; dL/dg is stored."""
    factor = gain
    if HAS_GATE:
        g = _load(gate + token, place, inside)
        open = tl.sigmoid(g)
        factor = g * open * gain
        _store(grad_gate + token, place, along * gain * open * (1.0 + g * (1.0 - open)), inside)
        along *= g * open
    return factor, along


@triton.jit
def _gated_kernel(value, gate, out, WIDTH: tl.constexpr, PLANES: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    g = _load(gate + token * WIDTH, column, inside)
    g *= tl.sigmoid(g)
    for plane in tl.static_range(PLANES):
        row = (token * PLANES + plane) * WIDTH
        _store(out + row, column, g * _load(value + row, column, inside), inside)


@triton.jit
def _gated_backward_kernel(
    grad, value, gate, grad_value, grad_gate, WIDTH: tl.constexpr, PLANES: tl.constexpr, COLUMNS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    g = _load(gate + token * WIDTH, column, inside)
    open = tl.sigmoid(g)
    along = tl.zeros((COLUMNS,), tl.float32)
    for plane in tl.static_range(PLANES):
        row = (token * PLANES + plane) * WIDTH
        u = _load(grad + row, column, inside)
        along += u * _load(value + row, column, inside)
        _store(grad_value + row, column, u * g * open, inside)
    _store(grad_gate + token * WIDTH, column, along * open * (1.0 + g * (1.0 - open)), inside)
