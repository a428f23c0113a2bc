"""Stage 01: does the published model build, run forward and backward, and fit?"""

from __future__ import annotations

from muse import measure
from muse.catalog import REFERENCE
from muse.records.schema import Metric, StageRecord

from .method import by
from .stage import Stage


def run(stage: Stage) -> StageRecord:
    """Count the reference's parameters, take its gradients and its memory, and return the record."""
    settings, model = stage.settings, stage.model(REFERENCE)
    groups = model.parameter_groups()
    for name, count in groups.items():
        print(f"{name:12} {count:12,}")
    print(f"{'total':12} {sum(groups.values()):12,}  stored as {next(model.parameters()).dtype}")
    gradients = measure.measure_gradients(
        model, batch_size=settings.gradient_batch_size, n_tokens=settings.gradient_n_tokens, seed=settings.seed
    )
    del model
    memory = measure.measure_memory(
        stage.shaped, batch_size=settings.memory_batch_size, n_seq=settings.n_seq, device=stage.device
    )
    counts = Metric(
        name="parameters",
        model=REFERENCE,
        value=sum(groups.values()),
        unit="real numbers",
        samples=list(groups.values()),
        labels=list(groups),
    )
    loss = Metric(name="untrained_loss", model=REFERENCE, value=gradients.loss_nats, unit="nat/token")
    health = [metric for metric in gradients.metrics(REFERENCE) if metric.name != "gradient_norm"]
    health = by([loss, *health], measure.measure_gradients)
    return stage.write([*by([counts], run), *health, *by(memory.metrics(REFERENCE), measure.measure_memory)])
