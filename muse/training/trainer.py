"""Training of one model, the same way for all: optimizer, warm-up, cosine, clipping, choice on validation, resumable.

Master weights are float32. Where a half precision is used, autocast computes in it, with a GradScaler for float16. A
training is a pure function of its settings: on the CPU, one that was killed and resumed ends bit-identical to one that
was not. Several processes (`ranks`) train one model on parts of the same batches: all do the same, and one writes.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from muse.data.batches import TrainingBatches, evaluation_batches, num_targets
from muse.data.corpus import Corpus
from muse.host.files import sha256_of
from muse.host.signals import Interrupted, Interruptions
from muse.models import weights
from muse.ops import compiling, planar
from muse.ops.cuda_graph import Replayed, let_capture
from muse.records.environment import device_hardware, utc_now, versions

from . import checkpoint
from .code_key import code_sha256
from .feed import Feed
from .muon import Matrix, Muon, matrices_of
from .nonfinite import NonFiniteStepError, first_place
from .ranks import Ranks, SharedGradients
from .recipe import (
    PRECISIONS,
    Bar,
    OnReport,
    Recipe,
    Report,
    TrainingResult,
    in_short,
    no_bar,
    read_result,
    write_result,
)

BETAS = (0.9, 0.95)  # AdamW
EPSILON = 1e-8  # AdamW
CURVE_POINTS = 200  # points of the training curve, each the mean loss of the steps since the last one
READ_EVERY_STEPS = {"cpu": 1, "cuda": 25}  # reading a loss makes the host wait for the device


MOST_SKIPPED = 50  # steps in turn: a loss scale that was halved so often cures no gradient that overflows


class NonFiniteLossError(RuntimeError):
    """A training whose loss, gradient or state stopped being a number; the message names step, place and rate."""


class DeadGradientError(RuntimeError):
    """A compiled loss that leaves parameters without gradients; the message names one."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return what `auto` means: bfloat16 where a CUDA device has it, else float16 there; float32 on the CPU."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def parameter_groups(
    model: nn.Module, weight_decay: float, matrices: Sequence[Matrix] = ()
) -> list[dict[str, object]]:
    """AdamW's groups, without `matrices`: trained tensors of two or more dimensions decay, vectors do not."""
    taken = {id(plane) for matrix in matrices for plane in matrix}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in taken]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def train(
    model_name: str,
    build: Callable[..., nn.Module],
    recipe: Recipe,
    corpus: Corpus,
    directory: str | Path,
    device: str | torch.device = "cpu",
    on_report: OnReport | None = None,
    bar: Bar = no_bar,
) -> TrainingResult:
    """Train `build(dropout=..., seed=...)`, or resume it, or return the finished result of the same command.

    Everything lives in `directory/<model>-s<seed>-<key>/`, whose key covers model, recipe, tokens, tokenizer, code and
    device type; where corpus and tokenizer were read and how progress is shown have no part in it. Ctrl-C, SIGTERM and
    SIGHUP save the state before they become a KeyboardInterrupt. Raises NonFiniteLossError, DeadGradientError, and
    CheckpointError for damaged or foreign files.
    """
    device = torch.device(device)
    recipe = replace(recipe, precision=resolve_precision(recipe.precision, device))
    config = config_of(model_name, build, recipe, corpus, device)
    folder = Path(directory) / f"{model_name}-s{recipe.seed}-{checkpoint.training_key(config)[:12]}"
    every = recipe.checkpoint_every_steps
    about = {"checkpoint_every_steps": every, "corpus": _names_of(corpus), "versions": versions()}
    ranks = Ranks.here()
    with checkpoint.training_folder(folder) if ranks.first else contextlib.nullcontext():
        if ranks.first:
            checkpoint.open_folder(folder, config, about)
        if ranks.share((folder / checkpoint.RESULT_FILE).exists()):
            return read_result(folder)
        model = build(dropout=recipe.dropout, seed=recipe.seed)
        model.recompute = recipe.recompute
        seeded, products = _random_state(device, recipe.seed), planar.training_products(device.type)
        with seeded, products, Interruptions(wait=True) as signals:
            return _Training(
                model.to(device), recipe=recipe, corpus=corpus, folder=folder, config=config, signals=signals,
                on_report=on_report, bar=bar,
            ).run()  # fmt: skip


def config_of(
    model_name: str, build: Callable[..., nn.Module], recipe: Recipe, corpus: Corpus, device: torch.device
) -> dict[str, object]:
    """Everything that decides the result of a training, as `train` takes it."""
    with weights.WithoutDraws():
        model = build(dropout=recipe.dropout, seed=recipe.seed)
    settings = asdict(recipe) | {"precision": resolve_precision(recipe.precision, device)}
    del settings["checkpoint_every_steps"]
    return {
        "model_name": model_name,
        "model_config": asdict(model.config),
        "recipe": settings,
        "device": device.type,
        "corpus": {
            "sha256": {name: corpus.splits[name].sha256 for name in ("train", "validation")},
            "tokenizer_sha256": corpus.tokenizer_sha256,
        },
        "code_sha256": code_sha256(inspect.getfile(type(model)), __file__),
    }


def _names_of(corpus: Corpus) -> dict[str, str]:
    """What a corpus and its tokenizer are called; of a folder the last part, since where it lies decides nothing."""
    return {"name": Path(corpus.name).name, "tokenizer": Path(corpus.tokenizer_name).name}


@contextlib.contextmanager
def _random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch for the training and give the caller its own random state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class OptimizerStep:
    """Forward, backward, clipping and optimizers of one model; with a compiled loss on CUDA one CUDA graph.

    Of several processes each has two graphs, one up to its gradients and one from their sum on.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, description: str) -> None:
        """`description` names the training in errors. ValueError for half precision that a CPU would compile."""
        self.model, self.recipe, self.description = model, recipe, description
        self.device = next(model.parameters()).device
        if recipe.compile and self.device.type == "cpu" and recipe.precision != "float32":
            raise ValueError(
                f"compile: on a CPU expected precision float32, got {recipe.precision}: in half precision the C++ code "
                "that torch.compile writes was found to give wrong gradients (torch 2.13, GCC 12); compile: false"
            )
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.learning_rate, self.muon_rate = torch.zeros(2, 1, device=self.device).squeeze(1)  # of the next step
        matrices = matrices_of(model.blocks) if recipe.optimizer == "muon" else []
        groups = parameter_groups(model, recipe.weight_decay, matrices)
        self.optimizers = [torch.optim.AdamW(groups, self.learning_rate, BETAS, EPSILON, fused=True)]
        if recipe.optimizer == "muon":
            cuda, decay = self.device.type == "cuda", recipe.muon_weight_decay
            how = {"compute": torch.bfloat16 if cuda else torch.float32, "compiled": cuda and recipe.compile}
            self.optimizers.append(Muon(matrices, self.muon_rate, weight_decay=decay, **how))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.ranks = Ranks.here()
        self.shared = SharedGradients(self.parameters, self.ranks) if self.ranks.size > 1 else None
        self.loss = compiling.compiled(model.loss) if recipe.compile else model.loss
        self.unchecked = recipe.compile
        self.update, self.backward, self.step = self._update, self._backward, self._step
        # A GradScaler skips steps by what the host reads, so float16 is not replayed; nor are messages to others.
        if recipe.compile and self.device.type == "cuda" and not self.scaler.is_enabled():
            if self.shared is None:
                self.update = Replayed(self._update)
            else:
                parts = (Replayed(part, "thread_local") for part in (self._backward, self._step))  # NCCL has a thread
                self.backward, self.step = parts

    def __call__(self, inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Train on a batch (B T); return the loss and the norm of all gradients before clipping, on the device."""
        self.learning_rate.fill_(self.recipe.learning_rate_at(step))
        self.muon_rate.fill_(self.recipe.muon_learning_rate * self.recipe.schedule(step))
        return self.update(inputs, targets)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.recipe.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.recipe.precision])

    def _update(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = self.backward(inputs, targets)
        return self.step(loss if self.shared is None else self.shared.sum())

    def _backward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor]:
        """The loss of this process's rows, gradients left with the parameters; of several, its share of the mean."""
        if self.shared is not None:
            self.shared.clear()
        with self.autocast():
            loss = self.loss(inputs, targets)
        if self.shared is not None:
            loss = loss / self.ranks.size
            self.shared.loss.copy_(loss.detach())
        self.scaler.scale(loss).backward()
        return (loss.detach(),)

    def _step(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        if self.unchecked:
            self._check_gradients()
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.device.type == "cpu":
            self._check_finite(loss.item(), norm.item())
        nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.gradient_clip, norm)
        if self._steps(norm):
            for optimizer in self.optimizers:
                let_capture(optimizer)
                self.scaler.step(optimizer)
        self.scaler.update()
        if self.shared is None:
            self.model.zero_grad(set_to_none=True)
        return loss, norm

    def _check_finite(self, loss: float, norm: float) -> None:
        """Stop before a step spreads what is not finite; with a GradScaler a gradient may overflow."""
        if not math.isfinite(loss):
            raise NonFiniteStepError(f"loss is {loss}")
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise NonFiniteStepError(f"gradient norm is {norm}")

    def _steps(self, norm: Tensor) -> bool:
        """Whether optimizers step: of several, a GradScaler would let those go on whose own gradients are finite."""
        return len(self.optimizers) == 1 or not self.scaler.is_enabled() or bool(norm.isfinite())

    def _check_gradients(self) -> None:
        """Refuse a compiled loss that forgets parameters: a compiler once did, and the rest went on learning."""
        self.unchecked = False
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        dead = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        if dead:
            raise DeadGradientError(
                f"{self.description}: {len(dead)} of {len(trained)} parameters, such as {dead[0]}, get no gradient "
                "from the compiled loss; train with compile: false"
            )


@dataclass
class State:
    """What a training carries from step to step beside weights, moments and random states; JSON values."""

    step: int = 0
    training: list[tuple[int, float]] = field(default_factory=list)  # (tokens seen, loss)
    validation: list[tuple[int, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)  # losses since the curve's last point
    pending_seconds: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    speeds: list[float] = field(default_factory=list)  # tokens/s of each point of the curve
    resumed: list[int] = field(default_factory=list)  # steps at which it was resumed
    skipped: int = 0  # steps that the GradScaler skipped
    skipped_in_turn: int = 0  # up to the last step
    seconds: float = 0.0  # up to the last time it was saved
    started_utc: str = ""  # of the first start, ISO 8601
    scaler: dict[str, float] = field(default_factory=dict)  # of the GradScaler

    @property
    def curves(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """Both curves as a result has them; JSON makes lists of their points."""
        points = {"training_curve": self.training, "validation_curve": self.validation}
        return {name: tuple(map(tuple, curve)) for name, curve in points.items()}


class _Training:
    """One training between its first and its last step."""

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: Recipe,
        corpus: Corpus,
        folder: Path,
        config: dict[str, object],
        signals: Interruptions,
        on_report: OnReport | None,
        bar: Bar,
    ) -> None:
        self.model, self.recipe, self.corpus, self.folder, self.config = model, recipe, corpus, folder, config
        self.signals, self.on_report, self.bar = signals, on_report, bar
        self.description = f"{config['model_name']} seed {recipe.seed} {in_short(recipe.tried)}"
        self.update = OptimizerStep(model, recipe, self.description)
        self.device = self.update.device
        batches = TrainingBatches(corpus.splits["train"].ids, recipe.n_seq, recipe.batch_size, recipe.seed)
        self.ranks = self.update.ranks
        self.feed = Feed(batches, self.device, self.ranks)
        self.state = State(started_utc=utc_now().isoformat())
        self.unread = torch.zeros(READ_EVERY_STEPS[self.device.type], 2, device=self.device)  # loss, gradient norm
        self.num_unread = 0
        self.started = self.mark = time.perf_counter()
        self.curve_every = math.ceil(recipe.steps / CURVE_POINTS)

    def run(self) -> TrainingResult:
        """Train from wherever the state on disk stands to the end."""
        self.restore()
        recipe, evaluations = self.recipe, self.recipe.evaluation_steps()
        with self.bar(self.description, recipe, self.state.step) as self.show:
            try:
                while True:
                    evaluated = self.state.validation[-1][0] if self.state.validation else 0
                    if self.state.step in evaluations and evaluated < self.tokens:
                        self.evaluate()
                    if self.state.step == recipe.steps:
                        return self.finish()
                    self.train_step()
                    if self.state.step % recipe.checkpoint_every_steps == 0 and self.state.step < recipe.steps:
                        self.save()
                    self.check()
            except Interrupted:
                self.save()
                raise
            finally:
                self.feed.close()

    @property
    def tokens(self) -> int:
        return self.state.step * self.recipe.tokens_per_step

    def check(self) -> None:
        """Raise Interrupted where this process or another of the training was asked to end."""
        if self.ranks.any(self.signals.received is not None):
            raise Interrupted

    def train_step(self) -> None:
        """One step of the training; its loss stays on the device until it is read."""
        inputs, targets = self.feed(self.state.step)
        self.ranks.draw_apart(self.recipe.seed, self.state.step)
        try:
            loss, norm = self.update(inputs, targets, self.state.step)
        except NonFiniteStepError as error:
            raise self.non_finite(str(error), self.state.step, self.feed.parts(self.state.step)) from error
        self.unread[self.num_unread, 0] = loss
        self.unread[self.num_unread, 1] = norm
        self.state.step += 1
        self.num_unread += 1
        if self.num_unread == len(self.unread):
            self.read()

    def read(self) -> None:
        """Bring the unread losses to the host, refuse non-finite ones, and extend the curve."""
        values = self.unread[: self.num_unread].tolist()
        first, self.num_unread = self.state.step - self.num_unread, 0
        now = time.perf_counter()
        seconds_per_step, self.mark = (now - self.mark) / max(len(values), 1), now
        for step, (loss, norm) in enumerate(values, start=first):
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.update.scaler.is_enabled()):
                what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
                raise self.non_finite(what, step, self.feed.parts(step))
            self.count_skipped(step, norm)
            self.add_loss(step + 1, loss, seconds_per_step)
        if values:
            self.show(len(values), values[-1][0], self.state.skipped)

    def count_skipped(self, step: int, norm: float) -> None:
        """Count a step that the GradScaler skipped: its gradient was not finite; refuse where that does not end."""
        state = self.state
        state.skipped += not math.isfinite(norm)
        state.skipped_in_turn = 0 if math.isfinite(norm) else state.skipped_in_turn + 1
        if state.skipped_in_turn == MOST_SKIPPED or state.skipped == self.recipe.steps:
            what = f"gradient norm is {norm} at every loss scale, {state.skipped_in_turn} steps in turn,"
            raise self.non_finite(what, step, self.feed.parts(step))

    def add_loss(self, step: int, loss: float, seconds: float) -> None:
        """Take the loss of a finished step, and give the curve a point where one is due."""
        state, size = self.state, self.recipe.tokens_per_step
        state.pending.append(loss)
        state.pending_seconds += seconds
        if step % self.curve_every == 0 or step == self.recipe.steps:
            state.training.append((step * size, statistics.fmean(state.pending)))
            state.speeds.append(len(state.pending) * size / state.pending_seconds)
            state.pending, state.pending_seconds = [], 0.0
            self.report()

    def non_finite(self, what: str, step: int, batches: Iterable[tuple[Tensor, Tensor]] | None = None) -> Exception:
        """The error about a step counted from 0; with `batches` it looks for the first place and names it."""
        saved = (self.folder / checkpoint.STATE_FILE).exists()
        where = ""
        if batches is not None:
            batches = ((inputs.to(self.device), targets.to(self.device)) for inputs, targets in batches)
            where = f"first found: {first_place(self.model, self.update.optimizers, batches, self.update.autocast)}; "
        return NonFiniteLossError(
            f"{self.description}: {what} at step {step + 1} of {self.recipe.steps}, where the learning rate is "
            f"{self.recipe.learning_rate_at(step):.3g}; {where}{'the last checkpoint is' if saved else 'no checkpoint'}"
            f" in {self.folder}. Try lower learning_rates, a larger warmup_share or a smaller gradient_clip."
        )

    def report(self) -> None:
        if self.on_report:
            step, steps = self.state.step, self.recipe.steps
            self.on_report(Report(self.description, step, steps, self.tokens, **self.state.curves))

    @torch.no_grad()
    def evaluate(self) -> None:
        """Measure the whole validation split and keep the weights if they are the best so far."""
        self.read()
        state, ids = self.state, self.corpus.splits["validation"].ids
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.eval()
        batches = evaluation_batches(ids, self.recipe.n_seq, self.recipe.batch_size)
        for number, (inputs, targets) in enumerate(batches):
            if number % self.ranks.size == self.ranks.rank:  # in turn: one batch each
                with self.update.autocast():
                    total += self.model.loss(inputs.to(self.device), targets.to(self.device), reduction="sum")
            if number % self.ranks.size == self.ranks.size - 1:
                self.check()
        self.model.train()
        loss = self.ranks.sum(total).item() / num_targets(ids)
        if not math.isfinite(loss):
            batches = evaluation_batches(ids, self.recipe.n_seq, self.recipe.batch_size)
            raise self.non_finite(f"validation loss is {loss}", state.step - 1, batches)
        if state.best_loss is None or loss < state.best_loss:
            state.best_step, state.best_loss = state.step, loss
            self.save_best()
        state.validation.append((self.tokens, loss))
        self.report()
        self.mark = time.perf_counter()

    def save_best(self) -> None:
        """Write the weights as the best so far."""
        step, loss = self.state.best_step, self.state.best_loss
        read = self.config["corpus"] | _names_of(self.corpus)
        about = self.config | {"corpus": read, "key": self.key, "step": step, "validation_loss_nats": loss}
        self.write(lambda: weights.save_weights(self.best_weights, self.model, about))

    def read_best(self) -> tuple[dict[str, Tensor], dict]:
        """The best weights so far and what they say of themselves; CheckpointError unless this training wrote them."""
        tensors, about = weights.read_tensors(self.best_weights, weights.WEIGHTS_FORMAT)
        expected = {"key": self.key, "step": self.state.best_step, "validation_loss_nats": self.state.best_loss}
        if any(about.get(name) != value for name, value in expected.items()):
            raise weights.CheckpointError(
                f"{self.best_weights}: the weights of another training or step; remove {self.folder} to start again"
            )
        return tensors, about

    def write(self, write: Callable[[], None]) -> None:
        """Let the first process write; what it cannot, since it is not finite, ends the training in all of them."""
        error = None
        if self.ranks.first:
            try:
                write()
            except weights.NonFiniteError as found:
                error = found
        if what := self.ranks.share(error and str(error)):
            raise self.non_finite(what, self.state.step - 1) from error

    @property
    def best_weights(self) -> Path:
        return self.folder / f"weights-{self.state.best_step:07d}.safetensors"

    @property
    def seconds(self) -> float:
        return self.state.seconds + time.perf_counter() - self.started

    @property
    def hardware(self) -> str:
        """The device, with how many there are where each process has one."""
        cards = self.ranks.size if self.device.type == "cuda" else 1
        return f"{cards} x {device_hardware(self.device)}" if cards > 1 else device_hardware(self.device)

    @property
    def key(self) -> str:
        return checkpoint.training_key(self.config)

    def save(self) -> None:
        """Write the state, all of it finite, else leave the one before."""
        self.read()
        state = replace(self.state, seconds=self.seconds, scaler=self.update.scaler.state_dict())
        self.write(
            lambda: checkpoint.save_state(self.folder, self.key, self.model, self.update.optimizers, vars(state))
        )
        self.forget_weights(keep=self.best_weights)
        self.mark = time.perf_counter()

    def restore(self) -> None:
        """Continue from the state on disk, if there is one."""
        self.model.train()
        scalars = checkpoint.load_state(self.folder, self.key, self.model, self.update.optimizers)
        if scalars is None:
            return
        self.state = State(**scalars)
        self.state.resumed.append(self.state.step)
        if self.update.scaler.is_enabled():
            self.update.scaler.load_state_dict(self.state.scaler)
        if self.state.best_step:
            self.read_best()
        self.forget_weights(keep=self.best_weights)

    def forget_weights(self, keep: Path | None) -> None:
        for path in self.folder.glob("weights-*.safetensors") if self.ranks.first else ():
            if path != keep:
                path.unlink()

    def finish(self) -> TrainingResult:
        """Name the best weights, write the result and drop the state that nobody needs any more."""
        if not self.ranks.first:
            self.ranks.share(None)  # the first one's result is there
            return replace(read_result(self.folder), reused=False)
        path = self.folder / weights.MODEL_FILE
        weights.write_tensors(path, *self.read_best())
        recipe, state = self.recipe, self.state
        result = TrainingResult(
            model_name=self.config["model_name"],
            **{name: getattr(recipe, name) for name in ("seed", "precision", "steps")},
            **{"muon_weight_decay": None} | recipe.tried,
            best_validation_loss=state.best_loss,
            best_step=state.best_step,
            tokens=self.tokens,
            **state.curves,
            tokens_per_second=statistics.median(state.speeds),
            tokens_per_second_samples=tuple(state.speeds),
            seconds=self.seconds,
            started_utc=state.started_utc,
            finished_utc=utc_now().isoformat(),
            hardware=self.hardware,
            weights=path,
            weights_sha256=sha256_of(path),
            resumed_from_steps=tuple(state.resumed),
            skipped_steps=state.skipped,
        )
        write_result(self.folder, self.key, result)
        (self.folder / checkpoint.STATE_FILE).unlink(missing_ok=True)
        self.forget_weights(keep=None)
        self.ranks.share(None)
        return result
