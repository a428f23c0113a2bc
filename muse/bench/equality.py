"""How far a path is from a float64 reference, in forward values, loss and gradients.

An error is RMS(got - want) / RMS(want): of all gradients together, which rounding decides, and of the worst parameter
alone, so that a wrong sign in a small one cannot hide. That one is judged less strictly: where contributions nearly
cancel (the last imaginary bias, say), rounding weighs more. A loss error is |got - want| in nat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOLERANCES = {
    torch.float64: {"forward": 1e-10, "gradient": 1e-9, "worst_gradient": 1e-8, "loss": 1e-10},
    torch.float32: {"forward": 1e-5, "gradient": 1e-3, "worst_gradient": 1e-2, "loss": 1e-5},
    torch.float16: {"forward": 5e-3, "gradient": 3e-2, "worst_gradient": 3e-1, "loss": 1e-3},
    torch.bfloat16: {"forward": 4e-2, "gradient": 8e-2, "worst_gradient": 5e-1, "loss": 1e-2},
}
"""Largest accepted error by the dtype of a path's products, several times what rounding alone gives."""


@dataclass(frozen=True)
class Check:
    """One comparison of a path with its reference."""

    quantity: str  # forward, gradient, worst_gradient or loss
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance

    @property
    def unit(self) -> str:
        return "nat" if self.quantity == "loss" else "1"

    def __str__(self) -> str:
        verdict = "within" if self.ok else "not within"
        return f"{self.quantity.replace('_', ' ')} error {self.error:.2g}, {verdict} {self.tolerance:g}"


def check(quantity: str, error: float, dtype: torch.dtype) -> Check:
    """Return the comparison with the tolerance for products in `dtype`."""
    return Check(quantity, error, TOLERANCES[dtype][quantity])


def relative_rms(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return RMS(got - want) / RMS(want) over all pairs (got, want) together, in float64."""
    wrong = right = 0.0
    for got, want in pairs:
        if got.shape != want.shape:
            raise ValueError(f"shapes differ: got {tuple(got.shape)}, want {tuple(want.shape)}")
        want = want.detach().double()
        wrong += (got.detach().double() - want).square().sum().item()
        right += want.square().sum().item()
    return math.sqrt(wrong / right) if right else math.inf if wrong or not math.isfinite(wrong) else 0.0


def worst_gradient(got: Mapping[str, Tensor | None], want: Mapping[str, Tensor]) -> float:
    """Return the largest relative error of the named gradients; infinity where one is missing."""
    errors = [math.inf if got.get(name) is None else relative_rms([(got[name], want[name])]) for name in want]
    return math.nan if any(math.isnan(error) for error in errors) else max(errors)


def check_gradients(got: Mapping[str, Tensor | None], want: Mapping[str, Tensor], dtype: torch.dtype) -> list[Check]:
    """Return the comparisons of the named gradients, together and one by one, for products in `dtype`."""
    worst = worst_gradient(got, want)
    together = worst if math.isinf(worst) else relative_rms((got[name], want[name]) for name in want)
    return [check("gradient", together, dtype), check("worst_gradient", worst, dtype)]


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the gradient of every trained parameter by its name."""
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


def reference_gradients(model: nn.Module, token_ids: Tensor, targets: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss of a batch (B T) and its gradients, summed sequence by sequence to keep buffers small."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for row in range(token_ids.shape[0]):
        part = slice(row, row + 1)
        loss = model.loss(token_ids[part], targets[part], reduction="sum") / targets.numel()
        loss.backward()
        total += loss.item()
    return total, {name: grad for name, grad in gradients(model).items() if grad is not None}


def check_rows(call: Callable[[], Tensor], rows: list[int], want: Tensor, dtype: torch.dtype) -> list[Check]:
    """Compare the first tokens of some sequences (rows) of what a call returns with the reference's (rows T ...)."""
    out = call()
    return [check("forward", relative_rms((out[row, : want.shape[1]], want[i]) for i, row in enumerate(rows)), dtype)]
