"""Text from a model, one token at a time.

A model whose blocks can `prefill` and `step` keeps a state of fixed size, so each token costs the same time and memory
however long the text grows; on a CPU the steps are those of `muse.models.stepper`, which lays the weights out for them
once. Any other model reads its last n_seq tokens again for each new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from muse.ops import logits

from . import layers, stepper
from .tensor_file import first_non_finite


def generate(
    model: nn.Module,
    token_ids: Tensor,
    n_new: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    plain: bool = False,
) -> Iterator[Tensor]:
    """Stream n_new tokens, int64 (B,) each, after the prompt (B T) with 1 <= T <= n_seq.

    Temperature 0 takes the likeliest token; else one is drawn from the `top_k` likeliest, and of those from the fewest
    that hold a share `top_p` of the probability. Equal seeds draw equal tokens, whatever the global generator. With
    `plain` every step is that of the model's blocks, with their weights as they are then: the reference. Raises
    ValueError for choices out of range, where a position table ends, and for logits that are not finite.
    """
    config = model.config
    layers.check_token_ids(token_ids, config.vocab_size, config.n_seq)
    if n_new < 0:
        raise ValueError(f"n_new must be at least 0, got {n_new}")
    check_choices(temperature, top_k, top_p)
    recurrent = all(hasattr(block, "step") for block in getattr(model, "blocks", [None]))
    if recurrent and model.positions is not None and token_ids.shape[1] + n_new - 1 > config.n_seq:
        raise ValueError(f"the position table ends at n_seq={config.n_seq}, got {token_ids.shape[1]} + {n_new} tokens")
    reader = Recurrent(model, plain) if recurrent else Window(model)
    return _stream(reader, token_ids, n_new, temperature, top_k, top_p, seed)


def _stream(
    reader: Callable[[Tensor], Tensor],
    token_ids: Tensor,
    n_new: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> Iterator[Tensor]:
    generator = torch.Generator(token_ids.device).manual_seed(seed)
    new = token_ids.long()
    for index in range(n_new):
        found = reader(new)
        if not found.isfinite().all():
            raise _not_finite(reader.model, index)
        token = choose(found, temperature, top_k, top_p, generator)
        yield token
        new = token[:, None]


def _not_finite(model: nn.Module, index: int) -> ValueError:
    where = first_non_finite(dict([*model.named_parameters(), *model.named_buffers()])) or "every weight is finite"
    return ValueError(f"logits of new token {index + 1} are not finite, so none can be chosen: {where}")


def check_choices(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for choices out of range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


def choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """One token per row of logits r(B V): int64 (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probability = logits.softmax(-1)
    if top_p is not None:
        ordered, order = probability.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # those before it already hold the share
        probability = torch.zeros_like(probability).scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(probability, 1, generator=generator)[:, 0]


class Recurrent:
    """Reads tokens through the states of a model's blocks; called with (B T) once, then with (B 1).

    The second call makes a Stepper for all that follow where it knows the model, unless `plain`.
    """

    def __init__(self, model: nn.Module, plain: bool = True) -> None:
        self.model, self.states, self.position = model, None, 0
        self.plain, self.stepper = plain, None

    def __call__(self, new: Tensor) -> Tensor:
        """Logits r(B V) after the new tokens (B T)."""
        if self.states is not None and self.stepper is None and not self.plain and stepper.knows(self.model):
            self.stepper = stepper.Stepper(self.model, self.states, self.position)
        return self._by_blocks(new) if self.stepper is None else self.stepper(new)

    @torch.no_grad()
    def _by_blocks(self, new: Tensor) -> Tensor:
        model, states = self.model, []
        with _evaluation(model):
            z = model.embed(new, self.position)
            for i, block in enumerate(model.blocks):
                z, state = block.prefill(z) if self.states is None else block.step(z, self.states[i])
                states.append(state)
            features = model.read(z[:, -1:])
            self.states, self.position = states, self.position + new.shape[1]
            return logits.head_logits(features, *model.head_parameters())[:, 0]


class Window:
    """Reads the last n_seq tokens anew on each call."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen = model, None

    @torch.no_grad()
    def __call__(self, new: Tensor) -> Tensor:
        """Logits r(B V) after the new tokens (B T)."""
        seen = new if self.seen is None else torch.cat([self.seen, new], dim=1)
        self.seen = seen[:, -self.model.config.n_seq :]
        with _evaluation(self.model):
            features = self.model.features(self.seen)[:, -1:]
            return logits.head_logits(features, *self.model.head_parameters())[:, 0]


class _evaluation:  # noqa: N801 - used like a function
    """Evaluation mode inside a with block, the mode of the whole model put back after it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train(self.training)
