"""A step of training: the reference against its naive form, and the other models against GPT-2."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from muse.catalog import BASELINE, REFERENCE, WITH_MEMORY, YARDSTICK
from muse.measure.throughput import flops_per_token, training_step
from muse.records.schema import Metric

from .context import Context, no_value
from .equality import Check, check, check_gradients, gradients, reference_gradients
from .naive import NaiveStage1, perturb
from .paths import compiled
from .timing import GroupResult, Trial

OTHERS = (WITH_MEMORY, BASELINE, YARDSTICK)


def training(bench: Context) -> Iterator[GroupResult]:
    """Forward + backward + AdamW of the reference model: float32 masters, products in half precision."""
    master = perturb(bench.build(REFERENCE, use_complex32=False), bench.settings.seed)
    flops = 3 * flops_per_token(master, bench.n_tokens)
    for batch in bench.training_batches:
        ids, targets = bench.batch(batch)
        loss, grads = reference_gradients(NaiveStage1(master, checks=False).double(), ids, targets)

        def compare(got_loss: float, got: Mapping[str, Tensor], loss=loss, grads=grads) -> list[Check]:
            products = bench.autocast_dtype or torch.float32
            return [check("loss", abs(got_loss - loss), products), *check_gradients(got, grads, products)]

        trial = partial(training_trial, bench, ids=ids, targets=targets, compare=compare)
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
    if bench.device.type != "cuda":
        yield no_value("bench_models_speed", "token/s", "missing: full-size models are trained in turn on CUDA only")
        return
    for mode in ("eager", "compiled"):
        yield compare_models(bench, mode, min(bench.training_batches))


def compare_models(bench: Context, mode: str, batch: int) -> GroupResult:
    """Training steps of several models, all on the same tokens; FLOPs are each model's own."""
    ids, targets = bench.batch(batch)
    masters = {name: perturb(bench.build(name, use_complex32=False), bench.settings.seed) for name in OTHERS}
    paths = {
        name: partial(training_trial, bench, lambda master=master: master, ids=ids, targets=targets,
                      compare=partial(compare_with_float32, bench, master, ids, targets),
                      compile_loss=mode == "compiled")
        for name, master in masters.items()
    }  # fmt: skip
    flops = {name: 3 * flops_per_token(master, bench.n_tokens) for name, master in masters.items()}
    least = {name: optimizer_bytes(master) for name, master in masters.items()}
    return bench.compare(f"models_{mode}_{batch}x{bench.n_tokens}", paths, tokens_per_call=ids.numel(),
                         baseline=YARDSTICK, flops_per_token=flops, least_bytes=least)  # fmt: skip


def training_trial(
    bench: Context,
    make: Callable[[], nn.Module],
    *,
    ids: Tensor,
    targets: Tensor,
    compare: Callable[[float, Mapping[str, Tensor]], list[Check]],
    compile_loss: bool = False,
) -> Trial:
    """A training step, and its loss and gradients before the first one; both by the same loss function."""
    model, dtype = make().train(), bench.autocast_dtype
    loss_of = compiled(model.loss, bench.device) if compile_loss else model.loss
    graph = compile_loss and bench.device.type == "cuda"
    call = training_step(model, ids, targets, autocast_dtype=dtype, loss=loss_of, replayed=graph)

    def compared() -> list[Check]:
        with bench.cast(dtype):
            loss = loss_of(ids, targets)
        loss.backward()
        checks = compare(loss.item(), gradients(model))
        model.zero_grad(set_to_none=True)
        return checks

    return Trial(call, compared)


def compare_with_float32(
    bench: Context, model: nn.Module, ids: Tensor, targets: Tensor, loss: float, grads: Mapping[str, Tensor | None]
) -> list[Check]:
    """Checks of a model that has no naive form: against itself, eager and in float32."""
    got = {name: grad.clone() for name, grad in grads.items() if grad is not None}
    want_loss, want = reference_gradients(model, ids, targets)
    dtype = bench.autocast_dtype or torch.float32
    return [check("loss", abs(loss - want_loss), dtype), check_gradients(got, want, dtype)[0]]


def optimizer_bytes(model: nn.Module) -> int:
    """Return what AdamW must move: it reads weight, gradient and two moments, and writes all but the gradient."""
    return sum(7 * p.nbytes for p in model.parameters() if p.requires_grad)
