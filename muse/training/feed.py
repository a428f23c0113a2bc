"""Batches of a step on the device, drawn ahead where that pays; of several processes each gets its part."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from muse.data.batches import TrainingBatches

from .ranks import Ranks


class Feed:
    """Batches of a step on the device; on CUDA the next one is drawn and pinned while this one is used."""

    def __init__(self, batches: TrainingBatches, device: torch.device, ranks: Ranks) -> None:
        self.batches, self.device, self.ranks = batches, device, ranks
        self.pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self.ahead: tuple[int, object] = (-1, None)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        if self.pool is None:
            return self._part(step)
        ready, future = self.ahead
        pinned = future.result() if ready == step else self._pinned(step)
        self.ahead = step + 1, self.pool.submit(self._pinned, step + 1)
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in pinned)

    def _pinned(self, step: int) -> tuple[Tensor, Tensor]:
        return tuple(tensor.pin_memory() for tensor in self._part(step))

    def _part(self, step: int) -> tuple[Tensor, Tensor]:
        return tuple(map(self.ranks.part, self.batches.batch(step)))

    def parts(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Every process's part of a step's batch, in turn, on the host."""
        return list(zip(*(tensor.chunk(self.ranks.size) for tensor in self.batches.batch(step)), strict=True))

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
