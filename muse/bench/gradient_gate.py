"""The one gate of every model of a comparison: its gradients as it trains, against its plain form in float32.

As it trains: bfloat16 autocast, kernels where there are any, compiled or recomputed as asked. Plain form: float32,
eager, no kernel. In three states, since rounding that is small in one may decide in another: as drawn, with the vectors
perturbed, and after some steps of training, where norms and decays have moved.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muse.catalog import GATE_STATES
from muse.measure.common import random_batch
from muse.ops import planar
from muse.ops.operator import plain_forms
from muse.records.schema import Metric
from muse.training.recipe import Recipe
from muse.training.trainer import OptimizerStep

from .context import Context
from .equality import Check, gradients, reference_gradients, relative_rms
from .naive import perturb
from .timing import first_line, free

GATE = 0.03
"""Largest relative RMS error of all gradients together, the same for every model and state."""

TRAINING_STEPS = 100
BATCH = {"cuda": (4, 1024), "cpu": (4, 256)}  # sequences and tokens; fewer where the settings say so
LESSON = {"cuda": (4, 1024), "cpu": (1, 64)}  # the same of a step of training

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class State:
    """A model's weights in one state, a batch, and what the plain form gives for it in float32."""

    weights: Mapping[str, Tensor]
    batch: Batch
    gradients: Mapping[str, Tensor]


class Gate:
    """The states of one model, made once, and the comparison of any way to compute its loss."""

    def __init__(self, bench: Context, master: nn.Module) -> None:
        """`master` has float32 weights and is left as it is."""
        self.bench = bench
        self.shape, self.lesson = (
            (sequences, min(tokens, bench.n_tokens))
            for sequences, tokens in (kind[bench.device.type] for kind in (BATCH, LESSON))
        )
        self.states = {name: self._state(name, master) for name in GATE_STATES}

    def _state(self, name: str, master: nn.Module) -> State:
        model, seed = copy.deepcopy(master), self.bench.settings.seed
        batch = random_batch(model, *self.shape, torch.Generator().manual_seed(seed))
        if name == "perturbed":
            perturb(model, seed)
        if name == "trained":
            *lessons, batch = self._lessons(master.config.vocab_size)
            _train(model, lessons)
        model.recompute = False
        with plain_forms():
            _, found = reference_gradients(model.train(), *batch)
        return State(model.state_dict(), batch, found)

    def _lessons(self, vocab_size: int) -> list[Batch]:
        """Batches from the start of the training text, one for each step, then the one to compare; ids below V."""
        shapes = [self.lesson] * TRAINING_STEPS + [self.shape]
        counts = [sequences * (tokens + 1) for sequences, tokens in shapes]
        ids = self.bench.text().splits["train"].ids.long() % vocab_size
        ids = ids[torch.arange(sum(counts)) % len(ids)].to(self.bench.device)
        rows = [part.reshape(sequences, -1) for part, (sequences, _) in zip(ids.split(counts), shapes, strict=True)]
        return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]

    def checks(self, model: nn.Module, loss_of: Loss) -> list[Check]:
        """Compare the gradients of `loss_of`, a form of the model's own loss, in every state; weights are put back."""
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            return [Check(f"gradient_{name}", self._error(model, loss_of, state), GATE)
                    for name, state in self.states.items()]  # fmt: skip
        finally:
            model.load_state_dict(before)
            model.zero_grad(set_to_none=True)

    def _error(self, model: nn.Module, loss_of: Loss, state: State) -> float:
        model.load_state_dict(state.weights)
        model.train().zero_grad(set_to_none=True)
        with planar.training_products(self.bench.device.type):
            with self.bench.cast(torch.bfloat16):
                loss = loss_of(*state.batch)
            loss.backward()
        got = gradients(model)
        if missing := [name for name, grad in got.items() if grad is None or name not in state.gradients]:
            raise ValueError(f"{len(missing)} of {len(got)} parameters, such as {missing[0]}, get no gradient")
        return relative_rms((grad, state.gradients[name]) for name, grad in got.items())


def gate_of(bench: Context, name: str, master: nn.Module) -> Gate:
    """The gate of a model by name; on CUDA, where the groups that follow ask again, it is kept."""
    made = bench.gates.get(name) or Gate(bench, master)
    if bench.device.type == "cuda":
        bench.gates[name] = made
    return made


def gate(bench: Context) -> Iterator[Metric]:
    """The errors of every model that a comparison may hold, eager, as it recomputes by default."""
    for name in bench.progress(bench.models, "gradients of every model", len(bench.models)):
        yield from _errors(bench, name)
        free(bench.device)


def _errors(bench: Context, name: str) -> Iterator[Metric]:
    try:
        model = bench.master(name)
        made = gate_of(bench, name, model)
        checks = made.checks(model, model.loss)
    except Exception as error:  # whatever it is, the other models go on
        reason = f"failed: {first_line(error)}"
        yield Metric(name="bench_gradient_error", model=name, value=None, unit="1", n=0, reason=reason, note=reason)
        return
    errors = [check.error for check in checks]
    how = f"bfloat16 autocast against the plain float32 form, {made.shape[0]} x {made.shape[1]} tokens"
    text = bench.text().text or bench.text().name
    note = f"{how}; {', '.join(map(str, checks))}; trained: {TRAINING_STEPS} steps on {text}"
    worst = max(errors) if all(map(math.isfinite, errors)) else None
    yield Metric(name="bench_gradient_error", model=name, value=worst, unit="1", n=len(checks), note=note,
                 samples=errors if worst is not None else [], labels=list(GATE_STATES) if worst is not None else [],
                 reason="" if worst is not None else note)  # fmt: skip
    within = float(all(check.ok for check in checks))
    yield Metric(name="bench_gradient_within", model=name, value=within, unit="1", note=f"1: all at most {GATE}")


def _train(model: nn.Module, lessons: list[Batch]) -> None:
    """Train the model on these batches by the trainer's own step, with AdamW in float32."""
    sequences, tokens = lessons[0][0].shape
    recipe = Recipe(train_tokens=len(lessons) * sequences * tokens, batch_tokens=sequences * tokens, n_seq=tokens,
                    learning_rate=1e-3, precision="float32")  # fmt: skip
    update = OptimizerStep(model.train(), recipe, "the gate of gradients")
    for step, lesson in enumerate(lessons):
        update(*lesson, step)
