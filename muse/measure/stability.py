"""Numerical stability: random trials forward and backward, and how far activations can grow before they overflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muse.ops.cross_entropy import head_loss
from muse.ops.logits import head_logits
from muse.records.schema import Metric, Series

from .common import (
    Progress,
    all_finite,
    dropout_seed,
    forward_hooks,
    passthrough,
    random_batch,
    tensors_in,
    training_mode,
)

STRESS_FACTOR = 4.0
STRESS_LARGEST = 2.0**40
STRESS_TOKENS = 32


@dataclass(frozen=True)
class StabilityResult:
    """Which trials met a NaN or an infinity, and at which scale of the embedding the first one appears."""

    trials: int
    batch_size: int
    n_tokens: int
    failed_trials: tuple[int, ...]
    first_place: str | None  # of the first failed trial
    stress_scales: tuple[float, ...]  # tried, ascending; all but possibly the last stayed finite
    stress_largest: tuple[float, ...]  # largest magnitude of any module's output at the finite scales
    stress_place: str | None  # None: everything stayed finite

    @property
    def first_non_finite_scale(self) -> float | None:
        """Factor on the embedding's output at which the first non-finite number appears; None if none does."""
        return None if self.stress_place is None else self.stress_scales[-1]

    def metrics(self, model_name: str) -> list[Metric]:
        """Return the number of non-finite trials and the first scale that overflows, each with its place."""
        what = f"forward + loss + backward, batch {self.batch_size} x {self.n_tokens}, random tokens"
        where = "" if self.first_place is None else f"; first in trial {self.failed_trials[0]}: {self.first_place}"
        if self.stress_place is None:
            stress = f"nothing non-finite up to {max(self.stress_scales):g} times the embedding's output"
        else:
            stress = f"embedding's output times {self.first_non_finite_scale:g}: {self.stress_place}"
        return [
            Metric(name="non_finite_trials", model=model_name, value=len(self.failed_trials), unit="trials",
                   n=self.trials, labels=[str(trial) for trial in self.failed_trials], note=what + where),
            Metric(name="stress_first_non_finite_scale", model=model_name, value=self.first_non_finite_scale, unit="1",
                   n=len(self.stress_scales), note=stress),
        ]  # fmt: skip

    def series(self, model_name: str) -> list[Series]:
        """Return the largest activation over the scale of the embedding's output, where all was finite."""
        finite = self.stress_scales[: len(self.stress_largest)]
        return [
            Series(name="scale_stress", model=model_name, x_name="factor on the embedding's output",
                   y_name="largest magnitude of a module's output", x=list(finite), y=list(self.stress_largest))
        ]  # fmt: skip


def measure_stability(
    model: nn.Module,
    *,
    trials: int = 100,
    batch_size: int = 2,
    n_tokens: int = 128,
    seed: int = 0,
    progress: Progress = passthrough,
) -> StabilityResult:
    """Run the trials in training mode, without a loss scale, then the scale stress; gradients are cleared at the end.

    Every trial checks features, logits, loss and all gradients. Modules are looked at one by one only in a second pass
    over the first trial that fails. The stress uses one short sequence, since every token is scaled alike.
    """
    generator = torch.Generator().manual_seed(seed)
    failed: list[int] = []
    place = None
    weight_norm = largest_row(model)
    try:
        with training_mode(model, True):
            for trial in progress(range(trials), "stability trials", trials):
                batch = random_batch(model, batch_size, n_tokens, generator)
                if not _is_finite(model, *batch, seed + trial, weight_norm):
                    failed.append(trial)
                    place = place or find_first_non_finite(model, *batch, seed + trial) or "not found again"
            short = random_batch(model, 1, min(n_tokens, STRESS_TOKENS), generator)
            stress = _scale_stress(model, *short)
    finally:
        model.zero_grad(set_to_none=True)
    return StabilityResult(trials, batch_size, n_tokens, tuple(failed), place, *stress)


def _run(model: nn.Module, inputs: Tensor, targets: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features and mean loss after a backward pass into fresh gradients."""
    model.zero_grad(set_to_none=True)
    with dropout_seed(seed, inputs.device):
        features = model.features(inputs)
    loss = head_loss(features, *model.head_parameters(), targets)
    loss.backward()
    return features.detach(), loss.detach()


def _is_finite(model: nn.Module, inputs: Tensor, targets: Tensor, seed: int, weight_norm: float) -> bool:
    features, loss = _run(model, inputs, targets, seed)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return all_finite([features, loss, *gradients]) and _logits_are_finite(model, features, weight_norm)


def largest_row(model: nn.Module) -> float:
    """Return the largest |weight row| + |bias| of the head: no logit exceeds that times max(|features|, 1)."""
    weight, bias = model.head_parameters()
    with torch.no_grad():
        row = float(torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).amax())
        return row + (float(bias.abs().amax()) if bias is not None else 0.0)


def _logits_are_finite(model: nn.Module, features: Tensor, weight_norm: float) -> bool:
    """Look at the logits only where the Cauchy-Schwarz bound leaves room for an overflow: it seldom does."""
    longest = max(float(torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32).amax()), 1.0)
    if 2 * weight_norm * longest < torch.finfo(features.dtype).max:
        return True
    with torch.no_grad():
        return all_finite([head_logits(features, *model.head_parameters())])


def find_first_non_finite(model: nn.Module, inputs: Tensor, targets: Tensor, seed: int = 0) -> str | None:
    """Run one trial with a look at every module's output, then at the gradients in the order of the backward pass.

    Returns where the first non-finite number appears, or None.
    """
    found: list[str] = []
    with forward_hooks([(m, _watch(n or "model", found)) for n, m in model.named_modules()]):
        features, loss = _run(model, inputs, targets, seed)
    forward = [place for place in found if place.startswith("forward")]
    if forward:
        return forward[0]
    if not _logits_are_finite(model, features, largest_row(model)):
        return "forward, logits of the head"
    if not all_finite([loss]):
        return "forward, loss"
    if found:
        return found[0]
    names = [name for name, p in model.named_parameters() if p.grad is not None and not all_finite([p.grad])]
    return f"backward, gradient of {', '.join(names)}" if names else None


def _watch(name: str, found: list[str]) -> Callable:
    """Return a hook that appends where numbers are not finite: an output, and later its gradient."""

    def look(module: nn.Module, _inputs: object, output: object) -> None:
        def look_back(gradient: Tensor) -> None:
            if not all_finite([gradient]):
                found.append(f"backward, gradient of the output of {name} ({type(module).__name__})")

        for tensor in tensors_in(output):
            if not all_finite([tensor]):
                found.append(f"forward, output of {name} ({type(module).__name__})")
            if tensor.requires_grad:
                tensor.register_hook(look_back)

    return look


def _scale_stress(
    model: nn.Module, inputs: Tensor, targets: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...], str | None]:
    """Multiply the token embedding's output by 1, 4, 16, .. until something is not finite, up to STRESS_LARGEST.

    Returns the scales, the largest magnitudes at the finite ones, and where the first non-finite number appeared.
    """
    embedding = find_embedding(model, inputs)
    scales: list[float] = []
    largest: list[float] = []
    place, scale = None, 1.0
    while place is None and scale <= STRESS_LARGEST:
        peaks: list[Tensor] = []
        scaling = [(embedding, lambda _module, _inputs, output, scale=scale: output * scale)]
        sizing = [(m, lambda _module, _inputs, output, peaks=peaks: peaks.extend(_magnitudes(output)))
                  for m in model.modules()]  # fmt: skip
        with forward_hooks(scaling + sizing):
            place = find_first_non_finite(model, inputs, targets)
        scales.append(scale)
        if place is None:
            largest.append(float(torch.stack(peaks).amax()))
        scale *= STRESS_FACTOR
    return tuple(scales), tuple(largest), place


def _magnitudes(output: object) -> list[Tensor]:
    return [tensor.detach().abs().amax().float() for tensor in tensors_in(output) if tensor.is_floating_point()]


def find_embedding(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return the innermost module that first turns the token ids (B T) into numbers; ValueError when there is none."""
    found: list[nn.Module] = []

    def look(module: nn.Module, arguments: tuple, output: object) -> None:
        takes_ids = any(isinstance(a, Tensor) and a.shape == inputs.shape and a.equal(inputs) for a in arguments)
        if takes_ids and module is not model and any(t.is_floating_point() for t in tensors_in(output)):
            found.append(module)

    with forward_hooks([(module, look) for module in model.modules()]), torch.no_grad():
        model.features(inputs)
    if not found:
        raise ValueError(f"{type(model).__name__} has no module that takes the token ids, so nothing can be scaled")
    return found[0]
