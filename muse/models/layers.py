"""Complex layers on planar tensors r(B T 2D): x the real plane, y the imaginary plane, z = x + iy.

What they compute stands in `muse.ops`: `planar` for products, `norms` for what is between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muse.ops import planar
from muse.ops.norms import NORM_EPS, complex_layer_norm, modrelu
from muse.ops.operator import readable, transformed

keep_input_only = partial(checkpoint, use_reentrant=False)
"""function(*inputs), of which the backward pass finds the inputs only and computes the rest again, same dropout too."""


def compute_again(model: nn.Module) -> bool:
    """Whether blocks now keep only their input for backward: asked for, in training, outside of torch.func."""
    return model.recompute and model.training and torch.is_grad_enabled() and not transformed()


def run_blocks(blocks: Iterable[nn.Module], z: Tensor, again: bool) -> Tensor:
    """Each block after the one before it; with `again` the backward pass computes each half from its input again."""
    for block in blocks:
        if not again:
            z = block(z)
            continue
        for half in block.halves() if hasattr(block, "halves") else (block,):
            z = keep_input_only(half, z)
    return z


def check_token_ids(token_ids: Tensor, vocab_size: int, n_seq: int) -> None:
    """Raise ValueError unless token_ids is an integer (B T) tensor, 1 <= T <= n_seq, ids in [0, vocab_size).

    The range is checked on CPU only: on CUDA it would stop the device queue, and the embedding's device-side assert
    reports the same mistake. Compiled code and torch.func skip it too.
    """
    if token_ids.ndim != 2:
        raise ValueError(f"token_ids must have shape (batch, positions), got {tuple(token_ids.shape)}")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token_ids must be int64 or int32, got {token_ids.dtype}")
    if not 1 <= token_ids.shape[1] <= n_seq:
        raise ValueError(f"token_ids must have 1 to n_seq={n_seq} positions, got {token_ids.shape[1]}")
    if readable(token_ids):
        low, high = (int(value) for value in torch.aminmax(token_ids)) if token_ids.numel() else (0, 0)
        if low < 0 or high >= vocab_size:
            raise ValueError(f"token ids must lie in [0, {vocab_size}), got {low} to {high}")


class ComplexLinear(nn.Module):
    """(A + iB)(x + iy) + (a + ib): planar r(... 2I) to planar r(... 2O), weights r(O I), biases r(O)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.weight_real = nn.Parameter(empty(out_channels, in_channels))
        self.weight_imag = nn.Parameter(empty(out_channels, in_channels))
        self.bias_real = nn.Parameter(empty(out_channels)) if bias else None
        self.bias_imag = nn.Parameter(empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        initialise(self)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, bias={self.bias_real is not None}"

    def forward(self, z: Tensor) -> Tensor:
        return planar.linear(z, self.weight_real, self.weight_imag, self.bias_real, self.bias_imag)


class ModReLU(nn.Module):
    """relu(|z| + b) z / |z| with one real bias per channel: planar r(... 2D) to planar r(... 2D)."""

    def __init__(
        self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the bias to zero."""
        initialise(self)

    def extra_repr(self) -> str:
        return str(len(self.bias))

    def forward(self, z: Tensor) -> Tensor:
        return modrelu(z, self.bias)


class ComplexLayerNorm(nn.Module):
    """Complex mean and one variance per token, real scale gamma and real shift beta: planar r(... 2D)."""

    def __init__(
        self,
        channels: int,
        eps: float = NORM_EPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale to one and shift to zero."""
        initialise(self)

    def extra_repr(self) -> str:
        return f"{len(self.gamma)}, eps={self.eps}"

    def forward(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return complex_layer_norm(z, self.gamma, self.beta, self.eps, dtype)


class ComplexEmbedding(nn.Module):
    """Table of `num` complex vectors: ids (B T) to planar r(B T 2D), weights r(num D)."""

    def __init__(
        self,
        num: int,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight_real = nn.Parameter(torch.empty(num, channels, device=device, dtype=dtype))
        self.weight_imag = nn.Parameter(torch.empty(num, channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        initialise(self)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight_real.shape))

    def forward(self, ids: Tensor) -> Tensor:
        return planar.pack(F.embedding(ids, self.weight_real), F.embedding(ids, self.weight_imag))


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the initial values of one complex layer (not of its children); other modules are left alone.

    ComplexLinear: circular complex Xavier (arXiv:1705.09792), E|w|^2 = 2 / (I + O), so each part has variance
    1 / (I + O); bias 0. ComplexEmbedding: E|e|^2 = 1, each part has variance 1/2. ModReLU: b = 0. ComplexLayerNorm:
    gamma = 1, beta = 0.
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
