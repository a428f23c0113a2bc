"""Stage 05: how many tokens per second does each model process, and how much of the machine does it use?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from muse import measure
from muse.bench import bench
from muse.bench.bench import BenchResult
from muse.catalog import BASELINE
from muse.host.progress import track
from muse.ops import planar
from muse.records.schema import Metric, StageRecord
from muse.report.plain import bench_tables

from .method import by
from .stage import Stage


def run(stage: Stage) -> StageRecord:
    """Time each model's paths in turn against what the machine reaches, benchmark if asked, return the record."""
    half = planar.compute_dtype(torch.float16, stage.device)
    ceilings = [measure.matrix_ceiling(stage.device, dtype) for dtype in {half, torch.float32}]
    ceiling, copy = max(ceilings, key=lambda found: found.value), measure.copy_ceiling(stage.device)
    print(f"{ceiling.note}: {ceiling.value / 1e12:.2f} TFLOP/s, copy {copy.value / 1e9:.1f} GB/s")
    metrics = [*by(ceiling.metrics(), measure.matrix_ceiling), *by(copy.metrics(), measure.copy_ceiling)]
    tokens = random_tokens(stage)
    autocast_dtype = torch.bfloat16 if half != torch.float32 else None
    for name in stage.keeping(stage.compared, metrics):
        speeds = model_speed(stage, name, tokens, autocast_dtype, ceiling.value)
        metrics += by(speeds.metrics(name), model_speed, random_tokens)
    if stage.settings.bench:
        keep = partial(_keep_races, stage, metrics)
        metrics += by(run_bench(stage, keep).metrics(), run_bench)
        print("\n".join(bench_tables(metrics)))
    speeds = [metric for metric in metrics if metric.name.startswith("throughput_")]
    ratios = by(measure.ratio_metrics(speeds, BASELINE), model_speed, random_tokens, measure.ratio_metrics)
    return stage.write([*metrics, *ratios])


def random_tokens(stage: Stage) -> Tensor:
    """Return the int64 (B T+1) tokens that are timed."""
    settings = stage.settings
    shape = settings.throughput_batch_size, settings.throughput_n_tokens + 1
    drawn = torch.randint(settings.vocab_size, shape, generator=torch.Generator().manual_seed(settings.seed))
    return drawn.to(stage.device)


def model_speed(
    stage: Stage, name: str, tokens: Tensor, autocast_dtype: torch.dtype | None, matrix_flops_per_second: float
) -> measure.ThroughputResult:
    """Return the speed of one model: forward with logits, forward to the loss, and a training step."""
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    served, master = stage.model(name), stage.model(name, use_complex32=False)
    return measure.measure_throughput(
        {
            "logits": measure.forward_logits(served, inputs),
            "loss": measure.forward_loss(served, inputs, targets),
            "training": measure.training_step(master, inputs, targets, autocast_dtype=autocast_dtype),
        },
        tokens_per_call=inputs.numel(),
        warmups=stage.settings.throughput_warmups,
        samples=stage.settings.throughput_samples,
        device=stage.device,
        flops_per_token=measure.flops_per_token(stage.model(name).cpu(), stage.settings.throughput_n_tokens),
        matrix_flops_per_second=matrix_flops_per_second,
        progress=track,
    )


def run_bench(stage: Stage, on_result: Callable[[BenchResult], None] = lambda so_far: None) -> BenchResult:
    """Compare fast paths with naive ones and other libraries; `on_result` gets what there is after each result.

    Naive forms and other libraries keep all that they need for the backward pass, so the fast paths do too.
    """
    build = partial(stage.model, recompute=False)
    return bench.measure_bench(
        build, stage.settings, stage.device, lambda: stage.corpus, progress=track, on_result=on_result
    )


def _keep_races(stage: Stage, metrics: list[Metric], so_far: BenchResult) -> None:
    stage.keep([*metrics, *so_far.metrics()], "races not finished")
