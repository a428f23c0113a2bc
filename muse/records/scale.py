"""How large a run is beside the published protocols: which of its settings are smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muse.catalog import RAW, SYNTHETIC, WIKITEXT, WITH_UNK

from .schema import Reduction

PUBLISHED = {
    "vocab_size": 50257,
    "d_model": 512,
    "n_layers": 6,
    "n_seq": 1024,
    "ppl_batch_size": 4,
    "max_ppl_batches": None,
    "memory_batch_size": 2,
    "throughput_batch_size": 4,
    "throughput_n_tokens": 1024,
    "throughput_warmups": 10,
    "throughput_samples": 30,
    "gradient_batch_size": 2,
    "gradient_n_tokens": 128,
    "stability_trials": 100,
    "stability_batch_size": 2,
    "stability_n_tokens": 128,
    "counting_length": 60,
    "counting_steps": 4000,
}
"""Sizes and counts of the published protocols; a setting below one of these makes its stage `reduced`."""

PUBLISHED_CORPUS, PUBLISHED_TEXTS = WIKITEXT, (RAW, WITH_UNK)


def reductions_of(settings: Mapping[str, object], text: str = "") -> list[Reduction]:
    """Return in which of these settings the published protocol is not reached; none where it is.

    A stage that trains is judged by the trained sizes (`train_d_model`, ...) where they are given. `text` is the one
    that was read, as records name it, where one was: any but the published ones is a reduction.
    """
    found = []
    read = SYNTHETIC if settings.get("corpus") == SYNTHETIC else text
    if read and read not in PUBLISHED_TEXTS:
        found.append(Reduction(setting="corpus", value=read, published=PUBLISHED_CORPUS))
    for name, published in PUBLISHED.items():
        value = settings.get(name, published)
        if settings.get("train_tokens"):
            value = settings.get(f"train_{name}") or value
        if value is not None if published is None else value < published:
            found.append(Reduction(setting=name, value=value, published=published))
    return found


def in_words(reductions: Sequence[Reduction], words: Mapping[str, str]) -> str:
    """Return the reductions as one enumeration, each of them once, in a language's words; an empty text for none."""
    return words["and"].join(dict.fromkeys(_in_words(reduction, words) for reduction in reductions))


def _in_words(reduction: Reduction, words: Mapping[str, str]) -> str:
    if reduction.setting == "corpus":
        return words["scale.synthetic" if reduction.value == SYNTHETIC else "scale.text"]
    published = words["scale.all"] if reduction.published is None else reduction.published
    name = words.get(f"setting.{reduction.setting}", reduction.setting)
    return words["scale.setting"].format(setting=name, value=reduction.value, published=published)
