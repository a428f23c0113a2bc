"""Reports of a run and of its companions."""

from __future__ import annotations

from datetime import UTC, datetime

from muse.records.schema import InputFile, Metric, Report, RunInfo, StageRecord, Summary
from muse.report.companions import Companion

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


PARAMS = {"n_seq": 1024, "d_model": 512, "n_layers": 6, "train_tokens": 1000, "learning_rates": [1e-3]}


def metric(name, model, value, samples=(), **more):
    labels = [f"seed {seed}" for seed in range(len(samples))]
    return Metric(**{"name": name, "model": model, "value": value, "unit": "1"} | more,
                  samples=list(samples), labels=labels)  # fmt: skip


def record(stage, metrics, params, data="a"):
    inputs = [InputFile(path=f"/{stage}/test.txt", sha256=data * 64, num_bytes=1)] if data else []
    about = {"started_utc": NOW, "finished_utc": NOW, "scale": "published"}
    return StageRecord(stage=stage, metrics=metrics, params=params, inputs=inputs, **about)


def make_report(perplexity=(), memory=(), data="a", profile="gpu", run=(), **params):
    params = PARAMS | params
    stages = [record("perplexity", list(perplexity), params, data)] if perplexity else []
    if memory:
        stages.append(record("memory", list(memory), {"n_seq": params["n_seq"], "memory_batch_size": 2}, data=""))
    about = {"id": "x", "profile": profile, "started_utc": NOW, "git_commit": "abc123", "git_dirty": False}
    about |= {"versions": {}, "hardware": {"gpu": "NVIDIA X", "cpu": "slow"}, "seeds": [0], "command": "muse run <x>"}
    names = [stage.stage for stage in stages]
    info = RunInfo(**about | dict(run), params=params | {"stages": names})
    return Report(run=info, criteria=[], summary=Summary(), stages=stages)


def perplexities(samples=(50.0, 51.0, 52.0), models=("stage1_memory", "phase2")):
    value, interval = sum(samples) / len(samples), (min(samples) - 4, max(samples) + 5)
    return [metric("perplexity", model, value, samples, interval=interval) for model in models]


def peaks(value, basis="measured"):
    return [metric("peak_memory", model, value, basis=basis) for model in ("stage1_memory", "phase2")]


def beside(*reports):
    return [Companion(f"run-{i}", report) for i, report in enumerate(reports)]
