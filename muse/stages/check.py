"""What only packages and data can tell about settings, asked in one process before a run starts: one line a problem.

Run as a module it reads [{"settings", "readable"}] from its input, one for each run, and writes {"hardware",
"problems": lists of lines, one for each run, "num_bytes"}: JSON.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from muse.catalog import NAMED, READING, REFERENCE, SYNTHETIC, TOKENIZERS, YARDSTICK
from muse.data.corpora import SPLITS, SYNTHETIC_TOKENS, large_splits, load_corpus
from muse.data.corpus import Corpus
from muse.data.tokenizers import gpt2_tokenizer
from muse.host.lines import one_line
from muse.host.parents import follow_parent
from muse.models.build import build_model, configured
from muse.models.weights import WithoutDraws
from muse.params import Settings, validate
from muse.records.environment import hardware
from muse.training.rows import compared, trained

STATE_BYTES = 3 * 4
"""Of a number that is trained: itself and two moments in float32; a state is there twice while it is replaced."""

MOST_TOKEN_BYTES = 128
"""Of a token of GPT-2's vocabulary, about."""


class Read(NamedTuple):
    """What the sizes of a run are compared with: of a corpus, its vocabulary and the tokens of its training split."""

    vocab_size: int
    train_tokens: int


class Found(NamedTuple):
    """What is wrong, one line each, and how many bytes the trainings are estimated to write."""

    problems: list[str]
    num_bytes: int


def examine(
    settings: Settings, stages: Sequence[str], load: Callable[[], Corpus] | None = None, readable: bool = True
) -> Found:
    """Return what keeps these stages from running with these settings; `load` gives the corpus where a caller has it.

    A corpus that is known not to be `readable` is left alone; a stage called `bench` reads it for gradients only.
    """
    problems, num_bytes, read = [], 0, None
    trains = settings.train_tokens > 0 and bool({*READING} & {*stages})
    benches = "bench" in stages or ("throughput" in stages and settings.bench)
    if readable and ({*READING} & {*stages} or (benches and "gradients" in settings.bench_groups)):
        own = functools.partial(_load, settings.corpus, settings.tokenizer, settings.cache_dir)
        read, problems = _read(settings, load or own)
    models = compared(settings)
    if measured := _measured(settings, stages, trains, models):
        problems += _sizes(measured, sizes_of(settings, settings.vocab_size), "")[0]
    if trains:
        vocab_size = read.vocab_size if read else settings.vocab_size
        sizes = sizes_of(settings, vocab_size, "train_")
        wrong, numbers = _sizes(models, sizes, " to train")
        problems += [line for line in wrong if line.replace(" to train", "") not in problems]
        num_bytes = _bytes_to_write(settings, numbers)
        if read and read.train_tokens <= sizes["n_seq"]:
            name = "train_n_seq" if settings.train_n_seq else "n_seq"
            few = f"{read.train_tokens:,} tokens of the training split"
            problems.append(f"{name}: got {sizes['n_seq']}, expected less than the {few}")
    elif "perplexity" in stages and read and read.vocab_size > settings.vocab_size:
        problems.append(f"vocab_size: got {settings.vocab_size}, expected at least the corpus's {read.vocab_size}")
    return Found(problems, num_bytes)


def _load(corpus: str, tokenizer: str, cache_dir: str | None, splits: Sequence[str] = SPLITS) -> Corpus:
    return load_corpus(corpus, tokenizer, splits=splits, cache_dir=Path(cache_dir) if cache_dir else None)


def _read(settings: Settings, load: Callable[[], Corpus]) -> tuple[Read | None, list[str]]:
    """The corpus, or what is wrong with it and with the tokenizer; of the synthetic one what is known beforehand."""
    corpus, tokenizer, problems = settings.corpus, settings.tokenizer, []
    try:
        if corpus == SYNTHETIC:
            few = load_corpus(corpus, tokenizer, synthetic_tokens=dict.fromkeys(SYNTHETIC_TOKENS, 2))
            return Read(few.vocab_size, SYNTHETIC_TOKENS["train"]), []
        if large := _large(settings):
            return large, []
        loaded = load()
        if settings.test_corpus:
            _load(settings.test_corpus, tokenizer, settings.cache_dir, ("test",))
        return Read(loaded.vocab_size, len(loaded.splits["train"].ids)), []
    except Exception as error:  # of several libraries, about files that can hold anything
        problems.append(_said(error))
    if corpus != SYNTHETIC and tokenizer != TOKENIZERS[-1]:
        try:
            gpt2_tokenizer(tokenizer)
        except Exception as error:
            problems.append(_said(error))
    named = ", ".join(name for name in NAMED if getattr(settings, name))
    return None, [f"{named}: {line}" for line in dict.fromkeys(problems)]


def _large(settings: Settings) -> Read | None:
    """Of a training split larger than memory what is known before hours of work: the stage that needs it reads it.

    Its tokens are at least so many: none of GPT-2's is longer than its longest run of spaces. None for any other.
    """
    if settings.tokenizer == TOKENIZERS[-1] or "train" not in (large := large_splits(settings.corpus, SPLITS)):
        return None
    num_bytes = sum(path.stat().st_size for path in large["train"])
    return Read(gpt2_tokenizer(settings.tokenizer).vocab_size, num_bytes // MOST_TOKEN_BYTES)


def _said(error: Exception) -> str:
    text = one_line(" ".join(str(error).split()))
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"


def _measured(settings: Settings, stages: Sequence[str], trains: bool, compared: Sequence[str]) -> list[str]:
    """The models that the stages build untrained, at the measured sizes."""
    found = []
    if {"memory", "throughput", "bench"} & {*stages}:
        found += compared
    if "gradients_stability" in stages:
        found += settings.candidates
    if "basic_test" in stages or ("perplexity" in stages and not trains):
        found.append(REFERENCE)
    return list(dict.fromkeys(found))


def sizes_of(settings: Settings, vocab_size: int, prefix: str = "") -> dict[str, int]:
    """Sizes of the measured models; with the prefix `train_` those of the trained ones."""
    names = ("d_model", "n_layers", "n_seq")
    own = {name: getattr(settings, prefix + name, None) or getattr(settings, name) for name in names}
    return {"vocab_size": vocab_size} | own


def _sizes(models: Sequence[str], sizes: Mapping[str, int], what_for: str) -> tuple[list[str], list[int]]:
    """What is wrong with each model of these sizes, and how many numbers those without a problem have."""
    problems, numbers = [], []
    for name in models:
        try:
            configured(name, **sizes)
            numbers.append(_numbers(name, sizes))
        except (ValueError, RuntimeError, MemoryError) as error:
            problems.append(f"models: {name}{what_for}: {_said(error)} (d_model = {sizes['d_model']})")
    return problems, numbers


def _numbers(name: str, sizes: Mapping[str, int]) -> int:
    """How many numbers a model has, from models of its width that are tiny otherwise: all else is linear."""
    tiny = {"vocab_size": 2, "n_layers": 1, "n_seq": 2}
    if name == YARDSTICK:  # its library takes seconds to import
        width = sizes["d_model"]
        return (sizes["vocab_size"] + sizes["n_seq"]) * width + sizes["n_layers"] * 12 * width**2

    def count(**more: int) -> int:
        with WithoutDraws():
            model = build_model(name, **{**sizes, **tiny, **more})
        return sum(parameter.numel() for parameter in model.parameters())

    base = count()
    return base + sum((count(**{key: least + 1}) - base) * (sizes[key] - least) for key, least in tiny.items())


def _bytes_to_write(settings: Settings, numbers: Sequence[int]) -> int:
    """Weights of every training and, of the largest model, the state on its way, the one before it and the best."""
    grid = ("learning_rates", "dropouts", "batch_tokens", "weight_decays", "muon_weight_decays")
    tries = 1
    for name in grid:
        tries *= len(getattr(settings, name))
    trainings = tries + len(settings.seeds) - (0 if tries > 1 and settings.tune_tokens else 1)
    return 4 * trainings * sum(numbers) + 2 * STATE_BYTES * max(numbers, default=0)


def bytes_of_all(every: Sequence[Settings], found: Sequence[Found]) -> int:
    """What runs are estimated to write together: trainings that several have are written once."""
    seen, num_bytes = frozenset(), 0
    for settings, one in zip(every, found, strict=True):
        trainings = trained(settings, compared(settings)) if one.num_bytes else frozenset()
        num_bytes += 0 if trainings <= seen else one.num_bytes
        seen |= trainings
    return num_bytes


def main() -> None:
    """Answer on what was the standard output; whatever libraries print goes to the standard error."""
    follow_parent()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    read = functools.cache(_load)  # a corpus that several runs have is read once
    every, found = [], []
    for row in json.load(sys.stdin):
        settings = validate(row["settings"])
        load = functools.partial(read, settings.corpus, settings.tokenizer, settings.cache_dir)
        every.append(settings)
        found.append(examine(settings, settings.stages, load, row["readable"]))
    told = {"problems": [one.problems for one in found], "num_bytes": bytes_of_all(every, found)}
    json.dump({"hardware": hardware(), **told}, answer)
    answer.flush()


if __name__ == "__main__":
    main()
