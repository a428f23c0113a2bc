"""Why a metric has no value, in a language: the record's own sentence in English, else the text of its kind."""

from __future__ import annotations

from collections.abc import Mapping

from .schema import Metric

RECORDED = "en"
"""The language of the sentences in records."""

KINDS = {
    "perplexity": "perplexity",
    "loss": "perplexity",
    "word_perplexity": "whole_split",
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
    """Return why there is no value: by the metric's name, unless the words are of the language of records."""
    if words["language"] == RECORDED and (metric.reason or metric.note):
        return metric.reason or metric.note
    return words[f"why.{KINDS.get(metric.name, 'none')}"]
