"""One arm learns one counting task at one learning rate, and is tested beyond the lengths it has seen."""

from __future__ import annotations

import functools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.data import counting
from muse.data.counting import Task
from muse.host.files import write_atomic
from muse.models.tensor_file import sha256_of_json
from muse.ops.cuda_graph import Replayed, let_capture
from muse.training.code_key import code_sha256
from muse.training.recipe import schedule

from .arms import UNASKED, Sizes, build_arm, loss, num_scalars

LAST = 20  # positions at the end of a sequence on which accuracy is taken
SHORTEST = 4  # length of the first training sequences
GROWING_SHARE = 0.5  # of the steps, over which they grow to the training length, alike for every arm
WARMUP_SHARE = 0.05
GRAPHS = 4  # lengths that a step is captured at: more save what is filled in, and cost memory
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
    captured: bool = False  # whether each step was one CUDA graph


def learn(job: Job, device: torch.device | str = "cpu", folder: Path | None = None) -> Outcome:
    """Train and test; with a `folder` what is kept there is not done again, whatever is new is kept there."""
    if (found := kept(job, device, folder)) is not None:
        return found
    outcome = _learned(job, torch.device(device))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(_path(job, device, folder), json.dumps(asdict(outcome), allow_nan=False) + "\n")
    return outcome


def kept(job: Job, device: torch.device | str, folder: Path | None) -> Outcome | None:
    """What a training came to that has left its numbers in a folder; None where it has not."""
    if folder is None or not (path := _path(job, device, folder)).is_file():
        return None
    return outcome_of(json.loads(path.read_text(encoding="utf-8")))


def _path(job: Job, device: torch.device | str, folder: Path) -> Path:
    return folder / f"{job.task}-{job.arm}-{key_of(job, device)[:16]}.json"


@functools.cache
def _code() -> str:
    """The hash of the code that decides a result, as it is when it is first asked for."""
    return code_sha256(__file__)


def key_of(job: Job, device: torch.device | str) -> str:
    """Return the SHA-256 of what decides a result: the job, the kind of device and the code."""
    return sha256_of_json({**asdict(job), "device": torch.device(device).type, "code": _code()})


def outcome_of(values: dict) -> Outcome:
    """The outcome that these values of a JSON file are."""
    job = Job(**values["job"] | {"lengths": tuple(values["job"]["lengths"])})
    lists = {name: tuple(values[name]) for name in ("scores", "skewed", "losses")}
    return Outcome(**values | lists | {"job": job, "angles": tuple(map(tuple, values["angles"]))})


def _learned(job: Job, device: torch.device) -> Outcome:
    task, started = counting.task(job.task), time.monotonic()
    model = build_arm(job.arm, job.sizes, job.seed).to(device)
    update = Update(model, job)
    losses = trained(update, task, job)
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
                   time.monotonic() - started, diverged, angles, update.captured)  # fmt: skip


class Update:
    """An optimizer step of an arm: forward, backward, clipping, AdamW. On CUDA it is one graph for each of few lengths.

    There sequences are filled up to the next of them. What is filled in is read after all that is asked, and not asked
    for: no arm looks ahead, and the loss is the same.
    """

    def __init__(self, model: nn.Module, job: Job, filled: bool | None = None, captured: bool | None = None) -> None:
        """`filled` and `captured`: both as the device has it, unless told."""
        device = next(model.parameters()).device
        self.captured = device.type == "cuda" if captured is None else captured
        self.model, self.order = model, job.sizes.order
        parts = range(1, GRAPHS + 1) if (self.captured if filled is None else filled) else ()
        self.lengths = [math.ceil(job.length * part / GRAPHS) for part in parts]
        self.rate = torch.zeros((), device=device)  # a tensor, so that a graph follows the schedule
        self.optimizer = torch.optim.AdamW(model.parameters(), self.rate, BETAS, weight_decay=WEIGHT_DECAY, fused=True)
        self.replayed: dict[int, Replayed] = {}

    def __call__(self, tokens: Tensor, answers: Tensor, rate: float) -> Tensor:
        """Train on tokens and answers (B T) at a learning rate; the loss in nat per position, on the device."""
        self.rate.fill_(rate)
        length = next((length for length in self.lengths if length >= tokens.shape[1]), tokens.shape[1])
        missing = length - tokens.shape[1]
        batch = F.pad(begun(tokens, self.order), (0, missing)), F.pad(answers, (0, missing), value=UNASKED)
        if not self.captured:
            return self._update(*batch)[0]
        if length not in self.replayed:
            self.replayed[length] = Replayed(self._update)
        return self.replayed[length](*batch)[0].clone()

    def _update(self, ids: Tensor, answers: Tensor) -> tuple[Tensor]:
        found = loss(self.model, ids, answers)
        found.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        let_capture(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return (found.detach(),)


def trained(update: Update, task: Task, job: Job) -> list[float]:
    """The loss of each step; training stops at the first that is not finite."""
    generator = torch.Generator(update.rate.device).manual_seed(job.seed)
    losses: list[Tensor] = []
    for step in range(job.steps):
        batch = counting.sequences(task, job.batch, job.length_at(step), generator)
        losses.append(update(*batch, job.rate_at(step)))
        if step % 100 == 99 and not losses[-1].isfinite():  # reading one makes the host wait
            break
    return torch.stack(losses).tolist()


def begun(tokens: Tensor, order: int) -> Tensor:
    """The tokens (B T) behind the one that every sequence begins with, `order` (B 1+T)."""
    return F.pad(tokens, (1, 0), value=order)


@torch.no_grad()
def score(model: nn.Module, task: Task, length: int, count: int, seed: int, skewed: bool = False) -> float:
    """Normalised accuracy on the last positions of `count` fresh sequences of a length."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed + length)
    right, seen, model = 0, 0, model.eval()
    at_once = max(1, TEST_TOKENS // length)
    for first in range(0, count, at_once):
        tokens, answers = counting.sequences(task, min(at_once, count - first), length, generator, skewed)
        found = model(begun(tokens, task.order))[:, -min(LAST, length) :].argmax(-1)
        right += (found == answers[:, -min(LAST, length) :]).sum().item()
        seen += found.numel()
    return counting.normalised(right / seen, task)


@torch.no_grad()
def turns(model: nn.Module, task: Task) -> Tensor | None:
    """Radians that each token turns each plane of the first layer by, r(order planes); None where nothing turns."""
    tokens = torch.arange(task.order, device=next(model.parameters()).device)
    found = model.angles(tokens[:, None])
    return None if found is None else found[:, 0].double().cpu()
