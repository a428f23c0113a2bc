"""The same tries for every model of a comparison, chosen on validation, then one training per seed."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import nn

from muse.catalog import recomputes
from muse.data.corpus import Corpus
from muse.params import Settings
from muse.records.environment import utc_now
from muse.records.schema import Metric, Series, TrainingRun

from .recipe import Bar, OnReport, Recipe, TrainingResult, no_bar
from .runs import diverged_run, finished_run
from .trainer import NonFiniteLossError, train


@dataclass(frozen=True)
class Try:
    """One pair of hyper-parameters and what it reached on validation; None where it diverged."""

    learning_rate: float
    dropout: float
    validation_loss: float | None

    def __str__(self) -> str:
        ended = "diverged" if self.validation_loss is None else f"{self.validation_loss:.4f}"
        return f"learning rate {self.learning_rate:g}, dropout {self.dropout:g}: {ended}"


@dataclass(frozen=True)
class Trained:
    """A model's tries and, with the best of them, one training per seed."""

    model_name: str
    tries: tuple[Try, ...]
    learning_rate: float
    dropout: float
    results: tuple[TrainingResult, ...]
    runs: tuple[TrainingRun, ...] = ()  # every training that it took, tries included, in turn

    def metrics(self, label: str) -> list[Metric]:
        """Numbers of the first seed, the choice that was made, and the validation loss of all seeds."""
        losses = [result.best_validation_loss for result in self.results]
        mean = Metric(name="validation_loss", model=label, value=statistics.fmean(losses), unit="nat/token",
                      n=len(losses), samples=losses, labels=[f"seed {result.seed}" for result in self.results],
                      note="mean over seeds of the best validation loss")  # fmt: skip
        choice = {"model": label, "unit": "1", "n": len(self.tries) or 1, "note": "; ".join(map(str, self.tries))}
        return [
            mean,
            Metric(name="learning_rate", value=self.learning_rate, **choice),
            Metric(name="dropout", value=self.dropout, **choice),
            *(metric for metric in self.results[0].metrics(label) if metric.name != "validation_loss"),
        ]

    def series(self, label: str) -> list[Series]:
        """Loss curves of every seed."""
        return [series for result in self.results for series in result.series(label)]


@dataclass(frozen=True)
class Job:
    """One training of a comparison; `tokens` is its budget."""

    model_name: str
    seed: int
    learning_rate: float
    dropout: float
    tokens: int

    def __str__(self) -> str:
        values = f"lr {self.learning_rate:g} dropout {self.dropout:g}"
        return f"{self.model_name} seed {self.seed} {values}, {self.tokens:,} tokens"

    @property
    def name(self) -> str:
        """Name of its log."""
        return f"{self.model_name}-s{self.seed}-lr{self.learning_rate}-dropout{self.dropout}-{self.tokens}"


@dataclass(frozen=True)
class Ended:
    """How a training ended: with a result, or with an error, which for a try may only mean that it diverged."""

    seconds: float
    result: TrainingResult | None = None
    error: str = ""
    diverged: bool = False

    def __str__(self) -> str:
        if self.result is None:
            return f"{self.error}, after {self.seconds:.0f} s"
        reused = ", found finished" if self.result.reused else ""
        return f"validation loss {self.result.best_validation_loss:.4f} nat/token{reused}, {self.seconds:.0f} s"


Outcomes = Mapping[Job, Ended]


@dataclass(frozen=True)
class Plan:
    """The same tries for every model: every learning rate with every dropout at the first seed, then every seed.

    A try gets `tune_tokens`; a single pair needs none, and a try with the full budget is the first seed's training. One
    that diverges loses. What is needed is known as far as the trainings that have ended tell.
    """

    settings: Settings
    models: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Every learning rate with every dropout."""
        return list(itertools.product(self.settings.learning_rates, self.settings.dropouts))

    def tries(self, model_name: str) -> list[Job]:
        """The tries of a model; none where there is one pair only."""
        pairs, settings = self.pairs, self.settings
        tokens = settings.tune_tokens or settings.train_tokens
        return [Job(model_name, settings.seeds[0], *pair, tokens) for pair in pairs if len(pairs) > 1]

    def tried(self, model_name: str, ended: Outcomes) -> tuple[Try, ...]:
        """How the tries of a model ended; every one of them must have."""
        return tuple(
            Try(job.learning_rate, job.dropout, result and result.best_validation_loss)
            for job in self.tries(model_name)
            for result in (ended[job].result,)
        )

    def best_pair(self, model_name: str, ended: Outcomes) -> tuple[float, float] | None:
        """The pair that trains every seed, the first of equal ones; None before every try ended, or if all diverged."""
        tries = self.tries(model_name)
        if not tries:
            return self.pairs[0]
        outcomes = [ended.get(job) for job in tries]
        if not all(outcome and (outcome.result or outcome.diverged) for outcome in outcomes):
            return None
        finished = [t for t in self.tried(model_name, ended) if t.validation_loss is not None]
        best = min(finished, key=lambda t: t.validation_loss, default=None)
        return best and (best.learning_rate, best.dropout)

    def trainings(self, model_name: str, ended: Outcomes) -> list[Job]:
        """One training per seed with the best pair; none before that is known."""
        pair, settings = self.best_pair(model_name, ended), self.settings
        return [Job(model_name, seed, *pair, settings.train_tokens) for seed in settings.seeds] if pair else []

    def wanted(self, ended: Outcomes) -> list[Job]:
        """Everything known to be needed, in the order in which it starts: all tries, then seed by seed."""
        tries = [job for name in self.models for job in self.tries(name)]
        by_seed = zip(*filter(None, (self.trainings(name, ended) for name in self.models)), strict=True)
        return list(dict.fromkeys([*tries, *(job for jobs in by_seed for job in jobs)]))

    def failed(self, ended: Outcomes) -> list[Job]:
        """The trainings without a result because of which a model has none for a seed."""
        missing = []
        for name in self.models:
            jobs = self.trainings(name, ended) or self.tries(name)
            missing += [job for job in jobs if job in ended and ended[job].result is None]
        return missing


def result_line(result: TrainingResult) -> str:
    """One line about a finished training."""
    found = ", found finished" if result.reused else ""
    return (
        f"{result.model_name} seed {result.seed}: validation loss {result.best_validation_loss:.4f} nat/token "
        f"at step {result.best_step} of {result.steps}{found}: {result.weights}"
    )


def recipe_of(settings: Settings, job: Job) -> Recipe:
    """The settings' recipe with the values and the budget of a job."""
    same_name = {field.name for field in fields(Recipe)} & Settings.model_fields.keys()
    own = {"train_tokens": job.tokens, "batch_tokens": settings.train_batch_tokens, "dropout": job.dropout,
           "learning_rate": job.learning_rate, "n_seq": settings.train_n_seq or settings.n_seq, "seed": job.seed,
           "recompute": recomputes(job.model_name, settings.recompute)}
    return Recipe(**settings.model_dump(include=same_name) | own)  # fmt: skip


def choose_and_train(
    settings: Settings,
    model_name: str,
    corpus: Corpus,
    build_model: Callable[..., nn.Module],
    device: str | torch.device = "cpu",
    on_report: OnReport | None = None,
    bar: Bar = no_bar,
) -> Trained:
    """Do what the plan wants for one model, in turn; NonFiniteLossError when every try or a seed's training diverges.

    `build_model` is `muse.models.build.build_model` or like it.
    """
    build = partial(
        build_model,
        model_name,
        vocab_size=corpus.vocab_size,
        d_model=settings.train_d_model or settings.d_model,
        n_layers=settings.train_n_layers or settings.n_layers,
        n_seq=settings.train_n_seq or settings.n_seq,
    )
    plan, ended, runs = Plan(settings, (model_name,)), {}, []
    while left := [job for job in plan.wanted(ended) if job not in ended]:
        job, began, started, recipe = left[0], time.monotonic(), utc_now(), recipe_of(settings, left[0])
        try:
            result = train(model_name, build, recipe, corpus, settings.checkpoint_dir, device, on_report, bar)
            ended[job] = Ended(time.monotonic() - began, result)
            runs.append(finished_run(recipe, result))
        except NonFiniteLossError as error:
            if job not in plan.tries(model_name):
                raise
            ended[job], diverged = Ended(time.monotonic() - began, error=str(error), diverged=True), error
            runs.append(diverged_run(model_name, recipe, device, started, ended[job].seconds))
    pair = plan.best_pair(model_name, ended)
    if pair is None:
        raise diverged
    results = tuple(ended[job].result for job in plan.trainings(model_name, ended))
    return Trained(model_name, plan.tried(model_name, ended), *pair, results, tuple(runs))
