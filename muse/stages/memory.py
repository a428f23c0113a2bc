"""Stage 04: how much accelerator memory does a forward and backward pass of each model need, and a training step?"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from muse import measure
from muse.catalog import BASELINE, recomputes
from muse.host.progress import track
from muse.records.schema import Metric, StageRecord
from muse.training.muon import Muon
from muse.training.ranks import SharedGradients
from muse.training.recipe import Recipe
from muse.training.trainer import OptimizerStep, resolve_precision

from .method import by
from .stage import Stage

BASELINE_BFLOAT16 = f"{BASELINE}_bfloat16"
"""What the peaks of models stored in half precision are divided by too, in the names of those ratios."""


def run(stage: Stage) -> StageRecord:
    """Measure each model's peaks, divide them by Phase 2's, and return the record.

    In its own precision as it runs by default (the criterion); with halves of blocks that are computed again in the
    backward pass (recomputed) and with nothing computed again (plain), for every model alike; with float32 everywhere
    (matched); in bfloat16, of models whose own precision is float32; whole training steps; and a step of the recipe.
    """
    settings, metrics = stage.settings, []
    size = {"batch_size": settings.memory_batch_size, "n_seq": settings.n_seq}
    peak = partial(measure.measure_memory, device=stage.device, seed=settings.seed, **size)
    for name in track(stage.keeping(stage.compared, metrics), "memory", len(stage.compared)):
        float32 = partial(stage.shaped, name, use_complex32=False)
        default = recomputes(name, settings.recompute)
        found = {again: peak(partial(stage.shaped, name, recompute=again)) for again in (True, False)}
        own = found[default]
        is_float32 = own.parameter_dtypes == ("float32",)
        matched = own if is_float32 else peak(float32)
        metrics += [*own.metrics(name), *matched.metrics(name, variant="matched")]
        if is_float32:
            metrics += peak(partial(stage.shaped, name, dtype=torch.bfloat16)).metrics(name, variant="bfloat16")
        metrics += found[True].metrics(name, variant="recomputed")
        metrics += found[False].metrics(name, variant="plain")
        for variant, optimizer in _optimizers(settings.optimizer).items():
            step = peak(partial(float32, recompute=True), training=training(stage, optimizer, **size))
            metrics += step.metrics(name, variant)
        metrics += _recipe_step(stage, name)
    return stage.write(by([*metrics, *_ratios(metrics)], run))


def training(stage: Stage, optimizer: str, batch_size: int, n_seq: int, about: str = "") -> measure.Training:
    """The trainer's own step, not compiled: float32 masters, autocast, gradients clipped, this optimizer."""
    precision = resolve_precision("auto", stage.device) if stage.device.type == "cuda" else "bfloat16"
    return optimizer_step(optimizer, batch_size, n_seq, precision, about)


def optimizer_step(
    optimizer: str, batch_size: int, n_seq: int, precision: str, about: str = "", *, one_of_several: bool = False
) -> measure.Training:
    """A step of the trainer with this optimizer; of one of several processes, its gradients stay in their buffer."""
    tokens = batch_size * n_seq
    recipe = Recipe(train_tokens=2 * tokens, batch_tokens=tokens, n_seq=n_seq, learning_rate=1e-3, optimizer=optimizer,
                    precision=precision)  # fmt: skip
    told = f"training step with {optimizer} and {precision} autocast{about}"
    return measure.Training(partial(_step, recipe, one_of_several), told)


def _step(recipe: Recipe, one_of_several: bool, model: nn.Module) -> OptimizerStep:
    """The step of a model; its Muon multiplies in bfloat16 as on CUDA, also where the step is only counted."""
    step = OptimizerStep(model, recipe, "memory of a step")
    if one_of_several:
        step.shared = SharedGradients(step.parameters, step.ranks)
    for optimizer in step.optimizers:
        if isinstance(optimizer, Muon):
            optimizer.compute = torch.bfloat16
    return step


def _optimizers(trained: str) -> dict[str, str]:
    """The optimizers of whole training steps, by variant: the one that trains, and AdamW beside it."""
    return {"training_step": trained} | ({} if trained == "adamw" else {"training_step_adamw": "adamw"})


def _recipe_step(stage: Stage, name: str) -> list[Metric]:
    """A step as large as the largest that is tried, with the largest dropout: within 8 GiB?"""
    settings = stage.settings
    n_seq = min(settings.train_n_seq or settings.n_seq, settings.n_seq)
    size = {"batch_size": max(1, max(settings.batch_tokens) // n_seq), "n_seq": n_seq}
    dropout = max(settings.dropouts)
    build = partial(stage.shaped, name, use_complex32=False, dropout=dropout)
    step = training(stage, settings.optimizer, **size, about=f" and dropout {dropout:g}")
    return measure.small_gpu_metrics(build, name, device=stage.device, seed=settings.seed, training=step, **size)


def _ratios(metrics: list[Metric]) -> list[Metric]:
    """Every peak over Phase 2's of the same kind, and those of half precision over Phase 2's in bfloat16."""
    peaks = [metric for metric in metrics if metric.name.startswith("peak_memory")]
    own = [metric for metric in peaks if metric.name == "peak_memory"]
    real = {metric.model for metric in peaks if metric.name == "peak_memory_bfloat16"}
    bfloat16 = [
        metric.model_copy(update={"name": "peak_memory", "model": BASELINE_BFLOAT16})
        for metric in peaks
        if (metric.name, metric.model) == ("peak_memory_bfloat16", BASELINE)
    ]
    half = [metric for metric in own if metric.model not in real]
    return [*measure.ratio_metrics(peaks, BASELINE), *measure.ratio_metrics([*bfloat16, *half], BASELINE_BFLOAT16)]
