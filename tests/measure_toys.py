"""Tiny models that follow the model protocol and whose measurements can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from muse.ops.cross_entropy import head_loss
from muse.ops.logits import head_logits


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 8
    d_model: int = 8
    n_layers: int = 0
    n_seq: int = 16
    dropout: float = 0.0


class Toy(nn.Module):
    """Embedding, nothing, head: a bigram model; subclasses change `mix`."""

    def __init__(self, dtype: torch.dtype = torch.float32, bias: bool = False, **sizes: int) -> None:
        super().__init__()
        self.config = ToyConfig(**sizes)
        generator = torch.Generator().manual_seed(0)
        shape = self.config.vocab_size, self.config.d_model
        self.embedding = nn.Embedding(*shape)
        self.body = nn.Identity()
        self.head = nn.Linear(*reversed(shape), bias=bias)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.to(dtype)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def features(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.body(self.mix(self.embedding(token_ids)))

    def head_parameters(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.head.weight, self.head.bias

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return head_logits(self.features(token_ids), *self.head_parameters())

    def loss(self, token_ids: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        return head_loss(self.features(token_ids), *self.head_parameters(), targets, reduction=reduction)


class Causal(Toy):
    """Every position also sees the mean of all positions up to its own."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Peeking(Toy):
    """Every position also sees the next one."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.roll(x, -1, dims=1)


class Stateful(Toy):
    """Every call is moved by the calls before it."""

    calls = 0

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class Fixed(Toy):
    """Logit `confidence` for the token that `successor` maps the input to, 0 for all others."""

    def __init__(self, successor: list[int], confidence: float, **sizes: int) -> None:
        super().__init__(vocab_size=len(successor), d_model=len(successor), **sizes)
        with torch.no_grad():
            self.embedding.weight.copy_(F.one_hot(torch.tensor(successor), len(successor)) * confidence)
            self.head.weight.copy_(torch.eye(len(successor)))
