"""Three properties that decide whether a perplexity can be believed: causality, mixing, no state between calls.

Each compares logits of calls of one shape, row by row and position by position, so an operation that treats positions
alike gives the same bits; `tolerance`, relative to the largest logit, is for models whose kernels do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muse.models.tensor_file import first_non_finite
from muse.records.schema import Metric

from .common import random_batch, training_mode


@dataclass(frozen=True)
class CausalityResult:
    """At how many changed positions an earlier logit changed too."""

    violations: int
    positions: tuple[int, ...]
    largest_leak: float  # largest change of an earlier logit; NaN when a logit is not finite
    tolerance: float  # relative to the largest logit

    def metrics(self, model_name: str) -> list[Metric]:
        """Return the number of positions whose token was seen before its time."""
        note = f"largest change of a logit before the changed token: {self.largest_leak:.3g}, allowed: {_allowed(self)}"
        return [
            Metric(name="causality_violations", model=model_name, value=self.violations, unit="positions",
                   n=len(self.positions), note=note)
        ]  # fmt: skip


@dataclass(frozen=True)
class MixingResult:
    """At how many changed positions a later logit changed too."""

    num_reaching: int
    positions: tuple[int, ...]
    farthest_reach: int  # tokens between a change and the last logit that it changed
    largest_change: float  # NaN when a logit is not finite
    tolerance: float
    not_finite: str = ""  # the first logit that is NaN or infinite, in words: nothing can be said then

    def metrics(self, model_name: str) -> list[Metric]:
        """Return 1 when an earlier token changes a later logit, else 0; no value where a logit is not finite."""
        if self.not_finite:
            return [
                Metric(name="mixing", model=model_name, value=None, unit="yes/no", n=len(self.positions),
                       reason=self.not_finite, note=self.not_finite)
            ]  # fmt: skip
        note = (
            f"{self.num_reaching} of {len(self.positions)} changed tokens changed a later logit, up to "
            f"{self.farthest_reach} positions on, by up to {self.largest_change:.3g}; ignored: {_allowed(self)}"
        )
        return [
            Metric(name="mixing", model=model_name, value=float(self.num_reaching > 0), unit="yes/no",
                   n=len(self.positions), note=note)
        ]  # fmt: skip


@dataclass(frozen=True)
class StatefulnessResult:
    """How many repeated calls gave other logits than the first."""

    violations: int
    num_repeats: int
    largest_change: float
    tolerance: float

    def metrics(self, model_name: str) -> list[Metric]:
        """Return the number of repeated calls that differ from the first."""
        note = f"largest change of a logit on repeating the call: {self.largest_change:.3g}, allowed: {_allowed(self)}"
        return [
            Metric(name="state_violations", model=model_name, value=self.violations, unit="calls", n=self.num_repeats,
                   note=note)
        ]  # fmt: skip


def _allowed(result: CausalityResult | MixingResult | StatefulnessResult) -> str:
    return f"{result.tolerance:g} of the largest logit" if result.tolerance else "none"


def check_causality(
    model: nn.Module, *, n_positions: int = 8, n_tokens: int = 64, seed: int = 0, tolerance: float = 0.0
) -> CausalityResult:
    """Change one token at each of several positions: no logit before it may change.

    A logit that is not finite counts as a violation, since nothing can be said about it.
    """
    positions, change, scale = _changes(model, n_positions, n_tokens, seed)
    leaks = torch.stack([row[:position].amax() for row, position in zip(change, positions, strict=True)])
    violations = int((~(leaks <= tolerance * scale)).sum())
    return CausalityResult(violations, tuple(positions), float(leaks.amax()), tolerance)


def check_mixing(
    model: nn.Module, *, n_positions: int = 8, n_tokens: int = 64, seed: int = 0, tolerance: float = 0.0
) -> MixingResult:
    """Change one token at each of several positions: does a logit after it change?

    Where a logit is not finite the result names the first, and nothing else is said.
    """
    positions, change, scale = _changes(model, n_positions, n_tokens, seed)
    if found := first_non_finite({"change of a logit (row, position)": change}):
        return MixingResult(0, tuple(positions), 0, math.nan, tolerance, found)
    reach, largest = [], 0.0
    for row, position in zip(change, positions, strict=True):
        later = row[position + 1 :]
        changed = (later > tolerance * scale).nonzero().flatten().tolist()
        reach.append(changed[-1] + 1 if changed else 0)
        largest = max([largest, *later[later > 0].tolist()])
    return MixingResult(sum(r > 0 for r in reach), tuple(positions), max(reach), largest, tolerance)


def check_statefulness(
    model: nn.Module, *, batch_size: int = 2, n_tokens: int = 64, seed: int = 0, tolerance: float = 0.0
) -> StatefulnessResult:
    """Repeat a call at once, and again after another batch: the logits must be those of the first call."""
    generator = torch.Generator().manual_seed(seed)
    inputs, other = random_batch(model, batch_size, min(n_tokens, model.config.n_seq), generator)
    with training_mode(model, False), torch.inference_mode():
        first, again, _, later = (model(ids).float() for ids in (inputs, inputs, other, inputs))
    changes = torch.stack([(logits - first).abs().amax() for logits in (again, later)])
    violations = int((~(changes <= tolerance * first.abs().amax())).sum())
    return StatefulnessResult(violations, len(changes), float(changes.amax()), tolerance)


def _changes(model: nn.Module, n_positions: int, n_tokens: int, seed: int) -> tuple[list[int], Tensor, float]:
    """Return the changed positions, the largest change of each row's logits (rows, T), and the largest logit.

    Row i of one batch equals row i of the other but for the token at its own position, never the first or the last.
    """
    n_tokens = min(n_tokens, model.config.n_seq)
    if n_tokens < 3 or model.config.vocab_size < 2:
        raise ValueError(f"needs 3 tokens and 2 words, got n_seq={n_tokens} and vocab_size={model.config.vocab_size}")
    positions = sorted({round(p) for p in torch.linspace(1, n_tokens - 2, n_positions).tolist()})
    generator = torch.Generator().manual_seed(seed)
    inputs, _ = random_batch(model, len(positions), n_tokens, generator)
    changed = inputs.clone()
    shift = torch.randint(1, model.config.vocab_size, (len(positions),), generator=generator).to(inputs.device)
    rows, columns = range(len(positions)), positions
    changed[rows, columns] = (inputs[rows, columns] + shift) % model.config.vocab_size
    with training_mode(model, False), torch.inference_mode():
        before, after = model(inputs), model(changed)
        scale = float(before.abs().amax())
        change = torch.stack([(a.float() - b.float()).abs().amax(-1) for a, b in zip(after, before, strict=True)])
    return positions, change.cpu(), scale
