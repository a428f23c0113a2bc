"""Processes that train one model together, each on its part of every batch: what they share and who writes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RANK, SIZE, MEETING = "MUSE_RANK", "MUSE_RANKS", "MUSE_MEETING"
"""Variables of a process that is one of several: its number, how many there are, the file at which they meet."""

LOST = 75
"""Exit code of a process that ended as another one was gone; whoever started them says which."""

LOSS_OF_ANOTHER = ("closed by peer", "reset by peer", "remote process exited", "broken pipe")
"""What the libraries say, in small letters, where another process is gone."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model; alone, everything it shares is its own."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """What this process has joined."""
        joined = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if joined else cls()

    @property
    def first(self) -> bool:
        """Whether this process writes and prints: one does."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch (B T), which all processes share in equal parts."""
        return rows if self.size == 1 else rows.chunk(self.size)[self.rank]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of all processes' values, on their device."""
        return value if self.size == 1 else self.sum(value / self.size)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' values, on their device; the tensor itself then holds it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process; all of them ask at once, so none is left waiting for one that stopped."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def share(self, value: T) -> T:
        """What the first process has in place of `value`; nobody goes on before it is there."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def together(self, model: nn.Module, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A model's loss (inputs, targets) whose backward pass leaves the mean of all processes' gradients."""
        if self.size == 1:
            return loss
        return DistributedDataParallel(_Loss(model, loss), gradient_as_bucket_view=True)

    def draw_apart(self, seed: int, step: int) -> None:
        """Give every process but the first, whose random state is saved, one of its own for a step: dropout differs.

        It depends on nothing before it, so a training that goes on draws what it would have drawn.
        """
        if not self.first:
            digest = hashlib.sha256(f"{seed} {step} {self.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "big"))


class _Loss(nn.Module):
    """A loss as the module that DistributedDataParallel wants."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(inputs, targets)


def is_one_of_several() -> bool:
    """Whether this process was started as one of several for a model."""
    return RANK in os.environ


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within the block this process is one of those that it was started with, if it was: on gloo, and NCCL on CUDA."""
    if not is_one_of_several():
        yield
        return
    rank, size, meeting = int(os.environ.pop(RANK)), int(os.environ.pop(SIZE)), os.environ.pop(MEETING)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def lost_another(error: RuntimeError) -> bool:
    """Whether an error says that another process of this training is gone."""
    text = str(error).lower()
    return Ranks.here().size > 1 and any(words in text for words in LOSS_OF_ANOTHER)
