"""Gradient health: the norm of every parameter's gradient after one forward and backward pass on random tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muse.records.schema import Metric

from .common import dropout_seed, random_batch, training_mode

FIRST_LOSS_SCALE = 2.0**15
LOSS_SCALE_STEP = 4.0
NORM_CHUNK = 2**22  # elements converted to float64 at a time


@dataclass(frozen=True)
class GradientResult:
    """Gradient norms of the mean loss, unscaled, by parameter name; trainable parameters only."""

    norms: dict[str, float]  # NaN or infinite where the gradient is
    missing: tuple[str, ...]  # parameters that the loss does not reach
    loss_nats: float
    loss_scale: float  # what the loss was multiplied by, and the gradients divided by

    @property
    def zero(self) -> tuple[str, ...]:
        """Names of the parameters whose gradient is exactly zero."""
        return tuple(name for name, norm in self.norms.items() if norm == 0)

    @property
    def non_finite(self) -> tuple[str, ...]:
        """Names of the parameters whose gradient holds a NaN or an infinity."""
        return tuple(name for name, norm in self.norms.items() if not math.isfinite(norm))

    def metrics(self, model_name: str) -> list[Metric]:
        """Return the norms (value: median), their extremes, the unreached and the non-finite, and the loss scale.

        Zero norms take part in median and minimum; missing gradients have no norm. With a non-finite norm none of the
        three has a value, and the note names the parameters.
        """
        finite = {name: norm for name, norm in self.norms.items() if math.isfinite(norm)}
        note = f"non-finite gradient: {_listed(self.non_finite)}" if self.non_finite else ""
        note = note or ("" if self.norms else "no parameter has a gradient")
        count = len(self.norms)

        def metric(name: str, value: float | None, unit: str, labels=(), samples=(), n=count, note=note) -> Metric:
            return Metric(name=name, model=model_name, value=value, unit=unit, n=n, labels=list(labels),
                          samples=list(samples), note=note)  # fmt: skip

        usable = {} if note else finite
        low, high = ([pick(usable, key=usable.get)] if usable else [] for pick in (min, max))
        median = torch.tensor(list(usable.values()), dtype=torch.float64).quantile(0.5).item() if usable else None
        return [
            metric("gradient_norm", median, "1", finite, finite.values()),
            metric("gradient_norm_min", finite[low[0]] if low else None, "1", low),
            metric("gradient_norm_max", finite[high[0]] if high else None, "1", high),
            metric("parameters_without_gradient", len(self.missing) + len(self.zero), "parameters",
                   [*self.missing, *self.zero], n=len(self.norms) + len(self.missing),
                   note=f"missing: {_listed(self.missing)}; zero: {_listed(self.zero)}"),
            metric("parameters_with_non_finite_gradient", len(self.non_finite), "parameters", self.non_finite),
            metric("loss_scale", self.loss_scale, "1", n=1, note="factor on the loss, divided out of the norms"),
        ]  # fmt: skip


def measure_gradients(
    model: nn.Module, *, batch_size: int = 2, n_tokens: int = 128, seed: int = 0
) -> GradientResult:
    """Return the gradient norms of the mean loss in training mode; the model's gradients are cleared before and after.

    Models with float16 parameters get a loss scale, a power of two that is lowered until no gradient overflows: float16
    gradients of a mean loss would underflow. A gradient that is not finite even at scale 1 is reported as it is.
    """
    inputs, targets = random_batch(model, batch_size, n_tokens, torch.Generator().manual_seed(seed))
    scale = FIRST_LOSS_SCALE if any(p.dtype == torch.float16 for p in model.parameters()) else 1.0
    try:
        while True:
            result = _norms_at(model, inputs, targets, scale, seed)
            if not result.non_finite or scale <= 1:
                return result
            scale = max(scale / LOSS_SCALE_STEP, 1.0)
    finally:
        model.zero_grad(set_to_none=True)


def _norms_at(model: nn.Module, inputs: Tensor, targets: Tensor, scale: float, seed: int) -> GradientResult:
    model.zero_grad(set_to_none=True)
    with training_mode(model, True), dropout_seed(seed, inputs.device):
        loss = model.loss(inputs, targets)
        (loss * scale).backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms = {name: p.grad for name, p in trainable.items() if p.grad is not None}
    return GradientResult(
        norms={name: gradient_norm(grad) / scale for name, grad in norms.items()},
        missing=tuple(name for name in trainable if name not in norms),
        loss_nats=float(loss.detach()),
        loss_scale=scale,
    )


def gradient_norm(gradient: Tensor) -> float:
    """Return the Euclidean norm, summed in float64, which the square of no float32 number overflows."""
    chunks = gradient.detach().flatten().split(NORM_CHUNK)
    return float(torch.stack([chunk.double().square().sum() for chunk in chunks]).sum().sqrt())


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "none"
