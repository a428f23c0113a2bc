"""Verdicts from constructed records: what passes, what fails, and above all what is not measured."""

from __future__ import annotations

import math
import string

import pytest
from builders import basic_test_record

from muse.records import criteria
from muse.records.criteria import CRITERIA, summarise
from muse.records.environment import utc_now
from muse.records.scale import reductions_of
from muse.records.schema import Metric, StageRecord
from muse.report.texts import texts

NAN, INF = math.nan, math.inf


def record(stage, *metrics, **changes):
    now = utc_now()
    fields = {"started_utc": now, "finished_utc": now, "scale": "published", "metrics": list(metrics)} | changes
    return StageRecord(stage=stage, **fields)


def judge(stages, language="en", **options):
    return criteria.judge(stages, texts(language), **options)


def metric(name, model, value, **changes):
    return Metric(**{"name": name, "model": model, "value": value, "unit": "", "n": 1} | changes)


def perplexity_record(
    ours=103.0, theirs=100.0, causality=(0, 0), trained=(True, True), samples=((), ()), labels=((), ()), **changes
):
    metrics = []
    for model, value, violations, known, raw, names in zip(
        ("stage1", "phase2"), (ours, theirs), causality, trained, samples, labels, strict=True
    ):
        if value != "missing":
            metrics.append(metric("perplexity", model, value, trained=known, samples=list(raw), labels=list(names)))
        if violations != "missing":
            metrics.append(metric("causality_violations", model, violations))
    return record("perplexity", *metrics, **changes)


def memory_record(ours=0.52, theirs=1.0, bases=("measured", "measured"), **changes):
    pairs = zip(("stage1", "phase2"), (ours, theirs), bases, strict=True)
    metrics = [metric("peak_memory", m, v, basis=b, unit="GiB") for m, v, b in pairs if v != "missing"]
    return record("memory", *metrics, **changes)


def health_record(drop=(), **changes):
    metrics = {
        "non_finite_trials": metric("non_finite_trials", "stage1", 0, n=100),
        "gradient_norm": metric("gradient_norm", "stage1", 1e3, n=2, samples=[1e-6, 1e3], labels=["low", "high"]),
        "parameters_without_gradient": metric("parameters_without_gradient", "stage1", 0),
        "layout_violations": metric("layout_violations", "stage1", 0),
        "bytes_per_complex": metric("bytes_per_complex", "stage1", 4),
    }
    metrics |= {name: metrics[name].model_copy(update=update) for name, update in changes.items()}
    return record("gradients_stability", *(m for name, m in metrics.items() if name not in drop))


def verdict(name, *records, **options):
    return next(c for c in judge(records, **options) if c.name == name)


def test_a_good_run_passes_everywhere_and_exactly_on_the_limits():
    found = judge([perplexity_record(), memory_record(), health_record()])
    assert [c.name for c in found] == list(CRITERIA)
    assert [c.verdict for c in found] == ["pass"] * 5
    assert [c.basis for c in found] == ["measured"] * 5
    assert found[0].value == pytest.approx(1.03)
    assert found[1].value == pytest.approx(0.52)
    assert found[4].value == 4


@pytest.mark.parametrize("scale", [0.1, 0.3, 1 / 3, 0.7, 7.1, 12345.678])
def test_the_limits_hold_for_numbers_that_are_not_exact_in_binary(scale):
    assert verdict("perplexity", perplexity_record(103 * scale, 100 * scale)).verdict == "pass"
    assert verdict("vram", memory_record(0.52 * scale, scale)).verdict == "pass"
    assert verdict("vram", memory_record(0.52 * scale * (1 + 1e-9), scale)).verdict == "fail"


def test_just_above_the_limits_fails():
    found = verdict("perplexity", perplexity_record(103.01, 100.0))
    assert (found.verdict, found.basis) == ("fail", "measured")
    assert "103.01" in found.reason
    assert "100.00" in found.reason
    assert "1.03" in found.reason
    assert verdict("vram", memory_record(0.5201, 1.0)).verdict == "fail"


def beside(*records, **options):
    (found,) = criteria.judge_beside(records, texts("en"), **options)
    return found


def recomputed_record(ours, theirs, bases=("measured", "measured"), **changes):
    """Peaks with blocks recomputed beside others, as the criterion has them, that would pass."""
    pairs = zip(("stage1", "phase2"), (ours, theirs), bases, strict=True)
    found = [metric("peak_memory_recomputed", m, v, basis=b, unit="GiB") for m, v, b in pairs if v != "missing"]
    own = memory_record(0.1, 1.0)
    return own.model_copy(update={"metrics": [*own.metrics, *found]} | changes)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "value"),
    [
        (0.52, 1.0, "pass", 0.52),
        (0.5201, 1.0, "fail", 0.5201),
        ("missing", 1.0, "not_measured", None),
        (None, 1.0, "fail", None),
        (NAN, 1.0, "fail", None),
        (0.1, "missing", "not_measured", None),
        (0.1, None, "not_measured", None),
        (0.1, NAN, "not_measured", None),
        (0.1, INF, "not_measured", None),
        (0.1, 0.0, "not_measured", None),
    ],
)
def test_the_memory_recomputed_on_both_sides_has_a_verdict_of_its_own(ours, theirs, verdict, value):
    found = beside(recomputed_record(ours, theirs))
    assert (found.name, found.verdict, found.value) == ("vram_recomputed", verdict, value)
    assert "0.52 times that of Phase 2" in found.target
    assert "recomputed" in found.target
    if value is not None:
        assert found.reason.startswith("With halves of blocks recomputed on both sides Stage 1 peaks at ")


def test_the_verdict_beside_the_criteria_is_no_criterion_and_never_from_estimates_or_failures():
    record = recomputed_record(0.9, 1.0)
    assert [c.name for c in judge([record])] == list(CRITERIA)
    assert next(c for c in judge([record]) if c.name == "vram").verdict == "pass"
    found = beside(recomputed_record(0.1, 1.0, bases=("estimate", "measured")))
    assert (found.verdict, found.value, found.basis) == ("not_measured", 0.1, "estimate")
    assert beside().verdict == "not_measured"
    assert beside(recomputed_record(0.1, 1.0, status="failed", error="x")).verdict == "not_measured"
    assert beside(recomputed_record(0.1, 1.0), skipped_baseline=True).verdict == "not_measured"
    assert "Reduced setting" in beside(recomputed_record(0.1, 1.0, scale="reduced")).reason


def test_nothing_ran():
    found = judge([])
    assert [c.verdict for c in found] == ["not_measured"] * 5
    assert all(c.value is None and c.basis == "none" for c in found)
    assert "memory" in found[1].reason


@pytest.mark.parametrize("value", ["missing", None, NAN, INF, -INF, 0.0, -3.0])
def test_a_bad_baseline_never_decides(value):
    for name, found in (
        ("perplexity", verdict("perplexity", perplexity_record(2.0, value))),
        ("vram", verdict("vram", memory_record(0.1, value))),
    ):
        assert (name, found.verdict, found.value) == (name, "not_measured", None)
        assert "Phase 2" in found.reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("missing", "not_measured"),
        (0.0, "not_measured"),
        (-1.0, "not_measured"),
        (NAN, "fail"),
        (INF, "fail"),
        (None, "fail"),
    ],
)
def test_a_bad_candidate_never_passes(value, expected):
    assert verdict("perplexity", perplexity_record(value, 100.0)).verdict == expected
    assert verdict("vram", memory_record(value, 1.0)).verdict == expected


def test_both_infinite_is_not_a_ratio_of_one():
    assert verdict("perplexity", perplexity_record(INF, INF)).verdict == "fail"
    assert verdict("vram", memory_record(INF, INF)).value is None


def test_a_perplexity_below_one_is_impossible():
    assert verdict("perplexity", perplexity_record(0.5, 100.0)).verdict == "not_measured"


def test_a_candidate_that_was_never_observed_is_not_measured():
    bad = record("memory", metric("peak_memory", "stage1", None, n=0, note="out of memory"))
    found = verdict("vram", bad)
    assert found.verdict == "not_measured"
    assert "out of memory" in found.reason


def test_an_overflowing_ratio_is_not_measured():
    assert verdict("vram", memory_record(1e308, 1e-308)).verdict == "not_measured"


def test_a_failed_stage_is_not_measured_and_named():
    found = judge([perplexity_record(status="failed", error="ValueError: too\nbad"), memory_record(), health_record()])
    assert found[0].verdict == "not_measured"
    assert "“Perplexity” failed (ValueError: too bad)" in found[0].reason
    assert found[1].verdict == "pass"


def test_a_failed_stage_has_no_numbers_in_the_summary():
    stages = [perplexity_record(status="failed", error="x"), memory_record(), health_record()]
    summary = summarise(stages, judge(stages))
    assert (summary.ppl, summary.ppl_ratio, summary.vram_gb) == (None, None, 0.52)
    assert summary.pass_ is None


@pytest.mark.parametrize("trained", [(False, True), (True, False), (False, False), (False, None)])
def test_untrained_models_never_pass_or_fail(trained):
    for ours in (50.0, 500.0):
        found = verdict("perplexity", perplexity_record(ours, 100.0, trained=trained))
        assert (found.verdict, found.value) == ("not_measured", None)
        assert "not trained" in found.reason


@pytest.mark.parametrize(
    ("causality", "expected"),
    [((1, 0), "fail"), ((0, 1), "not_measured"), (("missing", 0), "not_measured"), ((0, "missing"), "not_measured"),
     ((None, 0), "not_measured"), ((0, NAN), "not_measured"), ((-1, 0), "not_measured")],
)  # fmt: skip
def test_a_model_that_sees_the_future_cannot_take_part(causality, expected):
    found = verdict("perplexity", perplexity_record(50.0, 100.0, causality=causality))
    assert (found.verdict, found.value) == (expected, None)


def test_paired_seeds_give_the_ratio_of_means_and_an_interval():
    samples = ((100.0, 104.0, 999.0), (102.0, 100.0))
    labels = (("seed 0", "seed 1", "seed 2"), ("seed 1", "seed 0"))
    found = verdict("perplexity", perplexity_record(500.0, 100.0, samples=samples, labels=labels))
    assert found.value == pytest.approx((100 + 104) / (100 + 102))
    # by hand: logs of 100/100 and 104/102, mean m, sd s, t = 12.706 with one degree of freedom
    logs = [0.0, math.log(104 / 102)]
    mean, sd = sum(logs) / 2, abs(logs[0] - logs[1]) / math.sqrt(2)
    low, high = (math.exp(mean + sign * 12.706 * sd / math.sqrt(2)) for sign in (-1, 1))
    assert f"{low:.4f} to {high:.4f}" in found.reason
    assert "2 paired seeds" in found.reason


def test_unpaired_seeds_use_the_values():
    found = verdict(
        "perplexity", perplexity_record(102.0, 100.0, samples=((1.0,), (99.0,)), labels=(("seed 0",), ("seed 1",)))
    )
    assert found.value == pytest.approx(1.02)
    assert "spread" in found.reason


@pytest.mark.parametrize("bad", [NAN, INF])
def test_one_bad_seed_is_not_hidden_by_the_others(bad):
    labels = (("seed 0", "seed 1"), ("seed 0", "seed 1"))
    ours = perplexity_record(90.0, 100.0, samples=((90.0, bad), (100.0, 100.0)), labels=labels)
    theirs = perplexity_record(90.0, 100.0, samples=((90.0, 90.0), (100.0, bad)), labels=labels)
    assert verdict("perplexity", ours).verdict == "fail"
    assert verdict("perplexity", theirs).verdict == "not_measured"


@pytest.mark.parametrize("bases", [("estimate", "measured"), ("measured", "estimate"), ("estimate", "estimate")])
def test_an_estimate_is_shown_but_decides_nothing(bases):
    stage = memory_record(0.4, 1.0, bases=bases)
    found = verdict("vram", stage)
    assert (found.verdict, found.basis, found.value) == ("not_measured", "estimate", 0.4)
    summary = summarise([stage], judge([stage]))
    assert summary.vram_ratio is None
    assert (summary.vram_gb is None) == (bases[0] == "estimate")


def test_an_infinite_estimate_does_not_fail():
    assert verdict("vram", memory_record(INF, 1.0, bases=("estimate", "measured"))).verdict == "not_measured"


def test_a_skipped_baseline_is_said_to_be_skipped():
    for name in ("perplexity", "vram"):
        found = verdict(name, perplexity_record(), memory_record(), skipped_baseline=True)
        assert found.verdict == "not_measured"
        assert "skip_phase2" in found.reason
    assert verdict("vram", memory_record(NAN), skipped_baseline=True).verdict == "fail"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n": 99}, "not_measured"),
        ({"n": 0}, "not_measured"),
        ({"n": 1000}, "pass"),
        ({"value": 1.0}, "fail"),
        ({"value": 1.0, "n": 5}, "fail"),
        ({"value": None}, "fail"),
        ({"value": -1.0}, "not_measured"),
        ({"basis": "estimate"}, "not_measured"),
        ({"model": "phase2"}, "not_measured"),
    ],
)
def test_stability(change, expected):
    assert verdict("stability", health_record(non_finite_trials=change)).verdict == expected


def test_stability_says_how_many():
    assert "3 of 200" in verdict("stability", health_record(non_finite_trials={"value": 3.0, "n": 200})).reason


@pytest.mark.parametrize("bad", [0.99e-6, 1.01e3, 0.0, NAN, INF, -1.0])
def test_one_bad_gradient_fails_or_is_not_measured_and_never_passes(bad):
    found = verdict(
        "gradients", health_record(gradient_norm={"samples": [1.0, bad, 2.0], "labels": ["a", "b.weight", "c"]})
    )
    assert found.verdict == ("not_measured" if bad == -1.0 else "fail")
    if bad != -1.0:
        assert "b.weight" in found.reason
        assert "a," not in found.reason
        assert found.value == 1
        assert "10⁻⁶" in found.target


@pytest.mark.parametrize(
    "change", [{"samples": []}, {"n": 0}, {"basis": "estimate"}, {"samples": [], "labels": [], "value": 1.0}]
)
def test_gradients_without_samples_are_not_measured(change):
    assert verdict("gradients", health_record(gradient_norm=change)).verdict == "not_measured"


def test_a_gradient_norm_that_could_not_be_expressed_fails():
    assert verdict("gradients", health_record(gradient_norm={"value": None, "samples": [1.0]})).verdict == "fail"


def test_missing_gradients_are_named():
    change = {"value": 7.0, "labels": [f"p{i}" for i in range(7)]}
    found = verdict("gradients", health_record(parameters_without_gradient=change))
    assert found.verdict == "fail"
    assert "p0, p1, p2, p3, p4 and 2 more" in found.reason
    assert verdict("gradients", health_record(drop=["parameters_without_gradient"])).verdict == "not_measured"
    assert verdict("gradients", health_record(drop=["gradient_norm"])).verdict == "not_measured"


def test_gradients_without_labels_are_numbered():
    change = {"samples": [1.0, 1e9], "labels": []}
    assert "#1 (1e+09)" in verdict("gradients", health_record(gradient_norm=change)).reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bytes_per_complex": {"value": 8.0}}, "fail"),
        ({"bytes_per_complex": {"value": None}}, "fail"),
        ({"bytes_per_complex": {"value": 0.0}}, "not_measured"),
        ({"layout_violations": {"value": 2.0, "labels": ["x", "y"]}}, "fail"),
        ({"layout_violations": {"value": -2.0}}, "not_measured"),
    ],
)
def test_layout(changes, expected):
    assert verdict("layout", health_record(**changes)).verdict == expected


def test_layout_names_the_tensors():
    found = verdict("layout", health_record(layout_violations={"value": 2.0, "labels": ["x", "y"]}))
    assert "x, y" in found.reason
    for name in ("layout_violations", "bytes_per_complex"):
        assert verdict("layout", health_record(drop=[name])).verdict == "not_measured"


def test_a_reduced_stage_is_judged_and_labelled():
    found = verdict("perplexity", perplexity_record(scale="reduced", reductions=reductions_of({"d_model": 64})))
    assert found.verdict == "pass"
    assert found.reason.startswith("Reduced setting (d_model 64 (published: 512))")
    assert verdict("vram", memory_record(scale="reduced")).reason.startswith("Reduced setting,")


def test_another_candidate_and_baseline():
    peaks = {"stage1_memory": 0.3, "gpt2": 1.0, "stage1": 9.0}
    stage = record("memory", *(metric("peak_memory", model, peak) for model, peak in peaks.items()))
    found = verdict("vram", stage, candidate="stage1_memory", baseline="gpt2")
    assert (found.verdict, found.value) == ("pass", 0.3)
    assert "GPT-2" in found.target


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([perplexity_record(), memory_record(), health_record()], True),
        ([perplexity_record(200.0), memory_record()], False),
        ([perplexity_record(), memory_record()], None),
    ],
)
def test_the_summary_passes_fails_or_stays_open(stages, expected):
    assert summarise(stages, judge(stages)).pass_ is expected


def test_the_summary_has_the_numbers():
    stages = [perplexity_record(103.0, 100.0), memory_record(0.5, 1.0), health_record()]
    found = summarise(stages, judge(stages)).model_dump(by_alias=True)
    assert found == {
        "ppl": 103.0, "ppl_phase2": 100.0, "ppl_ratio": pytest.approx(1.03),
        "vram_gb": 0.5, "vram_phase2_gb": 1.0, "vram_ratio": 0.5, "pass": True,
    }  # fmt: skip


def test_the_summary_holds_no_infinity():
    stages = [perplexity_record(INF, NAN)]
    summary = summarise(stages, judge(stages))
    assert (summary.ppl, summary.ppl_phase2) == (None, None)


def test_both_languages_have_every_sentence_with_the_same_fields():
    def fields(language):
        parsed = {key: string.Formatter().parse(text) for key, text in texts(language).items()}
        return {key: sorted((name, form) for _, name, form, _ in parts if name) for key, parts in parsed.items()}

    assert fields("en") == fields("ja")


def test_japanese_reasons_are_japanese():
    stages = [
        perplexity_record(),
        memory_record(bases=("estimate", "estimate"), scale="reduced", reductions=reductions_of({"n_seq": 8})),
        health_record(),
    ]
    english, japanese = judge(stages), judge(stages, language="ja")
    assert [c.verdict for c in english] == [c.verdict for c in japanese]
    for criterion in japanese:
        assert any("ぁ" <= letter <= "ん" for letter in criterion.reason + criterion.target), criterion


def test_a_small_stability_batch_does_not_reduce_what_it_has_no_part_in():
    smaller = reductions_of({"stability_batch_size": 1, "gradient_n_tokens": 8})
    health = health_record().model_copy(update={"scale": "reduced", "reductions": smaller})
    reasons = {criterion.name: criterion.reason for criterion in judge([health])}
    assert "stability_batch_size 1" in reasons["stability"]
    assert "gradient_n_tokens" not in reasons["stability"]
    assert "gradient_n_tokens 8" in reasons["gradients"]
    assert "stability_batch_size" not in reasons["gradients"]
    assert "Reduced" not in reasons["layout"]
    small = health.model_copy(update={"reductions": reductions_of({"d_model": 64})})
    assert all("d_model 64" in c.reason for c in judge([small]) if c.name in ("stability", "gradients", "layout"))


def basic_test(language="en", **changes):
    return {c.name: c for c in criteria.judge_basic_test([basic_test_record(**changes)], texts(language))}


def test_a_good_basic_test_passes_line_by_line():
    found = basic_test()
    assert list(found) == ["model_creation", "forward_pass", "backward_pass", "memory_usage"]
    assert {c.verdict for c in found.values()} == {"pass"}
    assert found["model_creation"].value == 80_937_553
    assert "80,937,553" in found["model_creation"].target
    assert "< 8 GB" in found["memory_usage"].target
    assert criteria.judge_basic_test([health_record()], texts("en")) == []


@pytest.mark.parametrize(
    ("line", "changes", "verdict"),
    [
        ("model_creation", {"parameters": {"value": 80_937_554}}, "fail"),
        ("model_creation", {"params": {"d_model": 1024}}, "not_measured"),
        ("model_creation", {"drop": ["parameters"]}, "not_measured"),
        ("forward_pass", {"nan_logits": {"value": 1}}, "fail"),
        ("forward_pass", {"infinite_logits": {"value": 1}}, "fail"),
        ("forward_pass", {"drop": ["infinite_logits"]}, "not_measured"),
        ("backward_pass", {"gradient_norm": {"samples": [0.1, 1e4]}}, "fail"),
        ("backward_pass", {"parameters_without_gradient": {"value": 1}}, "fail"),
        ("backward_pass", {"drop": ["gradient_norm"]}, "not_measured"),
        ("memory_usage", {"peak_memory": {"value": 7.999}}, "pass"),
        ("memory_usage", {"peak_memory": {"value": 8.0}}, "fail"),
        ("memory_usage", {"peak_memory": {"basis": "estimate"}}, "not_measured"),
        ("memory_usage", {"peak_memory": {"value": 99.0, "basis": "estimate"}}, "not_measured"),
        ("memory_usage", {"peak_memory": {"value": None}}, "fail"),
        ("memory_usage", {"drop": ["peak_memory"]}, "not_measured"),
    ],
)
def test_each_line_of_the_basic_test_is_judged_by_its_numbers(line, changes, verdict):
    found = basic_test(**changes)
    assert found.pop(line).verdict == verdict
    if "params" not in changes:
        assert {c.verdict for c in found.values()} == {"pass"}


def test_a_basic_test_that_failed_measured_nothing():
    assert {c.verdict for c in basic_test(status="failed").values()} == {"not_measured"}
    assert {c.verdict for c in basic_test("ja", status="failed").values()} == {"not_measured"}


def test_the_basic_test_answers_two_criteria_in_a_run_without_the_stage_that_asks_them():
    judged = {c.name: c.verdict for c in judge([basic_test_record()])}
    assert [name for name, verdict in judged.items() if verdict == "pass"] == ["gradients", "layout"]
    other = {c.name: c for c in judge([basic_test_record()], candidate="stage1_memory")}
    assert "was not part of this run" in other["gradients"].reason
    bad = health_record(layout_violations={"value": 1, "labels": ["w"]})
    both = {c.name: c.verdict for c in judge([basic_test_record(), bad])}
    assert (both["gradients"], both["layout"]) == ("pass", "fail"), "the stage itself comes first"
    failed = bad.model_copy(update={"status": "failed", "error": "x"})
    assert {c.name: c.verdict for c in judge([basic_test_record(), failed])}["gradients"] == "not_measured"
