"""Text from a model, one token at a time.

A model whose blocks keep states reads on from them, so each token costs the same time and memory however long the text
grows: Stage 1 with memory without an end, Phase 2 as far as its table of positions goes. The steps of the first are
those of `muse.models.stepper`, which lays the weights out for them once, on CUDA as one graph. Any other model, and
Phase 2 beyond its positions, reads its last n_seq tokens again for each new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from muse.ops import logits

from . import layers, stepper
from .states import CHUNK_TOKENS, State, ends, read, recurrent
from .static_step import StaticStep, choose, generators, put_back, randomness
from .tensor_file import first_non_finite

Seed = int | Sequence[int] | None


def generate(
    model: nn.Module,
    token_ids: Tensor | None,
    n_new: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = 0,
    plain: bool = False,
    lengths: Sequence[int] | Tensor | None = None,
    state: State | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Stream:
    """Stream n_new tokens, int64 (B,) each, after the prompt (B T).

    Prompts of different lengths lie in one batch with `lengths` (B), of 1 to T tokens each: what follows them does not
    count. Any length is read, `chunk_tokens` at a time, but where the model has a table of positions or no state: to
    n_seq. With a `state`, of a stream or of `states.read`, the text goes on from there; token_ids may then be None.

    Temperature 0 takes the likeliest token; else one is drawn from the `top_k` likeliest, and of those from the fewest
    that hold a share `top_p` of the probability. Equal seeds draw equal tokens, whatever the global generator. With one
    seed a row each row draws what it draws alone with that seed; None goes on drawing as the state's text did. With
    `plain` every step is that of the model's blocks, with their weights as they are then: the reference. Raises
    ValueError for arguments out of range, where positions end, and for logits that are not finite.
    """
    if n_new < 0:
        raise ValueError(f"n_new must be at least 0, got {n_new}")
    check_choices(temperature, top_k, top_p)
    known = recurrent(model)
    if state is not None and not known:
        raise ValueError("state: got one, expected none: this model reads its last n_seq tokens anew")
    if token_ids is None and state is None:
        raise ValueError("token_ids: got none, expected a prompt or a state")
    if token_ids is not None:
        _check_prompt(model, token_ids, lengths, known)
    longest = _longest(token_ids, lengths, state)
    beyond = known and ends(model) and longest + n_new - 1 > model.config.n_seq
    if beyond and (hasattr(model.blocks[0], "step") or lengths is not None or state is not None):
        raise ValueError(f"the position table ends at n_seq={model.config.n_seq}, got {longest} + {n_new} tokens")
    if not known:
        reader = Window(model) if lengths is None else Rows(model)
    else:
        reader = Sliding(model) if beyond else Recurrent(model, plain, state, chunk_tokens)
    device = (state.lengths if token_ids is None else token_ids).device
    batch = len(state.lengths if token_ids is None else token_ids)
    drawing = put_back(state, device) if seed is None else generators(seed, batch, device)
    return Stream(reader, token_ids, lengths, n_new, (temperature, top_k, top_p), drawing)


def _check_prompt(model: nn.Module, ids: Tensor, lengths: Sequence[int] | Tensor | None, known: bool) -> None:
    config = model.config
    limited = ends(model) or not known
    layers.check_token_ids(ids, config.vocab_size, config.n_seq if limited else max(1, ids.shape[-1]))
    if lengths is not None:
        given = torch.as_tensor(lengths).tolist()
        if len(given) != len(ids) or not all(1 <= length <= ids.shape[1] for length in given):
            raise ValueError(f"lengths must be {len(ids)} numbers from 1 to {ids.shape[1]}, got {given}")


def _longest(ids: Tensor | None, lengths: Sequence[int] | Tensor | None, state: State | None) -> int:
    """Tokens that the longest row has read when the first new one is chosen."""
    before = 0 if state is None else state.lengths.cpu()
    new = 0 if ids is None else ids.shape[1] if lengths is None else torch.as_tensor(lengths).cpu()
    return int(torch.as_tensor(before + new).max())


class Stream(Iterator[Tensor]):
    """The tokens of a text, int64 (B,) each, and the state that it has reached."""

    def __init__(
        self,
        reader: Callable[..., Tensor],
        token_ids: Tensor | None,
        lengths: Sequence[int] | Tensor | None,
        n_new: int,
        choices: tuple[float, int | None, float | None],
        drawing: list[torch.Generator],
    ) -> None:
        self.reader, self.choices, self.drawing = reader, choices, drawing
        self.pending, self.lengths = (None if token_ids is None else token_ids.long()), lengths
        self.found: Tensor | None = reader.state.logits if token_ids is None else None
        self.n_new, self.index, self.steps = n_new, 0, None

    def __next__(self) -> Tensor:
        if self.index == self.n_new:
            raise StopIteration
        waits = self.index and self.pending is not None  # a token of our own, which a step reads
        worth = waits and self.n_new - self.index >= GRAPH_TOKENS
        if self.steps is None and worth and isinstance(self.reader, Recurrent) and self.reader.captures():
            self.first = self.index
            self.steps = StaticStep(self.reader.stepper, self.pending, *self.choices, self.drawing)
        if self.steps is None:
            token = self._chosen()
        else:
            token = self.steps()
            if self.index % CHECKED_EVERY == 0 or self.index + 1 == self.n_new:
                self._check_steps()
        self.index, self.pending = self.index + 1, token[:, None]
        return token

    def _chosen(self) -> Tensor:
        if self.pending is not None:
            self.found = self._read()
        if not self.found.isfinite().all():
            raise _not_finite(self.reader.model, self.index)
        return choose(self.found, *self.choices, self.drawing)

    def _read(self) -> Tensor:
        lengths, self.lengths = self.lengths, None
        return self.reader(self.pending) if lengths is None else self.reader(self.pending, lengths)

    def _check_steps(self) -> None:
        if (bad := self.steps.first_bad()) is not None:
            raise _not_finite(self.reader.model, self.first + bad)

    def state(self) -> State:
        """What was read so far, the tokens that were given included, in memory of its own; the stream may go on.

        ValueError for a model without states of fixed size.
        """
        if not isinstance(self.reader, Recurrent):
            raise ValueError("state: this model has none of fixed size here, it reads its last n_seq tokens anew")
        if self.pending is not None:
            self.found, self.pending, self.steps = self._read(), None, None
        return dataclasses.replace(self.reader.reached().copy(), random=randomness(self.drawing))


def _not_finite(model: nn.Module, index: int) -> ValueError:
    where = first_non_finite(dict([*model.named_parameters(), *model.named_buffers()])) or "every weight is finite"
    return ValueError(f"logits of new token {index + 1} are not finite, so none can be chosen: {where}")


GRAPH_TOKENS = 8  # fewer are written sooner than a graph is made
CHECKED_EVERY = 16  # steps of a graph: to look at what it found, the host has to wait for the device


def check_choices(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for choices out of range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


class Recurrent:
    """Reads tokens through the states of a model's blocks, prompts (B T) of any length as well as (B 1).

    From the second call on a Stepper reads what comes by single tokens, where it knows the model, unless `plain`.
    """

    def __init__(
        self, model: nn.Module, plain: bool = True, state: State | None = None, chunk_tokens: int = CHUNK_TOKENS
    ) -> None:
        self.model, self.state, self.chunk_tokens = model, state, chunk_tokens
        self.plain, self.stepper = plain, None

    def __call__(self, new: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """Logits r(B V) after the new tokens (B T), of row b after the first lengths[b] of them."""
        single = lengths is None and new.shape[1] == 1
        if single and self.prepared():
            self.found = self.stepper(new)
            return self.found
        self.state, self.stepper = self.reached(), None
        self.state = read(self.model, new, self.state, lengths=lengths, chunk_tokens=self.chunk_tokens)
        return self.state.logits

    def prepared(self) -> bool:
        """Whether a Stepper reads the next token; it is made where there is none yet."""
        if self.stepper is None and self.state is not None and not self.plain and stepper.knows(self.model):
            self.stepper, self.found = stepper.Stepper(self.model, self.state), self.state.logits
        return self.stepper is not None

    def captures(self) -> bool:
        """Whether the next steps can be one graph."""
        return self.state is not None and self.state.lengths.is_cuda and self.prepared()

    def select(self, index: Tensor) -> None:
        """Go on with these rows, int64 (R), in this order."""
        if self.stepper is None:
            self.state = self.state.rows(index)
            return
        self.stepper.select(index)
        self.found = self.found.index_select(0, index)

    def reached(self) -> State:
        """The state after all that was read, which further steps leave as it is."""
        return self.state if self.stepper is None else self.stepper.state(self.found)


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


class Rows:
    """Windows of their own for prompts of different lengths."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.windows = model, None

    def __call__(self, new: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """Logits r(B V) after the new tokens (B T), of row b after the first lengths[b] of them."""
        self.windows = self.windows or [Window(self.model) for _ in new]
        counts = [new.shape[1]] * len(new) if lengths is None else torch.as_tensor(lengths).tolist()
        found = zip(self.windows, new, counts, strict=True)
        return torch.cat([window(row[None, :count]) for window, row, count in found])


class Sliding:
    """Reads through states as far as positions go, from there on the last n_seq tokens anew."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.by_state, self.by_window = model, Recurrent(model), Window(model)

    def __call__(self, new: Tensor) -> Tensor:
        """Logits r(B V) after the new tokens (B T)."""
        window, n_seq = self.by_window, self.model.config.n_seq
        seen = new if window.seen is None else torch.cat([window.seen, new], dim=1)
        if seen.shape[1] > n_seq:
            return window(new)
        window.seen = seen
        return self.by_state(new)


class _evaluation:  # noqa: N801 - used like a function
    """Evaluation mode inside a with block, the mode of the whole model put back after it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train(self.training)
