"""The norm of `norms`, and the end of a Stage 1 block, as one CUDA kernel each way; a program holds whole tokens.

    y = norm(z),    y = norm(s)  with  s = z + keep f,  f = relu(r + b) / r h,  r = sqrt(|h|^2 + eps^2)

The second also gives the norm that follows, n = norm'(y): what the next block multiplies.

The PyTorch form in `norms` is the reference; letters are as there, planes are real (N 2D), statistics float32. What
the backward pass needs of the inputs it computes again in registers, so nothing but the inputs is kept. Gradients of
vectors are summed over the tokens of a program, then over programs by PyTorch: no atomics, equal runs give equal sums.
For torch.compile each is one opaque step.
"""

# ruff: noqa: N803 - Triton's constants are written in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operator import Operator
from .tile_triton import contiguous, load, store

MOST_CHANNELS = 4096  # a token has to fit into one program and, with the next one on its way, into shared memory
FORWARD_ROWS, FORWARD_CHANNELS = 1, 4  # tokens that a program holds at a time, and complex channels of each thread
BACKWARD_ROWS, BACKWARD_CHANNELS = 1, 4
BACKWARD_STAGES = 2  # tokens being worked on or on their way; 1 waits for them
BACKWARD_PROGRAMS = 4 * 132  # at most: each writes one row of partial sums
MOST_WARPS = 16


def _norm(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    z, gamma, beta = contiguous(z, gamma, beta)
    y = torch.empty(z.shape, dtype=dtype, device=z.device)
    rows, options = _forward_options(z)
    if rows:
        with torch.cuda.device_of(z):
            _norm_kernel[(triton.cdiv(rows, FORWARD_ROWS),)](z, gamma, beta, y, rows, eps, **options)
    return y


def _norm_backward(grad: Tensor, z: Tensor, gamma: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    """dL/dz as z, and dL/d(gamma, beta) in float32, r(2 D)."""
    (grad, z, gamma), (_, eps, _) = contiguous(grad, z, gamma), rest
    grad_z = torch.empty_like(z)
    rows, programs, options = _backward_options(z)
    sums = torch.empty(programs, 2, z.shape[-1] // 2, dtype=torch.float32, device=z.device)
    if rows:
        with torch.cuda.device_of(z):
            _norm_backward_kernel[(programs,)](grad, z, gamma, grad_z, sums, rows, eps, **options)
    return grad_z, sums.sum(0)


def _residual_norm(*inputs: Tensor | float | None) -> Tensor:
    """y of z, h, keep, bias, gamma, beta and the two eps."""
    return _end_of_block(*inputs[:6], None, None, *inputs[6:], None)[0]


def _end_of_block(
    z: Tensor, h: Tensor, keep: Tensor | None, bias: Tensor, gamma: Tensor, beta: Tensor,
    next_gamma: Tensor | None, next_beta: Tensor | None, norm_eps: float, eps: float, dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """y and n; n is y itself where no norm follows."""
    vectors, following = contiguous(bias, gamma, beta), contiguous(next_gamma, next_beta)
    z, h, keep = contiguous(z, h, keep)
    y = torch.empty(z.shape, dtype=torch.promote_types(z.dtype, h.dtype), device=z.device)
    has_next = next_gamma is not None
    n = torch.empty(z.shape, dtype=dtype, device=z.device) if has_next else y
    rows, options = _forward_options(z)
    if rows:
        read = z, h, h if keep is None else keep, *vectors, *(following if has_next else vectors[1:])
        with torch.cuda.device_of(z):
            _residual_norm_kernel[(triton.cdiv(rows, FORWARD_ROWS),)](
                *read, y, n, rows, norm_eps, eps, HAS_KEEP=keep is not None, HAS_NEXT=has_next, **options
            )
    return y, n


def _residual_norm_backward(grad: Tensor, *inputs: Tensor | float | None) -> tuple[Tensor, Tensor, Tensor]:
    return _end_of_block_backward(grad, None, *inputs[:6], None, None, *inputs[6:], None)


def _end_of_block_backward(
    grad: Tensor | None, grad_next: Tensor | None, z: Tensor, h: Tensor, keep: Tensor | None,
    bias: Tensor, gamma: Tensor, beta: Tensor, next_gamma: Tensor | None, next_beta: Tensor | None,
    norm_eps: float, eps: float, dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dz as z, dL/dh as h, and dL/d(gamma, beta, bias, gamma', beta') in float32, r(5 D), or of the first three."""
    z, h, keep, bias, gamma, beta = contiguous(z, h, keep, bias, gamma, beta)
    has_next = next_gamma is not None
    if has_next and grad_next is None:
        grad_next = torch.zeros_like(z)
    grads, next_gamma = contiguous(grad, grad_next), next_gamma.contiguous() if has_next else gamma
    grad_z, grad_h = torch.empty_like(z), torch.empty_like(h)
    rows, programs, options = _backward_options(z)
    sums = torch.empty(programs, 5 if has_next else 3, z.shape[-1] // 2, dtype=torch.float32, device=z.device)
    if rows:
        given = next(x for x in grads if x is not None)
        read = *(given if x is None else x for x in grads), z, h, h if keep is None else keep
        switches = {"HAS_KEEP": keep is not None, "HAS_GRAD": grad is not None, "HAS_NEXT": has_next}
        with torch.cuda.device_of(z):
            _residual_norm_backward_kernel[(programs,)](
                *read, bias, gamma, beta, next_gamma, grad_z, grad_h, sums, rows, norm_eps, eps, **switches, **options
            )
    return grad_z, grad_h, sums.sum(0)


def _forward_options(z: Tensor) -> tuple[int, dict]:
    """Number of tokens, and the constants of a forward kernel."""
    return _options(z, FORWARD_ROWS, FORWARD_CHANNELS)


def _backward_options(z: Tensor) -> tuple[int, int, dict]:
    """Number of tokens, number of programs, and the constants of a backward kernel."""
    rows, options = _options(z, BACKWARD_ROWS, BACKWARD_CHANNELS)
    programs = min(triton.cdiv(rows, BACKWARD_ROWS), BACKWARD_PROGRAMS)
    return rows, programs, options | {"STAGES": BACKWARD_STAGES}


def _options(z: Tensor, rows: int, channels_per_thread: int) -> tuple[int, dict]:
    channels = z.shape[-1] // 2
    block = triton.next_power_of_2(channels)
    warps = min(max(1, rows * block // (32 * channels_per_thread)), MOST_WARPS)
    return z.numel() // z.shape[-1], {"D": channels, "ROWS": rows, "BLOCK": block, "num_warps": warps}


def _residual_norm_fake(z, h, *rest: object) -> Tensor:
    return z.new_empty(z.shape, dtype=torch.promote_types(z.dtype, h.dtype))


def _split(grad_z: Tensor, grad_h: Tensor, sums: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of z, h, keep, bias, gamma, beta, and of gamma' and beta' where sums has them."""
    gamma, beta, bias, *following = sums
    return grad_z, grad_h, None, bias, gamma, beta, *following


def _vector_sums(tensors: int, vectors: int, *given: Tensor) -> tuple[Tensor, ...]:
    """Room for the gradients of the first inputs, and of the vectors as r(vectors D)."""
    return *(x.new_empty(x.shape) for x in given[:tensors]), given[0].new_empty(
        vectors, given[0].shape[-1] // 2, dtype=torch.float32
    )


complex_layer_norm = Operator(
    "norm",
    "(Tensor z, Tensor gamma, Tensor beta, float eps, ScalarType dtype) -> Tensor",
    _norm,
    lambda z, gamma, beta, eps, dtype: z.new_empty(z.shape, dtype=dtype),
    _norm_backward,
    lambda grad, z, *rest: _vector_sums(1, 2, z),
    found=2,
    split=lambda grad_z, sums: (grad_z, *sums),
)
"""norm(z) in `dtype`: planar z r(... 2D), gamma and beta r(D)."""

RESIDUAL = "Tensor z, Tensor h, Tensor? keep, Tensor bias, Tensor gamma, Tensor beta"
residual_norm = Operator(
    "residual_norm",
    f"({RESIDUAL}, float norm_eps, float eps) -> Tensor",
    _residual_norm,
    _residual_norm_fake,
    _residual_norm_backward,
    lambda grad, z, h, *rest: _vector_sums(2, 3, z, h),
    found=3,
    split=_split,
)
"""norm(z + keep modrelu(h)): planar z and h r(... 2D), keep r(... D) or None, vectors r(D).

norm_eps is the norm's, eps that of the magnitude. The result has the wider dtype of z and h.
"""

residual_norms = Operator(
    "residual_norms",
    f"({RESIDUAL}, Tensor next_gamma, Tensor next_beta, float norm_eps, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor)",
    _end_of_block,
    lambda z, h, *rest: (_residual_norm_fake(z, h), z.new_empty(z.shape, dtype=rest[-1])),
    _end_of_block_backward,
    lambda grad, grad_next, z, h, *rest: _vector_sums(2, 5, z, h),
    found=3,
    split=_split,
    absent_grads=True,  # behind the last block nobody reads y
)
"""y as `residual_norm`, and n = norm'(y) in `dtype` with gamma' and beta'."""


@triton.jit
def _places(first, rows, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets (ROWS BLOCK) of the real parts of the tokens from `first`: in r(N 2D), in r(N D); and which exist."""
    token = (first + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    return token * (2 * D) + column, token * D + column, (token < rows) & (column < D)


@triton.jit
def _vector(pointer, D: tl.constexpr, BLOCK: tl.constexpr):
    """r(D) as (1 BLOCK) in float32."""
    column = tl.arange(0, BLOCK)[None, :]
    return tl.load(pointer + column, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def _mean(x, D: tl.constexpr):
    return tl.sum(x, 1)[:, None] / D


@triton.jit
def _normed(x, y, inside, eps, D: tl.constexpr):
    """n = (z - mu) / sqrt(E|z - mu|^2 + eps) as two planes, 0 outside, and the factor of each token."""
    x = tl.where(inside, x - _mean(x, D), 0.0)
    y = tl.where(inside, y - _mean(y, D), 0.0)
    rstd = 1.0 / tl.sqrt(_mean(x * x + y * y, D) + eps)
    return x * rstd, y * rstd, rstd


@triton.jit
def _normed_backward(gx, gy, nx, ny, rstd, gamma, inside, D: tl.constexpr):
    """dL/dz of y = gamma n + beta from dL/dy, as two planes."""
    gx, gy = gx * gamma, gy * gamma
    along = _mean(gx * nx + gy * ny, D)
    return rstd * (gx - _mean(gx, D) - nx * along), rstd * (gy - _mean(gy, D) - ny * along)


@triton.jit
def _modrelu_scale(hx, hy, bias, eps):
    """relu(r + b) / r, r, and whether r + b > 0; NaN stays NaN."""
    most = tl.maximum(tl.maximum(tl.abs(hx), tl.abs(hy)), eps)  # its squares do not overflow
    sx, sy, se = hx / most, hy / most, eps / most
    r = most * tl.sqrt(sx * sx + sy * sy + se * se)
    shifted = r + bias
    return tl.where(shifted <= 0.0, 0.0, shifted) / r, r, shifted > 0.0


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    z, gamma, beta, out, rows, eps, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    place, _, inside = _places(tl.program_id(0) * ROWS, rows, D, ROWS, BLOCK)
    x, y, _rstd = _normed(load(z, place, inside), load(z + D, place, inside), inside, eps, D)
    scale, shift = _vector(gamma, D, BLOCK), _vector(beta, D, BLOCK)
    store(out, place, x * scale + shift, inside)
    store(out + D, place, y * scale, inside)


@triton.jit(do_not_specialize=["rows"])
def _residual_norm_kernel(
    z, h, keep, bias, gamma, beta, next_gamma, next_beta, out, next_out, rows, norm_eps, eps,
    HAS_KEEP: tl.constexpr, HAS_NEXT: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    place, place_keep, inside = _places(tl.program_id(0) * ROWS, rows, D, ROWS, BLOCK)
    hx, hy = load(h, place, inside), load(h + D, place, inside)
    factor, _r, _open = _modrelu_scale(hx, hy, _vector(bias, D, BLOCK), eps)
    if HAS_KEEP:
        factor *= load(keep, place_keep, inside)
    x, y = load(z, place, inside) + factor * hx, load(z + D, place, inside) + factor * hy
    x, y, _rstd = _normed(x, y, inside, norm_eps, D)
    scale, shift = _vector(gamma, D, BLOCK), _vector(beta, D, BLOCK)
    x = (x * scale + shift).to(out.dtype.element_ty)
    y = (y * scale).to(out.dtype.element_ty)
    tl.store(out + place, x, mask=inside)
    tl.store(out + D + place, y, mask=inside)
    if HAS_NEXT:
        x, y, _rstd = _normed(x.to(tl.float32), y.to(tl.float32), inside, norm_eps, D)
        scale, shift = _vector(next_gamma, D, BLOCK), _vector(next_beta, D, BLOCK)
        store(next_out, place, x * scale + shift, inside)
        store(next_out + D, place, y * scale, inside)


@triton.jit(do_not_specialize=["rows"])
def _norm_backward_kernel(
    grad, z, gamma, grad_z, sums, rows, eps,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    scale = _vector(gamma, D, BLOCK)
    sum_gamma = tl.zeros((BLOCK,), tl.float32)
    sum_beta = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        place, _, inside = _places(first, rows, D, ROWS, BLOCK)
        gx, gy = load(grad, place, inside), load(grad + D, place, inside)
        nx, ny, rstd = _normed(load(z, place, inside), load(z + D, place, inside), inside, eps, D)
        sum_gamma += tl.sum(gx * nx + gy * ny, 0)
        sum_beta += tl.sum(gx, 0)
        dx, dy = _normed_backward(gx, gy, nx, ny, rstd, scale, inside, D)
        store(grad_z, place, dx, inside)
        store(grad_z + D, place, dy, inside)
    column = tl.arange(0, BLOCK)
    sums += tl.program_id(0) * 2 * D + column
    tl.store(sums, sum_gamma, mask=column < D)
    tl.store(sums + D, sum_beta, mask=column < D)


@triton.jit(do_not_specialize=["rows"])
def _residual_norm_backward_kernel(
    grad, grad_next, z, h, keep, bias, gamma, beta, next_gamma, grad_z, grad_h, sums, rows, norm_eps, eps,
    HAS_KEEP: tl.constexpr, HAS_GRAD: tl.constexpr, HAS_NEXT: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    b, scale = _vector(bias, D, BLOCK), _vector(gamma, D, BLOCK)
    if HAS_NEXT:
        shift, next_scale = _vector(beta, D, BLOCK), _vector(next_gamma, D, BLOCK)
        sum_next_gamma = tl.zeros((BLOCK,), tl.float32)
        sum_next_beta = tl.zeros((BLOCK,), tl.float32)
    sum_gamma = tl.zeros((BLOCK,), tl.float32)
    sum_beta = tl.zeros((BLOCK,), tl.float32)
    sum_bias = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        place, place_keep, inside = _places(first, rows, D, ROWS, BLOCK)
        hx, hy = load(h, place, inside), load(h + D, place, inside)
        factor, r, is_open = _modrelu_scale(hx, hy, b, eps)
        kept = load(keep, place_keep, inside) if HAS_KEEP else 1.0
        x, y = load(z, place, inside) + kept * factor * hx, load(z + D, place, inside) + kept * factor * hy
        nx, ny, rstd = _normed(x, y, inside, norm_eps, D)
        if HAS_GRAD:
            gx, gy = load(grad, place, inside), load(grad + D, place, inside)
        if HAS_NEXT:
            x = (nx * scale + shift).to(grad_z.dtype.element_ty).to(tl.float32)  # as it was stored
            y = (ny * scale).to(grad_z.dtype.element_ty).to(tl.float32)
            mx, my, next_rstd = _normed(x, y, inside, norm_eps, D)
            x, y = load(grad_next, place, inside), load(grad_next + D, place, inside)
            sum_next_gamma += tl.sum(x * mx + y * my, 0)
            sum_next_beta += tl.sum(x, 0)
            x, y = _normed_backward(x, y, mx, my, next_rstd, next_scale, inside, D)
            if HAS_GRAD:
                gx, gy = gx + x, gy + y
            else:
                gx, gy = x, y
            gx, gy = tl.where(inside, gx, 0.0), tl.where(inside, gy, 0.0)
        sum_gamma += tl.sum(gx * nx + gy * ny, 0)
        sum_beta += tl.sum(gx, 0)
        dx, dy = _normed_backward(gx, gy, nx, ny, rstd, scale, inside, D)
        store(grad_z, place, dx, inside)
        store(grad_z + D, place, dy, inside)
        dx, dy = dx * kept, dy * kept
        radial = tl.where(is_open & inside, (dx * hx + dy * hy) / r, 0.0)  # df/db, and the part of dL/df along h
        sum_bias += tl.sum(radial, 0)
        inward = radial * b / (r * r)
        store(grad_h, place, dx * factor - hx * inward, inside)
        store(grad_h + D, place, dy * factor - hy * inward, inside)
    column = tl.arange(0, BLOCK)
    sums += tl.program_id(0) * (5 if HAS_NEXT else 3) * D + column
    tl.store(sums, sum_gamma, mask=column < D)
    tl.store(sums + D, sum_beta, mask=column < D)
    tl.store(sums + 2 * D, sum_bias, mask=column < D)
    if HAS_NEXT:
        tl.store(sums + 3 * D, sum_next_gamma, mask=column < D)
        tl.store(sums + 4 * D, sum_next_beta, mask=column < D)
