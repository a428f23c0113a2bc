"""One forward pass on random tokens: whether every logit is a finite number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from muse.records.schema import Metric

from .common import random_batch, training_mode


@dataclass(frozen=True)
class ForwardResult:
    """What is no finite number among logits (B T V)."""

    shape: tuple[int, ...]
    nan: int
    infinite: int

    def metrics(self, model_name: str) -> list[Metric]:
        """Return how many logits are NaN and how many infinite."""
        shape = " x ".join(map(str, self.shape))
        found = {"nan_logits": self.nan, "infinite_logits": self.infinite}
        n = torch.Size(self.shape).numel()
        return [
            Metric(name=name, model=model_name, value=count, unit="logits", n=n, note=f"of {shape}")
            for name, count in found.items()
        ]


@torch.no_grad()
def measure_forward(model: nn.Module, *, batch_size: int = 2, n_tokens: int = 128, seed: int = 0) -> ForwardResult:
    """Return what the logits of random tokens hold, in evaluation mode; ValueError where they have another shape."""
    inputs, _ = random_batch(model, batch_size, n_tokens, torch.Generator().manual_seed(seed))
    with training_mode(model, False):
        logits = model(inputs)
    expected = (batch_size, n_tokens, model.config.vocab_size)
    if tuple(logits.shape) != expected:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected {expected}")
    return ForwardResult(expected, int(logits.isnan().sum()), int(logits.isinf().sum()))
