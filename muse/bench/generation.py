"""Writing: Stage 1 with memory as it generates, and by its blocks' own steps, against GPT-2 with its cache.

On CUDA one text and 64 at a time, as far as the longest sequence goes; steps as they are and as one graph stand
beside GPT-2 with the library's growing cache, eager, and with its static cache in a graph of its own. There the
kernels of a token are counted too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from muse.catalog import COMPACT, WITH_MEMORY, WRITTEN_TOKENS, YARDSTICK
from muse.measure.throughput import flops_per_token
from muse.models.generate import Recurrent
from muse.models.states import State, advanced, head, read, recurrent
from muse.models.static_step import StaticStep
from muse.models.stepper import Stepper

from .context import Context
from .equality import Check, check, relative_rms
from .naive import perturb
from .paths import count_on_device, num_bytes
from .static_gpt2 import StaticGpt2, read_pieces
from .timing import GroupResult, Trial

CHECKED_TOKENS = 8  # of those that are written are compared, in one text of a batch
WHOLE_TOKENS = 2048  # of a reference that reads a text at once; a longer one is read in pieces, in float64 too
PROMPTS = {"cpu": (128, 1024), "cuda": (128, 1024, 4096, 8192, 32768)}
"""Tokens, as far as the longest sequence leaves room for the new ones."""

BATCHES = {"cpu": (1,), "cuda": (1, 64)}
Reader = Callable[[Tensor], Tensor]  # from tokens (B 1) to logits (B V)


class Writes(Protocol):
    """A way to write from the end of a prompt, as often as it is called."""

    def write(self, first: Tensor, count: int) -> Tensor:
        """The last of so many tokens (B 1), each the likeliest one, after the one given."""

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (B T V) after each of these tokens (B T)."""


class ByReader:
    """A token and its logits go by way of the host's code."""

    def __init__(self, again: Callable[[], Reader]) -> None:
        self.again = again

    def write(self, first: Tensor, count: int) -> Tensor:
        reader, new = self.again(), first
        for _ in range(count):
            new = reader(new).argmax(-1)[:, None]
        return new

    def logits(self, ids: Tensor) -> Tensor:
        reader = self.again()
        return torch.stack([reader(new) for new in ids.split(1, 1)], 1)


class ByStaticStep:
    """A token goes into a buffer, and so does the next one."""

    def __init__(self, step: StaticStep | StaticGpt2, restart: Callable[[Tensor], None]) -> None:
        self.step, self.restart = step, restart

    def write(self, first: Tensor, count: int) -> Tensor:
        self.restart(first)
        for _ in range(count):
            self.step()
        return self.step.token.clone()

    def logits(self, ids: Tensor) -> Tensor:
        self.restart(ids[:, :1])
        found = []
        for new in ids.split(1, 1):
            self.step.token.copy_(new)
            self.step()
            found.append(self.step.logits.clone())
        return torch.stack(found, 1)


def generation(bench: Context) -> Iterator[GroupResult]:
    """Compare how fast models write after prompts of several lengths, the prompt itself not counted.

    A call starts where the prompt ends, so it holds what a fast path prepares for its steps, but for graphs, which
    serve any number of texts.
    """
    built = {name: bench.build(name, use_complex32=True).eval() for name in (WITH_MEMORY, COMPACT, YARDSTICK)}
    built = {name: perturb(model, bench.settings.seed) for name, model in built.items()}
    kind, room = bench.device.type, max(2, bench.settings.n_seq - WRITTEN_TOKENS)
    if kind == "cuda":
        built[YARDSTICK].half()  # as the others are stored; on a CPU that would only slow it down
    lengths = sorted({min(length, room) for length in bench.settings.bench_prompts or PROMPTS[kind]})
    batches = bench.settings.bench_generation_batches or BATCHES[kind]
    flops = {name: flops_per_token(model, min(WHOLE_TOKENS, model.config.n_seq)) for name, model in built.items()}
    for batch, length in ((batch, length) for batch in batches for length in lengths):
        new = min(WRITTEN_TOKENS, bench.settings.n_seq - length)
        paths, ids = paths_of(built, kind == "cuda"), bench.tokens(batch, length + new)
        wanted = {name: lru_cache(1)(partial(_wanted, model, ids, length)) for name, model in built.items()}
        yield bench.compare(
            f"generation_{length}" if batch == 1 else f"generation_{batch}x{length}",
            {name: partial(_trial, bench, built[model], ids, length, start, wanted[model])
             for name, (model, start) in paths.items()},
            baseline=YARDSTICK, tokens_per_call=batch * new,
            flops_per_token={name: flops[model] for name, (model, _) in paths.items()},
            least_bytes={name: new * step_bytes(built[model], batch, length) for name, (model, _) in paths.items()},
        )  # fmt: skip


def paths_of(built: Mapping[str, nn.Module], graphs: bool) -> dict[str, tuple[str, Callable[..., Writes]]]:
    """The model of each path, and what gives its way to write after a prompt."""
    found = {name: (name, start_cached if name == YARDSTICK else start) for name in built}
    found[f"{WITH_MEMORY} by its blocks"] = WITH_MEMORY, partial(start, plain=True)
    if graphs:
        for name in (WITH_MEMORY, COMPACT):
            found[f"{name} one graph"] = name, start_static
        found[f"{YARDSTICK} static cache, one graph"] = YARDSTICK, start_static_cached
    return found


def step_bytes(model: nn.Module, batch: int, length: int) -> int:
    """What a step must read: weights without tables of positions, and the states or all that a cache then holds."""
    weights = num_bytes(*(p for name, p in model.named_parameters() if not name.endswith(("wpe.weight", "positions"))))
    if recurrent(model):
        return weights + read(model, torch.zeros(1, 1, dtype=torch.int64, device=_device(model))).num_bytes * batch
    config, itemsize = model.config, next(model.parameters()).itemsize
    return weights + 2 * config.n_layers * config.d_model * length * batch * itemsize


def start(model: nn.Module, prompt: Tensor, *, plain: bool = False) -> Writes:
    """Through the states of the blocks, by the fast steps or by the blocks' own."""
    state = read(model, prompt)
    return ByReader(lambda: Recurrent(model, plain, state))


def start_static(model: nn.Module, prompt: Tensor) -> Writes:
    """The fast steps in the buffers of a graph; elsewhere than on CUDA the same without one."""
    state = read(model, prompt)
    step = StaticStep(Stepper(model, state), prompt[:, -1:], 0.0, None, None, [])
    return ByStaticStep(step, partial(step.restart, state))


def start_cached(model: nn.Module, prompt: Tensor) -> Writes:
    """GPT-2 with its library's cache."""
    from transformers import DynamicCache

    library, cache = model.gpt2, DynamicCache(config=model.gpt2.config)
    call = partial(library, past_key_values=cache, use_cache=True, logits_to_keep=1)
    read_pieces(call, prompt)

    def again() -> Reader:
        if new := cache.get_seq_length() - prompt.shape[1]:
            cache.crop(-new)
        return lambda token: call(token).logits[:, -1]

    return ByReader(again)


def start_static_cached(model: nn.Module, prompt: Tensor) -> Writes:
    """GPT-2 with its library's static cache, in a graph on CUDA."""
    step = StaticGpt2(model.gpt2, prompt, prompt.shape[1] + WRITTEN_TOKENS)
    return ByStaticStep(step, step.restart)


def exact(model: nn.Module, ids: Tensor, length: int) -> Tensor:
    """Logits (B T V) in float64 after each token from `length` on: ids (B length+T)."""
    wide = copy.deepcopy(model).double()
    if ids.shape[1] <= WHOLE_TOKENS:
        return wide(ids)[:, length:]
    if recurrent(wide):
        state: State = read(wide, ids[:, :length])
        return head(wide, advanced(wide, ids[:, length:], state)[0])
    from transformers import DynamicCache

    call = partial(wide.gpt2, past_key_values=DynamicCache(config=wide.gpt2.config), use_cache=True)
    read_pieces(partial(call, logits_to_keep=1), ids[:, :length], 256)
    return call(ids[:, length:]).logits


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _wanted(model: nn.Module, ids: Tensor, length: int) -> Tensor:
    """What the first new tokens of the last text should give."""
    return exact(model, ids[-1:, : length + CHECKED_TOKENS], length)


def launches(writes: Writes, token: Tensor) -> int | None:
    """Kernels and copies on the device that one token (B 1) takes, by the profiler; None where there is no CUDA."""
    if not token.is_cuda:
        return None
    call = partial(writes.write, token, 1)
    before, after = count_on_device(call), count_on_device(partial(writes.write, token, 2))
    return after - before


def _trial(
    bench: Context,
    model: nn.Module,
    ids: Tensor,
    length: int,
    starting: Callable[..., Writes],
    wanted: Callable[[], Tensor],
) -> Trial:
    with torch.no_grad():
        writes = starting(model, ids[:, :length])

    @torch.no_grad()
    def write() -> Tensor:
        return writes.write(ids[:, length - 1 : length], ids.shape[1] - length)

    @torch.no_grad()
    def equal() -> list[Check]:
        end = min(length + CHECKED_TOKENS, ids.shape[1])
        got, dtype = writes.logits(ids[:, length:end])[-1:], next(model.parameters()).dtype
        error = relative_rms([(got, wanted())])
        return [check("forward", error, bench.complex32 if dtype == torch.float16 else dtype)]

    return Trial(write, equal, launches=torch.no_grad()(partial(launches, writes, ids[:, length - 1 : length])))
