"""What the trainings of a params file need on named cards, without one: size, memory, work, time, cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from muse.catalog import Card, recomputes
from muse.data.corpus import Corpus
from muse.measure.memory import Counted, count
from muse.measure.roofline import USABLE_SHARE, message_seconds, seconds
from muse.measure.throughput import flops_per_token
from muse.models.build import build_model
from muse.models.pretrained import served
from muse.models.weights import WithoutDraws
from muse.params import Settings
from muse.training import kept
from muse.training.checkpoint import RESULT_FILE, training_key
from muse.training.trainer import config_of
from muse.training.tuning import Job, Plan, build_for, recipe_of

from .check import sizes_of
from .memory import optimizer_step

START_SECONDS = 15.0  # of a training before its first step: imports, compilation
LARGE_TOKENS = (2**16, 2**17)  # of the two steps that tell what a further token takes; heads work in chunks below


class Peak(NamedTuple):
    """Peak of a training step of so many tokens."""

    batch_tokens: int
    recompute: bool
    num_bytes: int


@dataclass(frozen=True)
class ModelPlan:
    """What one model's trainings need, each on so many cards; `peaks` has each batch with and without recomputing.

    A peak is that of one card, a batch and a speed those of all cards of a training.
    """

    name: str
    cards: int  # of a training
    num_parameters: int
    forward_flops: float  # a token
    training_flops: float  # a token, blocks that are computed again included
    recompute: bool  # as the trainings run
    peaks: tuple[Peak, ...]
    tokens_per_second: Mapping[int, float]  # by tokens of a step
    largest_tokens: int  # of a step that fits the card; 0 where no sequence does
    trainings: int  # of the params file
    there: int  # of these, so many are finished
    seconds: float  # of the others, one after the other

    @property
    def card_seconds(self) -> float:
        """What all cards of a training take together."""
        return self.cards * self.seconds

    def peak_bytes(self, batch_tokens: int) -> int:
        """Peak of a step of the trainings."""
        return {(peak.batch_tokens, peak.recompute): peak.num_bytes for peak in self.peaks}[
            batch_tokens, self.recompute
        ]


def plan(
    settings: Settings, models: Sequence[str], corpus: Corpus | None, vocab_size: int, card: Card, cards: int = 1
) -> Iterator[ModelPlan]:
    """Yield what each model needs, trained on so many cards; without a corpus no training counts as finished."""
    for name in models:
        yield _of_model(settings, name, corpus, vocab_size, card, cards)


def _of_model(
    settings: Settings, name: str, corpus: Corpus | None, vocab_size: int, card: Card, cards: int
) -> ModelPlan:
    jobs = Plan(settings, (name,))
    batches = list(dict.fromkeys(choice.batch_tokens for choice in jobs.choices))
    sizes, recompute = sizes_of(settings, vocab_size, "train_"), recomputes(name, settings.recompute)
    model, n_seq = shaped(name, sizes, dropout=max(settings.dropouts)), sizes["n_seq"]
    counts = {
        (tokens, again): counted_step(model, settings, tokens // n_seq // cards, n_seq, again, card, cards)
        for tokens in batches
        for again in (False, True)
    }
    message = message_seconds(sum(p.nbytes for p in model.parameters() if p.requires_grad), card, cards)
    speeds = {
        tokens: tokens // n_seq * n_seq / (seconds(counts[tokens, recompute].work, card, settings.compile) + message)
        for tokens in batches
    }
    work = counts[batches[0], recompute].work
    trainings, there, left = _left(settings, jobs, name, corpus, speeds)
    return ModelPlan(
        name=name,
        cards=cards,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        forward_flops=flops_per_token(model, n_seq),
        training_flops=work.flops.total() / (batches[0] // n_seq // cards * n_seq),
        recompute=recompute,
        peaks=tuple(Peak(tokens, again, counted.peak_bytes) for (tokens, again), counted in counts.items()),
        tokens_per_second=speeds,
        largest_tokens=_largest(model, settings, n_seq, recompute, card, cards),
        trainings=trainings,
        there=there,
        seconds=left,
    )


def shaped(name: str, sizes: Mapping[str, int], dropout: float = 0.0, half: bool = False) -> nn.Module:
    """A model with nothing drawn; with `half` in the form in which trained ones are served."""
    with WithoutDraws():
        model = build_model(name, **sizes, dropout=dropout)
        return served(model) if half else model


def counted_step(
    model: nn.Module, settings: Settings, batch_size: int, n_seq: int, recompute: bool, card: Card, cards: int = 1
) -> Counted:
    """A card's part of a training step of a params file, so many sequences, counted.

    A library of products has a workspace for each thread and each stream. A step that becomes a CUDA graph runs on two
    of them, before its capture and in it; of several cards its second graph has one more before.
    """
    model.train()
    model.recompute = recompute
    step = optimizer_step(settings.optimizer, batch_size, n_seq, "bfloat16", one_of_several=cards > 1)
    workspace = card.workspace_bytes
    counted = count(model, batch_size, n_seq, step, (1 + settings.compile) * workspace)
    more = workspace if settings.compile and cards > 1 else 0
    return replace(counted, peak_bytes=counted.peak_bytes + more, held_bytes=counted.held_bytes + more)


def _largest(model: nn.Module, settings: Settings, n_seq: int, recompute: bool, card: Card, cards: int) -> int:
    """Tokens of the largest step whose peak fits, along the line through two large parts of one."""
    (less, low), (more, high) = (
        (size, counted_step(model, settings, size, n_seq, recompute, card, cards).peak_bytes)
        for size in (max(at, tokens // n_seq) for at, tokens in enumerate(LARGE_TOKENS, 1))
    )
    a_sequence = (high - low) / (more - less)
    room = USABLE_SHARE * card.memory_bytes - low
    return max(0, less + math.floor(room / a_sequence)) * n_seq * cards


def _left(
    settings: Settings, jobs: Plan, name: str, corpus: Corpus | None, speeds: Mapping[int, float]
) -> tuple[int, int, float]:
    """How many trainings a model has, how many of them are finished, and the seconds of the others.

    What the tries will choose is not known before them: what follows takes their mean, and is there only with them.
    """
    if not settings.train_tokens:
        return 0, 0, 0.0
    validated = len(corpus.splits["validation"].ids) * settings.evaluations / 3 if corpus else 0  # a third of a step
    takes = {tokens: (settings.train_tokens + validated) / speed + START_SECONDS for tokens, speed in speeds.items()}
    single = len(jobs.choices) == 1
    tries = jobs.trainings(name, {}) if single else jobs.tries(name)
    is_there = Finished(settings, tries[0], corpus) if corpus else lambda job: False
    done = [job for job in tries if is_there(job)]
    share = 1.0 if single or not settings.tune_tokens else settings.tune_tokens / settings.train_tokens
    left = sum(takes[job.choice.batch_tokens] * share for job in tries if job not in done)
    seeds = () if single else settings.seeds[share == 1.0 :]  # a try with the full budget is the first seed's training
    after = 0
    if seeds and len(done) == len(tries):
        made = (
            [jobs.job(name, seed, choice, settings.train_tokens) for seed in seeds] for choice in jobs.choices
        )
        after = max(sum(map(is_there, of_choice)) for of_choice in made)
    left += (len(seeds) - after) * statistics.fmean(takes.values())
    return len(tries) + len(seeds), len(done) + after, left


class Finished:
    """Whether the result of a training on CUDA lies in `results_dir` or `checkpoint_dir`, for jobs of one model."""

    def __init__(self, settings: Settings, job: Job, corpus: Corpus) -> None:
        self.settings = settings
        recipe = replace(recipe_of(settings, job), precision="bfloat16")
        build = build_for(settings, job.model_name, corpus, _shape)
        self.config = config_of(job.model_name, build, recipe, corpus, torch.device("cuda"))

    def of(self, job: Job) -> dict[str, object]:
        """What decides the result of a job: that of the first one with other values."""
        own = {"seed": job.seed, "train_tokens": job.tokens, **job.choice.values()}
        changed = {"recipe": self.config["recipe"] | own}
        changed["model_config"] = self.config["model_config"] | {"dropout": job.choice.dropout}
        return self.config | changed

    def __call__(self, job: Job) -> bool:
        config = self.of(job)
        if self.settings.results_dir and kept.find(Path(self.settings.results_dir), config):
            return True
        folder = f"{job.model_name}-s{job.seed}-{training_key(config)[:12]}"
        return (Path(self.settings.checkpoint_dir) / folder / RESULT_FILE).exists()


def _shape(*name: str, **sizes: object) -> nn.Module:
    """A model without memory: what a training is found by needs no more."""
    with torch.device("meta"):
        return build_model(*name, **sizes)
