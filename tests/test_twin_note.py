"""The question of the complex numbers is answered from the interval, and never from a single pair of seeds."""

from __future__ import annotations

import pytest
from test_figures import metric, record
from test_ratio_figures import ratio
from test_report import run_notebook, soup, stage, write_run

from muse.texts import LANGUAGES, texts
from muse.twin_note import twin_note

SEEDS = (1.03, 1.036, 1.039)
CASES = [
    ("help", (1.021, 1.048), SEEDS),
    ("harm", (0.95, 0.999), SEEDS),
    ("no_difference", (0.99, 1.048), SEEDS),
    ("no_difference", (1.0, 1.048), SEEDS),
    ("unknown", (1.021, 1.048), SEEDS[:1]),
    ("unknown", (0.95, 0.999), ()),
    ("help", (1.021, 1.048), SEEDS[:2]),
]
CONCLUSIONS = ("help", "harm", "no_difference", "unknown")


def twin(interval, samples, **more):
    return record(metrics=[ratio("real_twin", 1.034, interval, samples, baseline="stage1_memory")], **more)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("expected", "interval", "samples"), CASES)
def test_the_conclusion_follows_from_the_interval_and_the_number_of_seeds(expected, interval, samples, language):
    text, words = soup(twin_note(twin(interval, samples), language)).text, texts(language)
    assert [case for case in CONCLUSIONS if words[f"twin.{case}"] in text] == [expected]
    assert words["twin.not_isolated"] in text
    assert text.startswith(words["twin.title"])
    for number in (1.034, *interval):
        assert f"{number:g}" in text
    assert words["twin.toy_scale"] not in text
    assert "{" not in text


def test_the_doubt_names_what_the_interval_and_the_seeds_are():
    several = soup(twin_note(twin((1.021, 1.048), SEEDS))).text
    assert "1.034 times" in several
    assert "(95 % over documents and seeds: 1.021 to 1.048; 3 paired seeds: 1.03 to 1.039)" in several
    single = soup(twin_note(twin((1.021, 1.048), SEEDS[:1]))).text
    assert "(95 % over documents: 1.021 to 1.048)" in single
    assert "noise between seeds is not known" in single


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reduced_scale_is_named(language):
    text = soup(twin_note(twin((1.021, 1.048), SEEDS).model_copy(update={"scale": "reduced"}), language)).text
    assert texts(language)["twin.toy_scale"] in text
    assert "oy-scale" in texts("en")["twin.toy_scale"]


def test_without_the_twin_or_its_interval_there_is_no_note():
    assert twin_note(record(metrics=[ratio("real_twin", 1.034, (1.0, 1.1), SEEDS)])) == ""
    changed = ratio("stage1_memory_untied", 1.034, (1.0, 1.1), SEEDS, baseline="stage1_memory")
    assert twin_note(record(metrics=[changed, metric("perplexity", "real_twin", 20.0)])) == ""
    assert twin_note(twin(None, SEEDS)) == ""
    assert twin_note(record(metrics=[ratio("real_twin", None, baseline="stage1_memory")])) == ""


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_report_answers_above_the_figures_of_its_results(tmp_path, monkeypatch, language):
    words = texts(language)
    write_run(tmp_path, stage(metrics=twin((1.021, 1.048), SEEDS).metrics))
    main = soup(run_notebook(tmp_path, language, monkeypatch).read_text()).main
    heading = [h for h in main.select("h3") if h.text == words["stage.perplexity"]][-1]
    note = heading.find_next(class_="muse-note")
    assert words["twin.help"] in note.text
    assert note.find_next("figure") is main.select_one("figure")
    write_run(tmp_path, stage())
    assert words["twin.title"] not in run_notebook(tmp_path, language, monkeypatch).read_text()
