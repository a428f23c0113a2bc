"""The six-layer complex stack as other libraries would write it, with the weights of a `PlanarStack`.

All of them hold complex64 numbers c(B T D). None has the norm of `muse.models.layers` (one variance per token); each
takes the nearest component that computes the same function, so that the equality checks apply to all:

- `complex64`: torch alone. nn.Linear of complex64; modReLU and norm are written out in complex arithmetic.
- `complextorch` 2.1: its Linear, its AdaptiveModReLU (one bias per channel; channels must be dimension 1, so tokens are
  flattened) and its RMSNorm of z less its mean, plus beta. Its LayerNorm whitens with 2x2 matrices: another function.
- `complexPyTorch` 0.4: its ComplexLinear. It has no modReLU and only batch norms: both are those of `complex64`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from muse.host.workbook import to_install
from muse.models import layers

from .naive import PlanarStack


class PathMissingError(RuntimeError):
    """A path that cannot run on this machine; the message says what it lacks."""


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PathMissingError(f"not installed: {to_install('peers')} ({name}: {error})") from error


class LibraryStack(nn.Module):
    """z = norm(z + modrelu(W z + w)), L times: c(... D) to c(... D) in complex64, from components like `Linear`.

    Each is made of the PlanarStack's layer that it stands for, and gives its gradients under the names of that.
    """

    def __init__(self, stack: PlanarStack, linear: type, activation: type, norm: type) -> None:
        super().__init__()
        self.linears = nn.ModuleList(map(linear, stack.linears))
        self.activations = nn.ModuleList(map(activation, stack.activations))
        self.norms = nn.ModuleList(map(norm, stack.norms))
        self.to(stack.linears[0].weight_real.device)

    def forward(self, z: Tensor) -> Tensor:
        for linear, activation, norm in zip(self.linears, self.activations, self.norms, strict=True):
            z = norm(z + activation(linear(z)))
        return z

    def gradients(self) -> dict[str, Tensor]:
        """Gradients under the names of the PlanarStack: of a complex parameter, the one of each of its parts."""
        parts = {name: part for name, part in self.named_modules() if hasattr(part, "gradients") and part is not self}
        return {f"{name}.{key}": grad for name, part in parts.items() for key, grad in part.gradients().items()}


class Linear(nn.Linear):
    """PyTorch's own, of complex64."""

    def __init__(self, layer: layers.ComplexLinear) -> None:
        super().__init__(*reversed(layer.weight_real.shape), dtype=torch.complex64, device="cpu")
        load(self, layer)

    def gradients(self) -> dict[str, Tensor]:
        return gradients_of(self)


def load(linear: nn.Module, layer: layers.ComplexLinear) -> None:
    """Copy a ComplexLinear into a linear layer with complex weight and bias."""
    with torch.no_grad():
        linear.weight.copy_(torch.complex(layer.weight_real.float(), layer.weight_imag.float()))
        linear.bias.copy_(torch.complex(layer.bias_real.float(), layer.bias_imag.float()))


def gradients_of(linear: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a linear layer with complex weight and bias by their parts."""
    weight, bias = linear.weight.grad, linear.bias.grad
    return {"weight_real": weight.real, "weight_imag": weight.imag, "bias_real": bias.real, "bias_imag": bias.imag}


class ModReLU(nn.Module):
    """relu(|z| + b) z / |z| in complex arithmetic."""

    def __init__(self, layer: layers.ModReLU) -> None:
        super().__init__()
        self.bias = nn.Parameter(layer.bias.detach().float().clone())

    def forward(self, z: Tensor) -> Tensor:
        magnitude = z.abs()
        return torch.relu(magnitude + self.bias) / magnitude.clamp_min(1e-12) * z

    def gradients(self) -> dict[str, Tensor]:
        return {"bias": self.bias.grad}


class Norm(nn.Module):
    """gamma (z - mu) / sqrt(E|z - mu|^2 + eps) + beta in complex arithmetic."""

    def __init__(self, layer: layers.ComplexLayerNorm) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(value.detach().float().clone()) for value in (layer.gamma, layer.beta))
        self.eps = layer.eps

    def forward(self, z: Tensor) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        variance = (centred * centred.conj()).real.mean(-1, keepdim=True)
        return self.gamma * (centred * torch.rsqrt(variance + self.eps)) + self.beta

    def gradients(self) -> dict[str, Tensor]:
        return {"gamma": self.gamma.grad, "beta": self.beta.grad}


def complextorch_stack(stack: PlanarStack) -> LibraryStack:
    """Return a stack of the components of complextorch."""
    library = _import("complextorch", "complextorch.nn")

    class LibraryLinear(library.Linear):
        def __init__(self, layer: layers.ComplexLinear) -> None:
            super().__init__(*reversed(layer.weight_real.shape))
            load(self.linear, layer)

        def gradients(self) -> dict[str, Tensor]:
            return gradients_of(self.linear)

    class LibraryModReLU(library.AdaptiveModReLU):
        def __init__(self, layer: layers.ModReLU) -> None:
            super().__init__(len(layer.bias))
            self.activation_mag.bias.data.copy_(layer.bias)

        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z.flatten(0, -2)).view_as(z)  # it wants (N C)

        def gradients(self) -> dict[str, Tensor]:
            return {"bias": self.activation_mag.bias.grad}

    class LibraryNorm(library.RMSNorm):
        def __init__(self, layer: layers.ComplexLayerNorm) -> None:
            super().__init__(len(layer.gamma), eps=layer.eps)
            self.weight.data.copy_(torch.eye(2)[..., None] * layer.gamma.detach().float().cpu())
            self.beta = nn.Parameter(layer.beta.detach().float().clone())

        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z - z.mean(-1, keepdim=True)) + self.beta

        def gradients(self) -> dict[str, Tensor]:
            return {"gamma": self.weight.grad[0, 0] + self.weight.grad[1, 1], "beta": self.beta.grad}

    return LibraryStack(stack, LibraryLinear, LibraryModReLU, LibraryNorm)


def complexpytorch_stack(stack: PlanarStack) -> LibraryStack:
    """Return a stack with the ComplexLinear of complexPyTorch: fc_r(x) - fc_i(y) + i (fc_r(y) + fc_i(x))."""
    library = _import("complexPyTorch", "complexPyTorch.complexLayers")

    class LibraryLinear(library.ComplexLinear):
        def __init__(self, layer: layers.ComplexLinear) -> None:
            super().__init__(*reversed(layer.weight_real.shape))
            with torch.no_grad():
                self.fc_r.weight.copy_(layer.weight_real)
                self.fc_i.weight.copy_(layer.weight_imag)
                self.fc_r.bias.copy_((layer.bias_real + layer.bias_imag) / 2)  # its biases: a = r - i, b = r + i
                self.fc_i.bias.copy_((layer.bias_imag - layer.bias_real) / 2)

        def gradients(self) -> dict[str, Tensor]:
            r, i = self.fc_r, self.fc_i
            bias_real, bias_imag = (r.bias.grad - i.bias.grad) / 2, (r.bias.grad + i.bias.grad) / 2
            return {"weight_real": r.weight.grad, "weight_imag": i.weight.grad, "bias_real": bias_real,
                    "bias_imag": bias_imag}  # fmt: skip

    return LibraryStack(stack, LibraryLinear, ModReLU, Norm)


STACKS = {
    "complex64": lambda stack: LibraryStack(stack, Linear, ModReLU, Norm),
    "complextorch": complextorch_stack,
    "complexPyTorch": complexpytorch_stack,
}


def build_library_stack(name: str, stack: PlanarStack) -> LibraryStack:
    """Return a library's stack with the weights of `stack` (float32); PathMissingError where it is not installed."""
    if name not in STACKS:
        raise ValueError(f"library: got {name!r}, expected one of {', '.join(STACKS)}")
    return STACKS[name](stack)
