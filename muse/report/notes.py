"""How a metric was measured, in a language, from the fields of its record and never from a sentence.

Records have a note in English, which an English page shows as it is; for any other language, and where there is no
note, the texts `note.<key>` say it. A text that asks for a field which the record lacks is left out. Of a metric that
no row knows, the record's own sentence is shown, marked as English.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator

from markupsafe import Markup

from muse.records.reasons import RECORDED, why
from muse.records.schema import Metric, StageRecord

from .numbers import RATIO, number
from .texts import join, texts

PEAK = "(peak|held|reserved)_memory"
KINDS = (
    (rf"perplexity(_without_unk)?{RATIO}.*", ("perplexity_ratio", "paired_seeds", "over")),
    (rf".*{RATIO}.*", ("ratio",)),
    (r"ensemble_(?!trainings).*", ("ensemble", "split", "over")),
    (r"(perplexity|loss)_(float32|bfloat16)", ("form", "split", "over")),
    (r".*perplexity_without_unk", ("without_unk", "seeds", "split", "over")),
    (r"(uniform|floor|bigram_floor)_perplexity", ("floors",)),
    (r"((word|byte|character)_)?perplexity|loss|bits_per_byte|num_targets|ensemble_trainings",
     ("seeds", "split", "over")),
    (r"parameter_memory.*", ("parameter_bytes",)),
    (r"causality_violations", ("causality",)),
    (r"mixing", ("mixing",)),
    (r"state_violations", ("state",)),
    (rf"{PEAK}_(training_step|training_step_adamw|with_optimizer)", ("two_steps", "source")),
    (r"peak_memory_recipe_step", ("recipe_step", "source")),
    (rf"{PEAK}.*", ("pass", "source")),
    (r"trains_within_8_gib", ("small_gpu",)),
    (r"throughput_.*", ("timed",)),
    (r"flops_per_token", ("flops",)),
    (r"matrix_ceiling|copy_ceiling|ceiling_share|loss_scale", ("own",)),
    (r"(nan|infinite)_logits", ("logits",)),
    (r"gradient_norm.*", ("norms",)),
    (r"parameters_with.*_gradient", ("labels",)),
    (r"non_finite_trials", ("stability",)),
    (r"stress_first_non_finite_scale", ("stress",)),
    (r"layout_violations|bytes_per_complex", ("layout",)),
    (r"(imaginary_energy_share|phase_spread|memory_half_life|memory_read_share).*", ("median",)),
    (r"validation_loss", ("mean_of_best",)),
    (r"tried_validation_loss", ("best_of",)),
    (r"common_regret", ("regret",)),
    (r"common_.*", ("common",)),
    (r"learning_rate|dropout|batch_tokens|(muon_)?weight_decay", ("chosen",)),
    (r"best_step|training_.*", ("first_seed",)),
    (r"counting_.*", ("own",)),
    (r"bench_.*_speed", ("bench",)),
)
"""What is said of metrics by name: keys of texts, or of what decides on one; the first row that fits counts."""


def note(metric: Metric, stage: StageRecord, language: str) -> str:
    """Return how the metric was measured, or why it has no value."""
    words = texts(language)
    if words["language"] == RECORDED and metric.note:
        return metric.note
    if metric.value is None:
        return why(metric, words)
    said = [words["note.untrained"]] if metric.trained is False else []
    keys = next((keys for form, keys in KINDS if re.fullmatch(form, metric.name)), None)
    if keys is None:
        return Markup('<span lang="{}">{}</span>').format(RECORDED, metric.note) if metric.note else ""
    fields = _fields(metric, stage, language)
    for key in (decided for told in keys for decided in _decided(told, metric, stage)):
        try:
            said.append(words[f"note.{key}"].format_map(fields))
        except KeyError:  # a field that this record does not have
            continue
    return join(language, said)


def _decided(key: str, metric: Metric, stage: StageRecord) -> Iterator[str]:
    """The keys of texts that a row's key stands for, given the record."""
    if key == "over":
        if metric.interval is not None:
            yield "over_documents_and_seeds" if len(metric.samples) > 1 else "over_documents"
    elif key == "split":
        yield "test_part" if stage.params.get("max_ppl_batches") else "test_split"
    elif key == "source":
        yield "allocator" if metric.basis == "measured" else "live_tensors"
    elif key == "labels":
        yield "named" if metric.labels else "none_of"
    elif key == "floors":
        yield metric.name.removesuffix("_perplexity")
    elif key == "own":
        yield metric.name
    else:
        yield key


def _fields(metric: Metric, stage: StageRecord, language: str) -> dict[str, object]:
    """What a text can name: the settings of the stage, and of the metric what it has."""
    measured, _, baseline = metric.name.partition(RATIO)
    sides = [stage.find(measured, model) for model in (metric.model, baseline)]
    found = {key: value for key, value in stage.params.items() if value is not None} | {"n": number(metric.n)}
    if all(side and side.value is not None for side in sides):
        found |= dict(zip(("ours", "theirs"), (number(side.value) for side in sides), strict=True))
    if len(metric.samples) > 1 and all(label.startswith("seed ") for label in metric.labels):
        found |= {"seeds": len(metric.samples), "sd": number(statistics.stdev(metric.samples))}
    if metric.labels:
        found["names"] = join(language, metric.labels)
    if form := re.search(r"_(float32|bfloat16)$", metric.name):
        found["form"] = form[1]
    return found
