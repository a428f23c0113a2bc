"""Yardsticks: what a user would pick instead, `transformers.GPT2LMHeadModel` trained from scratch at the same sizes.

Only the configuration is ours: the model, its initialisation and its tied head are the library's. The head's GEMM and
the loss go through `muse.ops.cross_entropy`, as for every model here, so that memory and speed compare like with like.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muse.ops.cross_entropy import head_loss
from muse.ops.logits import head_logits

from .layers import check_token_ids, keep_input_only
from .sizes import check_largest


@dataclass(frozen=True)
class Gpt2Config:
    """Sizes of the GPT-2 yardstick; the feed-forward width is the library's 4 D."""

    vocab_size: int = 50257  # V
    d_model: int = 512  # D
    n_layers: int = 6  # L
    n_seq: int = 1024  # longest T
    n_heads: int = 0  # 0: heads of width 64, at least one
    dropout: float = 0.0  # embedding, attention and residual dropout

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_heads", self.n_heads or max(1, self.d_model // 64))
        for name in ("vocab_size", "d_model", "n_layers", "n_seq", "n_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_largest(self)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads, got {self.d_model} and {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


class Gpt2Model(nn.Module):
    """GPT-2 behind the protocol all models share; the same seed gives the same weights."""

    def __init__(self, config: Gpt2Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.gpt2 = _build(config, seed)

    @property
    def recompute(self) -> bool:
        """Whether blocks keep only their input for the backward pass: the library's own gradient checkpointing."""
        return self.gpt2.transformer.gradient_checkpointing

    @recompute.setter
    def recompute(self, on: bool) -> None:
        # The library's public switch would also hook the token table, for adapters on frozen models.
        self.gpt2._set_gradient_checkpointing(on, keep_input_only)

    @property
    def blocks(self) -> nn.ModuleList:
        """The L blocks."""
        return self.gpt2.transformer.h

    def features(self, token_ids: Tensor) -> Tensor:
        """What the head reads: int64 (B T) -> r(B T D)."""
        check_token_ids(token_ids, self.config.vocab_size, self.config.n_seq)
        if not len(token_ids):
            raise ValueError(f"GPT-2 needs at least one text, got a batch of shape {tuple(token_ids.shape)}")
        return self.gpt2.transformer(token_ids).last_hidden_state

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits of the next token: int64 (B T) -> r(B T V)."""
        return head_logits(self.features(token_ids), *self.head_parameters())

    def loss(self, token_ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross entropy in nats, float32, without logits-sized buffers; reduction mean, sum or none (B T)."""
        return head_loss(self.features(token_ids), *self.head_parameters(), targets, reduction=reduction)

    def head_parameters(self) -> tuple[Tensor, None]:
        """Weight (V D), the token table itself; no bias."""
        return self.gpt2.transformer.wte.weight, None

    def parameter_groups(self) -> dict[str, int]:
        """Elements by component; the head counts zero because it is the token table."""
        body = self.gpt2.transformer
        parts = {"embedding": body.wte, "positions": body.wpe, "blocks": body.h, "norm": body.ln_f}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        return {**counts, "head": 0}


def _build(config: Gpt2Config, seed: int) -> nn.Module:
    """The library's model with the library's initialisation, drawn from a generator state of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel  # seconds to import, and only this model needs it

    library_config = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.n_seq,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )
    meta = torch.get_default_device().type == "meta"  # there shapes are all that is wanted
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.default_generator.manual_seed(seed)
        return GPT2LMHeadModel(library_config)
