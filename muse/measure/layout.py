"""Memory layout of complex numbers: the two planes apart, each a unit-stride run, in half precision.

A planar activation is r(B T 2D), the real parts before the imaginary parts; parameters come in pairs `<name>_real` and
`<name>_imag`. What is looked at are the tensors that really pass through the complex layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muse.models.layers import ComplexEmbedding, ComplexLayerNorm, ComplexLinear, ModReLU
from muse.records.schema import Metric

from .common import forward_hooks, random_batch, tensors_in, training_mode

COMPLEX_LAYERS = (ComplexEmbedding, ComplexLinear, ComplexLayerNorm, ModReLU)
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LayoutResult:
    """What was looked at, what is not planar half precision, and the bytes of one complex activation element."""

    num_activations: int
    num_parameters: int
    violations: tuple[str, ...]  # one sentence each
    bytes_per_complex: int | None  # the most found among activations; None without complex layers

    def metrics(self, model_name: str) -> list[Metric]:
        """Return the violations and the bytes per complex element; without complex layers neither has a value."""
        n = self.num_activations + self.num_parameters
        note = f"{self.num_activations} activations and {self.num_parameters} parameters of complex layers"
        if self.bytes_per_complex is None:
            note = "the model has no complex layers"
        return [
            Metric(name="layout_violations", model=model_name, n=n, unit="problems", labels=list(self.violations),
                   value=None if self.bytes_per_complex is None else len(self.violations), note=note),
            Metric(name="bytes_per_complex", model=model_name, value=self.bytes_per_complex, unit="byte",
                   n=self.num_activations, note=note),
        ]  # fmt: skip


def check_layout(
    model: nn.Module,
    token_ids: Tensor | None = None,
    *,
    complex_layers: tuple[type[nn.Module], ...] = COMPLEX_LAYERS,
    seed: int = 0,
) -> LayoutResult:
    """Run one forward pass and look at the inputs and outputs of the complex layers and at their parameters.

    `token_ids` int64 (B T) defaults to a small random batch.
    """
    if token_ids is None:
        token_ids, _ = random_batch(model, 2, min(8, model.config.n_seq), torch.Generator().manual_seed(seed))
    layers = {name or "model": module for name, module in model.named_modules() if isinstance(module, complex_layers)}
    activations, violations = _look_at_activations(model, token_ids, layers)
    for name, layer in layers.items():
        violations += [f"{name}.{problem}" for problem in parameter_problems(layer)]
    num_parameters = sum(len(list(layer.parameters(recurse=False))) for layer in layers.values())
    return LayoutResult(len(activations), num_parameters, tuple(violations), max(activations, default=None))


def _look_at_activations(
    model: nn.Module, token_ids: Tensor, layers: dict[str, nn.Module]
) -> tuple[list[int], list[str]]:
    """Return bytes per complex element of every activation seen, and the violations among them."""
    sizes: list[int] = []
    violations: list[str] = []

    def watch(name: str):
        def look(module: nn.Module, inputs: tuple, output: object) -> None:
            seen = [("input", t) for t in tensors_in(inputs)] + [("output", t) for t in tensors_in(output)]
            for side, tensor in seen:
                if tensor.is_floating_point() or tensor.is_complex():
                    sizes.append(tensor.element_size() * (1 if tensor.is_complex() else 2))
                    problem = activation_problem(tensor, token_ids.shape) or _table_problem(module, inputs, tensor)
                    violations.extend([f"{side} of {name}: {problem}"] if problem else [])

        return look

    hooks = [(layer, watch(name)) for name, layer in layers.items()]
    with forward_hooks(hooks), training_mode(model, False), torch.no_grad():
        model.features(token_ids)
    return sizes, violations


def activation_problem(z: Tensor, shape: torch.Size) -> str | None:
    """Return what keeps an activation of tokens of this shape (B T) from being planar half precision, or None."""
    if z.is_complex():
        return f"{_name(z.dtype)} keeps real and imaginary parts interleaved"
    if z.shape[:-1] != shape or z.shape[-1] % 2:
        return f"shape {tuple(z.shape)} is not (B, T, 2D) for token ids {tuple(shape)}"
    if z.stride(-1) != 1:
        return f"planes have stride {z.stride(-1)}, not 1"
    return None if z.dtype in HALF else f"{_name(z.dtype)} is not half precision"


def _table_problem(module: nn.Module, inputs: tuple, z: Tensor) -> str | None:
    """An embedding shows where the planes really are: the first D channels of its output are rows of its real table."""
    if not (isinstance(module, ComplexEmbedding) and inputs and not inputs[0].is_floating_point()):
        return None
    real, imag = z.chunk(2, dim=-1)
    if real.equal(module.weight_real[inputs[0]].to(z.dtype)) and imag.equal(module.weight_imag[inputs[0]].to(z.dtype)):
        return None
    return "its halves are not the rows of the real and of the imaginary table"


def parameter_problems(layer: nn.Module) -> Iterator[str]:
    """Yield what keeps a layer's own parameters from being separate, contiguous planes in half precision."""
    parameters = dict(layer.named_parameters(recurse=False))
    for name, p in parameters.items():
        if p.is_complex():
            yield f"{name}: {_name(p.dtype)} keeps real and imaginary parts interleaved"
            continue
        if p.dtype not in HALF:
            yield f"{name}: {_name(p.dtype)} is not half precision"
        if not p.is_contiguous():
            yield f"{name}: strides {p.stride()} are not contiguous"
        if not name.endswith(("real", "imag")):
            continue
        partner = parameters.get(name[:-4] + ("imag" if name.endswith("real") else "real"))
        if partner is None or partner.shape != p.shape:
            yield f"{name}: no other plane of shape {tuple(p.shape)}"
        elif name.endswith("real") and _overlap(p, partner):
            yield f"{name}: its memory overlaps that of the other plane"


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Return whether the spans of memory from first to last element of two tensors overlap."""
    spans = []
    for tensor in (first, second):
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        spans.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
    return max(start for start, _ in spans) < min(end for _, end in spans)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
