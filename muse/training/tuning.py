"""The same tries for every model of a comparison, chosen on validation, then one training per seed."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from muse.catalog import HUB_CORPORA, recomputes
from muse.data.corpus import Corpus
from muse.params import GRID, Row, Settings
from muse.records.environment import utc_now
from muse.records.schema import Metric, Series, TrainingRun

from . import kept
from .choices import Choice, Common, Try, common_choice, varying
from .kept import Kept
from .ranks import Ranks
from .recipe import TRIED, Bar, OnReport, Recipe, TrainingResult, in_short, in_words, no_bar
from .runs import diverged_run, finished_run
from .trainer import NonFiniteLossError, config_of, train

Device = str | torch.device
TRAINED_SIZES = ("d_model", "n_layers", "n_seq")


@dataclass(frozen=True)
class Trained:
    """A model's tries and, with the best of them, one training per seed."""

    model_name: str
    tries: tuple[Try, ...]
    choice: Choice
    results: tuple[TrainingResult, ...]
    runs: tuple[TrainingRun, ...] = ()  # every training that it took, tries included, in turn

    @property
    def told(self) -> str:
        """The chosen values of what was tried, in words; empty where nothing was."""
        return in_words(self.choice.values(self.varying))

    @property
    def varying(self) -> tuple[str, ...]:
        """Names of the values that were tried."""
        return varying([t.choice for t in self.tries])

    def metrics(self, label: str) -> list[Metric]:
        """Numbers of the first seed, the choice that was made, and the validation loss of all seeds."""
        losses = [result.best_validation_loss for result in self.results]
        mean = Metric(name="validation_loss", model=label, value=statistics.fmean(losses), unit="nat/token",
                      n=len(losses), samples=losses, labels=[f"seed {result.seed}" for result in self.results],
                      note="mean over seeds of the best validation loss")  # fmt: skip
        note = "; ".join(f"{t.told(self.varying)}: {t.ended}" for t in self.tries)
        return [
            mean,
            *self.choice.metrics(model=label, n=len(self.tries) or 1, note=note),
            *self._tried(label),
            *(metric for metric in self.results[0].metrics(label) if metric.name != "validation_loss"),
        ]

    def _tried(self, label: str) -> list[Metric]:
        """The best try with the losses of all that did not diverge; nothing where nothing was tried."""
        finished = [t for t in self.tries if t.validation_loss is not None]
        if not finished:
            return []
        losses, told = [t.validation_loss for t in finished], [t.told(self.varying) for t in finished]
        return [Metric(name="tried_validation_loss", model=label, value=min(losses), unit="nat/token", n=len(losses),
                       samples=losses, labels=told, note=f"best of {len(self.tries)} tries")]  # fmt: skip

    def series(self, label: str) -> list[Series]:
        """Loss curves of every seed."""
        return [series for result in self.results for series in result.series(label)]


@dataclass(frozen=True)
class Job:
    """One training of a comparison; `tokens` is its budget, `varying` names the values that it is told apart by."""

    model_name: str
    seed: int
    choice: Choice
    tokens: int
    varying: tuple[str, ...] = field(default=(), compare=False)
    row: Row | None = field(default=None, compare=False)  # of a matrix: the first one that wants this training
    decided: tuple[object, ...] = ()  # in a matrix by what else it is told apart: rows may share a training

    def __str__(self) -> str:
        row = self.row.name if self.row else ""
        parts = row, self.model_name, f"seed {self.seed}", in_short(self.choice.values(self.varying))
        return f"{' '.join(filter(None, parts))}, {self.tokens:,} tokens"

    @property
    def name(self) -> str:
        """Name of its log."""
        values = [f"{TRIED[name]}{value}" for name, value in self.choice.values(self.varying).items()]
        row = [self.row.name] if self.row else []
        return "-".join([*row, self.model_name, f"s{self.seed}", *values, str(self.tokens)])


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
    """The same tries for every model: every combination of the grid at the first seed, then every seed.

    A try gets `tune_tokens`; a single combination needs none, and a try with the full budget is the first seed's
    training. One that diverges loses. What is needed is known as far as the trainings that have ended tell.
    """

    settings: Settings
    models: tuple[str, ...]
    known: Mapping[Job, Kept] = field(default_factory=dict)  # tries that need not be done: their results are at hand
    only: tuple[int, ...] = ()  # seeds that are trained after the tries; none: those of the settings
    row: Row | None = None  # of a matrix, with these settings

    @cached_property
    def choices(self) -> list[Choice]:
        """Every combination of the grid, each once, the last value changing fastest; batches in whole sequences."""
        settings = self.settings
        n_seq = settings.train_n_seq or settings.n_seq
        grid = {name: getattr(settings, key) for name, key in GRID.items()}
        grid["batch_tokens"] = [tokens - tokens % n_seq or tokens for tokens in settings.batch_tokens]
        if settings.optimizer != "muon":
            grid["muon_weight_decay"] = [None]
        return list(dict.fromkeys(itertools.starmap(Choice, itertools.product(*grid.values()))))

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Names of the values that are tried."""
        return varying(self.choices)

    def job(self, model_name: str, seed: int, choice: Choice, tokens: int) -> Job:
        """A training of this comparison."""
        job = Job(model_name, seed, choice, tokens, self.varying)
        return replace(job, row=self.row, decided=self.decided(job)) if self.row else job

    def decided(self, job: Job) -> tuple[object, ...]:
        """What a training's result follows from, beside what its model's name and a job say."""
        settings = self.settings
        recipe = replace(recipe_of(settings, job), checkpoint_every_steps=1)
        text = HUB_CORPORA.get(settings.corpus, settings.corpus), settings.tokenizer
        return recipe, *trained_sizes(settings).values(), *text

    def tries(self, model_name: str) -> list[Job]:
        """The tries of a model; none where there is one combination only."""
        choices, settings = self.choices, self.settings
        tokens = settings.tune_tokens or settings.train_tokens
        return [self.job(model_name, settings.seeds[0], choice, tokens) for choice in choices if len(choices) > 1]

    def tried(self, model_name: str, ended: Outcomes) -> tuple[Try, ...]:
        """How the tries of a model ended; every one of them must have."""
        return tuple(
            Try(job.choice, result and result.best_validation_loss)
            for job in self.tries(model_name)
            for result in (self.known[job].result if job in self.known else ended[job].result,)
        )

    def all_tried(self, model_name: str, ended: Outcomes) -> bool:
        """Whether every try of a model has a loss or diverged."""
        outcomes = [ended.get(job) for job in self.tries(model_name) if job not in self.known]
        return all(outcome and (outcome.result or outcome.diverged) for outcome in outcomes)

    def best(self, model_name: str, ended: Outcomes) -> Choice | None:
        """What trains every seed, the first of equal ones; None before every try ended, or if all diverged."""
        if len(self.choices) == 1:
            return self.choices[0]
        if not self.all_tried(model_name, ended):
            return None
        finished = [t for t in self.tried(model_name, ended) if t.validation_loss is not None]
        best = min(finished, key=lambda t: t.validation_loss, default=None)
        return best and best.choice

    def common(self, ended: Outcomes) -> Common | None:
        """What serves all models best together; None before every try of every model ended, and as `common_choice`."""
        if not all(self.all_tried(name, ended) for name in self.models):
            return None
        return common_choice({name: self.tried(name, ended) for name in self.models})

    def trainings(self, model_name: str, ended: Outcomes) -> list[Job]:
        """One training per seed with the best combination; none before that is known."""
        best, settings = self.best(model_name, ended), self.settings
        seeds = (self.only or settings.seeds) if best else []
        return [self.job(model_name, seed, best, settings.train_tokens) for seed in seeds]

    def wanted(self, ended: Outcomes) -> list[Job]:
        """Everything known to be needed, in the order in which it starts: all tries, then seed by seed."""
        tries = [job for name in self.models for job in self.tries(name) if job not in self.known]
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
    found = f", {result.skipped_steps} steps skipped" if result.skipped_steps else ""
    found += ", found finished" if result.reused else ""
    return (
        f"{result.model_name} seed {result.seed}: validation loss {result.best_validation_loss:.4f} nat/token "
        f"at step {result.best_step} of {result.steps}{found}: {result.weights}"
    )


def recipe_of(settings: Settings, job: Job) -> Recipe:
    """The settings' recipe with the values and the budget of a job."""
    same_name = {field.name for field in fields(Recipe)} & Settings.model_fields.keys()
    own = {"train_tokens": job.tokens, "n_seq": settings.train_n_seq or settings.n_seq, "seed": job.seed,
           "recompute": recomputes(job.model_name, settings.recompute)}
    return Recipe(**settings.model_dump(include=same_name) | own | job.choice.values())  # fmt: skip


def known_tries(
    settings: Settings, models: tuple[str, ...], corpus: Corpus, build_model: Callable[..., nn.Module], device: Device,
    row: Row | None = None,
) -> dict[Job, Kept]:
    """The tries whose results lie in `results_dir`, be it from another machine; CheckpointError for damaged ones."""
    if not settings.results_dir:
        return {}
    known, plan = {}, Plan(settings, models, row=row)
    for job in (job for name in models for job in plan.tries(name)):
        build = build_for(settings, job.model_name, corpus, build_model)
        config = config_of(job.model_name, build, recipe_of(settings, job), corpus, torch.device(device))
        if found := kept.find(Path(settings.results_dir), config):
            known[job] = found
    return known


def build_for(
    settings: Settings, model_name: str, corpus: Corpus, build_model: Callable[..., nn.Module]
) -> Callable[..., nn.Module]:
    """`build_model` with the name and the sizes of a model that is trained."""
    return partial(build_model, model_name, vocab_size=corpus.vocab_size, **trained_sizes(settings))


def trained_sizes(settings: Settings) -> dict[str, int]:
    """Sizes of the models that are trained, but for the vocabulary, which is the corpus's."""
    return {name: getattr(settings, f"train_{name}") or getattr(settings, name) for name in TRAINED_SIZES}


def choose_and_train(
    settings: Settings,
    model_name: str,
    corpus: Corpus,
    build_model: Callable[..., nn.Module],
    device: Device = "cpu",
    on_report: OnReport | None = None,
    bar: Bar = no_bar,
    only: Sequence[int] = (),
) -> Trained:
    """Do what the plan wants for one model, in turn; NonFiniteLossError when every try or a seed's training diverges.

    `build_model` is `muse.models.build.build_model` or like it; `only` are the seeds to train, all where it is empty.
    """
    build, ranks = build_for(settings, model_name, corpus, build_model), Ranks.here()
    known = ranks.share(known_tries(settings, (model_name,), corpus, build_model, device))
    plan, ended = Plan(settings, (model_name,), known, tuple(only)), {}
    runs = [finished_run(recipe_of(settings, job), found.result, found.commit) for job, found in known.items()]
    while left := [job for job in plan.wanted(ended) if job not in ended]:
        job, began, started, recipe = left[0], time.monotonic(), utc_now(), recipe_of(settings, left[0])
        try:
            result = train(model_name, build, recipe, corpus, settings.checkpoint_dir, device, on_report, bar)
            ended[job] = Ended(time.monotonic() - began, result)
            runs.append(finished_run(recipe, result))
            if settings.results_dir and ranks.first:
                config = config_of(model_name, build, recipe, corpus, torch.device(device))
                kept.keep(Path(settings.results_dir), config, result)
        except NonFiniteLossError as error:
            if job not in plan.tries(model_name):
                raise
            ended[job], diverged = Ended(time.monotonic() - began, error=str(error), diverged=True), error
            runs.append(diverged_run(model_name, recipe, device, started, ended[job].seconds))
    best = plan.best(model_name, ended)
    if best is None:
        raise diverged
    results = tuple(ended[job].result for job in plan.trainings(model_name, ended))
    return Trained(model_name, plan.tried(model_name, ended), best, results, tuple(runs))
