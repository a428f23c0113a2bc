"""Stage 01, the published basic test: does the model build, run forward and backward, and fit?"""

from __future__ import annotations

from torch import nn

from muse import measure
from muse.catalog import REFERENCE
from muse.records.schema import Metric, StageRecord

from .method import by
from .stage import Stage


def run(stage: Stage) -> StageRecord:
    """Count the reference's parameters, take its logits, gradients, layout and memory, and return the record."""
    settings, model = stage.settings, stage.model(REFERENCE)
    counts = counted(model)
    for name, count in zip(counts.labels, counts.samples, strict=True):
        print(f"{name:12} {count:12,.0f}")
    print(f"{'total':12} {counts.value:12,.0f}  stored as {next(model.parameters()).dtype}")
    sizes = {"batch_size": settings.gradient_batch_size, "n_tokens": settings.gradient_n_tokens, "seed": settings.seed}
    forward, gradients = measure.measure_forward(model, **sizes), measure.measure_gradients(model, **sizes)
    layout = measure.check_layout(model)
    del model
    memory = measure.measure_memory(
        stage.shaped, batch_size=settings.memory_batch_size, n_seq=settings.n_seq, device=stage.device
    )
    loss = Metric(name="untrained_loss", model=REFERENCE, value=gradients.loss_nats, unit="nat/token")
    return stage.write([
        *by([counts], counted),
        *by(forward.metrics(REFERENCE), measure.measure_forward),
        *by([loss, *gradients.metrics(REFERENCE)], measure.measure_gradients),
        *by(layout.metrics(REFERENCE), measure.check_layout),
        *by(memory.metrics(REFERENCE), measure.measure_memory),
    ])  # fmt: skip


def counted(model: nn.Module) -> Metric:
    """Return the number of a model's parameters, all and by group."""
    groups = model.parameter_groups()
    count = {"value": sum(groups.values()), "samples": list(groups.values()), "labels": list(groups)}
    return Metric(name="parameters", model=REFERENCE, unit="real numbers", **count)
