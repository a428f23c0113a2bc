"""The trainings of a comparison as a record keeps them: with what, when, on what, for how long, to what end."""

from __future__ import annotations

from datetime import datetime

import torch

from muse.records.environment import device_hardware, utc_now
from muse.records.schema import TrainingRun

from .recipe import Recipe, TrainingResult

SHARED = ("seed", "learning_rate", "dropout", "optimizer", "batch_tokens", "weight_decay", "steps")
"""What a recipe and the record of its training call by the same name."""

FOUND = (
    *("seconds", "started_utc", "finished_utc", "hardware", "resumed_from_steps", "skipped_steps", "reused"),
    "best_validation_loss",
)
"""What a result and the record of its training call by the same name."""


def finished_run(recipe: Recipe, result: TrainingResult, commit: str = "") -> TrainingRun:
    """Return the record of a training with a result, be it of this run or found on disk."""
    found = {name: getattr(result, name) for name in FOUND}
    return _run(result.model_name, recipe, commit=commit, **found)


def diverged_run(
    model_name: str, recipe: Recipe, device: str | torch.device, started: datetime, seconds: float
) -> TrainingRun:
    """Return the record of a training that stopped just now, without a result, where its loss was not finite."""
    return _run(
        model_name,
        recipe,
        seconds=seconds,
        started_utc=started,
        finished_utc=utc_now(),
        hardware=device_hardware(torch.device(device)),
        diverged=True,
        best_validation_loss=None,
    )


def _run(model_name: str, recipe: Recipe, **ended: object) -> TrainingRun:
    return TrainingRun(
        model=model_name,
        **{name: getattr(recipe, name) for name in SHARED},
        muon_weight_decay=recipe.muon_weight_decay if recipe.optimizer == "muon" else None,
        tokens=recipe.steps * recipe.tokens_per_step,
        **ended,
    )
