"""The six-layer complex stack as other libraries would write it, with the weights of a `PlanarStack`.

All of them hold complex64 numbers c(B T D). None has the norm of `muse.models.layers` (one variance per token); each
takes the nearest component that computes the same function, so that the equality gate applies to all:

- `complex64`: torch alone. nn.Linear of complex64; modReLU and norm are written out in complex arithmetic.
- `complextorch` 2.1: its Linear, its AdaptiveModReLU (one bias per channel; channels must be dimension 1, so tokens are
  flattened) and its RMSNorm of z less its mean, plus beta. Its LayerNorm whitens with 2x2 matrices: another function.
- `complexPyTorch` 0.4: its ComplexLinear. It has no modReLU and only batch norms: both are those of `complex64`.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

from .naive import PlanarStack

LIBRARIES = ("complex64", "complextorch", "complexPyTorch")


class PathMissingError(RuntimeError):
    """A path that cannot run on this machine; the message says what it lacks."""


def _import(name: str, module: str) -> object:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PathMissingError(f"not installed: pip install muse-workbook[peers] ({name}: {error})") from error


def _complex(real: Tensor, imag: Tensor) -> Tensor:
    return torch.complex(real.detach().float(), imag.detach().float())


class LibraryStack(nn.Module):
    """z = norm(z + modrelu(W z + w)), L times: c(... D) to c(... D) in complex64; this class uses torch alone."""

    def __init__(self, stack: PlanarStack) -> None:
        super().__init__()
        self.eps = stack.norms[0].eps
        self.linears = nn.ModuleList(self.linear(layer) for layer in stack.linears)
        self.activations = nn.ModuleList(self.activation(layer.bias) for layer in stack.activations)
        self.norms = nn.ModuleList(self.norm(layer) for layer in stack.norms)
        self.to(stack.linears[0].weight_real.device)

    def forward(self, z: Tensor) -> Tensor:
        for linear, activation, norm in zip(self.linears, self.activations, self.norms, strict=True):
            z = norm(z + activation(linear(z)))
        return z

    def linear(self, layer: nn.Module) -> nn.Module:
        return _load(nn.Linear(*reversed(layer.weight_real.shape), dtype=torch.complex64, device="cpu"), layer)

    def activation(self, bias: Tensor) -> nn.Module:
        return ComplexModReLU(bias)

    def norm(self, layer: nn.Module) -> nn.Module:
        return ComplexNorm(layer.gamma, layer.beta, layer.eps)

    def gradients(self) -> dict[str, Tensor]:
        """Gradients under the names of the PlanarStack: of a complex parameter, the one of each of its parts."""
        found: dict[str, Tensor] = {}
        for i, (linear, activation, norm) in enumerate(zip(self.linears, self.activations, self.norms, strict=True)):
            for name, grad in self.linear_gradients(linear).items():
                found[f"linears.{i}.{name}"] = grad
            found[f"activations.{i}.bias"] = self.bias_gradient(activation)
            found[f"norms.{i}.gamma"], found[f"norms.{i}.beta"] = self.norm_gradients(norm)
        return found

    def linear_gradients(self, linear: nn.Module) -> dict[str, Tensor]:
        weight, bias = linear.weight.grad, linear.bias.grad
        return {"weight_real": weight.real, "weight_imag": weight.imag, "bias_real": bias.real, "bias_imag": bias.imag}

    def bias_gradient(self, activation: nn.Module) -> Tensor:
        return activation.bias.grad

    def norm_gradients(self, norm: nn.Module) -> tuple[Tensor, Tensor]:
        return norm.gamma.grad, norm.beta.grad


def _load(linear: nn.Module, layer: nn.Module) -> nn.Module:
    """Copy a ComplexLinear into a linear layer with complex weight and bias."""
    with torch.no_grad():
        linear.weight.copy_(_complex(layer.weight_real, layer.weight_imag))
        linear.bias.copy_(_complex(layer.bias_real, layer.bias_imag))
    return linear


class ComplexModReLU(nn.Module):
    """relu(|z| + b) z / |z| in complex arithmetic."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().float().clone())

    def forward(self, z: Tensor) -> Tensor:
        magnitude = z.abs()
        return torch.relu(magnitude + self.bias) / magnitude.clamp_min(1e-12) * z


class ComplexNorm(nn.Module):
    """gamma (z - mu) / sqrt(E|z - mu|^2 + eps) + beta in complex arithmetic."""

    def __init__(self, gamma: Tensor, beta: Tensor, eps: float) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(value.detach().float().clone()) for value in (gamma, beta))
        self.eps = eps

    def forward(self, z: Tensor) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        variance = (centred * centred.conj()).real.mean(-1, keepdim=True)
        return self.gamma * (centred * torch.rsqrt(variance + self.eps)) + self.beta


class ComplextorchStack(LibraryStack):
    """With the components of complextorch."""

    def __init__(self, stack: PlanarStack) -> None:
        self.library = _import("complextorch", "complextorch.nn")
        super().__init__(stack)

    def linear(self, layer: nn.Module) -> nn.Module:
        wrapper = self.library.Linear(*reversed(layer.weight_real.shape))
        _load(wrapper.linear, layer)
        return wrapper

    def activation(self, bias: Tensor) -> nn.Module:
        activation = _ChannelsAt1(self.library.AdaptiveModReLU(len(bias)))
        activation.inner.activation_mag.bias.data.copy_(bias)
        return activation

    def norm(self, layer: nn.Module) -> nn.Module:
        norm = _CentredRms(self.library.RMSNorm(len(layer.gamma), eps=layer.eps), layer.beta)
        eye = torch.eye(2, device=layer.gamma.device)[..., None]
        norm.rms.weight.data.copy_(eye * layer.gamma.detach().float())
        return norm

    def linear_gradients(self, linear: nn.Module) -> dict[str, Tensor]:
        return super().linear_gradients(linear.linear)

    def bias_gradient(self, activation: nn.Module) -> Tensor:
        return activation.inner.activation_mag.bias.grad

    def norm_gradients(self, norm: nn.Module) -> tuple[Tensor, Tensor]:
        return norm.rms.weight.grad[0, 0] + norm.rms.weight.grad[1, 1], norm.beta.grad


class _ChannelsAt1(nn.Module):
    """A module that wants (N C), given c(... C)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z.flatten(0, -2)).view_as(z)


class _CentredRms(nn.Module):
    """RMS norm of z less its mean, plus a real beta."""

    def __init__(self, rms: nn.Module, beta: Tensor) -> None:
        super().__init__()
        self.rms, self.beta = rms, nn.Parameter(beta.detach().float().clone())

    def forward(self, z: Tensor) -> Tensor:
        return self.rms(z - z.mean(-1, keepdim=True)) + self.beta


class ComplexPyTorchStack(LibraryStack):
    """With the ComplexLinear of complexPyTorch: fc_r(x) - fc_i(y) + i (fc_r(y) + fc_i(x)), two real layers."""

    def __init__(self, stack: PlanarStack) -> None:
        self.library = _import("complexPyTorch", "complexPyTorch.complexLayers")
        super().__init__(stack)

    def linear(self, layer: nn.Module) -> nn.Module:
        linear = self.library.ComplexLinear(*reversed(layer.weight_real.shape))
        with torch.no_grad():
            linear.fc_r.weight.copy_(layer.weight_real)
            linear.fc_i.weight.copy_(layer.weight_imag)
            linear.fc_r.bias.copy_((layer.bias_real + layer.bias_imag) / 2)  # its biases: a = r - i, b = r + i
            linear.fc_i.bias.copy_((layer.bias_imag - layer.bias_real) / 2)
        return linear

    def linear_gradients(self, linear: nn.Module) -> dict[str, Tensor]:
        r, i = linear.fc_r, linear.fc_i
        bias_real, bias_imag = (r.bias.grad - i.bias.grad) / 2, (r.bias.grad + i.bias.grad) / 2
        return {"weight_real": r.weight.grad, "weight_imag": i.weight.grad, "bias_real": bias_real,
                "bias_imag": bias_imag}  # fmt: skip


def build_library_stack(name: str, stack: PlanarStack) -> LibraryStack:
    """Return a library's stack with the weights of `stack` (float32); PathMissingError where it is not installed."""
    kinds = {"complex64": LibraryStack, "complextorch": ComplextorchStack, "complexPyTorch": ComplexPyTorchStack}
    if name not in kinds:
        raise ValueError(f"library: got {name!r}, expected one of {', '.join(LIBRARIES)}")
    return kinds[name](stack)
