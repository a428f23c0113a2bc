"""The counting bench on pages: heat maps with numbers, learned angles, answers, in each language."""

from __future__ import annotations

import pytest
from builders import run_info, soup, stage
from japanese import english_in

from muse.catalog import page
from muse.counting.bench import Cell, Missing
from muse.counting.learning import Job, Outcome
from muse.records.store import write_record
from muse.report import answers, figures, stage_page
from muse.report.arms import arm_label
from muse.report.figures.style import style
from muse.report.texts import texts


def outcome(task, arm, scores, rate=1e-3, seed=0, angles=()):
    job = Job(task, arm, rate, seed, 16, 16, 1, 2, 2, 60, (60, 120, 240), 4)
    return Outcome(job, 1.0, scores, tuple(score / 4 for score in scores), (0.5, 0.1), 100, 2.0, False, angles)


@pytest.fixture(scope="module")
def record():
    """Two arms on two tasks, one of which turns."""
    turned = ((0.0, 0.1), (2.1, 0.2), (4.2, 0.3))
    found = []
    for task, arm, angles in (("mod3", "complex_angles", turned), ("mod3", "gru", ()), ("s3", "gru", ())):
        runs = [outcome(task, arm, scores, seed=seed, angles=angles)
                for seed, scores in enumerate(((1.0, 0.75, 0.5), (1.0, 1.0, 1.0)))]  # fmt: skip
        found.append(Cell(task, arm, (outcome(task, arm, ()), outcome(task, arm, (), 3e-3)), tuple(runs)))
    return stage("counting", metrics=[m for cell in found for m in cell.metrics()],
                 series=[s for cell in found for s in cell.series()])  # fmt: skip


def test_a_heat_map_for_each_task_says_in_numbers_what_it_colours(record):
    sums, skewed, tries, turns, products, *_ = figures.of_stage(record)
    assert list(skewed.data[0].text[0]) == ["0.25", "0.22", "0.19"]
    assert skewed.layout.title.text == "Who counts where one token is frequent: sums modulo 3"
    assert (sums.layout.title.text, products.layout.title.text) == (
        "Who counts: sums modulo 3", "Who counts: products in S3"
    )  # fmt: skip
    (cells,) = sums.data
    assert [list(row) for row in cells.text] == [["1.00", "0.88", "0.75"]] * 2
    assert (list(cells.x), cells.texttemplate) == (["60", "120", "240"], "%{text}")
    assert list(sums.layout.yaxis.ticktext) == [
        "Complex, angles by the token · theory: counts · 1 of 2", "GRU · theory: counts · 1 of 2"
    ]  # fmt: skip
    assert [list(row) for row in tries.data[0].text] == [["1.00 ✓", "1.00"]] * 2
    assert (list(tries.data[0].x), tries.layout.title.text) == (["0.001", "0.003"], "Every try: sums modulo 3")
    assert "1.00, 0.88, 0.75" in sums.layout.meta["alt"]
    assert [line.y0 for line in turns.layout.shapes] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert list(turns.data[0].y) == pytest.approx([0, 0.01592, 0.33423, 0.03183, 0.66845, 0.04775], abs=1e-4)
    assert "the plane that turns best is off by" in turns.layout.meta["caption"]


def test_a_score_below_guessing_has_a_minus_and_zero_none(record):
    below = [one.model_copy(update={"y": [1.0, -0.001, -0.25]}) for one in record.series if "score" in one.name]
    first, *_ = figures.of_stage(record.model_copy(update={"series": below}))
    assert list(first.data[0].text[0]) == ["1.00", "0.00", "−0.25"]


def test_answers_are_of_every_arm_and_task(record):
    found = answers.of_stage(record)
    assert len(found) == 7
    assert found[0].startswith("Complex, angles by the token, sums modulo 3: score 0.75 at four times the training")
    assert "1 of 2 seeds count" in found[0]
    assert "score 0.19 at that length where three tokens of four are the same one" in found[1]
    assert "breaks a sum after about" in found[2]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_what_has_not_been_run_is_said_as_missing_and_drawn_nowhere(record, language):
    missing = Missing("mod3", "counts", 3, 8).metrics()
    part = record.model_copy(update={"metrics": [*record.metrics, *missing]})
    told = {"en": "3 of 8 trainings have not been run", "ja": "8 回の学習のうち 3 回がまだ実行されていない"}[language]
    (said,) = set(answers.of_stage(part, language)) - set(answers.of_stage(record, language))
    assert told in said
    assert [figure.to_json() for figure in figures.of_stage(part, language)] == [
        figure.to_json() for figure in figures.of_stage(record, language)
    ]  # fmt: skip
    alone = stage("counting", metrics=missing)
    assert figures.of_stage(alone, language) == []
    assert answers.of_stage(alone, language) == [said]


def test_arms_tasks_and_tries_have_names_in_words():
    assert arm_label("gru mod7", "en") == "GRU, sums modulo 7"
    assert style("real_decay s3 0.003").label == "Real, decays in (0, 1), products in S3, learning rate 0.003"
    assert arm_label("gru", "en") is arm_label("stage1", "en") is arm_label("gpt2 mod3", "en") is None
    assert "7 を法とする和" in arm_label("gru mod7", "ja")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_answers_a_sceptic_and_shows_every_try(record, language, tmp_path):
    write_record(run_info(params={"stages": ["counting"]}), tmp_path / "run.json")
    write_record(record, tmp_path / "records" / "counting.json")
    stage_page.write(tmp_path, "counting", [], language)
    text = (tmp_path / page("counting")).read_text(encoding="utf-8")
    shown = soup(text)
    assert {"en": "Parity proves nothing", "ja": "偶奇は何の証拠にもならず"}[language] in shown.main.text
    tries = [row for row in shown.select("table tbody tr") if texts(language)["metric.counting_try"] in row.text]
    assert len(tries) == 6
    if language == "ja":
        assert english_in(text, "GRU") == []
        assert not shown.select("table [lang=en]")
