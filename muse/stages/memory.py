"""Stage 04: how much accelerator memory does a forward and backward pass of each model need?"""

from __future__ import annotations

from functools import partial

from muse import measure
from muse.catalog import BASELINE, recomputes
from muse.host.progress import track
from muse.records.schema import StageRecord

from .stage import Stage


def run(stage: Stage) -> StageRecord:
    """Measure each model's peaks in five ways, divide them by Phase 2's, and return the record.

    In its own precision as it runs by default (the criterion); with halves of blocks that are computed again in the
    backward pass (recomputed) and with nothing computed again (plain), for every model alike; with float32 everywhere
    (matched); and with float32 masters and the optimizer's state (with_optimizer).
    """
    settings, metrics = stage.settings, []
    protocol = {
        "batch_size": settings.memory_batch_size,
        "n_seq": settings.n_seq,
        "device": stage.device,
        "seed": settings.seed,
    }
    peak = partial(measure.measure_memory, **protocol)
    for name in track(stage.keeping(stage.compared, metrics), "memory", len(stage.compared)):
        float32 = partial(stage.shaped, name, use_complex32=False)
        default = recomputes(name, settings.recompute)
        found = {again: peak(partial(stage.shaped, name, recompute=again)) for again in (True, False)}
        own = found[default]
        matched = own if own.parameter_dtypes == ("float32",) else peak(float32)
        metrics += [*own.metrics(name), *matched.metrics(name, variant="matched")]
        metrics += found[True].metrics(name, variant="recomputed")
        metrics += found[False].metrics(name, variant="plain")
        metrics += peak(float32, with_optimizer=True).metrics(name, variant="with_optimizer")
    peaks = [metric for metric in metrics if metric.name.startswith("peak_memory")]
    return stage.write([*metrics, *measure.ratio_metrics(peaks, BASELINE)])
