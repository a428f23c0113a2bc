"""Accelerator memory of forward + loss + backward, or of a training step: the CUDA allocator's, or an estimate.

The estimate runs the step on CPU tensors without data, the way it goes on CUDA, and adds up the bytes of live storages
after every operation. It sees every tensor that autograd keeps and every temporary an operation returns, in the dtypes
that an accelerator computes in, and a workspace for each thread. It does not see what a kernel of PyTorch uses inside,
fragmentation, or what torch.compile changes. So it is labelled an estimate.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from muse.catalog import WORKSPACE_BYTES
from muse.ops import planar
from muse.records.schema import Metric

from .as_on_cuda import AsOnCuda, Work, as_on_cuda
from .common import random_batch

GIB = 2**30
ONE_PASS = "forward + loss + backward"
SMALL_GPU_BYTES = 8 * GIB  # of the published "< 8 GB"


class Step(Protocol):
    """A training step of one model: forward, backward and the optimizers, which keep their state between calls."""

    parameters: Sequence[nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]

    def __call__(self, inputs: Tensor, targets: Tensor, step: int) -> object: ...


@dataclass(frozen=True)
class Training:
    """What makes the training step of a model, and what notes call it."""

    step_of: Callable[[nn.Module], Step]
    told: str


@dataclass(frozen=True)
class MemoryResult:
    """Bytes of one model at one batch; held means after backward, with the loss released."""

    batch_size: int
    n_seq: int
    step: str  # what ran
    recompute: bool  # blocks kept only their input for the backward pass
    parameter_bytes: int  # parameters and buffers
    peak_bytes: int
    held_bytes: int
    reserved_bytes: int | None  # None for an estimate
    parameter_dtypes: tuple[str, ...]
    basis: Literal["measured", "estimate"]
    note: str

    def metrics(self, model_name: str, variant: str = "") -> list[Metric]:
        """Return peak, held, reserved and parameter memory; a variant such as `matched` is appended to the names."""
        step = self.step + (" that recomputes the blocks" if self.recompute else "")
        step += "" if self.step == ONE_PASS else ", the second of two"
        dtypes = " and ".join(self.parameter_dtypes)
        note = f"batch {self.batch_size} x {self.n_seq}, {step}, parameters {dtypes}; {self.note}"
        found = {
            "peak_memory": self.peak_bytes,
            "held_memory": self.held_bytes,
            "reserved_memory": self.reserved_bytes,
            "parameter_memory": self.parameter_bytes,
        }
        suffix = f"_{variant}" if variant else ""
        return [
            Metric(name=name + suffix, model=model_name, value=num_bytes / GIB, unit="GiB", note=note,
                   basis="measured" if name == "parameter_memory" else self.basis)
            for name, num_bytes in found.items() if num_bytes is not None
        ]  # fmt: skip


def measure_memory(
    build: Callable[[], nn.Module],
    *,
    batch_size: int = 2,
    n_seq: int = 1024,
    device: torch.device | str,
    training: Training | None = None,
    seed: int = 0,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> MemoryResult:
    """Return the memory of a model that `build` makes, in the precision it is built in and in training mode.

    On CUDA the allocator's own peak, less what other tensors of the process held before; elsewhere an estimate of that,
    with so many bytes of workspace for a thread. With a `training`, two whole steps of it, so that the second one runs
    beside the state that the first one made.
    """
    device = torch.device(device)
    estimate = partial(_estimate, workspace_bytes=workspace_bytes)
    measure = partial(_measure_cuda, device=device) if device.type == "cuda" else estimate
    step = training.told if training else ONE_PASS
    return MemoryResult(batch_size, n_seq, step, **measure(build, batch_size, n_seq, training, seed))


def small_gpu_metrics(
    build: Callable[[], nn.Module],
    model_name: str,
    *,
    device: torch.device | str,
    limit_bytes: int = SMALL_GPU_BYTES,
    **protocol: object,
) -> list[Metric]:
    """Return whether a training step runs on CUDA with the allocator capped, and its peak, capped or not.

    `protocol` is that of `measure_memory`. Without CUDA the peak alone, an estimate: nothing is capped then.
    """
    device, name, refusal = torch.device(device), "peak_memory_recipe_step", ""
    measure = partial(measure_memory, build, device=device, **protocol)
    if device.type != "cuda":
        return [metric for metric in measure().metrics(model_name, "recipe_step") if metric.name == name]
    try:
        with _capped(device, limit_bytes):
            result = measure()
    except torch.OutOfMemoryError as error:
        refusal = _first_line(error)
    fits = Metric(name="trains_within_8_gib", model=model_name, value=float(not refusal), unit="1", note=refusal or
                  f"1: two steps ran with the allocator capped at {limit_bytes / GIB:g} GiB, without what the driver "
                  "itself holds")  # fmt: skip
    try:  # after the block above: its error held the model
        result = measure() if refusal else result
    except torch.OutOfMemoryError as error:
        absent = Metric(name=name, model=model_name, value=None, unit="GiB", n=0, reason=_first_line(error))
        return [absent, fits]
    return [*(metric for metric in result.metrics(model_name, "recipe_step") if metric.name == name), fits]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def _capped(device: torch.device, limit_bytes: int) -> Iterator[None]:
    """Let the allocator have so many bytes more than it has, and put the former limit back at the end."""
    _empty_cuda_caches(device)
    index = torch.cuda.current_device() if device.index is None else device.index  # a fraction is asked of a number
    total = torch.cuda.get_device_properties(index).total_memory
    former = torch.cuda.get_per_process_memory_fraction(index)
    allowed = limit_bytes + torch.cuda.memory_reserved(index)
    torch.cuda.set_per_process_memory_fraction(min(former, allowed / total), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(former, index)


def _measure_cuda(
    build: Callable[[], nn.Module],
    batch_size: int,
    n_seq: int,
    training: Training | None,
    seed: int,
    device: torch.device,
) -> dict[str, object]:
    _empty_cuda_caches(device)
    before, reserved_before = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    model = build().to(device).train()
    inputs, targets = random_batch(model, batch_size, n_seq, torch.Generator().manual_seed(seed))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step = training and training.step_of(model)
    _steps(model, step, inputs, targets)
    torch.cuda.synchronize(device)
    found = _about(model) | {
        "peak_bytes": torch.cuda.max_memory_allocated(device) - before,
        "held_bytes": torch.cuda.memory_allocated(device) - before,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) - reserved_before,
        "basis": "measured",
        "note": f"CUDA allocator, library workspaces included; {before} bytes held before left out",
    }
    del model, inputs, targets, step
    _empty_cuda_caches(device)
    return found


def _empty_cuda_caches(device: torch.device) -> None:
    """Release what earlier work left behind, cuBLAS workspaces included, so that every model allocates its own."""
    gc.collect()
    torch.cuda.synchronize(device)
    if hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def _estimate(
    build: Callable[[], nn.Module],
    batch_size: int,
    n_seq: int,
    training: Training | None,
    seed: int,
    workspace_bytes: int,
) -> dict[str, object]:
    model = build().to("cpu").train()
    counted = count(model, batch_size, n_seq, training, workspace_bytes)
    note = "estimate: live tensors of a run without data, as on an H100 with its library workspaces"
    return _about(model) | {"peak_bytes": counted.peak_bytes, "held_bytes": counted.held_bytes, "reserved_bytes": None,
                            "basis": "estimate", "note": note}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """What a pass or a training step of a model needs on a CUDA device, counted without one."""

    peak_bytes: int
    held_bytes: int
    work: Work  # of the step; of two, the second


def count(
    model: nn.Module,
    batch_size: int,
    n_seq: int,
    training: Training | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> Counted:
    """Run a model on the CPU without data, and add up what that allocates and does on CUDA; leaves no gradients."""
    step = training and training.step_of(model)  # which looks at values of its own
    inputs = torch.zeros((batch_size, n_seq), dtype=torch.int64, device="cpu")
    with planar.cpu_compute("storage"), _only_new_garbage(), as_on_cuda(workspace_bytes) as live:
        kept = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        live.track([*model.parameters(), *model.buffers(), *kept, inputs])
        targets = inputs.clone()
        _steps(model, step, inputs, targets, live)
        gc.collect()
        held = live.current
    model.zero_grad()
    return Counted(live.peak, held, live.work)


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Let the collector look at nothing that was there before: half a second, each time it looks at all of torch."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _about(model: nn.Module) -> dict[str, object]:
    """What a result says of the model itself."""
    return {
        "recompute": getattr(model, "recompute", False),
        "parameter_bytes": sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
        "parameter_dtypes": tuple(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
    }


def _steps(model: nn.Module, step: Step | None, inputs: Tensor, targets: Tensor, live: AsOnCuda | None = None) -> None:
    """Run one forward and backward pass, or two whole training steps.

    Where `live` counts, the first of two steps makes the optimizers' state from gradients of zeros: its passes need
    less than the next.
    """
    if step is None:
        model.loss(inputs, targets).backward()
        return
    if live is not None:
        places = [parameter.grad for parameter in step.parameters]  # of a step that keeps them: one of several's
        for parameter in step.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for optimizer in step.optimizers:
            optimizer.step()
        for parameter, place in zip(step.parameters, places, strict=True):
            parameter.grad = place
        live.work = Work()
    else:
        step(inputs, targets, 0)
    step(inputs, targets, 1)
