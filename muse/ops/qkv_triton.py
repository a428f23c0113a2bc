"""What `qkv` computes point by point before the matrix memory, as CUDA kernels, forward and backward.

    prepare: q, k, v = short convolution of the projections, q and k rotated by exp(i angle) and divided by X

The angle is given, or the number of tokens so far times a fixed frequency. The PyTorch form in `qkv` is the reference,
letters are as there, K = X/2 pairs of channels per head. A program holds some tokens of one head and goes through a
group of the batch, so that fixed angles are computed once per group; in the backward pass it holds some of the batch
and goes through tokens, so that each gradient is read and turned once. All arithmetic is float32 in registers, rounded
once; nothing but inputs is kept for the backward pass, which computes the rest again. Gradients of parameters are
summed over a program's tokens, then over programs by PyTorch: no atomics, equal runs give equal sums. For torch.compile
each is one opaque step.

A pair is the real and imaginary part of a complex channel (planes = 2), or channels j and j + K of a real head
(planes = 1). Within the D channels of q, k or v its first member is h X / planes + j.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operator import Operator
from .tile_triton import Tile, contiguous, load, store, tile

# pairs that a program holds at a time, the warps that share them, and how much of the batch it goes through
PREPARE_PAIRS, PREPARE_WARPS, PREPARE_BATCHES = 1024, 8, 4
# pairs of some texts, one token at a time, the tokens that a program goes through, and how many are on their way
PREPARE_BACKWARD_PAIRS, PREPARE_BACKWARD_WARPS, PREPARE_BACKWARD_TOKENS, PREPARE_BACKWARD_STAGES = 512, 4, 64, 3


def _prepare(
    seen: Tensor, taps: Tensor | None, frequencies: Tensor | None, angle: Tensor | None, planes: int, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    if frequencies is not None and angle is not None:
        raise ValueError(
            "queries and keys rotate by frequencies or by an angle, not by both: got frequencies "
            f"{tuple(frequencies.shape)} and an angle {tuple(angle.shape)}"
        )
    seen, taps, frequencies, angle = contiguous(seen, None if taps is None else taps.t(), frequencies, angle)
    batch, tokens, width = seen.shape
    q, k, v = (seen.new_empty(batch, heads, tokens, width // (3 * heads)) for _ in range(3))
    tile = Tile(q, planes, PREPARE_PAIRS, PREPARE_WARPS, PREPARE_BATCHES)
    tile.launch(_prepare_kernel, seen, taps, frequencies, angle, q, k, v, **_switches(taps, frequencies, angle))
    return q, k, v


def _prepare_backward(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    seen: Tensor,
    taps: Tensor | None,
    frequencies: Tensor | None,
    angle: Tensor | None,
    planes: int,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads, given = contiguous(grad_q, grad_k, grad_v), (taps, frequencies, angle)
    seen, taps, frequencies, angle = contiguous(seen, None if taps is None else taps.t(), frequencies, angle)
    grad_seen, wide = torch.empty_like(seen), {"dtype": torch.float32, "device": seen.device}
    pairs, warps = PREPARE_BACKWARD_PAIRS, PREPARE_BACKWARD_WARPS
    tile = Tile(grads[0], planes, pairs, warps, tokens=PREPARE_BACKWARD_TOKENS)
    sums = [None if x is None else torch.empty(tile.programs, *x.shape, **wide) for x in (taps, frequencies)]
    inputs, switches = (seen, taps, frequencies, angle), _switches(taps, frequencies, angle)
    tile.launch(_prepare_backward_kernel, *grads, *inputs, grad_seen, *sums, STAGES=PREPARE_BACKWARD_STAGES, **switches)
    grad_taps, grad_frequencies = (None if x is None else x.sum(0) for x in sums)
    grad_angle = None if angle is None else _along(grads, seen, taps, angle, planes)
    found = None if grad_taps is None else grad_taps.t().contiguous(), grad_frequencies, grad_angle
    return grad_seen, *(
        seen.new_empty(0) if x is None else g.to(x.dtype) for g, x in zip(found, given, strict=True)
    )


def _along(grads: tuple[Tensor, ...], seen: Tensor, taps: Tensor | None, angle: Tensor, planes: int) -> Tensor:
    """Gradient of the angle, float32 (B H T K): Im(conj(z) dL/dz) of rotated z (B H T X), summed over q and k."""
    found = torch.empty_like(angle, dtype=torch.float32)
    tile = Tile(grads[0], planes, PREPARE_PAIRS, PREPARE_WARPS, PREPARE_BATCHES)
    switches = {key: value for key, value in _switches(taps, None, angle).items() if "TAPS" in key}
    tile.launch(_angle_gradient_kernel, *grads[:2], seen, taps, angle, found, **switches)
    return found


def _switches(taps: Tensor | None, frequencies: Tensor | None, angle: Tensor | None) -> dict[str, object]:
    """Constants of the two kernels of `prepare`; taps as r(taps 3D), so that neighbours lie side by side."""
    return {
        "TAPS": 1 if taps is None else taps.shape[0],
        "HAS_TAPS": taps is not None,
        "HAS_FREQUENCIES": frequencies is not None,
        "HAS_ANGLE": angle is not None,
    }


def _prepare_fake(seen, taps, frequencies, angle, planes: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = seen.shape
    return tuple(seen.new_empty(batch, heads, tokens, width // (3 * heads)) for _ in range(3))


prepare = Operator(
    "mixer_prepare",
    "(Tensor seen, Tensor? taps, Tensor? frequencies, Tensor? angle, int planes, int heads)"
    " -> (Tensor, Tensor, Tensor)",
    _prepare,
    _prepare_fake,
    _prepare_backward,
)
"""q, k, v (B H T X) in the dtype of the projections `seen` (B T 3 planes D), before which there is nothing.

taps r(3D taps) or None; the pairs of q and k rotate by an angle r(B H T K), or by the number of tokens so far times
frequencies r(H K), both float32 in radians, or not at all: both given is a ValueError.
"""


# Triton's constants are capitals, its tuples know + but no star, and an `if` on a constant leaves out a branch.
# ruff: noqa: N803, N806, RUF005, SIM108


@triton.jit
def _cos_sin(angle):
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def _weights(taps, channel, inside, WIDTH: tl.constexpr, TAPS: tl.constexpr, HAS_TAPS: tl.constexpr):
    """The taps r(TAPS WIDTH) of some channels by how far they look back, each (1 COLUMNS)."""
    weights = ()
    for lag in tl.static_range(TAPS):
        if HAS_TAPS:
            weights = weights + (load(taps, (TAPS - 1 - lag) * WIDTH + channel, inside),)
        else:
            weights = weights + (1.0,)
    return weights


@triton.jit
def _convolved(source, row, channel, near, far, inside, WIDTH: tl.constexpr, SECOND: tl.constexpr, TAPS: tl.constexpr):
    """The short convolution of some channels and of their pairs' second members, WIDTH from token to token."""
    x = tl.zeros(inside.shape, tl.float32)
    y = tl.zeros(inside.shape, tl.float32)
    for lag in tl.static_range(TAPS):
        place = (row - lag) * WIDTH + channel
        there = inside & (row >= lag)
        x += near[lag] * load(source, place, there)
        y += far[lag] * load(source, place + SECOND, there)
    return x, y


@triton.jit(do_not_specialize=["tokens", "batch"])
def _prepare_kernel(
    seen, taps, frequencies, angle, q, k, v,
    tokens, batch,
    H: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr, BATCHES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TAPS: tl.constexpr, HAS_TAPS: tl.constexpr, HAS_FREQUENCIES: tl.constexpr,
    HAS_ANGLE: tl.constexpr,
):
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = 3 * D if PLANES == 2 else K  # from a pair's first member to its second
    head = tl.program_id(0)
    start, first, last = tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    if HAS_FREQUENCIES:
        frequency = load(frequencies, head * K + column, column < K)
        cos, sin = _cos_sin((row + 1).to(tl.float32) * frequency)
    for part in tl.static_range(3):
        out = (q, k, v)[part]
        near = _weights(taps, part * D + channel, column < K, 3 * D, TAPS, HAS_TAPS)
        if PLANES == 1:
            far = _weights(taps, part * D + channel + K, column < K, 3 * D, TAPS, HAS_TAPS)
        else:
            far = near
        for b in range(first, last):
            source = seen + b * tokens.to(tl.int64) * (3 * PLANES * D) + part * D
            x, y = _convolved(source, row, channel, near, far, inside, 3 * PLANES * D, SECOND, TAPS)
            if (HAS_FREQUENCIES or HAS_ANGLE) and part < 2:
                if HAS_ANGLE:
                    turned = angle + (b * H + head) * tokens.to(tl.int64) * K
                    cos, sin = _cos_sin(load(turned, row * K + column, inside))
                x, y = x * cos - y * sin, x * sin + y * cos
            if part < 2:
                x, y = x * (0.5 / K), y * (0.5 / K)
            target = out + (b * H + head) * tokens.to(tl.int64) * (2 * K)
            store(target, row * (2 * K) + column, x, inside)
            store(target, row * (2 * K) + column + K, y, inside)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _prepare_backward_kernel(
    grad_q, grad_k, grad_v, seen, taps, frequencies, angle, grad_seen, grad_taps, grad_frequencies,
    tokens, batch,
    H: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr, BATCHES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, STAGES: tl.constexpr, TAPS: tl.constexpr, HAS_TAPS: tl.constexpr,
    HAS_FREQUENCIES: tl.constexpr, HAS_ANGLE: tl.constexpr,
):
    """A program has one head of some texts and goes from token to token.

    A projection of token t went into the convolutions of t + lag: their gradients, rotated back, are held until the
    last of these comes, so each is read and rotated once. Of a fixed angle d/dangle is Im(conj(c) dL/dc) for the
    complex result c of a convolution, the sum of what each tap gave to it.
    """
    D: tl.constexpr = H * 2 * K // PLANES
    WIDTH: tl.constexpr = 3 * PLANES * D
    SECOND: tl.constexpr = 3 * D if PLANES == 2 else K
    head = tl.program_id(0)
    start, first, _last = tile(tokens, batch, BATCHES, ROWS)
    text = first + tl.arange(0, BATCHES)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (text < batch) & (column < K)
    channel = head * (2 * K // PLANES) + column
    lane = (text * H + head).to(tl.int64) * tokens
    source = text.to(tl.int64) * tokens * WIDTH + channel
    zero = tl.zeros((BATCHES, COLUMNS), tl.float32)
    if HAS_FREQUENCIES:
        grad_frequency = zero
        frequency = load(frequencies, head * K + column, column < K)
        step_cos, step_sin = _cos_sin(frequency)
    for part in tl.static_range(3):
        grad = (grad_q, grad_k, grad_v)[part] + lane * (2 * K) + column
        scale = 0.5 / K if part < 2 else 1.0
        near = _weights(taps, part * D + channel, column < K, 3 * D, TAPS, HAS_TAPS)
        if PLANES == 1:
            far = _weights(taps, part * D + channel + K, column < K, 3 * D, TAPS, HAS_TAPS)
        else:
            far = near
        near_sums = (zero,) * TAPS
        if PLANES == 1:
            far_sums = (zero,) * TAPS
        us, vs = (zero,) * TAPS, (zero,) * TAPS  # of the last tokens, the latest first
        if HAS_FREQUENCIES:
            cos, sin = _cos_sin((start + 1).to(tl.float32) * frequency)
        # A round takes as many tokens as are held, so that what it hands to the next was computed in it: what is only
        # passed on would keep the compiler from sending for numbers before their turn.
        for step in tl.range(0, ROWS + TAPS - 1, TAPS, num_stages=STAGES):
            for i in tl.static_range(TAPS):
                latest = start + step + i
                row = latest - (TAPS - 1)  # whose gradient is complete
                there = inside & (latest < tokens)
                u, v = load(grad, latest * (2 * K), there), load(grad, latest * (2 * K) + K, there)
                here = inside & (row >= start) & (row < start + ROWS) & (row < tokens)
                place = row.to(tl.int64) * WIDTH + part * D
                x, y = load(seen + source, place, here), load(seen + source, place + SECOND, here)
                if HAS_ANGLE and part < 2:
                    cos, sin = _cos_sin(load(angle + lane * K + column, latest * K, there))
                if (HAS_FREQUENCIES or HAS_ANGLE) and part < 2:
                    u, v = u * cos + v * sin, v * cos - u * sin
                us, vs = (u,) + _without_last(us, TAPS), (v,) + _without_last(vs, TAPS)
                dx, dy = zero, zero
                near_new, far_new = (), ()
                for lag in tl.static_range(TAPS):
                    u, v = us[TAPS - 1 - lag], vs[TAPS - 1 - lag]
                    dx += near[lag] * u
                    dy += far[lag] * v
                    if HAS_FREQUENCIES and part < 2:
                        count = (row + lag + 1).to(tl.float32)
                        grad_frequency += (scale * count) * (near[lag] * x * v - far[lag] * y * u)
                    if PLANES == 1:
                        near_new, far_new = near_new + (near_sums[lag] + x * u,), far_new + (far_sums[lag] + y * v,)
                    else:
                        near_new = near_new + (near_sums[lag] + x * u + y * v,)
                if HAS_TAPS:
                    near_sums = near_new
                    if PLANES == 1:
                        far_sums = far_new
                if HAS_FREQUENCIES:
                    cos, sin = cos * step_cos - sin * step_sin, sin * step_cos + cos * step_sin
                store(grad_seen + source, place, dx * scale, here)
                store(grad_seen + source, place + SECOND, dy * scale, here)
        if HAS_TAPS:
            sums = grad_taps + tl.program_id(1).to(tl.int64) * (TAPS * 3 * D) + part * D
            for lag in tl.static_range(TAPS):
                at = (TAPS - 1 - lag) * (3 * D) + channel
                store(sums, at, tl.sum(near_sums[lag], 0)[None, :] * scale, column < K)
                if PLANES == 1:
                    store(sums, at + K, tl.sum(far_sums[lag], 0)[None, :] * scale, column < K)
    if HAS_FREQUENCIES:
        sums = grad_frequencies + (tl.program_id(1) * H + head).to(tl.int64) * K
        store(sums, column, tl.sum(grad_frequency, 0)[None, :], column < K)


@triton.jit
def _without_last(values, COUNT: tl.constexpr):
    """The first COUNT - 1 of a tuple."""
    found = ()
    for i in tl.static_range(COUNT - 1):
        found = found + (values[i],)
    return found


@triton.jit(do_not_specialize=["tokens", "batch"])
def _angle_gradient_kernel(
    grad_q, grad_k, seen, taps, angle, grad_angle,
    tokens, batch,
    H: tl.constexpr, K: tl.constexpr, PLANES: tl.constexpr, BATCHES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TAPS: tl.constexpr, HAS_TAPS: tl.constexpr,
):
    """d/dangle is Im(conj(c) dL/dc) for the complex result c of a convolution, its gradient rotated back."""
    D: tl.constexpr = H * 2 * K // PLANES
    SECOND: tl.constexpr = 3 * D if PLANES == 2 else K
    head = tl.program_id(0)
    start, first, last = tile(tokens, batch, BATCHES, ROWS)
    row = start + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < K)
    channel = head * (2 * K // PLANES) + column
    for b in range(first, last):
        lane = (b * H + head) * tokens.to(tl.int64)
        cos, sin = _cos_sin(load(angle + lane * K, row * K + column, inside))
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for part in tl.static_range(2):
            near = _weights(taps, part * D + channel, column < K, 3 * D, TAPS, HAS_TAPS)
            if PLANES == 1:
                far = _weights(taps, part * D + channel + K, column < K, 3 * D, TAPS, HAS_TAPS)
            else:
                far = near
            source = seen + b * tokens.to(tl.int64) * (3 * PLANES * D) + part * D
            x, y = _convolved(source, row, channel, near, far, inside, 3 * PLANES * D, SECOND, TAPS)
            grad = (grad_q, grad_k)[part] + lane * (2 * K)
            u = load(grad, row * (2 * K) + column, inside)
            v = load(grad, row * (2 * K) + column + K, inside)
            total += x * (v * cos - u * sin) - y * (u * cos + v * sin)
        store(grad_angle + lane * K, row * K + column, total * (0.5 / K), inside)
