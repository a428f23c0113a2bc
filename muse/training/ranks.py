"""Processes that train one model together, each on its part of every batch: what they share and who writes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

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

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' values, on their device; the tensor itself then holds it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def spread(self, value: Tensor) -> None:
        """Give every process the first one's values, in this tensor."""
        if self.size > 1:
            dist.broadcast(value, src=0)

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

    def draw_apart(self, seed: int, step: int) -> None:
        """Give every process but the first, whose random state is saved, one of its own for a step: dropout differs.

        It depends on nothing before it, so a training that goes on draws what it would have drawn.
        """
        if not self.first:
            digest = hashlib.sha256(f"{seed} {step} {self.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "big"))


class SharedGradients:
    """The gradients of a model's parameters in one buffer, and behind them a loss: one message sums all processes'.

    Backward passes add to it, so whoever divides a loss by the number of processes gets the mean over the whole batch.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        """Parameters, of one dtype and device, get the first process's values."""
        self.ranks = ranks
        sizes = [p.numel() for p in parameters]
        self.buffer = parameters[0].detach().new_zeros(sum(sizes) + 1)
        self.loss = self.buffer[-1]
        for parameter, part in zip(parameters, self.buffer[:-1].split(sizes), strict=True):
            ranks.spread(parameter.detach())
            parameter.grad = part.view(parameter.shape)

    def clear(self) -> None:
        """Start a batch from zero."""
        self.buffer.zero_()

    def sum(self) -> Tensor:
        """Wait for all processes; everything in the buffer is then their sum, of which the loss is returned."""
        return self.ranks.sum(self.buffer)[-1].clone()  # which the next batch overwrites


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
