"""One arm learns one counting task at one learning rate, and is tested beyond the lengths it has seen."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from muse.data import counting
from muse.data.counting import Task
from muse.host.files import write_atomic
from muse.models.tensor_file import sha256_of_json
from muse.training.code_key import code_sha256
from muse.training.recipe import schedule

from .arms import Sizes, build_arm, loss, num_scalars

LAST = 20  # positions at the end of a sequence on which accuracy is taken
SHORTEST = 4  # length of the first training sequences
GROWING_SHARE = 0.5  # of the steps, over which they grow to the training length, alike for every arm
WARMUP_SHARE = 0.05
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.98), 0.01, 1.0
TEST_TOKENS = 2**17  # of the sequences that are tested at a time
TESTED_SEED, VALIDATED_SEED = 2_000_000, 1_000_000  # of sequences that no training draws


@dataclass(frozen=True)
class Job:
    """One training: everything that decides its result."""

    task: str
    arm: str
    learning_rate: float
    seed: int
    width: int
    state: int
    layers: int
    steps: int
    batch: int
    length: int
    lengths: tuple[int, ...]  # of the sequences that are tested
    sequences: int  # tested at each length
    is_try: bool = False  # tested at the training length only

    @property
    def sizes(self) -> Sizes:
        """What all arms share."""
        order, longest = counting.task(self.task).order, max(self.length, *self.lengths)
        return Sizes(order, self.width, self.state, self.layers, self.length, longest)

    def length_at(self, step: int) -> int:
        """Length of the sequences of a step: growing at first, then the training length."""
        share = min(1.0, (step + 1) / max(1, GROWING_SHARE * self.steps))
        return max(min(SHORTEST, self.length), round(share * self.length))

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear up to the highest, then half a cosine towards 0."""
        return self.learning_rate * schedule(step, self.steps, WARMUP_SHARE)


@dataclass(frozen=True)
class Outcome:
    """What a training came to; scores are normalised accuracies, guessing is 0 and all right is 1."""

    job: Job
    validation: float  # score at the training length, on sequences that are not tested
    scores: tuple[float, ...]  # at the tested lengths
    skewed: tuple[float, ...]  # the same on sequences in which one token is frequent
    losses: tuple[float, ...]  # some 50 points of the training loss, nat per position
    scalars: int
    seconds: float
    diverged: bool
    angles: tuple[tuple[float, ...], ...]  # radians, token by token, of the first layer's planes; empty without any


def learn(job: Job, device: torch.device | str = "cpu", folder: Path | None = None) -> Outcome:
    """Train and test; with a `folder` what is kept there is not done again, whatever is new is kept there."""
    path = None if folder is None else folder / f"{job.task}-{job.arm}-{key_of(job, device)[:16]}.json"
    if path is not None and path.is_file():
        return outcome_of(json.loads(path.read_text(encoding="utf-8")))
    outcome = _learned(job, torch.device(device))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(outcome), allow_nan=False) + "\n")
    return outcome


def key_of(job: Job, device: torch.device | str) -> str:
    """Return the SHA-256 of what decides a result: the job, the kind of device and the code."""
    code = code_sha256(__file__)
    return sha256_of_json({**asdict(job), "device": torch.device(device).type, "code": code})


def outcome_of(values: dict) -> Outcome:
    """The outcome that these values of a JSON file are."""
    job = Job(**values["job"] | {"lengths": tuple(values["job"]["lengths"])})
    lists = {name: tuple(values[name]) for name in ("scores", "skewed", "losses")}
    return Outcome(**values | lists | {"job": job, "angles": tuple(map(tuple, values["angles"]))})


def _learned(job: Job, device: torch.device) -> Outcome:
    task, started = counting.task(job.task), time.monotonic()
    model = build_arm(job.arm, job.sizes, job.seed).to(device)
    losses = _trained(model, task, job, device)
    diverged = not all(math.isfinite(value) for value in losses)
    tested = () if job.is_try else job.lengths
    scores, validation, angles = tuple(0.0 for _ in tested), 0.0, ()
    skewed = scores
    if not diverged:
        validation = score(model, task, job.length, job.sequences, VALIDATED_SEED + job.seed)
        scores = tuple(score(model, task, n, job.sequences, TESTED_SEED + job.seed) for n in tested)
        skewed = tuple(score(model, task, n, job.sequences, TESTED_SEED + job.seed, skewed=True) for n in tested)
        found = None if job.is_try else turns(model, task)
        angles = () if found is None else tuple(tuple(round(x, 6) for x in row) for row in found.tolist())
    points = [value for value in losses[:: max(1, job.steps // 50)] if math.isfinite(value)]
    return Outcome(job, validation, scores, skewed, tuple(round(value, 5) for value in points), num_scalars(model),
                   time.monotonic() - started, diverged, angles)  # fmt: skip


def _trained(model: nn.Module, task: Task, job: Job, device: torch.device) -> list[float]:
    """The loss of each step; training stops at the first that is not finite."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator(device).manual_seed(job.seed)
    losses: list[Tensor] = []
    for step in range(job.steps):
        tokens, answers = counting.sequences(task, job.batch, job.length_at(step), generator)
        for group in optimizer.param_groups:
            group["lr"] = job.rate_at(step)
        optimizer.zero_grad()
        found = loss(model, begun(tokens, task), answers)
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(found.detach())
        if step % 100 == 99 and not losses[-1].isfinite():  # reading one makes the host wait
            break
    return torch.stack(losses).tolist()


def begun(tokens: Tensor, task: Task) -> Tensor:
    """The tokens (B T) behind the one that every sequence begins with (B 1+T)."""
    return torch.cat([torch.full_like(tokens[:, :1], task.order), tokens], 1)


@torch.no_grad()
def score(model: nn.Module, task: Task, length: int, count: int, seed: int, skewed: bool = False) -> float:
    """Normalised accuracy on the last positions of `count` fresh sequences of a length."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed + length)
    right, seen, model_call = 0, 0, _evaluating(model)
    at_once = max(1, TEST_TOKENS // length)
    for first in range(0, count, at_once):
        tokens, answers = counting.sequences(task, min(at_once, count - first), length, generator, skewed)
        found = model_call(begun(tokens, task))[:, -min(LAST, length) :].argmax(-1)
        right += (found == answers[:, -min(LAST, length) :]).sum().item()
        seen += found.numel()
    return counting.normalised(right / seen, task)


def _evaluating(model: nn.Module) -> Callable[[Tensor], Tensor]:
    model.eval()
    return model


@torch.no_grad()
def turns(model: nn.Module, task: Task) -> Tensor | None:
    """Radians that each token turns each plane of the first layer by, r(order planes); None where nothing turns."""
    tokens = torch.arange(task.order, device=next(model.parameters()).device)
    found = model.angles(tokens[:, None])
    return None if found is None else found[:, 0].double().cpu()
