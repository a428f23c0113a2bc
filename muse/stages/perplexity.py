"""Stage 03: how well does each model predict text that it has not seen, and does it cheat?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from muse import measure
from muse.catalog import CANDIDATES, REFERENCE, comparisons
from muse.data import grammar
from muse.host.progress import track
from muse.measure import windows
from muse.models.pretrained import has_complex32
from muse.ops import planar
from muse.records.losses import write_losses
from muse.records.schema import Artifact, Metric, StageRecord
from muse.records.text_sample import TextSample, Window, write_sample

from .method import by
from .stage import Stage

SCAN_TOLERANCE = 1e-4
"""Largest change of an earlier logit, relative to the largest logit, that rounding in parallel scans may cause."""

CHECKS = (measure.check_causality, measure.check_mixing, measure.check_statefulness)
"""What a model must pass before its perplexity counts."""


def run(stage: Stage) -> StageRecord:
    """Measure the test perplexity of every model, compare them, and return the record with the floors beside them."""
    settings, test = stage.settings, stage.tested.splits["test"]
    print(f"test split of {stage.tested.name}: {len(test.ids):,} tokens in {len(test.document_starts):,} documents")
    results, metrics, series = {}, [], []
    for name in stage.keeping(stage.compared if settings.train_tokens else [REFERENCE], metrics, series=series):
        by_seed, found = evaluate(stage, name)
        metrics += found
        if by_seed:
            results[name] = by_seed
            stage.artifacts.append(keep_losses(stage, name, by_seed))
            series += next(iter(by_seed.values())).series(name)
        shown = ", ".join(f"seed {seed}: {result.perplexity:.2f}" for seed, result in by_seed.items())
        print(f"{name:14}", shown or "not finite")
    if sample := text_sample(stage, results):
        write_sample(stage.run_dir, sample)
    in_formats = list(results) if settings.formats and settings.train_tokens else []
    for name in stage.keeping(in_formats, metrics, "models measured in formats", series=series):
        metrics += evaluate_formats(stage, name)
    for name, base in comparisons(list(results)):
        ratios = measure.compare(results[name], results[base], base).metrics(name)
        metrics += by(ratios, _on_test_split, measure.compare)
    return stage.write([*metrics, *floors(stage)], series=series)


def evaluate(stage: Stage, name: str) -> tuple[dict[int, measure.PerplexityResult], list[Metric]]:
    """Return the test perplexity of every seed of a model, and its metrics with the checks that let it count.

    Of two or more seeds the mean of their probabilities is measured too, under names of its own. A model of which any
    seed meets a loss that is not finite has no results, and a perplexity without a value.
    """
    trained, results, checks = bool(stage.settings.train_tokens), {}, []
    with planar.cpu_compute("float32"):
        for seed, model in stage.models_by_seed(name).items():
            if not checks:
                checks = [found for check in CHECKS for found in _checked(check, model, name)]
            try:
                results[seed] = _on_test_split(stage, model)
            except measure.NonFiniteBatchError as error:
                return {}, [*checks, _no_perplexity(name, f"seed {seed}: {error}", trained)]
    untrained = "" if trained else "untrained; "
    metrics = by(measure.seed_metrics(name, results), _on_test_split, measure.seed_metrics)
    averaged = measure.ensemble_metrics(name, results, stage.tested.splits["test"])
    metrics += by(averaged, _on_test_split, measure.ensemble_metrics)
    return results, [
        *(metric.model_copy(update={"trained": trained, "note": untrained + metric.note}) for metric in metrics),
        *checks,
    ]


def keep_losses(stage: Stage, name: str, by_seed: Mapping[int, measure.PerplexityResult]) -> Artifact:
    """Write the losses of a model's seeds on every target into the run's folder; return the file as records name it."""
    losses = {seed: result.target_loss_nats for seed, result in by_seed.items()}
    return write_losses(stage.run_dir, name, losses, next(iter(by_seed.values())).target_documents)


def text_sample(stage: Stage, results: Mapping[str, Mapping[int, measure.PerplexityResult]]) -> TextSample | None:
    """Return where the best candidate differs most from the baseline, with the text; None without two models."""
    pairs = comparisons(list(results))
    if not pairs:
        return None
    base = pairs[0][1]
    compared = [name for name, other in pairs if other == base]
    losses = {name: np.mean([r.target_loss_nats for r in results[name].values()], axis=0) for name in (*compared, base)}
    candidates = [name for name in compared if name in CANDIDATES] or compared
    candidate = min(candidates, key=lambda name: losses[name].mean())
    test, decode = stage.tested.splits["test"], stage.tested.decode
    ids, documents = test.ids.tolist(), next(iter(results[base].values())).target_documents

    def window(first: int) -> Window:
        after = first + 1  # a target is the next token
        shown = windows.pieces(ids[after : after + windows.WINDOW], decode)
        return Window(document=int(documents[first]), first=first, pieces=shown)

    gains, lost = windows.extreme_windows(losses[candidate] - losses[base], documents, windows.WINDOW)
    starts = test.document_starts.tolist()
    return TextSample(
        candidate=candidate,
        baseline=base,
        titles=[windows.title(ids[start : start + windows.TITLE_TOKENS], decode) for start in starts],
        gains=list(map(window, gains)),
        losses=list(map(window, lost)),
    )


def evaluate_formats(stage: Stage, name: str) -> list[Metric]:
    """Return the test perplexity of a complex model's first seed, its weights rounded to each of `formats`."""
    found = []
    for form in stage.settings.formats:
        seed, model = stage.first_trained(name)
        if not has_complex32(model):
            return []
        note = f"seed {seed}, weights and activations in {form}; "
        try:
            result = _on_test_split(stage, model.to(stage.device, getattr(torch, form)))
            metrics = by(result.metrics(name), _on_test_split)
        except measure.NonFiniteBatchError as error:
            metrics = [_no_perplexity(name, str(error), trained=True)]
        found += [
            metric.model_copy(update={"name": f"{metric.name}_{form}", "note": note + metric.note})
            for metric in metrics
            if metric.name in ("loss", "perplexity")
        ]
    return found


def floors(stage: Stage) -> list[Metric]:
    """Return the perplexity of uniform guessing and, where the entropy of the text is known, what nothing can beat."""
    guessing = stage.tested.vocab_size if stage.settings.train_tokens else stage.settings.vocab_size
    found = {"uniform_perplexity": (guessing, "uniform guessing")}
    if stage.tested.entropy_nats_per_token is not None:
        floor, bigram = stage.tested.entropy_nats_per_token, grammar.Grammar().bigram_entropy_nats()
        found["floor_perplexity"] = math.exp(floor), "exp of the grammar's entropy rate"
        found["bigram_floor_perplexity"] = math.exp(bigram), "best of any model that sees one token"
    metrics = [Metric(name=name, value=value, unit="per token", note=note) for name, (value, note) in found.items()]
    return by(metrics, floors)


def _checked(check: Callable, model: nn.Module, name: str) -> list[Metric]:
    """One of CHECKS as metrics of a model."""
    return by(check(model, tolerance=SCAN_TOLERANCE).metrics(name), check, _checked)


def _on_test_split(stage: Stage, model: nn.Module) -> measure.PerplexityResult:
    with planar.cpu_compute("float32"):
        return measure.measure_perplexity(
            model,
            stage.tested.splits["test"],
            n_seq=model.config.n_seq,
            batch_size=stage.settings.ppl_batch_size,
            max_batches=stage.settings.max_ppl_batches,
            progress=track,
        )


def _no_perplexity(name: str, why: str, trained: bool) -> Metric:
    return Metric(name="perplexity", model=name, value=None, unit="per token", trained=trained, reason=why, note=why)
