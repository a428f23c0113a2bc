"""A Japanese report is Japanese: no word of any page is English but names, code, and texts that are marked as such."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import metric, record, run_info, run_notebook, soup, stage, write_run
from japanese import english_in

from muse.catalog import COUNTING, STAGE_NAMES, page
from muse.records.losses import write_losses
from muse.records.schema import Metric
from muse.records.store import write_record
from muse.records.text_sample import TextSample, Window, write_sample
from muse.report import compare, compare_tables, notes, run_list, runs, stage_page, text_page, texts
from muse.report.figures.style import metric_label
from muse.report.frame import page_text
from muse.report.typography import typeset_text

REPORTS = Path(__file__).parent.parent.parent / "reports"
COMPANIONS = "gpu(-ablations|-again|-length-\\d+|-on-kjv-gospels-acts)?|kjv-gospels-acts|other|test"
WORDS = "python|muse-workbook|torch|numpy|transformers|datasets|papermill|nbconvert|plotly|triton"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The committed report, with companions and a stage that failed."""
    folder = tmp_path_factory.mktemp("reports") / "gpu"
    (folder / "companions").mkdir(parents=True)
    texts = "companions/gpu-on-kjv-gospels-acts.json"
    for name in ("run.json", "companions/gpu-again.json", texts):
        shutil.copy(REPORTS / "gpu" / name, folder / name)
    shutil.copy(REPORTS / "gpu-adamw" / "companions" / "gpu-ablations.json", folder / "companions")
    report = json.loads((REPORTS / "gpu" / "report.json").read_text(encoding="utf-8"))
    for one in report["stages"]:
        one["series"] = [line | {axis: line[axis][::16] for axis in "xy"} for line in one.get("series", [])]
        if one["stage"] == "basic_test":
            one |= {"status": "failed", "error": "ValueError: an English error"}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", [name for name in STAGE_NAMES if name != COUNTING])
def test_a_stage_page_has_its_question_answer_and_numbers_in_japanese(made, name):
    links = [("レポート", "../index.html"), (texts.texts("ja")[f"stage.{name}"], f"../{page(name)}")]
    stage_page.write(made, name, links, "ja")
    text = (made / page(name)).read_text(encoding="utf-8")
    assert english_in(text, COMPANIONS) == []
    shown = soup(text)
    assert not shown.select("table [lang=en], .muse-notes [lang=en]"), "a metric whose note is only in English"
    assert texts.texts("ja")[f"stage_page.{name}.question"] in shown.main.text
    assert len(shown.select("nav a[aria-current=page]")) == 1
    assert shown.h2.text == "答え"
    assert shown.select("table tbody tr")


def test_the_first_page_is_japanese(made, monkeypatch):
    text = run_notebook(made, "ja", monkeypatch).read_text(encoding="utf-8")
    assert english_in(text, f"{COMPANIONS}|{WORDS}|A title") == []


def test_the_error_of_a_stage_is_marked_as_english_in_the_reasons(tmp_path, monkeypatch):
    write_run(tmp_path, stage("memory", status="failed", error="OutOfMemoryError: no\n room"))
    text = run_notebook(tmp_path, "ja", monkeypatch).read_text(encoding="utf-8")
    assert "OutOfMemoryError: no room" in soup(text).select_one("[data-criterion=vram] .reason [lang=en]").text
    assert english_in(text, f"{COMPANIONS}|{WORDS}|A title|quick|slow|abc123") == []


def test_lists_and_comparisons_of_runs_are_japanese(made):
    run = replace(runs.read_run(made), name="gpu")
    other = run.report.model_copy(update={"run": run.report.run.model_copy(update={"git_commit": None})})
    found = [run, replace(run, name="other", report=other)]
    compare_tables.page(compare.compare(found), made.parent / "compare.html", "ja")
    run_list.write_index(found[:1], made.parent, "ja")
    for name in ("compare.html", "index.html"):
        assert english_in((made.parent / name).read_text(encoding="utf-8"), COMPANIONS) == []


def test_the_page_of_text_is_japanese_around_its_text(tmp_path):
    documents = np.repeat(np.arange(2, dtype=np.int32), 3)
    losses = {"stage1_memory": np.arange(6.0), "phase2": np.ones(6)}
    artifacts = [write_losses(tmp_path, name, {0: values}, documents) for name, values in losses.items()]
    windows = [Window(document=1, first=3, pieces=[" an", " English", " text"])]
    models = {"candidate": "stage1_memory", "baseline": "phase2"}
    sample = TextSample(**models, titles=["One", "Two"], gains=windows, losses=windows)
    write_record(run_info(params={"stages": ["perplexity"]}), tmp_path / "run.json")
    kept = record("perplexity", metrics=[metric("perplexity")], artifacts=artifacts)
    write_record(kept, tmp_path / "records" / "perplexity.json")
    write_sample(tmp_path, sample)
    assert text_page.write(tmp_path, "ja")
    assert english_in((tmp_path / "text.html").read_text(encoding="utf-8"), "Two") == [], "but in the table of contents"


def page_of(main):
    return page_text(soup(main), "題", links=[], language="ja", here="")


@pytest.mark.parametrize(
    "main",
    [
        "<main id='content'><p>値は measured です</p></main>",
        "<main id='content'><p title='Link to figure'>値</p></main>",
        "<main id='content'><script type='application/json'>{\"name\": \"peak memory\"}</script></main>",
    ],
)
def test_english_is_found_wherever_it_stands(main):
    assert english_in(page_of(main))
    assert english_in(page_of("<main id='content'><code>muse run</code><p>Stage 1</p></main>")) == []


@pytest.mark.parametrize("key", ["unit.nat/token", "metric.loss", "hardware.cores", "stage.memory", "setting.corpus"])
def test_a_text_that_is_missing_shows(made, key, monkeypatch):
    """Names without a text stand as the record has them."""
    words = {other: text for other, text in texts.texts("ja").items() if other != key}
    monkeypatch.setattr(texts, "texts", lambda language: words)
    kind, _, name = key.partition(".")
    told = {"unit": texts.unit_label, "stage": lambda name, _: texts.stage_title(name, words)}
    said = told[kind](name, "ja") if kind in told else words.get(key, name)
    assert english_in(page_of(f"<main id='content'><p>{said}</p></main>"))


@pytest.mark.parametrize(
    ("written", "better"),
    [
        ("実数版モデル の値", "実数版モデルの値"),
        ("損失 (nat)", "損失（nat）"),
        ("値: 1、 2", "値：1、2"),
        ("Stage 1 の値", "Stage 1 の値"),
        ("Stage 1 (a): b", "Stage 1 (a): b"),
    ],
)
def test_japanese_has_full_width_signs_and_no_stray_spaces(written, better):
    assert typeset_text(written, "ja") == better
    assert typeset_text(written, "en") == written


def test_code_and_foreign_text_keep_their_spaces_and_signs():
    shown = soup(page_of("<main id='content'><pre>値: 1</pre><p lang='en'>値 (a)</p><p>値 (a)</p></main>"))
    assert [tag.text for tag in shown.select("pre, p")] == ["値: 1", "値 (a)", "値（a）"]


def test_a_note_is_made_of_fields_and_never_of_the_sentence(made):
    measured = runs.read_run(made).report.stages[3]
    found = measured.find("perplexity", "phase2")
    said = notes.note(found, measured, "ja")
    assert said.startswith("5 シードの平均、標準偏差 ")
    assert said.endswith("テスト分割、区間は文書とシードを再標本化")
    assert notes.note(found.model_copy(update={"note": "anything"}), measured, "ja") == said
    assert notes.note(found, measured, "en") == found.note


def test_a_metric_that_nobody_knows_keeps_its_note_marked_as_english(made):
    measured = runs.read_run(made).report.stages[3]
    odd = Metric(name="oddity", value=1.0, unit="1", note="as it <was>")
    assert notes.note(odd, measured, "ja") == '<span lang="en">as it &lt;was&gt;</span>'
    assert metric_label("oddity", "ja") == "oddity"
