"""How a token is chosen, and one step of writing that reads and writes the same buffers every time.

A static step goes from the token before through the model and the choice to the next token, all of it on the device, so
that on CUDA it is one graph: the host launches it and looks at nothing. Elsewhere the same code runs as it is. Random
numbers come from outside, into a buffer, so that one seed draws the same tokens with the graph and without it.

Glossary: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muse.ops import step

if TYPE_CHECKING:
    from .states import State
    from .stepper import Stepper

WARMUPS = 2  # ordinary steps before a capture: they allocate what libraries keep for a stream


def generators(seed: int | Sequence[int], batch: int, device: torch.device) -> list[torch.Generator]:
    """One generator for all rows, or one a row; ValueError for another number of seeds than rows."""
    if isinstance(seed, int):
        return [torch.Generator(device).manual_seed(seed)]
    if len(seed) != batch:
        raise ValueError(f"seed must be one number or one a row, {batch}, got {len(seed)}")
    return [torch.Generator(device).manual_seed(one) for one in seed]


def randomness(drawing: Sequence[torch.Generator]) -> Tensor:
    """What generators go on from: uint8 (R S)."""
    return torch.stack([generator.get_state() for generator in drawing])


def put_back(state: State | None, device: torch.device) -> list[torch.Generator]:
    """The generators of a state; ValueError where it has none, or those of another kind of device."""
    if state is None or state.random is None:
        raise ValueError("seed: got None, expected a number: no state says how its text was drawn")
    found = [torch.Generator(device) for _ in state.random]
    try:
        for generator, kept in zip(found, state.random, strict=True):
            generator.set_state(kept.clone())  # torch reads it as numbers of 8 bytes, wherever it lies
    except RuntimeError as error:
        raise ValueError("seed: got None, expected a number: the state was drawn on another kind of device") from error
    return found


def choose(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    drawing: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """One token per row of logits r(B V): int64 (B,), drawn by one generator or by one a row."""
    if temperature == 0:
        return logits.argmax(-1)
    drawing = [drawing] if isinstance(drawing, torch.Generator) else drawing
    noise = torch.empty_like(logits, dtype=torch.float32)
    fill(noise, drawing)
    return picked(logits, temperature, top_k, top_p, noise)


def fill(noise: Tensor, drawing: Sequence[torch.Generator]) -> None:
    """Exponential numbers r(B V): what `torch.multinomial` draws."""
    if len(drawing) == 1:
        noise.exponential_(generator=drawing[0])
        return
    for row, generator in zip(noise.split(1), drawing, strict=True):
        row.exponential_(generator=generator)


def picked(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, noise: Tensor) -> Tensor:
    """The tokens (B,) that `torch.multinomial` draws of the chosen share of logits r(B V) with this noise r(B V)."""
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probability = logits.softmax(-1)
    if top_p is not None:
        ordered, order = probability.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # those before it already hold the share
        probability = torch.zeros_like(probability).scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    return (probability / noise).argmax(-1)


def captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A step as a graph, after ordinary ones on a stream beside, which move the buffers that it writes to."""
    stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            step()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


class StaticStep:
    """Called again and again, it returns the next token (B,): from the buffer of the last one, through the model."""

    @torch.no_grad()
    def __init__(
        self,
        steps: Stepper,
        token: Tensor,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        drawing: Sequence[torch.Generator],
        capture: bool | None = None,
    ) -> None:
        """`token` (B 1) is the last one, not yet read. It is captured on CUDA unless `capture` says otherwise."""
        self.steps, self.token, self.drawing = steps, token.clone(), drawing
        self.choices = temperature, top_k, top_p
        weight = steps.head.weight
        self.noise = None if temperature == 0 else weight.new_ones(len(token), len(weight), dtype=torch.float32)
        self.logits = weight.new_zeros(len(token), len(weight), dtype=steps.wide)
        self.index, self.bad = (token.new_full((len(token),), start) for start in (0, -1))
        self.graph = self._captured() if (token.is_cuda if capture is None else capture) else None

    def __call__(self) -> Tensor:
        if self.noise is not None:
            fill(self.noise, self.drawing)
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()
        return self.token[:, 0].clone()

    def restart(self, state: State, token: Tensor) -> None:
        """Go on from another state of as many rows, `token` (B 1) the last one, not yet read."""
        self.steps.load(state)
        self.token.copy_(token)
        self.index.zero_()
        self.bad.fill_(-1)

    def first_bad(self) -> int | None:
        """The number of the first step, from 0, whose logits were not finite; the host waits for the device."""
        found = [bad for bad in self.bad.tolist() if bad >= 0]
        return min(found, default=None)

    @torch.no_grad()
    def _step(self) -> None:
        found = self.steps(self.token)
        self.logits.copy_(found)
        greedy = self.noise is None
        step.chosen(self.logits, self.token[:, 0] if greedy else None, self.index, self.bad)
        if not greedy:
            self.token.copy_(picked(found, *self.choices, self.noise)[:, None])

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph, all buffers as they were before."""
        buffers = [*self.steps.buffers(), self.token, self.logits, self.index, self.bad]
        before = [buffer.clone() for buffer in buffers]
        graph = captured(self._step)
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)
        return graph
