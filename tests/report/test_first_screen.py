"""The first screen: which sentence answers, what the table of models shows, and what is unknown."""

from __future__ import annotations

import pytest
from builders import make_report, metric, ratio, run_info, soup, stage

from muse import catalog
from muse.records.criteria import CRITERIA
from muse.records.schema import Criterion, Judged, Metric, Report, Summary
from muse.report import first_screen, page
from muse.report.texts import LANGUAGES, texts

PEAKS = {"stage1": 0.4, "stage1_memory": 0.8, "stage1_compact": 0.3, "phase2": 1.0}
RATIOS = {"stage1": (2.3, (2.2, 2.4)), "stage1_memory": (0.92, (0.91, 0.93)), "stage1_compact": (0.95, (0.94, 0.96))}


def judged(model, perplexity, vram, rest="pass", basis="measured"):
    verdicts = dict.fromkeys(CRITERIA, rest) | {"perplexity": perplexity, "vram": vram}
    values = {"perplexity": RATIOS[model][0], "vram": PEAKS[model]}
    criteria = [
        Criterion(name=name, target="t", value=values.get(name), verdict=verdict, reason="r",
                  basis=basis if name == "vram" else "measured")
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    return Judged(model=model, criteria=criteria, summary=Summary())


def report(*candidates, twin=None, **run):
    """A comparison of four models, with a peak of memory twice as high where nothing is recomputed."""
    peaks = [metric("peak_memory", model, value, "GiB") for model, value in PEAKS.items()]
    peaks += [metric("peak_memory_recomputed", model, 0.5, "GiB") for model in ("stage1_compact", "phase2")]
    quality = [ratio(model, value, interval, samples=[value] * 2) for model, (value, interval) in RATIOS.items()]
    quality += [] if twin is None else [twin]
    speed = [metric("throughput_logits", "stage1", 1234567.0, "tokens/s")]
    stages = [stage("perplexity", metrics=quality, text="a text"), stage("memory", metrics=peaks),
              stage("throughput", metrics=speed)]  # fmt: skip
    params = {"models": [*PEAKS], "train_tokens": 5000, "seeds": [0, 1]}
    return Report.of(run_info(params=params, **run), list(candidates), stages)


def twin_of_compact(value, interval, samples=2):
    return ratio("real_twin_compact", value, interval, samples=[value] * samples, baseline="stage1_compact")


def test_one_model_that_keeps_both_promises_is_the_answer():
    found = first_screen.answer(report(judged("stage1", "fail", "pass"), judged("stage1_compact", "pass", "pass")))
    assert found[0].startswith("Stage 1 compact keeps both promises: 0.950 (0.940 – 0.960) times Phase 2's perplexity")
    assert "0.300 times its GPU memory" in found[0]
    assert found[1].startswith("What makes it so for Stage 1 compact, each part given to both sides or to neither: 1")
    assert "1.000 times the GPU memory where both sides recompute" in found[1]
    assert "2.300 times Phase 2's perplexity without the complex memory" in found[1]
    assert "low-rank" not in found[1], "that was not measured"
    partly = first_screen.answer(report(judged("stage1_compact", "pass", "pass", rest="not_measured")))[0]
    assert "all five" not in partly
    assert "What does not pass: Numerical stability" in partly


def test_parts_are_given_to_both_sides_where_that_was_measured():
    made = report(judged("stage1_compact", "pass", "pass"))
    more = [metric("peak_memory_ratio_to_phase2_bfloat16", "stage1_compact", 0.55),
            ratio("stage1_compact", 0.83, (0.82, 0.84), baseline="phase2_compact")]  # fmt: skip
    stages = [one.model_copy(update={"metrics": [*one.metrics, *more]}) for one in made.stages]
    said = first_screen.answer(made.model_copy(update={"stages": stages}))[1]
    assert "0.550 where Phase 2 is stored in half precision too" in said
    assert "0.830 times the perplexity where Phase 2 has the low-rank table too" in said


def test_two_models_that_keep_one_promise_each_are_no_answer():
    kept = [judged("stage1", "fail", "pass"), judged("stage1_memory", "pass", "fail")]
    found = first_screen.answer(report(*kept))[0]
    assert found.startswith("No model keeps both promises")
    assert "Stage 1 2.300 (2.200 – 2.400) and 0.400" in found
    assert "Stage 1 with memory 0.920 (0.910 – 0.930) and 0.800" in found
    parts = first_screen.answer(report(judged("stage1_compact", "fail", "pass")))[1]
    assert parts.startswith("Each part given to both sides or to neither, for Stage 1 compact")


def test_what_is_not_measured_or_estimated_decides_nothing():
    found = first_screen.answer(report(judged("stage1_compact", "pass", "not_measured", basis="estimate")))[0]
    assert found.startswith("This run does not decide")
    assert "0.300 (estimate)" in found
    assert first_screen.answer(make_report()) == []


@pytest.mark.parametrize(("interval", "samples", "said"), [
    ((1.01, 1.03), 2, "help by 2 %"), ((0.99, 1.03), 2, "no difference that is seen"), ((1.01, 1.03), 1, "is open"),
])  # fmt: skip
def test_complex_numbers_are_judged_by_the_interval_of_the_twin_and_its_seeds(interval, samples, said):
    twin = twin_of_compact(1.02, interval, samples)
    found = first_screen.answer(report(judged("stage1_compact", "pass", "pass"), twin=twin))[-1]
    assert said in found
    assert f"{interval[0]:.3f} – {interval[1]:.3f}" in found
    worse = twin_of_compact(0.98, (0.97, 0.99))
    assert "cost 2 %" in first_screen.answer(report(judged("stage1_compact", "pass", "pass"), twin=worse))[-1]
    assert "not asked" in first_screen.answer(report(judged("stage1", "fail", "pass"), twin=twin))[-1]


def test_the_table_has_every_model_once_and_the_verdicts_in_words():
    table = soup(first_screen.models_table(report(judged("stage1", "fail", "pass"))))
    rows = [[cell.get_text("|", strip=True) for cell in row.select("td")] for row in table.select("tbody tr")]
    assert [row[0] for row in rows] == ["Stage 1", "Phase 2", "Stage 1 with memory", "Stage 1 compact"]
    assert rows[0][1:5] == ["2.300 (2.200 – 2.400)", "0.400", "not measured", "1,234,567"]
    assert rows[0][5].endswith("4 of 5 pass|Perplexity: fail")
    assert rows[1][1:4] == ["1", "1", "1"]
    assert rows[3][3] == "1.000"
    assert rows[3][5] == "not asked"
    assert "training step" not in table.select_one("thead").text, "no model has it"
    assert len(table.select(".muse-badge.fail")) == 1


def test_the_line_of_the_run_says_what_is_unknown():
    line = first_screen.run_line(report(judged("stage1", "fail", "pass"), git_commit=None, git_dirty=None))
    assert "a text · 5,000 training tokens · seeds: 2 · " in line
    assert "commit unknown (unknown whether the tree was clean)" in line
    dirty = first_screen.run_line(report(judged("stage1", "fail", "pass"), git_commit="0123456789", git_dirty=True))
    assert "commit 0123456 (with uncommitted changes)" in dirty


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_model_of_a_comparison_and_every_word_is_explained(language):
    words = texts(language)
    assert not [name for name in catalog.COMPARED if f"about.{name}" not in words]
    page = soup(first_screen.about(report(judged("stage1", "fail", "pass")), language))
    assert len(page.select("details")) == 4
    assert len(page.select("details")[0].select("tr")) == len(PEAKS)
    assert len(page.select("details")[1].select("tr")) == len(first_screen.GLOSSARY)


def test_a_twin_has_the_wiring_of_a_candidate():
    twins = [row for row in catalog.MODELS if row.twin_of]
    assert twins
    assert all(row.twin_of in catalog.CANDIDATES and row.twin_of in row.baselines for row in twins)


def test_metrics_of_a_failed_stage_are_not_shown():
    broken = report(judged("stage1", "fail", "pass"))
    failed = stage("perplexity", status="failed", error="e", metrics=[Metric(name="x", value=1.0, unit="1")])
    found = Report.of(broken.run, broken.judged, [failed, *broken.stages[1:]])
    assert "2.300 (" not in first_screen.models_table(found)


def counting_report(metrics, stages=("counting",)):
    run = run_info(params={"stages": list(stages), "counting_seeds": [0, 1, 2], "counting_steps": 4000})
    return make_report([stage("counting", metrics=metrics)], run)


def counted(cell, score, skewed, solved):
    values = {"score": score, "skewed": skewed}
    return [*(metric(f"counting_{name}", cell, value) for name, value in values.items()),
            metric("counting_solved", cell, solved, n=3)]  # fmt: skip


def test_a_run_that_only_counts_is_asked_who_counts():
    found = {"complex_angles mod3": (1.0, 0.5, 3), "complex_angles mod7": (0.9, 0.5, 2)}
    found |= {"complex_angles mod2": (0.1, 0.0, 1), "gru s3": (1.0, 1.0, 3)}
    found |= {"real_signed mod3": (0.6, -0.001, 0), "real_decay mod3": (0.2, 0.01, 0)}
    made = counting_report([one for cell, values in found.items() for one in counted(cell, *values)])
    who, theory = first_screen.answer(made)
    assert who.endswith("Complex, angles by the token (sums modulo 3, 7); GRU (products in S3).")
    assert "is 0.60, and 0.01 where" in theory  # of those that can only guess
    assert "4,000 steps a training · seeds: 3" in first_screen.run_line(made)
    assert first_screen.models_table(made) == ""
    title = soup(page.lead(made)).h1
    assert (title.text, title["data-question"]) == ("Where does a recurrence need complex numbers?", "counting")
    assert "promise" in soup(page.lead(counting_report([], ("counting", "memory")))).h1.text
    assert first_screen.answer(counting_report([])) == []
