"""GPT-2 with its library's static cache as one step from token to token, which on CUDA is one graph.

Positions and mask are buffers that the step itself advances, so that nothing of it happens on the host.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from muse.models.static_step import captured

PIECE_TOKENS = 1024


def read_pieces(call: Callable[[Tensor], object], prompt: Tensor, tokens: int = PIECE_TOKENS) -> None:
    """Read a prompt (B T) by pieces, since scores of all pairs of its tokens may not fit."""
    for piece in prompt.split(tokens, 1):
        call(piece)


class StaticGpt2:
    """Called again and again, it reads the token (B 1) of its buffer and leaves the likeliest next one there."""

    @torch.no_grad()
    def __init__(self, library: nn.Module, prompt: Tensor, most_tokens: int, capture: bool | None = None) -> None:
        """`library` is a `GPT2LMHeadModel`; prompt and new tokens are at most `most_tokens`."""
        from transformers import StaticCache

        self.library, self.length = library, prompt.shape[1]
        self.cache = StaticCache(config=library.config, max_cache_len=most_tokens)
        read_pieces(lambda piece: library(piece, past_key_values=self.cache, use_cache=True, logits_to_keep=1), prompt)
        self.token, self.position = prompt[:, -1:].clone(), prompt.new_full((1, 1), self.length)
        self.places = torch.arange(most_tokens, device=prompt.device)
        weight = library.lm_head.weight
        self.logits = weight.new_zeros(len(prompt), len(weight))
        self.graph = captured(self._step) if (prompt.is_cuda if capture is None else capture) else None

    @torch.no_grad()
    def __call__(self) -> None:
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    def restart(self, token: Tensor) -> None:
        """Go on from the end of the prompt with this token (B 1)."""
        self.token.copy_(token)
        self.position.fill_(self.length)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.length)

    def _step(self) -> None:
        mask = (self.places <= self.position)[None, None].expand(len(self.token), 1, 1, -1)
        found = self.library(
            self.token, past_key_values=self.cache, use_cache=True, position_ids=self.position, attention_mask=mask
        )
        self.logits.copy_(found.logits[:, -1])
        self.token.copy_(found.logits[:, -1].argmax(-1, keepdim=True))
        self.position.add_(1)
