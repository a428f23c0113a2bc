"""The published Stage 1 layout, written the plain way: what every fast path is compared with and must agree with.

Four products per complex linear map, one operation after the other, float32 logits of the whole batch, and a look for
NaN in both parts after each block, which stops the device queue (12 times in a forward pass of six blocks). Weights are
those of a model of `muse.models.stage1` without a memory. In float64 and without checks it is the reference of the
equality checks.

B batch, T positions, D width (complex channels), V vocabulary; real and imaginary parts are separate r(B T D).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.models import layers
from muse.ops import norms, planar

Pair = tuple[Tensor, Tensor]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T: r(... I) and r(O I) to r(... O), in the compute dtype of this device, rounded to the dtype of x."""
    compute = planar.compute_dtype(x.dtype, x.device)
    return F.linear(x.to(compute), weight.to(compute)).to(x.dtype)


def complex_linear(x: Tensor, y: Tensor, layer: layers.ComplexLinear) -> Pair:
    """(A + iB)(x + iy) + (a + ib) by four products."""
    real = product(x, layer.weight_real) - product(y, layer.weight_imag) + layer.bias_real
    imag = product(y, layer.weight_real) + product(x, layer.weight_imag) + layer.bias_imag
    return real, imag


def modrelu(x: Tensor, y: Tensor, bias: Tensor) -> Pair:
    """relu(|z| + b) z / |z|, |z| smoothed as in `muse.ops.norms`; magnitudes in float32."""
    dtype = planar.accumulate_dtype(x.dtype)
    real, imag = x.to(dtype), y.to(dtype)
    magnitude = torch.sqrt(real * real + imag * imag + norms.MAGNITUDE_EPS**2)
    scale = torch.relu(magnitude + bias.to(dtype)) / magnitude
    return (real * scale).to(x.dtype), (imag * scale).to(x.dtype)


def layer_norm(x: Tensor, y: Tensor, norm: layers.ComplexLayerNorm) -> Pair:
    """gamma (z - mu) / sqrt(E|z - mu|^2 + eps) + beta per token; statistics in float32."""
    dtype = planar.accumulate_dtype(x.dtype)
    real, imag = x.to(dtype), y.to(dtype)
    real = real - real.mean(-1, keepdim=True)
    imag = imag - imag.mean(-1, keepdim=True)
    variance = (real * real).mean(-1, keepdim=True) + (imag * imag).mean(-1, keepdim=True)
    scale = norm.gamma.to(dtype) / torch.sqrt(variance + norm.eps)
    return (real * scale + norm.beta.to(dtype)).to(x.dtype), (imag * scale).to(x.dtype)


def refuse_nan(x: Tensor, y: Tensor) -> None:
    """Raise FloatingPointError where a part holds a NaN: two questions that the host waits for."""
    if torch.isnan(x).any() or torch.isnan(y).any():
        raise FloatingPointError("NaN in the activations")


class NaiveStage1(nn.Module):
    """The Stage 1 reference with a copy of the weights of `model` (mixer none, no dropout); names are the model's."""

    def __init__(self, model: nn.Module, *, checks: bool = True) -> None:
        super().__init__()
        if model.config.mixer != "none" or model.config.dropout:
            raise ValueError(f"needs mixer none and no dropout, got {model.config.mixer!r}, {model.config.dropout}")
        model = copy.deepcopy(model)
        self.config, self.checks = model.config, checks
        self.embedding, self.blocks, self.norm = model.embedding, model.blocks, model.norm
        self.positions, self.head_weight, self.head_bias = model.positions, model.head_weight, model.head_bias

    def features(self, token_ids: Tensor) -> Tensor:
        """Ids (B T) to what the head reads, the real part r(B T D)."""
        x = F.embedding(token_ids, self.embedding.weight_real) + self.positions[: token_ids.shape[1]]
        y = F.embedding(token_ids, self.embedding.weight_imag)
        for block in self.blocks:
            u, v = layer_norm(x, y, block.norm1)
            u, v = complex_linear(u, v, block.linear)
            u, v = modrelu(u, v, block.activation.bias)
            x, y = layer_norm(x + u, y + v, block.norm2)
            if self.checks:
                refuse_nan(x, y)
        return layer_norm(x, y, self.norm)[0]

    def forward(self, token_ids: Tensor) -> Tensor:
        """Ids (B T) to logits r(B T V) in float32 (float64 for a float64 model)."""
        logits = product(self.features(token_ids), self.head_weight) + self.head_bias
        return logits.to(planar.accumulate_dtype(logits.dtype))

    def loss(self, token_ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy in nats of ids (B T) against targets (B T), from the logits of the whole batch."""
        return F.cross_entropy(self(token_ids).flatten(0, 1), targets.flatten(), reduction=reduction)


class PlanarStack(nn.Module):
    """z = norm(z + modrelu(W z + w)), L times: planar r(... 2D) to planar r(... 2D), from the layers of the package."""

    def __init__(self, channels: int, n_layers: int, seed: int = 0) -> None:
        super().__init__()
        self.linears = nn.ModuleList(layers.ComplexLinear(channels, channels) for _ in range(n_layers))
        self.activations = nn.ModuleList(layers.ModReLU(channels) for _ in range(n_layers))
        self.norms = nn.ModuleList(layers.ComplexLayerNorm(channels) for _ in range(n_layers))
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            layers.initialise(module, generator)

    def forward(self, z: Tensor) -> Tensor:
        for linear, activation, norm in zip(self.linears, self.activations, self.norms, strict=True):
            z = norms.residual_norm(z, linear(z), None, activation, norm)
        return z


class NaiveStack(nn.Module):
    """The same as `stack`, with a copy of its weights, written as NaiveStage1 is."""

    def __init__(self, stack: PlanarStack, *, checks: bool = True) -> None:
        super().__init__()
        stack = copy.deepcopy(stack)
        self.linears, self.activations, self.norms, self.checks = stack.linears, stack.activations, stack.norms, checks

    def forward(self, z: Tensor) -> Tensor:
        x, y = planar.unpack(z)
        for linear, activation, norm in zip(self.linears, self.activations, self.norms, strict=True):
            u, v = modrelu(*complex_linear(x, y, linear), activation.bias)
            x, y = layer_norm(x + u, y + v, norm)
            if self.checks:
                refuse_nan(x, y)
        return planar.pack(x, y)


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Move every vector parameter (biases, gains) by normal noise, and return the model.

    As initialised they are zero or one, and a path that forgets one of them would pass for equal. Biases of ModReLU are
    moved down only: above zero its derivative grows as b / |z| towards z = 0 and lifts rounding to any size.
    """
    generator = torch.Generator().manual_seed(seed)
    downward = {id(module.bias) for module in model.modules() if isinstance(module, layers.ModReLU)}
    for parameter in model.parameters():
        if parameter.ndim == 1:
            noise = torch.randn(parameter.shape, generator=generator) * scale
            noise = -noise.abs() if id(parameter) in downward else noise
            parameter += noise.to(parameter.device, parameter.dtype)
    return model
