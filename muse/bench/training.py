"""A step of training: the reference against its naive form, the other models against GPT-2, rotations by the token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from muse.catalog import COMPACT, COMPACT_ANGLES, COMPARED, REFERENCE, YARDSTICK
from muse.measure.throughput import flops_per_token, training_step
from muse.records.schema import Metric

from .context import Context, no_value
from .equality import Check, check, check_gradients, gradients, reference_gradients
from .gradient_gate import Loss, gate_of
from .naive import NaiveStage1, perturb
from .paths import capture, compiled
from .timing import GroupResult, Trial


def training(bench: Context) -> Iterator[GroupResult]:
    """Forward + backward + AdamW of the reference model: float32 masters, products in half precision."""
    master = perturb(bench.build(REFERENCE, use_complex32=False), bench.settings.seed)
    flops = 3 * flops_per_token(master, bench.n_tokens)
    for batch in bench.training_batches:
        ids, targets = bench.batch(batch)
        loss, grads = reference_gradients(NaiveStage1(master, checks=False).double(), ids, targets)

        def against(model: nn.Module, loss_of: Loss, ids=ids, targets=targets, want=loss, grads=grads) -> list[Check]:
            products = bench.autocast_dtype or torch.float32
            with bench.cast(bench.autocast_dtype):
                loss = loss_of(ids, targets)
            loss.backward()
            checks = [check("loss", abs(loss.item() - want), products)]
            checks += check_gradients(gradients(model), grads, products)
            model.zero_grad(set_to_none=True)
            return checks

        trial = partial(training_trial, bench, ids=ids, targets=targets, check=against)
        paths = {
            "muse compiled": partial(trial, lambda: copy.deepcopy(master), compile_loss=True),
            "muse eager": partial(trial, lambda: copy.deepcopy(master)),
            "naive": partial(trial, lambda: NaiveStage1(master)),
        }
        yield bench.compare(f"training_{batch}x{bench.n_tokens}", paths, tokens_per_call=ids.numel(),
                            flops_per_token=flops, least_bytes=optimizer_bytes(master))  # fmt: skip
        del grads


def models(bench: Context) -> Iterator[GroupResult | Metric]:
    """Training of the other models against GPT-2, eager and compiled, at the smallest training batch; CUDA only."""
    yield from _in_each_mode(bench, "models", bench.models, YARDSTICK)


def angles(bench: Context) -> Iterator[GroupResult | Metric]:
    """The same of the compact model that angles from the token rotate, against the one with fixed rotation."""
    yield from _in_each_mode(bench, "angles", (COMPACT_ANGLES, COMPACT), COMPACT)


def _in_each_mode(
    bench: Context, group: str, names: Sequence[str], baseline: str
) -> Iterator[GroupResult | Metric]:
    if bench.device.type != "cuda":
        yield no_value(f"bench_{group}_speed", "token/s", "missing: full-size models are trained in turn on CUDA only")
        return
    for mode in bench.settings.bench_modes:
        yield compare_models(bench, mode, min(bench.training_batches), group, names, baseline)


def compare_models(
    bench: Context,
    mode: str,
    batch: int,
    group: str = "models",
    names: Sequence[str] = COMPARED,
    baseline: str = YARDSTICK,
) -> GroupResult:
    """Training steps of each model as it runs by default, on the same tokens, each behind the same gate.

    FLOPs are each model's own; what is computed again for the backward pass does not count.
    """
    ids, targets = bench.batch(batch)
    masters = {name: bench.master(name) for name in names}
    paths = {
        name: partial(training_trial, bench, lambda master=master: master, ids=ids, targets=targets,
                      check=partial(gated, bench, name), compile_loss=mode == "compiled")
        for name, master in masters.items()
    }  # fmt: skip
    flops = {name: 3 * flops_per_token(master, bench.n_tokens) for name, master in masters.items()}
    least = {name: optimizer_bytes(master) for name, master in masters.items()}
    return bench.compare(f"{group}_{mode}_{batch}x{bench.n_tokens}", paths, tokens_per_call=ids.numel(),
                         baseline=baseline, flops_per_token=flops, least_bytes=least)  # fmt: skip


def training_trial(
    bench: Context,
    make: Callable[[], nn.Module],
    *,
    ids: Tensor,
    targets: Tensor,
    check: Callable[[nn.Module, Loss], list[Check]],
    compile_loss: bool = False,
) -> Trial:
    """A training step, and what `check` says of the model and the loss function that it uses, before the first one."""
    model = make().train()
    loss_of = compiled(model.loss, bench.device) if compile_loss else model.loss
    graph = compile_loss and bench.device.type == "cuda"
    call = training_step(model, ids, targets, autocast_dtype=bench.autocast_dtype, loss=loss_of, replayed=graph)
    # The gate asks other shapes than those that are timed, which are compiled and captured after it.
    ready = partial(capture, call) if graph else call if compile_loss else None
    return Trial(call, partial(check, model, loss_of), ready=ready)


def gated(bench: Context, name: str, model: nn.Module, loss_of: Loss) -> list[Check]:
    """What the gate of gradients says of a model and a form of its loss."""
    return gate_of(bench, name, model).checks(model, loss_of)


def optimizer_bytes(model: nn.Module) -> int:
    """Return what AdamW must move: it reads weight, gradient and two moments, and writes all but the gradient."""
    return sum(7 * p.nbytes for p in model.parameters() if p.requires_grad)
