"""The basic test's results in the form in which they were first published: `phase3_stage1_basic_test.json`.

Keys are those of that file. What was not measured is null, its status NOT_MEASURED, and `details` or `note` say why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from muse.catalog import REFERENCE
from muse.records.criteria import BASIC_TEST_STAGE, SMALL_GPU_GIB, judge_basic_test
from muse.records.schema import Criterion, Report, StageRecord, Verdict

from .texts import texts

FILE = "phase3_stage1_basic_test.json"
NAMES = {
    "stability": "numerical_stability",
    "gradients": "gradient_health",
    "layout": "memory_layout",
    "perplexity": "perplexity",
    "vram": "vram_reduction",
}
"""Of the criteria, as that file calls them, in its order."""

Values = dict[str, object]


def basic_test(report: Report) -> Values | None:
    """Return the results of a run's basic test; None of a run without that stage."""
    record = next((record for record in report.stages if record.stage == BASIC_TEST_STAGE), None)
    if record is None:
        return None
    tests = {test.name: test for test in judge_basic_test(report.stages, texts("en"))}
    passed = [name for name, test in tests.items() if test.verdict == "pass"]
    return {
        "benchmark_name": "Phase 3 Stage 1 Basic Test",
        "timestamp": f"{record.finished_utc:%Y-%m-%d}",
        "device": record.params.get("device"),
        "model_config": _config(record),
        "test_results": _results(record, tests),
        "stage1_completion_criteria": {NAMES[c.name]: _criterion(c) for c in _criteria(report)},
        "overall_status": _status(_overall(tests.values())),
        "summary": {
            "passed_tests": len(passed),
            "total_tests": len(tests),
            "pass_rate": len(passed) / len(tests),
            "completed_benchmarks": [name for name, test in tests.items() if test.verdict != "not_measured"],
            "pending_benchmarks": [name for name, test in tests.items() if test.verdict == "not_measured"],
        },
        "notes": [record.scale_note] if record.scale_note else [],
    }


def _overall(tests: Iterable[Criterion]) -> Verdict:
    verdicts = {test.verdict for test in tests}
    return next((verdict for verdict in ("fail", "not_measured") if verdict in verdicts), "pass")


def _status(verdict: Verdict) -> str:
    return verdict.upper()


def _criteria(report: Report) -> Sequence[Criterion]:
    """The criteria of the published model, in the order of that file; of the first candidate in a run without it."""
    judged = next((judged for judged in report.judged if judged.model == REFERENCE), report.judged[0])
    found = {criterion.name: criterion for criterion in judged.criteria}
    return [found[name] for name in NAMES if name in found]


def _criterion(criterion: Criterion) -> Values:
    result = {"target": criterion.target, "result": criterion.value, "status": _status(criterion.verdict)}
    return result | {"note": criterion.reason}


def _config(record: StageRecord) -> Values:
    names = {"vocab_size": "vocab_size", "d_model": "d_model", "n_layers": "n_layers", "max_seq_len": "n_seq"}
    count = _value(record, "parameters")
    sizes = {name: record.params.get(setting) for name, setting in names.items()}
    return sizes | {"use_complex32": True, "total_parameters": None if count is None else int(count)}


def _results(record: StageRecord, tests: dict[str, Criterion]) -> Values:
    def about(name: str) -> Values:
        return {"status": _status(tests[name].verdict), "details": tests[name].reason}

    healthy = tests["backward_pass"].verdict
    norms = {end: _value(record, f"gradient_norm_{end}") for end in ("min", "max")}
    shape = [record.params.get(name) for name in ("gradient_batch_size", "gradient_n_tokens", "vocab_size")]
    nan, infinite = (_value(record, name) for name in ("nan_logits", "infinite_logits"))
    peak, held = (_value(record, name) for name in ("peak_memory", "held_memory"))
    return {
        "model_creation": about("model_creation"),
        "forward_pass": about("forward_pass") | {
            "input_shape": shape[:2],
            "output_shape": shape,
            "nan_detected": None if nan is None else nan > 0,
            "inf_detected": None if infinite is None else infinite > 0,
            "numerical_stability": _status(tests["forward_pass"].verdict),
        },
        "backward_pass": about("backward_pass") | {
            "loss": _value(record, "untrained_loss"),
            "gradient_norms": norms,
            "gradient_health": _status(healthy),
            "all_gradients_healthy": None if healthy == "not_measured" else healthy == "pass",
        },
        "memory_usage": about("memory_usage") | {
            "batch_size": record.params.get("memory_batch_size"),
            "seq_length": record.params.get("n_seq"),
            "current_vram_gb": held,
            "peak_vram_gb": peak,
            "target_vram_gb": float(SMALL_GPU_GIB),
            "within_target": None if peak is None else peak < SMALL_GPU_GIB,
        },
    }  # fmt: skip


def _value(record: StageRecord, name: str) -> float | None:
    """The value of a metric of the published model where it was measured: no estimate."""
    metric = record.find(name, REFERENCE)
    found = metric.value if metric is not None and metric.basis == "measured" else None
    return found if found is not None and math.isfinite(found) else None
