"""Naive complex128 versions of the layers and of the reference model; nothing here is imported by the package."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_error(got: Tensor, want: Tensor) -> float:
    """RMS(got - want) / RMS(want) in float64 (complex128)."""
    dtype = torch.complex128 if want.is_complex() else torch.float64
    got, want = got.detach().to(dtype), want.detach().to(dtype)
    assert got.shape == want.shape, f"{tuple(got.shape)} != {tuple(want.shape)}"
    return ((got - want).abs().square().mean() / want.abs().square().mean()).sqrt().item()


def native(z: Tensor) -> Tensor:
    """Planar r(... 2D) to complex128 c(... D), by plain indexing."""
    d = z.shape[-1] // 2
    return z[..., :d].double() + 1j * z[..., d:].double()


def planes(c: Tensor) -> Tensor:
    """Complex c(... D) to float64 r(... 2D)."""
    return torch.cat([c.real, c.imag], dim=-1)


def linear(z: Tensor, a: Tensor, b: Tensor, bias_real: Tensor | None = None, bias_imag: Tensor | None = None) -> Tensor:
    """(A + iB) z + bias by four real products."""
    x, y = z.real, z.imag
    a, b = a.double(), b.double()
    real = torch.einsum("oi,...i->...o", a, x) - torch.einsum("oi,...i->...o", b, y)
    imag = torch.einsum("oi,...i->...o", a, y) + torch.einsum("oi,...i->...o", b, x)
    if bias_real is not None:
        real, imag = real + bias_real.double(), imag + bias_imag.double()
    return real + 1j * imag


def modrelu(z: Tensor, bias: Tensor, eps: float = 0.0) -> Tensor:
    """relu(|z| + b) z / |z|, |z| smoothed by eps."""
    magnitude = (z.real**2 + z.imag**2 + eps**2).sqrt()
    return (magnitude + bias.double()).clamp_min(0) * (z / magnitude)


def layer_norm(z: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """gamma (z - mu) / sqrt(E|z - mu|^2 + eps) + beta over the last axis."""
    d = z.shape[-1]
    centred = z - z.sum(-1, keepdim=True) / d
    variance = (centred * centred.conj()).real.sum(-1, keepdim=True) / d
    return gamma.double() * centred / (variance + eps).sqrt() + beta.double()


def stage1_logits(weights: dict[str, Tensor], ids: Tensor, n_layers: int) -> Tensor:
    """Logits float64 (B T V) of the reference model from its named parameters; each token on its own."""
    w = {name: value.double() for name, value in weights.items()}
    table = w["embedding.weight_real"] + 1j * w["embedding.weight_imag"]
    rows = []
    for sequence in ids.tolist():
        z = torch.stack([table[token] for token in sequence]) + w["positions"][: len(sequence)]
        for i in range(n_layers):
            prefix = f"blocks.{i}."
            b = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
            u = layer_norm(z, b["norm1.gamma"], b["norm1.beta"])
            u = linear(u, *(b[f"linear.{part}"] for part in ("weight_real", "weight_imag", "bias_real", "bias_imag")))
            u = modrelu(u, b["activation.bias"], eps=1e-4)
            z = layer_norm(z + u, b["norm2.gamma"], b["norm2.beta"])
        z = layer_norm(z, w["norm.gamma"], w["norm.beta"])
        rows.append(z.real @ w["head_weight"].T + w["head_bias"])
    return torch.stack(rows)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """-log softmax(logits)[target] per token, 0 where ignored, in float64."""
    losses = []
    for row, target in zip(logits.double().flatten(0, -2), targets.flatten().tolist(), strict=True):
        losses.append(row.sum() * 0 if target == ignore_index else torch.logsumexp(row, 0) - row[target])
    return torch.stack(losses).reshape(targets.shape)


def xavier_part_variance(fan_in: int, fan_out: int) -> float:
    """Variance of the real (or imaginary) part of a complex Xavier weight: half of 2 / (fan_in + fan_out)."""
    return 0.5 * 2 / (fan_in + fan_out)
