"""What lies between the products of one token's step through a Stage 1 with memory, as CUDA kernels.

A step of one text is launches and little else, so each kernel does all that stands between two products:
    embedded   rows of the token table, as what lifts them reads them
    columns    z + update, its RMS norm, a gain, and what the next product reads
    remember   short convolution, rotation, the matrix memory read and written, norm per head and gate, for each head
    gated      value silu(gate) of the feed-forward
    product    W x of a few columns, a bias added
    chosen     the likeliest token, and the first step whose logits are not finite
`muse.models.step_parts` is the form to read, and the reference. Numbers are float32 between products.

A complex product reads two columns of each row, [x, -y] and [y, x], so that [A, B] gives both planes; a real one reads
[x, y]. Glossary: B batch, D width, H heads, K pairs of real channels a head (X = 2K), planes 2 for complex numbers and
1 for real ones. The far member of a pair is the imaginary part, or a real channel K further on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile_triton import load, store

MOST_PAIRS = 128  # K of a head whose memory one program holds
THIN_ROWS = 4  # columns of a product that `product` serves; a library's is sooner with more
PRODUCT_OUTPUTS, PRODUCT_CHANNELS, PRODUCT_WARPS = 4, 1024, 4  # of a program of `product`
GATED_COLUMNS, GATED_WARPS = 512, 4
WARPS = 8  # of a program of `remember`
CHOSEN_LOGITS, CHOSEN_WARPS = 8192, 16  # that a program of `chosen` looks at together, and its warps


def embedded(ids: Tensor, table: Tensor, scale: float, width: int, planes: int, dtype: torch.dtype) -> Tensor:
    """Rows of the table r(V R) of ids (B), times scale: r(B width), 0 beyond R, or with two planes r(2B R)."""
    ids, out = ids.contiguous(), torch.empty(len(ids) * planes, width, dtype=dtype, device=ids.device)
    block = triton.next_power_of_2(width // planes)
    with torch.cuda.device_of(ids):
        _embedded_kernel[(len(ids),)](
            ids, table, out, scale, RANK=table.shape[1], WIDTH=width, PLANES=planes, BLOCK=block,
            num_warps=max(1, min(8, block // 64)),
        )  # fmt: skip
    return out


def columns(
    z: Tensor,
    update: Tensor | None,
    gain: Tensor,
    turn: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    planes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """z + update r(B 2D), its RMS norm u r(B 2D), and u times a gain as what a product reads, r(planes B 2D).

    The gain is r(D) of complex channels or r(2D) of real ones; with its imaginary part `turn` r(D) it turns them too.
    With one plane what is read is [x, y], whatever the gain's size.
    """
    rows, width = z.shape
    grown, normed = torch.empty_like(z), torch.empty_like(z)
    read = z.new_empty(planes * rows, width, dtype=dtype)
    block = triton.next_power_of_2(width // 2)
    with torch.cuda.device_of(z):
        _columns_kernel[(rows,)](
            z, z if update is None else update, gain, gain if turn is None else turn, grown, normed, read,
            HALF=width // 2, REAL_GAIN=len(gain) == width, PLANES=planes, EPS=eps, BLOCK=block,
            GROWS=update is not None, TURNS=turn is not None, num_warps=max(1, min(8, block // 64)),
        )  # fmt: skip
    return grown, normed, read


@dataclass(frozen=True)
class Memory:
    """What `remember` knows of a layer beside its states. Absent parts are None."""

    heads: int
    pairs: int  # K
    planes: int
    taps: Tensor | None  # r(taps planes 3D)
    decay: Tensor | None  # r(H 2D), which the token multiplies
    logit: Tensor | None  # r(H), of the rate without the token
    frequencies: Tensor | None  # r(H K), radians a token
    gain: Tensor  # r(D), of the norm per head
    imaginary: bool  # whether q k* acts as a complex number
    gated: bool
    cap: float
    eps: float


def remember(
    memory: Memory, read: Tensor, u: Tensor, recent: Tensor, angle: Tensor | None, matrix: Tensor, dtype: torch.dtype
) -> Tensor:
    """What the product behind the memory reads, r(planes B D planes), from q, k, v and gate r(planes B O).

    States are written to in place: recent r(B taps-1 planes 3D), angle r(B H K), matrix r(B H K 2K) or r(B H X X).
    """
    rows, width = len(u), u.shape[1]
    channels = memory.heads * memory.pairs * 2 // memory.planes
    out = u.new_empty(memory.planes * rows, memory.planes * channels, dtype=dtype)
    optional = memory.taps, memory.decay, memory.logit, memory.frequencies, angle
    taps, decay, logit, frequencies, angle = (u if x is None else x for x in optional)
    with torch.cuda.device_of(u):
        _remember_kernel[(rows * memory.heads,)](
            read, u, recent, taps, decay, logit, frequencies, angle, memory.gain, matrix, out, memory.cap,
            OUTPUTS=read.shape[1], WIDTH=width, D=channels, H=memory.heads, K=memory.pairs, PLANES=memory.planes,
            TAPS=1 if memory.taps is None else len(memory.taps), FADES=memory.logit is not None,
            BY_TOKEN=memory.decay is not None, ROTATES=memory.frequencies is not None, IMAGINARY=memory.imaginary,
            GATED=memory.gated, EPS=memory.eps, BLOCK=triton.next_power_of_2(memory.pairs),
            WIDE=triton.next_power_of_2(width), num_warps=WARPS if memory.pairs > 16 else 1,
        )  # fmt: skip
    return out


def gated(read: Tensor, planes: int, dtype: torch.dtype) -> Tensor:
    """value silu(gate) as what a product reads, r(planes B planes F), from both r(planes B 2F), the value first."""
    width = read.shape[1] // 2
    out = read.new_empty(len(read), planes * width, dtype=dtype)
    block = min(GATED_COLUMNS, triton.next_power_of_2(width))
    with torch.cuda.device_of(read):
        _gated_columns_kernel[(len(read) // planes, triton.cdiv(width, block))](
            read, out, F=width, PLANES=planes, BLOCK=block, num_warps=max(1, min(GATED_WARPS, block // 64))
        )
    return out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x r(N O), rounded to the dtype of W r(O I), for columns x r(N I) in it; to it a bias r(O) float32 is added.

    Another kernel than a library's serves so few columns; more of them go to it.
    """
    if len(x) > THIN_ROWS:
        found = torch.nn.functional.linear(x, weight)
        return found if bias is None else found + bias
    outputs, inputs = weight.shape
    out = x.new_empty(len(x), outputs, dtype=weight.dtype if bias is None else bias.dtype)
    block = min(PRODUCT_CHANNELS, triton.next_power_of_2(inputs))
    with torch.cuda.device_of(x):
        _thin_product_kernel[(triton.cdiv(outputs, PRODUCT_OUTPUTS),)](
            x, weight, weight if bias is None else bias, out, outputs, x.stride(0), weight.stride(0),
            N=len(x), INPUTS=inputs, HAS_BIAS=bias is not None, ROWS=PRODUCT_OUTPUTS, BLOCK=block,
            num_warps=max(1, min(PRODUCT_WARPS, block // 64)),
        )  # fmt: skip
    return out


def chosen(scores: Tensor, token: Tensor | None, index: Tensor, bad: Tensor) -> None:
    """What `step.chosen` does."""
    with torch.cuda.device_of(scores):
        _chosen_kernel[(len(scores),)](
            scores, index if token is None else token, index, bad, scores.shape[1], CHOOSES=token is not None,
            BLOCK=min(CHOSEN_LOGITS, triton.next_power_of_2(scores.shape[1])), num_warps=CHOSEN_WARPS,
        )  # fmt: skip


# Triton's constants are capitals, and an `if` on a constant leaves out a branch.
# ruff: noqa: N803, N806


@triton.jit
def _pair(pointer, row, place, inside, real, imag, SPAN: tl.constexpr, PLANES: tl.constexpr):
    """Stores a complex pair as two columns [x, -y] and [y, x] of so many channels, a real one as it is."""
    if PLANES == 2:
        first = pointer + row * (4 * SPAN)
        store(first, place, real, inside)
        store(first, place + SPAN, -imag, inside)
        store(first, place + 2 * SPAN, imag, inside)
        store(first, place + 3 * SPAN, real, inside)
    else:
        store(pointer + row * (2 * SPAN), place, real, inside)
        store(pointer + row * (2 * SPAN), place + SPAN, imag, inside)


@triton.jit
def _embedded_kernel(
    ids, table, out, scale, RANK: tl.constexpr, WIDTH: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    first = table + tl.load(ids + row).to(tl.int64) * RANK
    if PLANES == 2:
        inside = place < RANK // 2
        real, imag = load(first, place, inside) * scale, load(first + RANK // 2, place, inside) * scale
        _pair(out, row, place, inside, real, imag, RANK // 2, 2)
    else:
        store(out + row * WIDTH, place, load(first, place, place < RANK) * scale, place < WIDTH)


@triton.jit
def _columns_kernel(
    z, update, gain, turn, grown, normed, read,
    HALF: tl.constexpr, REAL_GAIN: tl.constexpr, PLANES: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
    GROWS: tl.constexpr, TURNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < HALF
    first = row * (2 * HALF)
    x, y = load(z + first, place, inside), load(z + first + HALF, place, inside)
    if GROWS:
        x += load(update + first, place, inside)
        y += load(update + first + HALF, place, inside)
    store(grown + first, place, x, inside)
    store(grown + first + HALF, place, y, inside)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x + y * y, 0) / (2 * HALF) + EPS)
    x *= rstd
    y *= rstd
    store(normed + first, place, x, inside)
    store(normed + first + HALF, place, y, inside)
    near = load(gain, place, inside)
    far = near
    if REAL_GAIN:
        far = load(gain + HALF, place, inside)
    u, v = x * near, y * far
    if TURNS:
        angle = load(turn, place, inside)
        u -= y * angle
        v += x * angle
    _pair(read, row, place, inside, u, v, HALF, PLANES)


@triton.jit
def _convolved(new, recent, taps, place, inside, SPAN: tl.constexpr, TAPS: tl.constexpr):
    """The newest of TAPS values of each channel, weighed with those before it, which move up by one."""
    if TAPS > 1:
        total = new * load(taps + (TAPS - 1) * SPAN, place, inside)
        for t in tl.static_range(TAPS - 1):
            old = load(recent + t * SPAN, place, inside)
            total += old * load(taps + t * SPAN, place, inside)
            if t > 0:
                store(recent + (t - 1) * SPAN, place, old, inside)
        store(recent + (TAPS - 2) * SPAN, place, new, inside)
        new = total
    return new


@triton.jit
def _block(matrix, tile, inside):
    return tl.load(matrix + tile, mask=inside, other=0.0)


@triton.jit
def _learned(block, matrix, tile, inside, decay, key, value, other_key, other_value, SECOND: tl.constexpr):
    """A block of the memory after this token, which is stored: it fades and learns one outer product, or two."""
    block = block * decay + key[:, None] * value[None, :]
    if SECOND:
        block += other_key[:, None] * other_value[None, :]
    tl.store(matrix + tile, block, mask=inside)
    return block


@triton.jit
def _remember_kernel(
    read, u, recent, taps, decay, logit, frequencies, angle, gain, matrix, out, cap,
    OUTPUTS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, H: tl.constexpr, K: tl.constexpr,
    PLANES: tl.constexpr, TAPS: tl.constexpr, FADES: tl.constexpr, BY_TOKEN: tl.constexpr, ROTATES: tl.constexpr,
    IMAGINARY: tl.constexpr, GATED: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    SPAN: tl.constexpr = PLANES * 3 * D  # channels of the convolution
    FAR: tl.constexpr = OUTPUTS if PLANES == 2 else K  # from one member of a pair to the other, in what was read
    FAR_SPAN: tl.constexpr = 3 * D if PLANES == 2 else K  # and in what the convolution sees
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    place = tl.arange(0, BLOCK)
    inside = place < K
    lane = row * H + head
    tile = place[:, None] * (2 * K) + place[None, :]
    both = inside[:, None] & inside[None, :]
    first = matrix + lane * (2 * K * K if IMAGINARY else 4 * K * K)
    near, across = _block(first, tile, both), _block(first + K, tile, both)  # first, as they are the longest to come
    if not IMAGINARY:
        second = first + 2 * K * K
        low, low_across = _block(second, tile, both), _block(second + K, tile, both)
    channel = head * (2 * K // PLANES) + place
    new, old = read + row * (PLANES * OUTPUTS), recent + row * ((TAPS - 1) * SPAN)
    q = _convolved(load(new, channel, inside), old, taps, channel, inside, SPAN, TAPS)
    k = _convolved(load(new, channel + D, inside), old, taps, channel + D, inside, SPAN, TAPS)
    v = _convolved(load(new, channel + 2 * D, inside), old, taps, channel + 2 * D, inside, SPAN, TAPS)
    far = channel + FAR_SPAN
    q_far = _convolved(load(new, channel + FAR, inside), old, taps, far, inside, SPAN, TAPS)
    k_far = _convolved(load(new, channel + FAR + D, inside), old, taps, far + D, inside, SPAN, TAPS)
    v_far = _convolved(load(new, channel + FAR + 2 * D, inside), old, taps, far + 2 * D, inside, SPAN, TAPS)
    if ROTATES:
        turned = load(angle + lane * K, place, inside) + load(frequencies + head * K, place, inside)
        turned -= 6.283185307179586 * tl.floor(turned / 6.283185307179586)
        store(angle + lane * K, place, turned, inside)
        cos, sin = tl.cos(turned), tl.sin(turned)
        q, q_far = q * cos - q_far * sin, q_far * cos + q * sin
        k, k_far = k * cos - k_far * sin, k_far * cos + k * sin
    q, q_far, k, k_far = q / (2 * K), q_far / (2 * K), k / (2 * K), k_far / (2 * K)
    kept = 1.0
    if FADES:
        rate = tl.load(logit + head).to(tl.float32)
        if BY_TOKEN:
            wide = tl.arange(0, WIDE)
            by_token = load(u + row * WIDTH, wide, wide < WIDTH) * load(decay + head * WIDTH, wide, wide < WIDTH)
            rate += tl.sum(by_token, 0)
        kept = tl.exp(-cap * tl.sigmoid(rate))
    if IMAGINARY:
        near = _learned(near, first, tile, both, kept, k, v, k_far, v_far, True)
        across = _learned(across, first + K, tile, both, kept, k, v_far, k_far, -v, True)
        y = tl.sum(q[:, None] * near - q_far[:, None] * across, 0)
        y_far = tl.sum(q[:, None] * across + q_far[:, None] * near, 0)
    else:
        near = _learned(near, first, tile, both, kept, k, v, k, v, False)
        across = _learned(across, first + K, tile, both, kept, k, v_far, k, v, False)
        low = _learned(low, second, tile, both, kept, k_far, v, k, v, False)
        low_across = _learned(low_across, second + K, tile, both, kept, k_far, v_far, k, v, False)
        y = tl.sum(q[:, None] * near + q_far[:, None] * low, 0)
        y_far = tl.sum(q[:, None] * across + q_far[:, None] * low_across, 0)
    rstd = 1.0 / tl.sqrt(tl.sum(y * y + y_far * y_far, 0) / (2 * K) + EPS)
    factor = load(gain, channel, inside) * rstd
    far_factor = factor
    if PLANES == 1:
        far_factor = load(gain, channel + K, inside) * rstd
    if GATED:
        g = load(new + 3 * D, channel, inside)
        factor *= g * tl.sigmoid(g)
        if PLANES == 2:
            far_factor = factor
        else:
            g = load(new + 3 * D, channel + K, inside)
            far_factor *= g * tl.sigmoid(g)
    if PLANES == 2:
        _pair(out, row, channel, inside, y * factor, y_far * far_factor, D, 2)
    else:
        store(out + row * D, channel, y * factor, inside)
        store(out + row * D, channel + K, y_far * far_factor, inside)


@triton.jit
def _gated_columns_kernel(read, out, F: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < F
    first = read + row * (PLANES * 2 * F)
    g = load(first + F, place, inside)
    g *= tl.sigmoid(g)
    x = load(first, place, inside) * g
    if PLANES == 2:
        _pair(out, row, place, inside, x, load(first + 2 * F, place, inside) * g, F, 2)
    else:
        store(out + row * F, place, x, inside)


@triton.jit
def _thin_product_kernel(
    x, weight, bias, out, outputs, x_stride, weight_stride,
    N: tl.constexpr, INPUTS: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    within = row < outputs
    lines = row.to(tl.int64)[:, None] * weight_stride
    for n in tl.static_range(N):
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, INPUTS, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < INPUTS
            w = load(weight, lines + place[None, :], within[:, None] & inside[None, :])
            total += w * load(x + n * x_stride, place, inside)[None, :]
        found = tl.sum(total, 1)
        if HAS_BIAS:
            found = found.to(weight.dtype.element_ty).to(tl.float32) + load(bias, row, within)
        store(out + n * outputs, row, found, within)


@triton.jit
def _chosen_kernel(scores, token, index, bad, vocab, CHOOSES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first = scores + row.to(tl.int64) * vocab
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int64)
    finite = tl.full((BLOCK,), 1, tl.int32)
    for start in range(0, vocab, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < vocab
        z = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
        finite = tl.where(tl.abs(z) < float("inf"), finite, 0)
        better = inside & (z > most)
        most = tl.where(better, z, most)
        where = tl.where(better, place.to(tl.int64), where)
    step = tl.load(index + row)
    tl.store(index + row, step + 1)
    if tl.min(finite, 0) == 0 and tl.load(bad + row) < 0:
        tl.store(bad + row, step)
    if CHOOSES:
        best = tl.max(most, 0)
        tl.store(token + row, tl.min(tl.where(most == best, where, vocab), 0))
