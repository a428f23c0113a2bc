"""Writing: Stage 1 with memory as it generates, and by its blocks' own steps, against GPT-2 with its cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from muse.catalog import COMPACT, WITH_MEMORY, YARDSTICK
from muse.measure.throughput import flops_per_token
from muse.models.generate import Recurrent
from muse.models.states import read

from .context import Context
from .equality import Check, check, relative_rms
from .naive import perturb
from .paths import num_bytes
from .timing import GroupResult, Trial

NEW_TOKENS = 64  # of a timed call
CHECKED_TOKENS = 8  # of them are compared
PROMPTS = (128, 1024)  # tokens, as far as the longest sequence leaves room for the new ones
Reader = Callable[[Tensor], Tensor]  # from a token (1 1) to logits (1 V)


def generation(bench: Context) -> Iterator[GroupResult]:
    """Compare how fast models write after prompts of two lengths, one text at a time, the prompt itself not counted.

    A call starts where the prompt ends, so it holds what a fast path prepares for its steps.
    """
    built = {name: bench.build(name, use_complex32=True).eval() for name in (WITH_MEMORY, COMPACT, YARDSTICK)}
    built = {name: perturb(model, bench.settings.seed) for name, model in built.items()}
    room = max(2, bench.settings.n_seq - NEW_TOKENS)
    flops = {name: flops_per_token(model) for name, model in built.items()}
    least = {name: num_bytes(*model.parameters()) for name, model in built.items()}
    for length in sorted({min(length, room) for length in PROMPTS}):
        new = min(NEW_TOKENS, bench.settings.n_seq - length)
        ids = bench.tokens(1, length + new)
        paths = {name: partial(_trial, bench, model, ids, length, start_cached if name == YARDSTICK else start)
                 for name, model in built.items()}  # fmt: skip
        blocks = f"{WITH_MEMORY} by its blocks"
        paths[blocks] = partial(_trial, bench, built[WITH_MEMORY], ids, length, partial(start, plain=True))
        yield bench.compare(
            f"generation_{length}", paths, baseline=YARDSTICK, tokens_per_call=new,
            flops_per_token=flops | {blocks: flops[WITH_MEMORY]},
            least_bytes={name: new * size for name, size in (least | {blocks: least[WITH_MEMORY]}).items()},
        )  # fmt: skip


def start(model: nn.Module, prompt: Tensor, *, plain: bool = False) -> Callable[[], Reader]:
    """What gives a reader that has read the prompt, as often as it is called."""
    state = read(model, prompt)
    return lambda: Recurrent(model, plain, state)


def start_cached(model: nn.Module, prompt: Tensor) -> Callable[[], Reader]:
    """The same for GPT-2 with its library's cache."""
    from transformers import DynamicCache

    library, cache = model.gpt2, DynamicCache(config=model.gpt2.config)
    call = partial(library, past_key_values=cache, use_cache=True, logits_to_keep=1)
    call(prompt)

    def again() -> Reader:
        if new := cache.get_seq_length() - prompt.shape[1]:
            cache.crop(-new)
        return lambda token: call(token).logits[:, -1]

    return again


def _trial(bench: Context, model: nn.Module, ids: Tensor, length: int, starting: Callable) -> Trial:
    with torch.no_grad():
        again = starting(model, ids[:, :length])

    @torch.no_grad()
    def write() -> Tensor:
        reader, new = again(), ids[:, length - 1 : length]
        for _ in range(ids.shape[1] - length):
            new = reader(new).argmax(-1)[:, None]
        return new

    @torch.no_grad()
    def equal() -> list[Check]:
        reader, end = again(), min(length + CHECKED_TOKENS, ids.shape[1])
        got = torch.stack([reader(ids[:, t : t + 1]) for t in range(length, end)], 1)
        dtype = next(model.parameters()).dtype
        want = copy.deepcopy(model).double()(ids[:, :end])[:, length:]
        return [check("forward", relative_rms([(got, want)]), bench.complex32 if dtype == torch.float16 else dtype)]

    return Trial(write, equal)
