"""How a model is trained, and what a finished training leaves: plain values, on disk as JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch

from muse.catalog import OPTIMIZERS
from muse.host.files import sha256_of, write_atomic
from muse.models import weights
from muse.models.tensor_file import CheckpointError, is_sealed, sha256_of_json
from muse.records.schema import Artifact, Metric, Series

from . import checkpoint

TRIED = {
    "learning_rate": "lr",
    "dropout": "dropout",
    "batch_tokens": "batch",
    "weight_decay": "decay",
    "muon_weight_decay": "muon-decay",
}
"""What of a recipe is tried on validation, and how it is called in short."""

logger = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def in_words(values: Mapping[str, float]) -> str:
    """Return values of what is tried as words: learning rate 0.001, dropout 0.1."""
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in values.items())


def in_short(values: Mapping[str, float]) -> str:
    """Return values of what is tried under their short names: lr 0.001 dropout 0.1."""
    return " ".join(f"{TRIED[name]} {_number(value)}" for name, value in values.items())


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def schedule(step: int, steps: int, warmup_share: float) -> float:
    """Share of the highest learning rate in a step counted from 0: linear up to 1, then half a cosine towards 0."""
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; all models of a comparison share everything but what is tried on validation."""

    train_tokens: int  # token budget, rounded up to whole steps
    batch_tokens: int  # tokens per step, rounded down to whole sequences
    n_seq: int  # tokens per sequence
    learning_rate: float  # highest learning rate, reached at the end of the warm-up
    dropout: float = 0.0  # of the model
    optimizer: str = "adamw"  # or "muon" for the matrices of blocks and AdamW for the rest
    weight_decay: float = 0.1  # of what AdamW trains with two or more dimensions, token tables included
    muon_learning_rate: float = 0.02  # highest one of muon, on the same schedule
    muon_weight_decay: float = 0.1  # of what muon trains
    warmup_share: float = 0.05  # share of the steps with a linearly rising learning rate
    gradient_clip: float = 1.0  # largest norm of all gradients together
    evaluations: int = 10  # validation passes, evenly spaced, the last one at the end
    checkpoint_every_steps: int = 200  # a killed training loses at most so many steps; no effect on the result
    seed: int = 0  # of the weights, the order of the windows and the dropout
    compile: bool = False  # torch.compile of the loss; on CUDA the whole step becomes one graph
    recompute: bool = False  # blocks keep only their input for the backward pass: slower, with the same result
    precision: str = "auto"  # auto, float32, bfloat16 or float16

    def __post_init__(self) -> None:
        for name in ("train_tokens", "batch_tokens", "n_seq", "evaluations", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.batch_tokens < self.n_seq:
            raise ValueError(f"batch_tokens: got {self.batch_tokens}, expected at least n_seq = {self.n_seq}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: got {self.optimizer!r}, expected {' or '.join(OPTIMIZERS)}")
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision: got {self.precision!r}, expected auto, {', '.join(PRECISIONS)}")

    @property
    def tried(self) -> dict[str, float]:
        """Values of what is tried on validation, Muon's only where it trains."""
        names = [name for name in TRIED if self.optimizer == "muon" or name != "muon_weight_decay"]
        return {name: getattr(self, name) for name in names}

    @property
    def batch_size(self) -> int:
        """Sequences per step."""
        return self.batch_tokens // self.n_seq

    @property
    def tokens_per_step(self) -> int:
        """Tokens per step in whole sequences."""
        return self.batch_size * self.n_seq

    @property
    def steps(self) -> int:
        """Optimizer steps that use up the token budget."""
        return math.ceil(self.train_tokens / self.tokens_per_step)

    def learning_rate_at(self, step: int) -> float:
        """AdamW's learning rate of a step counted from 0: linear up to the peak, then half a cosine towards 0."""
        return self.learning_rate * self.schedule(step)

    def schedule(self, step: int) -> float:
        """Share of the highest learning rate in a step counted from 0."""
        return schedule(step, self.steps, self.warmup_share)

    def evaluation_steps(self) -> frozenset[int]:
        """Numbers of finished steps after which the validation split is measured."""
        passes = range(1, self.evaluations + 1)
        return frozenset(max(1, round(i * self.steps / self.evaluations)) for i in passes)


@dataclass(frozen=True)
class TrainingResult:
    """A finished training; losses in nat/token, curves as (tokens seen, loss)."""

    model_name: str
    seed: int
    learning_rate: float
    dropout: float
    batch_tokens: int
    weight_decay: float
    muon_weight_decay: float | None  # None where AdamW trained everything
    precision: str
    best_validation_loss: float
    best_step: int
    steps: int
    tokens: int
    training_curve: tuple[tuple[int, float], ...]
    validation_curve: tuple[tuple[int, float], ...]
    tokens_per_second: float  # median over the curve's points; validation and checkpoints not counted
    tokens_per_second_samples: tuple[float, ...]
    seconds: float  # all of it, summed over interruptions
    started_utc: str  # of the first start, ISO 8601
    finished_utc: str
    hardware: str  # CUDA device or CPU that it ended on
    weights: Path | None  # float32 weights of the best validation; None where only the numbers are known
    weights_sha256: str  # of that file
    resumed_from_steps: tuple[int, ...]
    reused: bool = False  # found finished on disk
    skipped_steps: int = 0  # by a GradScaler, since a gradient was not finite; of float16 only
    verified: bool = True  # this file and the weights carry a SHA-256; False for those from before there was one

    def artifact(self, checkpoint_dir: str | Path) -> Artifact:
        """The weights as a file that a record names, seen from the folder of the checkpoints."""
        path = self.weights.resolve().relative_to(Path(checkpoint_dir).resolve()).as_posix()
        return Artifact(kind="weights", model=self.model_name, seed=self.seed, path=path, sha256=self.weights_sha256,
                        num_bytes=self.weights.stat().st_size, verified=self.verified)  # fmt: skip

    def metrics(self, label: str) -> list[Metric]:
        """The training's numbers as metrics of the model `label`."""
        tried = {name: getattr(self, name) for name in TRIED if getattr(self, name) is not None}
        note = f"seed {self.seed}, {in_words(tried)}, {self.precision}"
        if self.resumed_from_steps:
            note += f", resumed from step {', '.join(map(str, self.resumed_from_steps))}"
        if self.skipped_steps:
            note += f", {self.skipped_steps} steps skipped by the loss scaler"
        if self.reused:
            note += ", found finished on disk"
        metric = partial(Metric, model=label, note=note)
        speeds = list(self.tokens_per_second_samples)
        return [
            metric(name="validation_loss", value=self.best_validation_loss, unit="nat/token"),
            metric(name="best_step", value=self.best_step, unit="steps"),
            metric(name="training_steps", value=self.steps, unit="steps"),
            metric(name="training_tokens", value=self.tokens, unit="tokens"),
            metric(name="training_seconds", value=self.seconds, unit="s"),
            metric(name="training_tokens_per_second", value=self.tokens_per_second, unit="tokens/s", n=len(speeds),
                   samples=speeds),
        ]  # fmt: skip

    def series(self, label: str) -> list[Series]:
        """Training and validation loss over tokens as series of the model `label`."""
        curves = {"training_loss": self.training_curve, "validation_loss": self.validation_curve}
        names = {"model": label, "seed": self.seed, "x_name": "tokens", "y_name": "loss (nat/token)"}
        return [
            Series(name=name, x=[float(tokens) for tokens, _ in curve], y=[loss for _, loss in curve], **names)
            for name, curve in curves.items()
        ]


@dataclass(frozen=True)
class Report:
    """Where a training stands; losses in nat/token, curves as (tokens seen, loss)."""

    description: str
    step: int
    steps: int
    tokens: int
    training_curve: tuple[tuple[int, float], ...]
    validation_curve: tuple[tuple[int, float], ...]


OnReport = Callable[[Report], None]
Show = Callable[[int, float, int], None]
Bar = Callable[[str, Recipe, int], AbstractContextManager[Show]]
"""bar(description, recipe, first step) gives, while it is open, a function of (steps done, last loss, all skipped)."""


def no_bar(description: str, recipe: Recipe, start: int) -> AbstractContextManager[Show]:
    """A `Bar` that shows nothing."""
    return nullcontext(lambda steps, loss, skipped: None)


def write_result(folder: Path, key: str, result: TrainingResult) -> None:
    """Write the result of the training with this key; the file carries the SHA-256 of what it says."""
    values = asdict(result) | {"weights": result.weights.name, "key": key}
    del values["verified"]
    values["sha256"] = sha256_of_json(values)
    write_atomic(folder / checkpoint.RESULT_FILE, json.dumps(values, indent=1, allow_nan=False) + "\n")


OF_TODAY = ("key", "sha256", "skipped_steps")  # what results did not have before they carried a SHA-256


def read_result(folder: Path) -> TrainingResult:
    """Return what write_result wrote of a finished training, with its weights; CheckpointError unless all is as it was.

    Checked are the file's own SHA-256, the training that it belongs to, and the SHA-256 of the weights. A file from
    before it carried one is read with a line of warning.
    """
    path, advice = folder / checkpoint.RESULT_FILE, f"remove {folder} to start again"
    values = weights.read_json(path)
    names = {field.name for field in fields(TrainingResult)} - {"verified"}
    sealed = values.keys() == {*names, *OF_TODAY}
    if not sealed and values.keys() != names - set(OF_TODAY):
        raise CheckpointError(f"{path}: not a result with its weights; {advice}")
    if sealed:
        _check_seal(path, values, advice)
    model = values["weights"]
    if not isinstance(model, str) or Path(model).name != model or not (folder / model).is_file():
        raise CheckpointError(f"{path}: weights: got {model!r}, expected the name of a file in {folder}; {advice}")
    if (found := sha256_of(folder / model)) != values["weights_sha256"]:
        expected = str(values["weights_sha256"])
        raise CheckpointError(f"{folder / model}: got SHA-256 {found[:12]}, expected {expected[:12]}; {advice}")
    if not sealed:
        logger.warning("%s: carries no SHA-256, it is from before there was one: read unverified", path)
    values = {name: value for name, value in values.items() if name in names}
    try:
        result = result_of(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}; {advice}") from error
    return replace(result, weights=folder / model, reused=True, verified=sealed and is_sealed(folder / model))


def result_of(values: Mapping[str, object]) -> TrainingResult:
    """The result that these values of a JSON file are; TypeError or ValueError where they are others."""
    curves = {
        name: tuple((tokens, loss) for tokens, loss in values[name]) for name in ("training_curve", "validation_curve")
    }
    lists = {name: tuple(values[name]) for name in ("tokens_per_second_samples", "resumed_from_steps")}
    return TrainingResult(**{**values, **curves, **lists})


def _check_seal(path: Path, values: dict[str, object], advice: str) -> None:
    """Compare a result with the SHA-256 it carries, and its key with that of the configuration beside it."""
    said = {name: value for name, value in values.items() if name != "sha256"}
    if (found := sha256_of_json(said)) != values["sha256"]:
        expected = str(values["sha256"])
        raise CheckpointError(f"{path}: damaged: got SHA-256 {found[:12]}, expected {expected[:12]}; {advice}")
    config = weights.read_json(path.with_name(weights.CONFIG_FILE)).get("config")
    if sha256_of_json(config) != values["key"]:
        raise CheckpointError(f"{path}: the result of another training than that of {weights.CONFIG_FILE}; {advice}")
