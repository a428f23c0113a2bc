"""Stage 06: is half-precision complex arithmetic healthy, and stored as claimed?"""

from __future__ import annotations

from muse import measure
from muse.host.progress import track
from muse.records.schema import StageRecord

from .method import by
from .stage import Stage


def run(stage: Stage) -> StageRecord:
    """Measure every candidate's gradients, random trials, scale stress and layout, and return the record."""
    settings, metrics, series = stage.settings, [], []
    for name in stage.keeping(settings.candidates, metrics, "models in trials", series=series):
        gradients = measure.measure_gradients(
            stage.model(name),
            batch_size=settings.gradient_batch_size,
            n_tokens=settings.gradient_n_tokens,
            seed=settings.seed,
        )
        metrics += by(gradients.metrics(name), measure.measure_gradients)
        stability = measure.measure_stability(
            stage.model(name, recompute=False),  # the same numbers, sooner
            trials=settings.stability_trials,
            batch_size=settings.stability_batch_size,
            n_tokens=settings.stability_n_tokens,
            seed=settings.seed,
            progress=track,
        )
        metrics += by(stability.metrics(name), measure.measure_stability)
        series += stability.series(name)
        metrics += by(measure.check_layout(stage.model(name)).metrics(name), measure.check_layout)
        print(f"{name}: loss {gradients.loss_nats:.4f} nat/token; first overflow at scale", end=" ")
        print(f"{stability.first_non_finite_scale}: {stability.stress_place}")
    return stage.write(metrics, series=series)
