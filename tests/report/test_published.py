"""The basic test's file: keys of the published one, and null with a reason where nothing was measured."""

from __future__ import annotations

import json

import pytest
from builders import basic_test_record, make_report, stage

from muse.report.published import basic_test

KEYS = {
    "model_creation": {"status", "details"},
    "forward_pass": {"status", "details", "input_shape", "output_shape", "nan_detected", "inf_detected",
                     "numerical_stability"},
    "backward_pass": {"status", "details", "loss", "gradient_norms", "gradient_health", "all_gradients_healthy"},
    "memory_usage": {"status", "details", "batch_size", "seq_length", "current_vram_gb", "peak_vram_gb",
                     "target_vram_gb", "within_target"},
}  # fmt: skip


def test_the_file_has_the_published_keys_and_values():
    found = basic_test(make_report([basic_test_record()]))
    assert {name: set(values) for name, values in found["test_results"].items()} == KEYS
    config = {"vocab_size": 50257, "d_model": 512, "n_layers": 6, "max_seq_len": 1024, "use_complex32": True}
    assert found["model_config"] == config | {"total_parameters": 80937553}
    assert found["test_results"]["forward_pass"]["output_shape"] == [2, 128, 50257]
    memory = found["test_results"]["memory_usage"]
    assert (memory["current_vram_gb"], memory["peak_vram_gb"], memory["within_target"]) == (0.3, 0.4, True)
    assert found["test_results"]["backward_pass"]["gradient_norms"] == {"min": 0.1, "max": 0.2}
    assert list(found["stage1_completion_criteria"]) == [
        "numerical_stability", "gradient_health", "memory_layout", "perplexity", "vram_reduction"
    ]  # fmt: skip
    assert (found["device"], found["timestamp"], found["overall_status"]) == ("cuda", "2026-01-02", "PASS")
    assert (found["summary"]["passed_tests"], found["summary"]["total_tests"]) == (4, 4)
    json.dumps(found, allow_nan=False)


def test_an_estimate_is_no_number_of_the_file():
    record = basic_test_record(peak_memory={"basis": "estimate"}, held_memory={"basis": "estimate"})
    found = basic_test(make_report([record]))
    memory = found["test_results"]["memory_usage"]
    assert [memory[name] for name in ("current_vram_gb", "peak_vram_gb", "within_target")] == [None] * 3
    assert memory["status"] == found["overall_status"] == "NOT_MEASURED"
    assert "is an estimate" in memory["details"]
    assert found["summary"]["pending_benchmarks"] == ["memory_usage"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_not_finite_is_null_and_fails(value):
    norm = {"samples": [0.1, float("nan")]}
    found = basic_test(make_report([basic_test_record(gradient_norm=norm, untrained_loss={"value": value})]))
    backward = found["test_results"]["backward_pass"]
    assert (backward["loss"], backward["all_gradients_healthy"], backward["status"]) == (None, False, "FAIL")
    assert found["overall_status"] == "FAIL"
    json.dumps(found, allow_nan=False)


def test_a_run_without_the_stage_has_no_such_file():
    assert basic_test(make_report([stage("memory")])) is None


def test_a_stage_that_failed_has_measured_nothing():
    found = basic_test(make_report([stage("basic_test", status="failed", error="out of memory")]))
    assert {values["status"] for values in found["test_results"].values()} == {"NOT_MEASURED"}
    assert "out of memory" in found["test_results"]["forward_pass"]["details"]
    json.dumps(found, allow_nan=False)
