"""Tokens to deterministic next-token batches: windows of evaluation, and of training as a function of the step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def num_targets(ids: torch.Tensor) -> int:
    """Tokens that are predicted when ids (tokens,) are evaluated: all but the first."""
    return len(ids) - 1


def evaluation_batches(
    ids: torch.Tensor, n_seq: int, batch_size: int, max_batches: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields int64 (inputs, targets), both (B T): windows of T = n_seq without overlap, in order, never padded.

    The last full windows may make a smaller batch; the shorter tail is a batch of its own. `max_batches` stops early.
    """
    if batch_size < 1 or n_seq < 1:
        raise ValueError(f"batch_size and n_seq must be at least 1, got {batch_size} and {n_seq}")
    num_full, tail = divmod(num_targets(ids), n_seq)
    spans = [(first * n_seq, min(batch_size, num_full - first), n_seq) for first in range(0, num_full, batch_size)]
    spans += [(num_full * n_seq, 1, tail)] if tail else []
    for start, rows, length in spans[:max_batches]:
        span = ids[start : start + rows * length + 1].long()
        yield span[:-1].reshape(rows, length), span[1:].reshape(rows, length)


class TrainingBatches:
    """Shuffled training windows as a pure function of the step, so that a run can resume anywhere.

    Every epoch cuts ids (tokens,) into non-overlapping windows from another offset and visits each window once.
    """

    def __init__(self, ids: torch.Tensor, n_seq: int, batch_size: int, seed: int):
        if n_seq < 1 or batch_size < 1:
            raise ValueError(f"n_seq and batch_size must be at least 1, got {n_seq} and {batch_size}")
        if len(ids) <= n_seq:
            raise ValueError(f"training needs more than n_seq = {n_seq} tokens, got {len(ids)}")
        self.ids, self.n_seq, self.batch_size, self.seed = ids, n_seq, batch_size, seed
        self.num_offsets = min(n_seq, len(ids) - n_seq)  # any of these leaves the same number of windows
        self.windows_per_epoch = (len(ids) - self.num_offsets) // n_seq
        self._epochs: dict[int, torch.Tensor] = {}

    def window_starts(self, epoch: int) -> torch.Tensor:
        """int64 (windows_per_epoch,): first token of each window of an epoch, in the order they are visited."""
        if epoch not in self._epochs:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            offset = int(generator.integers(self.num_offsets))
            order = torch.from_numpy(generator.permutation(self.windows_per_epoch))
            self._epochs = {kept: self._epochs[kept] for kept in self._epochs if kept == epoch - 1}
            self._epochs[epoch] = offset + order * self.n_seq
        return self._epochs[epoch]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 (inputs, targets), both (batch_size n_seq), of step 0, 1, ...; a batch may straddle two epochs."""
        visits = range(step * self.batch_size, (step + 1) * self.batch_size)
        places = [divmod(visit, self.windows_per_epoch) for visit in visits]
        starts = [self.window_starts(epoch)[place] for epoch, place in places]
        windows = self.ids[torch.stack(starts)[:, None] + torch.arange(self.n_seq + 1)].long()
        return windows[:, :-1], windows[:, 1:]
