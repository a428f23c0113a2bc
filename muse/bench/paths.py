"""Ways to run the same computation: compiled, as one CUDA graph, and what it holds beside its inputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from muse.measure.live_bytes import LiveBytes
from muse.ops import compiling
from muse.ops.cuda_graph import WARMUPS, Replayed

from .libraries import PathMissingError
from .timing import free


def compiler_problem(device: torch.device) -> str:
    """Return why torch.compile cannot work here, or an empty string."""
    compiler = os.environ.get("CXX", "g++") if device.type == "cpu" else os.environ.get("CC", "gcc")
    if shutil.which(compiler) is None and (device.type == "cpu" or shutil.which("clang") is None):
        return f"no compiler: {compiler} is not on this machine"
    if device.type == "cuda":
        try:
            import triton  # noqa: F401  the question is whether it is there
        except ImportError:
            return "no compiler: triton is not installed"
    return ""


def compiled(function: Callable, device: torch.device) -> Callable:
    """Return torch.compile of a function for exactly the shapes it gets; PathMissingError where nothing can compile."""
    if problem := compiler_problem(device):
        raise PathMissingError(problem)
    return compiling.compiled(function)


def cuda_graph(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return the call as one CUDA graph, already captured, so that what is compared is a replay."""
    update = Replayed(lambda: (call(),))
    capture(update)
    return lambda: update()[0]


def capture(update: Callable[[], object]) -> None:
    """Call what is replayed until it has been captured: it compiles and tunes before."""
    for _ in range(WARMUPS + 1):
        update()


def count_on_device(call: Callable[[], object]) -> int:
    """Return how many kernels, copies and fills a call launches on the CUDA device, those of its graphs one by one."""
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not getattr(event, "is_user_annotation", False) for event in on_device)


def num_bytes(*tensors: Tensor) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def extra_bytes(
    call: Callable, leaves: list[Tensor], device: torch.device
) -> tuple[int, Literal["measured", "estimate"]]:
    """Return the peak of a call above what was there before, gradients of `leaves` included.

    It is the CUDA allocator's, else live tensors added up.
    """
    for leaf in leaves:
        leaf.grad = None
    if device.type != "cuda":
        with LiveBytes() as live:
            call()
        return live.peak, "estimate"
    free(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, "measured"
