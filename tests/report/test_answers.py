"""Answers: sentences made from a record, none from numbers that are not there."""

from __future__ import annotations

import re

import pytest
from builders import stage

from muse.catalog import STAGE_NAMES
from muse.records.schema import Metric
from muse.report import answers
from muse.report.texts import LANGUAGES, texts


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", STAGE_NAMES)
def test_every_stage_can_answer_from_metrics_that_have_names_in_words(name, language):
    words = texts(language)
    templates = [text for key, text in words.items() if re.fullmatch(rf"answer\.{name}(\.\w+)?", key)]
    named = {field for text in templates for field in re.findall(r"\{(\w+)\.", text)}
    plain = {field for field in named if "_ratio_to_" not in field}
    assert plain <= {key.removeprefix("metric.") for key in words}
    metrics = [Metric(name=field, model="m", value=2.0, unit="x", interval=(1.0, 3.0)) for field in named]
    assert len(answers.of_stage(stage(name, metrics=metrics), language)) == len(templates) > 0


def test_a_sentence_is_left_out_where_a_number_is_missing_or_has_no_value():
    values = {"phase2": 50.0, "gpt2": None}
    metrics = [Metric(name="perplexity", model=name, value=value, unit="per token") for name, value in values.items()]
    assert answers.of_stage(stage("perplexity", metrics=metrics, text="wikitext-2-v1")) == [
        "Phase 2: perplexity 50 per token on the test split of wikitext-2-v1."
    ]


def test_the_criteria_that_a_stage_decides_are_said_of_every_candidate():
    peaks = {"stage1": 1.0, "stage1_memory": 3.0, "phase2": 4.0}
    metrics = [Metric(name="peak_memory", model=name, value=value, unit="GiB") for name, value in peaks.items()]
    found = answers.of_stage(stage("memory", metrics=metrics))
    assert [line.split(". ")[0] for line in found] == [
        "Stage 1, GPU memory: pass",
        "Stage 1, GPU memory, recomputed on both sides: not measured",
        "Stage 1 with memory, GPU memory: fail",
        "Stage 1 with memory, GPU memory, recomputed on both sides: not measured",
    ]
    assert "0.2500" in found[0]
    assert [line.lower().count("not measured") for line in found] == [0, 1, 0, 1]
    assert found[1].split("not measured. ")[1][0].isupper()


def test_a_step_of_the_recipe_and_whether_a_small_gpu_can_make_it_are_told():
    metrics = [
        Metric(name="peak_memory_recipe_step", model="stage1", value=9.25, unit="GiB"),
        Metric(name="trains_within_8_gib", model="stage1", value=0.0, unit="1", note="out of memory"),
    ]
    *_, peak, fits = answers.of_stage(stage("memory", metrics=metrics))
    assert "Stage 1: a training step of the recipe peaks at 9.250 GiB" in peak
    assert fits.endswith("0: it runs out of memory): 0.")


def test_a_failed_stage_says_so_before_its_numbers():
    record = stage("memory").model_copy(update={"status": "failed", "error": "out of memory", "metrics": []})
    assert answers.of_stage(record) == ["This stage did not finish: out of memory"]
    assert answers.of_stage(stage("memory").model_copy(update={"metrics": []})) == ["This stage recorded no numbers."]


def test_what_a_record_holds_is_no_markup(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    error = "<script>x</script> [a](javascript:b) `c`"
    answers.show(stage("memory").model_copy(update={"status": "failed", "error": error, "metrics": []}))
    assert shown[0].data == r"- This stage did not finish: \<script\>x\</script\> \[a\](javascript:b) \`c\`"
