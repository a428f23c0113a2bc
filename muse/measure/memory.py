"""Accelerator memory of forward + loss + backward: measured by the CUDA allocator, or estimated without one.

The estimate runs the step on CPU tensors without data and adds up the bytes of live storages after every operation. It
sees every tensor that autograd keeps and every temporary an operation returns, in the dtypes that an accelerator
computes in. It does not see what a kernel uses inside, workspaces of libraries, fragmentation, or code that only runs
on CUDA (such as padding). So it is labelled an estimate.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from muse.ops import planar
from muse.records.schema import Metric

from .common import random_batch

GIB = 2**30
BLOCK_BYTES = 512  # the CUDA allocator hands out multiples of this, so the estimate counts them too


@dataclass(frozen=True)
class MemoryResult:
    """Bytes of one model at one batch; held means after backward, with the loss released."""

    batch_size: int
    n_seq: int
    with_optimizer: bool
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
        step = "forward + loss + backward" + (" that recomputes the blocks" if self.recompute else "")
        step += " + AdamW step, twice" if self.with_optimizer else ""
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
    with_optimizer: bool = False,
    seed: int = 0,
) -> MemoryResult:
    """Return the memory of a model that `build` makes, in the precision it is built in and in training mode.

    On CUDA the allocator's own peak, less what other tensors of the process held before; elsewhere an estimate. With an
    optimizer, two whole steps, so that the second one runs beside the state that the first one made.
    """
    device = torch.device(device)
    measure = partial(_measure_cuda, device=device) if device.type == "cuda" else _estimate
    return MemoryResult(batch_size, n_seq, with_optimizer, **measure(build, batch_size, n_seq, with_optimizer, seed))


def _measure_cuda(
    build: Callable[[], nn.Module], batch_size: int, n_seq: int, with_optimizer: bool, seed: int, device: torch.device
) -> dict[str, object]:
    _empty_cuda_caches(device)
    before, reserved_before = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    model = build().to(device).train()
    inputs, targets = random_batch(model, batch_size, n_seq, torch.Generator().manual_seed(seed))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    optimizer = _steps(model, inputs, targets, with_optimizer)
    torch.cuda.synchronize(device)
    found = _about(model) | {
        "peak_bytes": torch.cuda.max_memory_allocated(device) - before,
        "held_bytes": torch.cuda.memory_allocated(device) - before,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) - reserved_before,
        "basis": "measured",
        "note": f"CUDA allocator, library workspaces included; {before} bytes held before left out",
    }
    del model, inputs, targets, optimizer
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
    build: Callable[[], nn.Module], batch_size: int, n_seq: int, with_optimizer: bool, seed: int
) -> dict[str, object]:
    model = build().to("cpu").train()
    with FakeTensorMode(allow_non_fake_inputs=True), planar.cpu_compute("storage"):
        _make_fake(model)
        inputs = torch.zeros((batch_size, n_seq), dtype=torch.int64, device="cpu")
        with LiveBytes() as live:
            live.track([*model.parameters(), *model.buffers(), inputs])
            targets = inputs.clone()
            optimizer = _steps(model, inputs, targets, with_optimizer, estimate=True)
            gc.collect()
            held = live.current
            del optimizer, targets
    note = "estimate: live tensors of a run without data, no library workspaces"
    return _about(model) | {"peak_bytes": live.peak, "held_bytes": held, "reserved_bytes": None, "basis": "estimate",
                            "note": note}  # fmt: skip


def _about(model: nn.Module) -> dict[str, object]:
    """What a result says of the model itself."""
    return {
        "recompute": getattr(model, "recompute", False),
        "parameter_bytes": sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
        "parameter_dtypes": tuple(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
    }


def _steps(
    model: nn.Module, inputs: Tensor, targets: Tensor, with_optimizer: bool, estimate: bool = False
) -> torch.optim.Optimizer | None:
    """Run one forward and backward pass, or two whole training steps; return what holds the optimizer's state.

    In an estimate the first of two steps makes that state from gradients of zeros: its passes need less than the next.
    """
    if not with_optimizer:
        model.loss(inputs, targets).backward()
        return None
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=True)
    for step in range(2):
        optimizer.zero_grad()
        if estimate and step == 0:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        else:
            model.loss(inputs, targets).backward()
        optimizer.step()
    return optimizer


def _make_fake(model: nn.Module) -> nn.Module:
    """Replace every parameter and buffer by one without data, inside an active FakeTensorMode; return the model.

    Tied parameters stay tied. Devices and dtypes stay as they are.
    """
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return fakes[id(tensor)]

    originals = []  # kept alive until the end, so that no id is used twice
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    originals.append(tensor)
                    store[name] = fake(tensor)
    return model


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, for as long as something refers to them.

    A value read from a tensor that has no data is 1 for floats, 0 for integers and False for booleans.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of these tensors, each once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._alive:
                continue
            num_bytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES

            def release(_: weakref.ref, key: int = storage._cdata, num_bytes: int = num_bytes) -> None:
                if self._alive.pop(key, None) is not None:
                    self.current -= num_bytes

            self._alive[storage._cdata] = weakref.ref(storage, release)
            self.current += num_bytes
        self.peak = max(self.peak, self.current)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else args[0].dtype != torch.bool and 0
        out = func(*args, **(kwargs or {}))
        self.track(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out
