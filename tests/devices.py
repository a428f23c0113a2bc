"""Where the CUDA kernels are tested: on a GPU, or on any CPU by Triton's interpreter with TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch
from torch.overrides import TorchFunctionMode

from muse.ops import operator

CUDA = torch.cuda.is_available()
INTERPRETED = not CUDA and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs CUDA")


def interpret(monkeypatch):
    """Sends what is on a CPU to the kernels, as on CUDA, where they are interpreted."""
    if INTERPRETED:
        monkeypatch.setattr(operator, "KERNEL_DEVICE", "cpu")


def needs_kernels(module):
    """Marks a test of a module's kernels, `kernels` for short; asked to interpret without Triton, it fails."""
    absent = not INTERPRETED and (module is None or not CUDA)
    skip = pytest.mark.skipif(absent, reason="needs Triton, and CUDA or TRITON_INTERPRET=1")
    return lambda test: pytest.mark.kernels(skip(test))


class AsCaptured(TorchFunctionMode):
    """Refuses to make a tensor of numbers of the host, which a capture on CUDA does; over tensors without data, whoever
    asks for a number of the device fails too.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        refused = torch.tensor, torch.as_tensor, torch.Tensor.new_tensor
        assert func not in refused, f"a capture refuses {func.__name__}"
        return func(*args, **kwargs or {})


def without_data(model, mode):
    """The model with tensors without data in the place of its own, inside a FakeTensorMode."""
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else torch.nn.Parameter(mode.from_tensor(p.detach()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)
    return model
