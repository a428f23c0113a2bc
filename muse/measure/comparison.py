"""Several seeds of several models on one split: means, and ratios with the uncertainty of seeds and documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from muse.data.corpus import TokenSplit
from muse.records.bootstrap import INTERVAL, resampled_losses
from muse.records.schema import Metric

from .perplexity import WITHOUT_UNK, PerplexityResult, average_probabilities

Seeds = Mapping[int, PerplexityResult]


def seed_metrics(model_name: str, by_seed: Seeds) -> list[Metric]:
    """Return each perplexity metric as the mean over seeds, with the seeds' values as samples.

    The interval resamples documents (and seeds, where there are two or more): what another test set and other
    trainings would have given.
    """
    of_seed = {seed: {m.name: m for m in result.metrics(model_name)} for seed, result in by_seed.items()}
    if len(of_seed) == 1:
        ((seed, metrics),) = of_seed.items()
        return [m.model_copy(update={"samples": [m.value], "labels": [f"seed {seed}"]}) if m.value is not None else m
                for m in metrics.values()]  # fmt: skip
    one, found = next(iter(by_seed.values())), []
    for name, first in next(iter(of_seed.values())).items():
        values = [metrics[name].value for metrics in of_seed.values()]
        if None in values or name == "num_targets":
            found.append(first)
            continue
        update = {
            "value": statistics.fmean(values),
            "samples": values,
            "labels": [f"seed {seed}" for seed in of_seed],
            "note": f"mean over {len(values)} seeds, sd {statistics.stdev(values):.4g}; {first.note} and seeds",
            "interval": None,
        }
        if first.interval is not None:
            losses = _bootstrap(_without_unk(by_seed) if name == WITHOUT_UNK else by_seed)
            update["interval"] = tuple(_as(name, loss, one) for loss in np.percentile(losses, INTERVAL))
        found.append(first.model_copy(update=update))
    return found


def ensemble_metrics(model_name: str, by_seed: Seeds, split: TokenSplit) -> list[Metric]:
    """Return the metrics of the mean of the seeds' probabilities on the split, each named `ensemble_...`.

    That is one predictor made of several trainings, no single model: nothing is compared with it. None for one seed.
    """
    if len(by_seed) < 2:
        return []
    seeds = [f"seed {seed}" for seed in by_seed]
    told = f"mean of the probabilities of {len(seeds)} trainings ({', '.join(seeds)})"
    averaged = average_probabilities(list(by_seed.values()), split)
    size = Metric(name="trainings", model=model_name, value=len(seeds), unit="trainings", note=f"{split.name} split")
    return [
        metric.model_copy(update={"name": f"ensemble_{metric.name}", "labels": seeds, "note": f"{told}; {metric.note}"})
        for metric in (size, *averaged.metrics(model_name))
        if metric.name != "num_targets"
    ]


def _as(name: str, loss_nats: float, result: PerplexityResult) -> float:
    """A loss per token in the unit of the metric of that name."""
    tokens = result.num_tokens
    return {
        "loss": lambda: loss_nats,
        "perplexity": lambda: math.exp(loss_nats),
        WITHOUT_UNK: lambda: math.exp(loss_nats),
        "word_perplexity": lambda: math.exp(loss_nats * tokens / result.num_words),
        "byte_perplexity": lambda: math.exp(loss_nats * tokens / result.num_bytes),
        "character_perplexity": lambda: math.exp(loss_nats * tokens / result.num_characters),
        "bits_per_byte": lambda: loss_nats * tokens / result.num_bytes / math.log(2),
    }[name]()


@dataclass(frozen=True)
class ComparisonResult:
    """Perplexity of a candidate over that of a baseline, seed by seed."""

    baseline_name: str
    ratio: float  # of the mean perplexities
    interval: tuple[float, float]
    seed_ratios: dict[int, float]
    num_documents: int
    without_unk: Self | None = None  # the same of the perplexities without later pieces of <unk>; None without any

    def metrics(self, model_name: str, name: str = "perplexity") -> list[Metric]:
        """Return `<name>_ratio_to_<baseline>` with the paired seeds' ratios as samples, and that without <unk>."""
        doubt = f"{self.num_documents} documents" + (
            f" and {len(self.seed_ratios)} paired seeds" if self.seed_ratios else ""
        )
        spread = list(self.seed_ratios.values())
        sd = f"; sd over paired seeds {statistics.stdev(spread):.4g}" if len(spread) > 1 else ""
        return [
            Metric(
                name=f"{name}_ratio_to_{self.baseline_name}",
                model=model_name,
                value=self.ratio,
                unit="1",
                n=max(1, len(spread)),
                interval=self.interval,
                samples=spread,
                labels=[f"seed {seed}" for seed in self.seed_ratios],
                note=f"ratio of mean perplexities; paired bootstrap over {doubt}{sd}",
            ),
            *(self.without_unk.metrics(model_name, WITHOUT_UNK) if self.without_unk else []),
        ]


def compare(candidate: Seeds, baseline: Seeds, baseline_name: str) -> ComparisonResult:
    """Return the ratio of mean perplexities; documents are paired, and so are seeds that both sides have.

    ValueError: the two sides were not measured on the same targets.
    """
    first, other = next(iter(candidate.values())), next(iter(baseline.values()))
    if not np.array_equal(first.document_targets, other.document_targets):
        raise ValueError(
            f"both sides must be measured on the same targets, got {first.num_targets} and {other.num_targets} of "
            f"{first.split} and {other.split}"
        )
    mean = lambda by_seed: statistics.fmean(math.exp(result.loss_nats) for result in by_seed.values())  # noqa: E731
    shared = [seed for seed in candidate if seed in baseline]
    ratios = np.exp(_bootstrap(candidate)) / np.exp(_bootstrap(baseline))
    low, high = np.percentile(ratios, INTERVAL)
    rest, other_rest = _without_unk(candidate), _without_unk(baseline)
    return ComparisonResult(
        baseline_name=baseline_name,
        ratio=mean(candidate) / mean(baseline),
        interval=(float(low), float(high)),
        seed_ratios={seed: math.exp(candidate[seed].loss_nats - baseline[seed].loss_nats) for seed in shared},
        num_documents=int((first.document_targets > 0).sum()),
        without_unk=compare(rest, other_rest, baseline_name) if rest and other_rest else None,
    )


def _without_unk(by_seed: Seeds) -> Seeds:
    """The seeds' results without later pieces of <unk>; empty where the text has none."""
    return {seed: result.without_unk for seed, result in by_seed.items() if result.without_unk}


def _bootstrap(by_seed: Seeds) -> np.ndarray:
    """Return log mean perplexities of resampled documents and seeds, (RESAMPLES,), paired with those of others."""
    results = list(by_seed.values())
    return resampled_losses(np.stack([result.document_nll_nats for result in results]), results[0].document_targets)


def ratio_metrics(metrics: Sequence[Metric], baseline_name: str) -> list[Metric]:
    """Return `<name>_ratio_to_<baseline>` of every other model, for each metric name that the baseline has too.

    A ratio is an estimate when either side is; values that are missing or zero give none.
    """
    baseline = {m.name: m for m in metrics if m.model == baseline_name and m.value}
    return [
        Metric(
            name=f"{metric.name}_ratio_to_{baseline_name}",
            model=metric.model,
            value=metric.value / baseline[metric.name].value,
            unit="1",
            basis="estimate" if "estimate" in (metric.basis, baseline[metric.name].basis) else "measured",
            note=f"{metric.value:.6g} over {baseline[metric.name].value:.6g} {metric.unit}",
        )
        for metric in metrics
        if metric.model not in ("", baseline_name) and metric.name in baseline and metric.value is not None
    ]
