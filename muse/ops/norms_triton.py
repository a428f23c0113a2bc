"""The norm of `norms`, and the end of a Stage 1 block, as one CUDA kernel each way; a program holds whole tokens.

    y = norm(z),    y = norm(s)  with  s = z + keep f,  f = relu(r + b) / r h,  r = sqrt(|h|^2 + eps^2)

The second also gives the norm that follows, n = norm'(y): what the next block multiplies.

The PyTorch form in `norms` is the reference; letters are as there, planes are real (N 2D), statistics float32. What
the backward pass needs of the inputs it computes again in registers, so nothing but the inputs is kept. Gradients of
vectors are summed over the tokens of a program, then over programs by PyTorch: no atomics, equal runs give equal sums.
For torch.compile each is one opaque step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_CHANNELS = 4096  # a token has to fit into one program and, with the next one on its way, into shared memory
FORWARD_ROWS, FORWARD_CHANNELS = 1, 4  # tokens that a program holds at a time, and complex channels of each thread
BACKWARD_ROWS, BACKWARD_CHANNELS = 1, 4
BACKWARD_STAGES = 2  # tokens being worked on or on their way; 1 waits for them
BACKWARD_PROGRAMS = 4 * 132  # at most: each writes one row of partial sums
MOST_WARPS = 16


def complex_layer_norm(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """norm(z) in `dtype`: planar z r(... 2D), gamma and beta r(D)."""
    call = _norm_op if torch.compiler.is_compiling() else _Norm.apply
    return call(z, gamma, beta, eps, dtype)


def residual_norm(
    z: Tensor, h: Tensor, keep: Tensor | None, bias: Tensor, gamma: Tensor, beta: Tensor, norm_eps: float, eps: float
) -> Tensor:
    """norm(z + keep modrelu(h)): planar z and h r(... 2D), keep r(... D) or None, vectors r(D).

    norm_eps is the norm's, eps that of the magnitude. The result has the wider dtype of z and h.
    """
    call = _residual_norm_op if torch.compiler.is_compiling() else _ResidualNorm.apply
    return call(z, h, keep, bias, gamma, beta, norm_eps, eps)


def residual_norms(
    z: Tensor,
    h: Tensor,
    keep: Tensor | None,
    vectors: tuple[Tensor, Tensor, Tensor],
    following: tuple[Tensor, Tensor],
    norm_eps: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """y as `residual_norm` with vectors (bias, gamma, beta), and n = norm'(y) in `dtype` with gamma' and beta'."""
    call = _residual_norms_op if torch.compiler.is_compiling() else _ResidualNorms.apply
    return call(z, h, keep, *vectors, *following, norm_eps, eps, dtype)


def _norm(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    z, gamma, beta = z.contiguous(), gamma.contiguous(), beta.contiguous()
    y = torch.empty(z.shape, dtype=dtype, device=z.device)
    rows, options = _forward_options(z)
    if rows:
        with torch.cuda.device_of(z):
            _norm_kernel[(triton.cdiv(rows, FORWARD_ROWS),)](z, gamma, beta, y, rows, eps, **options)
    return y


def _norm_backward(grad: Tensor, z: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """dL/dz as z, and dL/d(gamma, beta) in float32, r(2 D)."""
    grad, z, gamma = grad.contiguous(), z.contiguous(), gamma.contiguous()
    grad_z = torch.empty_like(z)
    rows, programs, options = _backward_options(z)
    sums = torch.empty(programs, 2, z.shape[-1] // 2, dtype=torch.float32, device=z.device)
    if rows:
        with torch.cuda.device_of(z):
            _norm_backward_kernel[(programs,)](grad, z, gamma, grad_z, sums, rows, eps, **options)
    return grad_z, sums.sum(0)


def _residual_norm(
    z: Tensor, h: Tensor, keep: Tensor | None, bias: Tensor, gamma: Tensor, beta: Tensor, norm_eps: float, eps: float
) -> Tensor:
    return _end_of_block((z, h, keep, bias, gamma, beta), (), None, norm_eps, eps)[0]


def _residual_norms(
    z: Tensor,
    h: Tensor,
    keep: Tensor | None,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    next_gamma: Tensor,
    next_beta: Tensor,
    norm_eps: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return _end_of_block((z, h, keep, bias, gamma, beta), (next_gamma, next_beta), dtype, norm_eps, eps)


def _end_of_block(
    inputs: tuple, following: tuple, dtype: torch.dtype | None, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor]:
    """y and n; n is y itself where nothing follows."""
    z, h, keep, bias, gamma, beta = (None if x is None else x.contiguous() for x in inputs)
    y = torch.empty(z.shape, dtype=torch.promote_types(z.dtype, h.dtype), device=z.device)
    n = torch.empty(z.shape, dtype=dtype, device=z.device) if following else y
    next_gamma, next_beta = (x.contiguous() for x in following or (gamma, beta))
    rows, options = _forward_options(z)
    if rows:
        read = z, h, h if keep is None else keep, bias, gamma, beta, next_gamma, next_beta
        with torch.cuda.device_of(z):
            _residual_norm_kernel[(triton.cdiv(rows, FORWARD_ROWS),)](
                *read, y, n, rows, norm_eps, eps, HAS_KEEP=keep is not None, HAS_NEXT=bool(following), **options
            )
    return y, n


def _residual_norm_backward(
    grad: Tensor,
    z: Tensor,
    h: Tensor,
    keep: Tensor | None,
    bias: Tensor,
    gamma: Tensor,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dz as z, dL/dh as h, and dL/d(gamma, beta, bias) in float32, r(3 D)."""
    return _end_of_block_backward(grad, None, (z, h, keep, bias, gamma), (), norm_eps, eps)


def _residual_norms_backward(
    grad: Tensor | None,
    grad_next: Tensor,
    z: Tensor,
    h: Tensor,
    keep: Tensor | None,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    next_gamma: Tensor,
    norm_eps: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the vectors' gradients r(5 D) end with those of gamma' and beta'; grad None is zero."""
    return _end_of_block_backward(grad, grad_next, (z, h, keep, bias, gamma), (beta, next_gamma), norm_eps, eps)


def _end_of_block_backward(
    grad: Tensor | None, grad_next: Tensor | None, inputs: tuple, following: tuple, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    z, h, keep, bias, gamma = (None if x is None else x.contiguous() for x in inputs)
    grads = [None if x is None else x.contiguous() for x in (grad, grad_next)]
    beta, next_gamma = (x.contiguous() for x in following or (gamma, gamma))
    grad_z, grad_h = torch.empty_like(z), torch.empty_like(h)
    rows, programs, options = _backward_options(z)
    num_vectors = 5 if following else 3
    sums = torch.empty(programs, num_vectors, z.shape[-1] // 2, dtype=torch.float32, device=z.device)
    if rows:
        given = next(x for x in grads if x is not None)
        read = *(given if x is None else x for x in grads), z, h, h if keep is None else keep
        switches = {"HAS_KEEP": keep is not None, "HAS_GRAD": grad is not None, "HAS_NEXT": bool(following)}
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


def _op(function: Callable):
    """A custom operator: one opaque step for torch.compile."""
    return torch.library.custom_op(f"muse::{function.__name__.lstrip('_')}", function, mutates_args=())


_norm_op, _norm_backward_op = _op(_norm), _op(_norm_backward)
_residual_norm_op, _residual_norm_backward_op = _op(_residual_norm), _op(_residual_norm_backward)
_residual_norms_op, _residual_norms_backward_op = _op(_residual_norms), _op(_residual_norms_backward)


@_norm_op.register_fake
def _(z, gamma, beta, eps, dtype):
    return z.new_empty(z.shape, dtype=dtype)


@_norm_backward_op.register_fake
def _(grad, z, gamma, eps):
    return z.new_empty(z.shape), z.new_empty(2, gamma.shape[0], dtype=torch.float32)


@_residual_norm_op.register_fake
def _(z, h, keep, bias, gamma, beta, norm_eps, eps):
    return z.new_empty(z.shape, dtype=torch.promote_types(z.dtype, h.dtype))


@_residual_norm_backward_op.register_fake
def _(grad, z, h, keep, bias, gamma, norm_eps, eps):
    return z.new_empty(z.shape), h.new_empty(h.shape), z.new_empty(3, gamma.shape[0], dtype=torch.float32)


@_residual_norms_op.register_fake
def _(z, h, keep, bias, gamma, beta, next_gamma, next_beta, norm_eps, eps, dtype):
    y = z.new_empty(z.shape, dtype=torch.promote_types(z.dtype, h.dtype))
    return y, z.new_empty(z.shape, dtype=dtype)


@_residual_norms_backward_op.register_fake
def _(grad, grad_next, z, h, keep, bias, gamma, beta, next_gamma, norm_eps, eps):
    return z.new_empty(z.shape), h.new_empty(h.shape), z.new_empty(5, gamma.shape[0], dtype=torch.float32)


def _save_norm(ctx, inputs: tuple, output: Tensor) -> None:
    z, gamma, beta, ctx.eps, _ = inputs
    ctx.beta_dtype = beta.dtype
    ctx.save_for_backward(z, gamma)


def _norm_gradients(backward: Callable, ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    z, gamma = ctx.saved_tensors
    grad_z, sums = backward(grad, z, gamma, ctx.eps)
    return grad_z, sums[0].to(gamma.dtype), sums[1].to(ctx.beta_dtype), None, None


def _save_residual_norm(ctx, inputs: tuple, output: Tensor) -> None:
    z, h, keep, bias, gamma, beta, ctx.norm_eps, ctx.eps = inputs
    ctx.beta_dtype = beta.dtype
    ctx.save_for_backward(z, h, keep, bias, gamma)


def _residual_norm_gradients(backward: Callable, ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    z, h, keep, bias, gamma = ctx.saved_tensors
    grad_z, grad_h, sums = backward(grad, z, h, keep, bias, gamma, ctx.norm_eps, ctx.eps)
    vectors = sums[2].to(bias.dtype), sums[0].to(gamma.dtype), sums[1].to(ctx.beta_dtype)
    return grad_z, grad_h, None, *vectors, None, None


def _save_residual_norms(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    z, h, keep, bias, gamma, beta, next_gamma, next_beta, ctx.norm_eps, ctx.eps, _ = inputs
    ctx.next_beta_dtype = next_beta.dtype
    ctx.set_materialize_grads(False)  # behind the last block nobody reads y
    ctx.save_for_backward(z, h, keep, bias, gamma, beta, next_gamma)


def _residual_norms_gradients(
    backward: Callable, ctx, grad: Tensor | None, grad_next: Tensor | None
) -> tuple[Tensor | None, ...]:
    z, h, keep, bias, gamma, beta, next_gamma = ctx.saved_tensors
    if grad_next is None:
        grad_next = torch.zeros_like(z)
    tensors = z, h, keep, bias, gamma, beta, next_gamma
    grad_z, grad_h, sums = backward(grad, grad_next, *tensors, ctx.norm_eps, ctx.eps)
    own = sums[2].to(bias.dtype), sums[0].to(gamma.dtype), sums[1].to(beta.dtype)
    return grad_z, grad_h, None, *own, sums[3].to(next_gamma.dtype), sums[4].to(ctx.next_beta_dtype), None, None, None


_norm_op.register_autograd(partial(_norm_gradients, _norm_backward_op), setup_context=_save_norm)
_residual_norm_op.register_autograd(
    partial(_residual_norm_gradients, _residual_norm_backward_op), setup_context=_save_residual_norm
)


_residual_norms_op.register_autograd(
    partial(_residual_norms_gradients, _residual_norms_backward_op), setup_context=_save_residual_norms
)


class _Norm(torch.autograd.Function):
    """_norm_op for eager code, which spares the host what an operator costs."""

    forward = staticmethod(_norm)
    setup_context = staticmethod(_save_norm)
    backward = staticmethod(once_differentiable(partial(_norm_gradients, _norm_backward)))


class _ResidualNorm(torch.autograd.Function):
    """_residual_norm_op for eager code."""

    forward = staticmethod(_residual_norm)
    setup_context = staticmethod(_save_residual_norm)
    backward = staticmethod(once_differentiable(partial(_residual_norm_gradients, _residual_norm_backward)))


class _ResidualNorms(torch.autograd.Function):
    """_residual_norms_op for eager code."""

    forward = staticmethod(_residual_norms)
    setup_context = staticmethod(_save_residual_norms)
    backward = staticmethod(once_differentiable(partial(_residual_norms_gradients, _residual_norms_backward)))


@triton.jit
def _places(first, rows, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803 - Triton's constants
    """Offsets (ROWS BLOCK) of the real parts of the tokens from `first`: in r(N 2D), in r(N D); and which exist."""
    token = (first + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    return token * (2 * D) + column, token * D + column, (token < rows) & (column < D)


@triton.jit
def _vector(pointer, D: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """r(D) as (1 BLOCK) in float32."""
    column = tl.arange(0, BLOCK)[None, :]
    return tl.load(pointer + column, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def _load(pointer, place, inside):
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, place, value, inside):
    tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _mean(x, D: tl.constexpr):  # noqa: N803
    return tl.sum(x, 1)[:, None] / D


@triton.jit
def _normed(x, y, inside, eps, D: tl.constexpr):  # noqa: N803
    """n = (z - mu) / sqrt(E|z - mu|^2 + eps) as two planes, 0 outside, and the factor of each token."""
    x = tl.where(inside, x - _mean(x, D), 0.0)
    y = tl.where(inside, y - _mean(y, D), 0.0)
    rstd = 1.0 / tl.sqrt(_mean(x * x + y * y, D) + eps)
    return x * rstd, y * rstd, rstd


@triton.jit
def _normed_backward(gx, gy, nx, ny, rstd, gamma, inside, D: tl.constexpr):  # noqa: N803
    """dL/dz of y = gamma n + beta from dL/dy, as two planes."""
    gx, gy = gx * gamma, gy * gamma
    along = _mean(gx * nx + gy * ny, D)
    return rstd * (gx - _mean(gx, D) - nx * along), rstd * (gy - _mean(gy, D) - ny * along)


@triton.jit
def _modrelu_scale(hx, hy, bias, eps):
    """relu(r + b) / r, r, and whether r + b > 0; NaN stays NaN."""
    r = tl.sqrt(hx * hx + hy * hy + eps * eps)
    shifted = r + bias
    return tl.where(shifted <= 0.0, 0.0, shifted) / r, r, shifted > 0.0


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    z, gamma, beta, out, rows, eps, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    place, _, inside = _places(tl.program_id(0) * ROWS, rows, D, ROWS, BLOCK)
    x, y, _rstd = _normed(_load(z, place, inside), _load(z + D, place, inside), inside, eps, D)
    scale, shift = _vector(gamma, D, BLOCK), _vector(beta, D, BLOCK)
    _store(out, place, x * scale + shift, inside)
    _store(out + D, place, y * scale, inside)


@triton.jit(do_not_specialize=["rows"])
def _residual_norm_kernel(
    z, h, keep, bias, gamma, beta, next_gamma, next_beta, out, next_out, rows, norm_eps, eps,
    HAS_KEEP: tl.constexpr, HAS_NEXT: tl.constexpr,  # noqa: N803
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    place, place_keep, inside = _places(tl.program_id(0) * ROWS, rows, D, ROWS, BLOCK)
    hx, hy = _load(h, place, inside), _load(h + D, place, inside)
    factor, _r, _open = _modrelu_scale(hx, hy, _vector(bias, D, BLOCK), eps)
    if HAS_KEEP:
        factor *= _load(keep, place_keep, inside)
    x, y = _load(z, place, inside) + factor * hx, _load(z + D, place, inside) + factor * hy
    x, y, _rstd = _normed(x, y, inside, norm_eps, D)
    scale, shift = _vector(gamma, D, BLOCK), _vector(beta, D, BLOCK)
    x = (x * scale + shift).to(out.dtype.element_ty)
    y = (y * scale).to(out.dtype.element_ty)
    tl.store(out + place, x, mask=inside)
    tl.store(out + D + place, y, mask=inside)
    if HAS_NEXT:
        x, y, _rstd = _normed(x.to(tl.float32), y.to(tl.float32), inside, norm_eps, D)
        scale, shift = _vector(next_gamma, D, BLOCK), _vector(next_beta, D, BLOCK)
        _store(next_out, place, x * scale + shift, inside)
        _store(next_out + D, place, y * scale, inside)


@triton.jit(do_not_specialize=["rows"])
def _norm_backward_kernel(
    grad, z, gamma, grad_z, sums, rows, eps,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    scale = _vector(gamma, D, BLOCK)
    sum_gamma = tl.zeros((BLOCK,), tl.float32)
    sum_beta = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        place, _, inside = _places(first, rows, D, ROWS, BLOCK)
        gx, gy = _load(grad, place, inside), _load(grad + D, place, inside)
        nx, ny, rstd = _normed(_load(z, place, inside), _load(z + D, place, inside), inside, eps, D)
        sum_gamma += tl.sum(gx * nx + gy * ny, 0)
        sum_beta += tl.sum(gx, 0)
        dx, dy = _normed_backward(gx, gy, nx, ny, rstd, scale, inside, D)
        _store(grad_z, place, dx, inside)
        _store(grad_z + D, place, dy, inside)
    column = tl.arange(0, BLOCK)
    sums += tl.program_id(0) * 2 * D + column
    tl.store(sums, sum_gamma, mask=column < D)
    tl.store(sums + D, sum_beta, mask=column < D)


@triton.jit(do_not_specialize=["rows"])
def _residual_norm_backward_kernel(
    grad, grad_next, z, h, keep, bias, gamma, beta, next_gamma, grad_z, grad_h, sums, rows, norm_eps, eps,
    HAS_KEEP: tl.constexpr, HAS_GRAD: tl.constexpr, HAS_NEXT: tl.constexpr,  # noqa: N803
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,  # noqa: N803
):  # fmt: skip
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
        hx, hy = _load(h, place, inside), _load(h + D, place, inside)
        factor, r, is_open = _modrelu_scale(hx, hy, b, eps)
        kept = _load(keep, place_keep, inside) if HAS_KEEP else 1.0
        x, y = _load(z, place, inside) + kept * factor * hx, _load(z + D, place, inside) + kept * factor * hy
        nx, ny, rstd = _normed(x, y, inside, norm_eps, D)
        if HAS_GRAD:
            gx, gy = _load(grad, place, inside), _load(grad + D, place, inside)
        if HAS_NEXT:
            x = (nx * scale + shift).to(grad_z.dtype.element_ty).to(tl.float32)  # as it was stored
            y = (ny * scale).to(grad_z.dtype.element_ty).to(tl.float32)
            mx, my, next_rstd = _normed(x, y, inside, norm_eps, D)
            x, y = _load(grad_next, place, inside), _load(grad_next + D, place, inside)
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
        _store(grad_z, place, dx, inside)
        _store(grad_z + D, place, dy, inside)
        dx, dy = dx * kept, dy * kept
        radial = tl.where(is_open & inside, (dx * hx + dy * hy) / r, 0.0)  # df/db, and the part of dL/df along h
        sum_bias += tl.sum(radial, 0)
        inward = radial * b / (r * r)
        _store(grad_h, place, dx * factor - hx * inward, inside)
        _store(grad_h + D, place, dy * factor - hy * inward, inside)
    column = tl.arange(0, BLOCK)
    sums += tl.program_id(0) * (5 if HAS_NEXT else 3) * D + column
    tl.store(sums, sum_gamma, mask=column < D)
    tl.store(sums + D, sum_beta, mask=column < D)
    tl.store(sums + 2 * D, sum_bias, mask=column < D)
    if HAS_NEXT:
        tl.store(sums + 3 * D, sum_next_gamma, mask=column < D)
        tl.store(sums + 4 * D, sum_next_beta, mask=column < D)
