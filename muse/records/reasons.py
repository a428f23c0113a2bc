"""Why a metric has no value, in a language: the record's own sentence in English, else the text of its kind."""

from __future__ import annotations

from collections.abc import Mapping

from .schema import Metric

RECORDED = "en"
"""The language of the sentences in records."""

NO_WORDS = "no spaces part the words of this text"
"""Why a text has no perplexity per word, as records say it."""

SENTENCES = {NO_WORDS: "no_words"}
"""Reasons in records that tell more than the metric's name, with their keys among the texts `why.<key>`."""

KINDS = {
    "perplexity": "perplexity",
    "loss": "perplexity",
    "word_perplexity": "whole_split",
    "byte_perplexity": "whole_split",
    "character_perplexity": "whole_split",
    "bits_per_byte": "whole_split",
    "mixing": "mixing",
    "layout_violations": "layout",
    "bytes_per_complex": "layout",
    "gradient_norm": "gradients",
    "gradient_norm_min": "gradients",
    "gradient_norm_max": "gradients",
    "peak_memory_recipe_step": "memory",
    "stress_first_non_finite_scale": "stress",
}
"""Metrics that can lack a value, with the key of what it means among the texts `why.<key>`."""


def why(metric: Metric, words: Mapping[str, str]) -> str:
    """Return why there is no value: by its reason or name, unless the words are of the language of records."""
    if words["language"] == RECORDED and (metric.reason or metric.note):
        return metric.reason or metric.note
    return words[f"why.{SENTENCES.get(metric.reason) or KINDS.get(metric.name, 'none')}"]
