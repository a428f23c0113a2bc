"""The same tries for every model of a comparison, chosen on validation, then one training per seed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .corpora import Corpus
from .params import Settings
from .recipe import Bar, OnReport, Recipe, TrainingResult, no_bar
from .records import Metric, Series
from .train import NonFiniteLossError, train


@dataclass(frozen=True)
class Try:
    """One pair of hyper-parameters and what it reached on validation; None where it diverged."""

    learning_rate: float
    dropout: float
    validation_loss: float | None
    note: str = ""


@dataclass(frozen=True)
class Trained:
    """A model's tries and, with the best of them, one training per seed."""

    model_name: str
    tries: tuple[Try, ...]
    learning_rate: float
    dropout: float
    results: tuple[TrainingResult, ...]

    def metrics(self, label: str) -> list[Metric]:
        """Numbers of the first seed, the choice that was made, and the validation loss of all seeds."""
        losses, tried = [result.best_validation_loss for result in self.results], len(self.tries) or 1
        note = "; ".join(
            f"learning rate {t.learning_rate:g}, dropout {t.dropout:g}: {t.note or format(t.validation_loss, '.4f')}"
            for t in self.tries
        )
        first = [metric for metric in self.results[0].metrics(label) if metric.name != "validation_loss"]
        return [
            Metric(
                name="validation_loss",
                model=label,
                value=statistics.fmean(losses),
                unit="nat/token",
                n=len(losses),
                samples=losses,
                labels=[f"seed {result.seed}" for result in self.results],
                note="mean over seeds of the best validation loss",
            ),
            Metric(name="learning_rate", model=label, value=self.learning_rate, unit="1", n=tried, note=note),
            Metric(name="dropout", model=label, value=self.dropout, unit="1", n=tried, note=note),
            *first,
        ]

    def series(self, label: str) -> list[Series]:
        """Loss curves of every seed."""
        return [series for result in self.results for series in result.series(label)]


def pairs_of(settings: Settings) -> list[tuple[float, float]]:
    """Every learning rate with every dropout; they are tried where they are more than one."""
    return list(itertools.product(settings.learning_rates, settings.dropouts))


def best_of(tries: Sequence[Try]) -> Try | None:
    """Return the try with the smallest validation loss, the first of equal ones; None where all diverged."""
    finished = [t for t in tries if t.validation_loss is not None]
    return min(finished, key=lambda t: t.validation_loss, default=None)


def result_line(result: TrainingResult) -> str:
    """One line about a finished training."""
    found = ", found finished" if result.reused else ""
    return (
        f"{result.model_name} seed {result.seed}: validation loss {result.best_validation_loss:.4f} nat/token "
        f"at step {result.best_step} of {result.steps}{found}: {result.weights}"
    )


def recipe_of(settings: Settings, learning_rate: float, dropout: float, seed: int, tokens: int | None = None) -> Recipe:
    """The settings' recipe with these tried values; `tokens` replaces the token budget."""
    return Recipe(
        train_tokens=tokens or settings.train_tokens,
        batch_tokens=settings.train_batch_tokens,
        n_seq=settings.train_n_seq or settings.n_seq,
        learning_rate=learning_rate,
        dropout=dropout,
        weight_decay=settings.weight_decay,
        warmup_share=settings.warmup_share,
        gradient_clip=settings.gradient_clip,
        evaluations=settings.evaluations,
        checkpoint_every_steps=settings.checkpoint_every_steps,
        seed=seed,
        compile=settings.compile,
        recompute=settings.recompute,
    )


def choose_and_train(
    settings: Settings,
    model_name: str,
    corpus: Corpus,
    build_model: Callable[..., nn.Module],
    device: str | torch.device = "cpu",
    on_report: OnReport | None = None,
    bar: Bar = no_bar,
) -> Trained:
    """Try every learning rate with every dropout at the first seed, then train every seed with the best on validation.

    A try gets `tune_tokens`; a single try needs no tuning, and one with the full budget is the first seed's training. A
    try that diverges loses; NonFiniteLossError when all do. `build_model` is `muse.models.build_model` or like it.
    """
    build = partial(
        build_model,
        model_name,
        vocab_size=corpus.vocab_size,
        d_model=settings.train_d_model or settings.d_model,
        n_layers=settings.train_n_layers or settings.n_layers,
        n_seq=settings.train_n_seq or settings.n_seq,
    )

    def run(learning_rate: float, dropout: float, seed: int, tokens: int | None = None) -> TrainingResult:
        recipe = recipe_of(settings, learning_rate, dropout, seed, tokens)
        return train(model_name, build, recipe, corpus, settings.checkpoint_dir, device, on_report, bar)

    pairs = pairs_of(settings)
    tries = []
    for learning_rate, dropout in pairs if len(pairs) > 1 else ():
        try:
            result = run(learning_rate, dropout, settings.seeds[0], settings.tune_tokens)
            tries.append(Try(learning_rate, dropout, result.best_validation_loss))
        except NonFiniteLossError as error:
            tries.append(Try(learning_rate, dropout, None, "diverged"))
            diverged = error
    best = best_of(tries)
    if tries and best is None:
        raise diverged
    pair = (best.learning_rate, best.dropout) if best else pairs[0]
    results = tuple(run(*pair, seed) for seed in settings.seeds)
    return Trained(model_name, tuple(tries), *pair, results)
