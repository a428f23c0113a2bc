"""A function of tensors as one CUDA graph: the host launches it once instead of its kernels one by one."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

WARMUPS = 3  # ordinary calls first: they compile, tune and allocate what a capture must not


class Replayed:
    """Calls `function(*inputs)`; from call WARMUPS + 1 on as a replay of the kernels that it launched then.

    Inputs keep their shapes. The results of a replay lie in buffers that the next one overwrites. What the function
    does on the host happens in the first calls only; numbers that change from call to call have to be tensors.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], others: str = "global") -> None:
        """What `others`, the threads beside this one, may ask of CUDA during the capture: "thread_local" is more."""
        self.function, self.others = function, others
        self.calls = 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.results: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.calls <= WARMUPS:
            return self._ordinary(inputs)
        if self.graph is None:
            self._capture(inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.results

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """What goes wrong is raised as it began: the end of a capture that failed would only say that it had failed."""
        # What autograd keeps of a parameter remembers the stream that it was made on, as long as any loss lives, be it
        # in a circle of references that nobody can reach: waiting for that stream would end a capture.
        gc.collect()
        self.inputs, graph = tuple(tensor.clone() for tensor in inputs), torch.cuda.CUDAGraph()
        first = None
        try:
            with torch.cuda.graph(graph, capture_error_mode=self.others):
                try:
                    self.results = self.function(*self.inputs)
                except Exception as error:
                    first = error
                    raise
        except Exception as error:
            raise first or error from None
        self.graph = graph

    def _ordinary(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """On a stream of its own, as a capture will be: what libraries allocate for a stream is then in place."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            results = self.function(*inputs)
        here.wait_stream(self.stream)
        return results


def let_capture(optimizer: torch.optim.Optimizer) -> None:
    """Call before the step of a fused optimizer that may be captured: it refuses without this, and warns with it."""
    for group in optimizer.param_groups:
        group["capturable"] = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
