"""The question of the complex numbers is answered from the interval, and never from a single pair of seeds."""

from __future__ import annotations

import pytest
from builders import metric, ratio, record, run_notebook, soup, stage, write_run
from companion_builders import make_report, perplexities

from muse.report.companions import Companion
from muse.report.real_baseline import real_baseline_note
from muse.report.texts import LANGUAGES, texts

SEEDS = (1.03, 1.036, 1.039)
CASES = [
    ("better", (1.021, 1.048), SEEDS),
    ("worse", (0.95, 0.999), SEEDS),
    ("no_difference", (0.99, 1.048), SEEDS),
    ("no_difference", (1.0, 1.048), SEEDS),
    ("unknown", (1.021, 1.048), SEEDS[:1]),
    ("unknown", (0.95, 0.999), ()),
    ("better", (1.021, 1.048), SEEDS[:2]),
]
CONCLUSIONS = ("better", "worse", "no_difference", "unknown")


def twin(interval, samples, **more):
    return record(metrics=[ratio("real_twin", 1.034, interval, samples, baseline="stage1_memory")], **more)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("expected", "interval", "samples"), CASES)
def test_the_conclusion_follows_from_the_interval_and_the_number_of_seeds(expected, interval, samples, language):
    text, words = soup(real_baseline_note(twin(interval, samples), language)).text, texts(language)
    assert [case for case in CONCLUSIONS if words[f"real_baseline.{case}"].format(percent="3.4") in text] == [expected]
    assert words["real_baseline.companions"] in text
    assert words["real_baseline.not_isolated"] in text
    assert text.startswith(words["real_baseline.title"])
    for number in (1.034, *interval):
        assert f"{number:g}" in text
    assert words["real_baseline.toy_scale"] not in text
    assert "{" not in text


def test_the_doubt_names_what_the_interval_and_the_seeds_are():
    several = soup(real_baseline_note(twin((1.021, 1.048), SEEDS))).text
    assert "1.034 times" in several
    assert "(95 % over documents and seeds: 1.021 to 1.048; 3 paired seeds: 1.030 to 1.039)" in several
    single = soup(real_baseline_note(twin((1.021, 1.048), SEEDS[:1]))).text
    assert "(95 % over documents: 1.021 to 1.048)" in single
    assert "noise between seeds is not known" in single


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reduced_scale_is_named(language):
    text = soup(real_baseline_note(twin((1.021, 1.048), SEEDS).model_copy(update={"scale": "reduced"}), language)).text
    assert texts(language)["real_baseline.toy_scale"] in text
    assert "oy-scale" in texts("en")["real_baseline.toy_scale"]


def test_without_the_twin_or_its_interval_there_is_no_note():
    assert real_baseline_note(record(metrics=[ratio("real_twin", 1.034, (1.0, 1.1), SEEDS)])) == ""
    changed = ratio("stage1_memory_untied", 1.034, (1.0, 1.1), SEEDS, baseline="stage1_memory")
    assert real_baseline_note(record(metrics=[changed, metric("perplexity", "real_twin", 20.0)])) == ""
    assert real_baseline_note(twin(None, SEEDS)) == ""
    assert real_baseline_note(record(metrics=[ratio("real_twin", None, baseline="stage1_memory")])) == ""


def test_the_share_of_the_gain_that_the_twin_has_is_counted_in_nats():
    against = [ratio("stage1_memory", 0.81, None, SEEDS), ratio("real_twin", 0.9, None, SEEDS)]
    text = soup(real_baseline_note(record(metrics=[*twin((1.021, 1.048), SEEDS).metrics, *against]))).text
    assert "0.810 times with complex numbers and 0.900 times with real ones: 50 % of the gain" in text


@pytest.mark.parametrize("twin_ratio", [None, 1.0, 1.2])
def test_without_a_gain_of_both_over_phase_2_there_is_no_share(twin_ratio):
    against = [ratio("stage1_memory", 0.81, None, SEEDS), ratio("real_twin", twin_ratio, None, SEEDS)]
    text = soup(real_baseline_note(record(metrics=[*twin((1.021, 1.048), SEEDS).metrics, *against]))).text
    assert "Phase 2" not in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("low", "missed"), [(0.98, False), (1.01, True)])
def test_companions_that_take_complex_parts_away_are_quoted_with_their_conclusion(low, missed, language):
    parts = {"stage1_memory_no_rotation": (0.99, 1.01), "stage1_memory_real_scores": (low, 1.03)}
    ratios = [ratio(model, 1.02, interval, SEEDS, baseline="stage1_memory") for model, interval in parts.items()]
    ratios.append(ratio("stage1_memory_untied", 1.1, (1.09, 1.12), SEEDS, baseline="stage1_memory"))
    companion = Companion("ablations", make_report(ratios))
    text, words = soup(real_baseline_note(twin((1.021, 1.048), SEEDS), language, [companion])).text, texts(language)
    assert "ablations" in text
    for model, (least, most) in parts.items():
        low_end, high_end = f"{least:.3f}", f"{most:.3f}"
        told = words["real_baseline.part"].format(
            part=words[f"model.{model}"], value="1.020", low=low_end, high=high_end, n=3
        )
        assert told in text
    assert words["model.stage1_memory_untied"] not in text
    assert (words["real_baseline.none_missed"] in text) != missed
    assert words["real_baseline.companions"] not in text
    assert "{" not in text


def test_companions_without_complex_parts_are_not_quoted():
    other = Companion("lengths", make_report(perplexities()))
    found = twin((1.021, 1.048), SEEDS)
    assert real_baseline_note(found, companions=[other]) == real_baseline_note(found)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_report_answers_above_the_figures_of_its_results(tmp_path, monkeypatch, language):
    words = texts(language)
    write_run(tmp_path, stage(metrics=twin((1.021, 1.048), SEEDS).metrics))
    main = soup(run_notebook(tmp_path, language, monkeypatch).read_text()).main
    heading = [h for h in main.select("h3") if h.text == words["stage.perplexity"]][-1]
    note = heading.find_next(class_="muse-note")
    assert words["real_baseline.better"].format(percent="3.4") in note.text
    assert note.find_next("figure") is main.select_one("figure")
    write_run(tmp_path, stage())
    assert words["real_baseline.title"] not in run_notebook(tmp_path, language, monkeypatch).read_text()
