"""Complex layers on planar tensors r(B T 2D): x the real plane, y the imaginary plane, z = x + iy.

Norm statistics and magnitudes are computed in float32 (float64 for float64), results take the dtype of the input.
ModReLU and the norm keep only their input for the backward pass, which is written out by hand. On CUDA the norm, and
what ends a block of Stage 1, are kernels of `norms_triton`; a compiler gets the formulas and derives the rest itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from muse.ops import planar

try:
    from muse.ops import norms_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    norms_triton = None

NORM_EPS = 1e-5
MAGNITUDE_EPS = 1e-4

keep_input_only = partial(checkpoint, use_reentrant=False)
"""function(*inputs), of which the backward pass finds the inputs only and computes the rest again, same dropout too."""


def compute_again(model: nn.Module) -> bool:
    """Whether the blocks of a model now keep only their input for backward: it was asked for, and this is training."""
    return model.recompute and model.training and torch.is_grad_enabled()


def run_blocks(blocks: Iterable[nn.Module], z: Tensor, again: bool) -> Tensor:
    """Each block after the one before it; with `again` the backward pass computes them from their inputs again."""
    for block in blocks:
        z = keep_input_only(block, z) if again else block(z)
    return z


def check_token_ids(token_ids: Tensor, vocab_size: int, n_seq: int) -> None:
    """Raise ValueError unless token_ids is an integer (B T) tensor, 1 <= T <= n_seq, ids in [0, vocab_size).

    The range is checked on CPU only: on CUDA it would stop the device queue, and the embedding's device-side assert
    reports the same mistake. Compiled code skips it too.
    """
    if token_ids.ndim != 2:
        raise ValueError(f"token_ids must have shape (batch, positions), got {tuple(token_ids.shape)}")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token_ids must be int64 or int32, got {token_ids.dtype}")
    if not 1 <= token_ids.shape[1] <= n_seq:
        raise ValueError(f"token_ids must have 1 to n_seq={n_seq} positions, got {token_ids.shape[1]}")
    if type(token_ids) is Tensor and token_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(value) for value in torch.aminmax(token_ids)) if token_ids.numel() else (0, 0)
        if low < 0 or high >= vocab_size:
            raise ValueError(f"token ids must lie in [0, {vocab_size}), got {low} to {high}")


class _ModReLU(torch.autograd.Function):
    """f = s z with s = relu(r + b) / r and r = sqrt(x^2 + y^2 + eps^2); saves z and b only."""

    @staticmethod
    def formula(z: Tensor, bias: Tensor) -> Tensor:
        planes, b, r = _ModReLU.magnitude(z, bias)
        return (planes * (torch.relu(r + b) / r)).flatten(-2).to(z.dtype)

    @staticmethod
    def magnitude(z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z as planes (... 2 D), bias (D) and r (... 1 D), all in the accumulation dtype."""
        dtype = planar.accumulate_dtype(z.dtype)
        planes = z.to(dtype).unflatten(-1, (2, -1))
        r = (planes.square().sum(-2, keepdim=True) + MAGNITUDE_EPS**2).sqrt()
        return planes, bias.to(dtype), r

    @staticmethod
    def forward(ctx, z: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(z, bias)
        return _ModReLU.formula(z, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        z, bias = ctx.saved_tensors
        planes, b, r = _ModReLU.magnitude(z, bias)
        g = grad.to(planes.dtype).unflatten(-1, (2, -1))
        open_ = (r + b > 0).to(planes.dtype)
        radial = open_ * (g * planes).sum(-2, keepdim=True) / r  # df/db, and the part of g along z
        grad_z = g * (torch.relu(r + b) / r) - planes * (radial * b / r.square())
        return grad_z.flatten(-2).to(z.dtype), radial.flatten(0, -2).sum(0).to(bias.dtype)


class _ComplexLayerNorm(torch.autograd.Function):
    """n = (z - mu) / sqrt(E|z - mu|^2 + eps); y = gamma n + beta; saves z, gamma and two statistics per token."""

    @staticmethod
    def formula(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """y in the dtype of z, mu (... 2 1) and 1 / sqrt(..) (... 1 1) in the accumulation dtype."""
        dtype = planar.accumulate_dtype(z.dtype)
        planes = z.to(dtype).unflatten(-1, (2, -1))
        mean = planes.mean(-1, keepdim=True)
        centred = planes - mean
        rstd = (centred.square().mean(-1, keepdim=True).sum(-2, keepdim=True) + eps).rsqrt()
        y = centred * rstd * gamma.to(dtype)
        y = (y + torch.stack([beta, torch.zeros_like(beta)]).to(dtype)).flatten(-2).to(z.dtype)
        return y, mean, rstd

    @staticmethod
    def forward(ctx, z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        y, mean, rstd = _ComplexLayerNorm.formula(z, gamma, beta, eps)
        ctx.save_for_backward(z, gamma, beta, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        z, gamma, beta, mean, rstd = ctx.saved_tensors
        n = (z.to(mean.dtype).unflatten(-1, (2, -1)) - mean) * rstd
        g = grad.to(mean.dtype).unflatten(-1, (2, -1))
        grad_gamma = (g * n).sum(-2).flatten(0, -2).sum(0)
        grad_beta = g.select(-2, 0).flatten(0, -2).sum(0)
        g = g * gamma.to(mean.dtype)
        along = (g * n).mean(-1, keepdim=True).sum(-2, keepdim=True)
        grad_z = rstd * (g - g.mean(-1, keepdim=True) - n * along)
        return grad_z.flatten(-2).to(z.dtype), grad_gamma.to(gamma.dtype), grad_beta.to(beta.dtype), None


def _has_kernel(z: Tensor) -> bool:
    """Whether `norms_triton` computes with planar z r(... 2D)."""
    if not z.is_cuda or norms_triton is None or z.dtype == torch.float64:
        return False
    return z.shape[-1] <= 2 * norms_triton.MOST_CHANNELS


def modrelu(z: Tensor, bias: Tensor) -> Tensor:
    """relu(|z| + b) z / |z| (arXiv:1511.06464): planar r(... 2D), bias r(D).

    |z| is sqrt(x^2 + y^2 + eps^2), which keeps the gradient at z = 0 finite and leaves b = 0 the exact identity.
    """
    return _ModReLU.formula(z, bias) if torch.compiler.is_compiling() else _ModReLU.apply(z, bias)


def complex_layer_norm(
    z: Tensor, gamma: Tensor, beta: Tensor, eps: float = NORM_EPS, dtype: torch.dtype | None = None
) -> Tensor:
    """gamma (z - mu) / sqrt(E|z - mu|^2 + eps) + beta per token: planar r(... 2D), gamma and beta r(D).

    mu is the complex mean over channels; beta is real. The result has the dtype of z unless another is given. Unlike
    Trabelsi et al. (arXiv:1705.09792) there is one variance and no 2x2 whitening, so the norm commutes with a rotation
    of the phase.
    """
    dtype = dtype or z.dtype
    if _has_kernel(z):
        return norms_triton.complex_layer_norm(z, gamma, beta, eps, dtype)
    if torch.compiler.is_compiling():
        return _ComplexLayerNorm.formula(z, gamma, beta, eps)[0].to(dtype)
    return _ComplexLayerNorm.apply(z, gamma, beta, eps).to(dtype)


def residual_norm(z: Tensor, h: Tensor, keep: Tensor | None, activation: ModReLU, norm: ComplexLayerNorm) -> Tensor:
    """norm(z + keep activation(h)): planar z and h r(... 2D), keep from `dropout_mask`.

    On CUDA it is one kernel, without what stands between, and without hooks of the two modules.
    """
    if z.shape != h.shape:
        raise ValueError(f"z and h must have one shape, got {tuple(z.shape)} and {tuple(h.shape)}")
    if _has_kernel(z) and _has_kernel(h):
        vectors = activation.bias, norm.gamma, norm.beta
        return norms_triton.residual_norm(z, h, keep, *vectors, norm.eps, MAGNITUDE_EPS)
    return norm(z + _masked(activation(h), keep))


def residual_norms(
    z: Tensor,
    h: Tensor,
    keep: Tensor | None,
    activation: ModReLU,
    norm: ComplexLayerNorm,
    following: ComplexLayerNorm,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """y = residual_norm(z, h, keep, activation, norm) and following(y) in `dtype`; on CUDA still one kernel."""
    if not (_has_kernel(z) and _has_kernel(h)) or norm.eps != following.eps:
        y = residual_norm(z, h, keep, activation, norm)
        return y, following(y, dtype)
    vectors, next_vectors = (activation.bias, norm.gamma, norm.beta), (following.gamma, following.beta)
    return norms_triton.residual_norms(z, h, keep, vectors, next_vectors, norm.eps, MAGNITUDE_EPS, dtype)


def dropout_mask(z: Tensor, probability: float, training: bool) -> Tensor | None:
    """Factors for the complex elements of planar r(... 2D): r(... D), 0 or 1 / (1 - p); None where none is dropped."""
    if not training or probability == 0.0:
        return None
    return F.dropout(torch.ones_like(z.unflatten(-1, (2, -1)).select(-2, 0)), probability)


def _masked(z: Tensor, keep: Tensor | None) -> Tensor:
    return z if keep is None else (z.unflatten(-1, (2, -1)) * keep.unsqueeze(-2)).flatten(-2)


def dropout(z: Tensor, probability: float, training: bool) -> Tensor:
    """Drop whole complex elements of planar r(... 2D): both parts of an element stay or go together."""
    return _masked(z, dropout_mask(z, probability, training))


class ComplexLinear(nn.Module):
    """(A + iB)(x + iy) + (a + ib): planar r(... 2I) to planar r(... 2O), weights r(O I), biases r(O)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.weight_real = nn.Parameter(torch.empty(out_channels, in_channels))
        self.weight_imag = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias_real = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.bias_imag = nn.Parameter(torch.empty(out_channels)) if bias else None
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return planar.linear(z, self.weight_real, self.weight_imag, self.bias_real, self.bias_imag)


class ModReLU(nn.Module):
    """relu(|z| + b) z / |z| with one real bias per channel: planar r(... 2D) to planar r(... 2D)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return modrelu(z, self.bias)


class ComplexLayerNorm(nn.Module):
    """Complex mean and one variance per token, real scale gamma and real shift beta: planar r(... 2D)."""

    def __init__(self, channels: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))
        initialise(self)

    def forward(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return complex_layer_norm(z, self.gamma, self.beta, self.eps, dtype)


class ComplexEmbedding(nn.Module):
    """Table of `num` complex vectors: ids (B T) to planar r(B T 2D), weights r(num D)."""

    def __init__(self, num: int, channels: int) -> None:
        super().__init__()
        self.weight_real = nn.Parameter(torch.empty(num, channels))
        self.weight_imag = nn.Parameter(torch.empty(num, channels))
        initialise(self)

    def forward(self, ids: Tensor) -> Tensor:
        return planar.pack(F.embedding(ids, self.weight_real), F.embedding(ids, self.weight_imag))


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the initial values of one complex layer (not of its children); other modules are left alone.

    ComplexLinear: circular complex Xavier, E|w|^2 = 2 / (I + O), so each part has variance 1 / (I + O); bias 0.
    ComplexEmbedding: E|e|^2 = 1, each part has variance 1/2. ModReLU: b = 0. ComplexLayerNorm: gamma = 1, beta = 0.
    Parameters on the meta device have no values; to draw there would cost the import of torch's compiler.
    """
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return
    if isinstance(module, ComplexLinear):
        std = 1 / math.sqrt(sum(module.weight_real.shape))
        module.weight_real.normal_(0, std, generator=generator)
        module.weight_imag.normal_(0, std, generator=generator)
        if module.bias_real is not None:
            module.bias_real.zero_()
            module.bias_imag.zero_()
    elif isinstance(module, ComplexEmbedding):
        module.weight_real.normal_(0, math.sqrt(0.5), generator=generator)
        module.weight_imag.normal_(0, math.sqrt(0.5), generator=generator)
    elif isinstance(module, ModReLU):
        module.bias.zero_()
    elif isinstance(module, ComplexLayerNorm):
        module.gamma.fill_(1)
        module.beta.zero_()
