"""The tables of docs/ from records that hold more than the committed ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from builders import VERDICTS, criterion, make_report, metric, run_info, stage

from muse.records.schema import BenchRecord, Judged, Report, Summary
from muse.records.store import write_record
from muse.report import docs, predictions, several_cards, shares

ROOT = Path(__file__).resolve().parent.parent.parent


def test_averaged_seeds_have_a_row_of_their_own_where_a_record_has_them():
    models = ("stage1", "stage1_memory", "real_twin", "phase2", "gpt2")
    found = [metric("perplexity", model, 50.0, "per token", interval=(49.0, 51.0)) for model in models]
    found += [metric(f"perplexity_ratio_to_{base}", model, 1.1, interval=(1.0, 1.2))
              for base, model in (("phase2", "stage1"), ("phase2", "stage1_memory"))]  # fmt: skip
    run = run_info(params={"models": list(models)})
    others = [stage(name) for name in ("train", "memory", "throughput")]
    before = docs.comparison(make_report([stage(metrics=found), *others], run)).splitlines()
    averaged = [metric("ensemble_perplexity", model, value) for model, value in (("stage1", 40.0), ("gpt2", 41.0))]
    after = docs.comparison(make_report([stage(metrics=[*found, *averaged]), *others], run)).splitlines()
    row = "| the seeds averaged: mean of their probabilities, per token |  |  | 40 |  | 41 |"
    assert [line for line in after if line not in before] == [row]
    assert [line for line in after if line != row] == before


def compared(**ratios):
    """A comparison of all eight models whose ratios and peaks tell their models apart."""
    models = list(docs.COMPARED)
    quality = [metric("perplexity", model, 50.0, "per token", samples=[50.0]) for model in models]
    quality += [metric("word_perplexity", "stage1_memory", 80.0), metric("ensemble_perplexity", "stage1_memory", 33.0)]
    pairs = [(model, "phase2") for model in models if model != "phase2"]
    pairs += [
        ("real_twin", "stage1_memory"),
        ("real_twin_compact", "stage1_compact"),
        ("stage1_compact", "phase2_compact"),
    ]
    quality += [metric(f"perplexity_ratio_to_{base}", model, ratios.get(model, 1.25), interval=(1.0, 1.5))
                for model, base in pairs]  # fmt: skip
    variants = ("", "_recomputed", "_plain", "_matched", "_training_step")
    peaks = [metric(f"peak_memory{variant}", model, 0.5) for variant in variants for model in models]
    peaks += [metric(f"peak_memory{variant}_ratio_to_phase2", model, 0.25 + at / 8)
              for at, variant in enumerate(variants) for model in models if model != "phase2"]  # fmt: skip
    peaks += [
        metric("peak_memory_bfloat16", "phase2", 0.375),
        metric("peak_memory_ratio_to_phase2_bfloat16", "stage1_compact", 0.6),
    ]
    tried = [metric("tried_validation_loss", model, 3.75, labels=["x"], samples=[3.75]) for model in models]
    tried += [metric("common_regret", "", 0.1, labels=["stage1_compact", "phase2"], samples=[0.5, 0.0])]
    stages = [stage(metrics=quality), stage("memory", metrics=peaks), stage("train", metrics=tried)]
    passed = [criterion(name) for name in VERDICTS]
    judged = [Judged(model=model, criteria=passed, summary=Summary()) for model in ("stage1", "stage1_compact")]
    return Report.of(run_info(params={"models": models}), judged, stages)


@pytest.mark.parametrize(("device", "told"), [("cpu", "2 cores of a processor (AVX512)"), ("cuda", "a card")])
def test_a_bench_is_told_with_the_device_that_its_stage_ran_on(tmp_path, device, told):
    hardware = {"cpu": "a processor", "cores": "2", "cpu_capability": "AVX512", "gpu": "a card", "gpu_count": "1"}
    found = [metric("bench_stack_2x1024_speed", "naive", 1000.0), metric("bench_stack_2x1024_milliseconds", "naive", 2)]
    bench = BenchRecord(run=run_info(hardware=hardware), stage=stage("bench", metrics=found, params={"device": device}))
    write_record(bench, tmp_path / "bench-cpu" / "bench.json")
    assert f"{told}, torch 9.9" in docs.speed(tmp_path)


def test_memory_is_told_by_the_code_that_measured_it_last(tmp_path):
    report, names = compared(), ("stage1_compact", "stage1")
    write_record(report, tmp_path / docs.MAIN / "report.json")
    assert docs.memory_again(tmp_path) == ""
    assert "| GPU memory, each as it runs | 1.000 | 1.000 |" in docs.headline(tmp_path)
    peaks = [metric("peak_memory", name, value) for name, value in zip(names, (0.25, 0.125), strict=True)]
    peaks += [metric("peak_memory", "phase2", 0.5), metric("peak_memory_plain", "stage1_compact", 0.25)]
    run = run_info(hardware={"gpu": "a card", "gpu_count": "1"}, versions={"torch": "2.11.0"})
    later = Report.of(run, report.judged, [stage("memory", metrics=peaks)])
    write_record(later, tmp_path / docs.MEMORY_AGAIN / "report.json")
    assert "| GPU memory, each as it runs | 0.500 | 0.250 |" in docs.headline(tmp_path)
    assert "neither side" not in docs.headline(tmp_path), "Phase 2 has none, so nothing can be divided"
    assert "| peak memory, own precision (GiB) | 0.250 (0.500) |" in docs.memory_again(tmp_path)


def test_each_prediction_stands_beside_what_was_found(tmp_path):
    """Whatever is written before a run has its row after it; of a row that nobody knows that is an error."""
    expected = ROOT / "reports" / "gpu" / "predictions.md"
    numbers = re.findall(r"^\| (\d+) \|", expected.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [line for line in predictions.beside_results(expected, compared()).splitlines() if line.startswith("| ")][2:]
    found = {row.split(" | ")[0].strip("| "): row.split(" | ")[3].strip("| ") for row in rows}
    assert list(found) == numbers
    assert found["1"] == found["11"] == "1.250 (1.000 to 1.500)"
    assert found["2"].startswith("1.649 "), "exp of half a nat more at the common setting"
    assert found["3"] == "5 of 5 pass"
    assert found["4"] == found["5"] == "0.250, 0.375, 0.500"
    assert (found["7"], found["8"], found["9"], found["10"]) == ("0.750", "50.0 (80.0)", "33.0", "0.800; 0.800")
    other = compared(stage1_compact=1.125)
    assert predictions.beside_results(expected, other) != predictions.beside_results(expected, compared())
    more = tmp_path / "predictions.md"
    more.write_text(expected.read_text(encoding="utf-8").replace("| 12 |", "| 99 |"), encoding="utf-8")
    with pytest.raises(KeyError):
        predictions.beside_results(more, compared())
    assert predictions.beside_results(expected, make_report()) == "", "of another run"


def test_what_makes_it_so_is_told_by_leaving_one_thing_out_on_both_sides():
    rows = [line for line in shares.of_both_sides(compared()).splitlines() if line.startswith("| ")][2:]
    cells = {tuple(row.strip("| ").split(" | ")[:1]): row for row in rows}
    assert len(rows) == 9
    assert "0.250" in cells[("the whole",)]
    assert "0.375" in cells[("recomputed blocks: both",)]
    assert "0.600" in cells[("half precision: both",)]
    assert cells[("low-rank table: both",)].endswith("| 1.250 (1.000 to 1.500) | 1.000 |")
    assert shares.of_both_sides(make_report()) == ""
    told = shares.of_both_sides(compared(), by_adamw="0.875 (0.750 to 1.000)")
    assert "| the recipe's Muon: none | " + shares.MUON + " | 0.875 (0.750 to 1.000) |  |" in told


def of_cards():
    """A record of one model on one and on two cards, of few numbers."""
    def run(name, cards, tokens, speed, **more):
        found = {"name": name, "params": "gpu", "cards": cards, "batch_tokens": tokens, "tokens_per_second": speed}
        usual = {"peak_gib": [1.25] * cards, "timed": True, "resumed_from_steps": [], "validation": [[1, 6.5]]}
        return found | usual | more

    runs = [run("c16x1", 1, 16384, 500_000), run("c64x1", 1, 65536, 600_000), run("c128x1", 1, 131072, 625_000)]
    runs += [run("c16x2", 2, 16384, 800_000), run("c128x2", 2, 131072, 1_200_000, peak_gib=[4.0, 5.0])]
    runs += [run("resumed", 1, 16384, 1, timed=False, resumed_from_steps=[40])]
    runs += [{"name": "stopped", "params": "gpu", "cards": 2, "peak_gib": [9.0], "timed": False}]
    differences = [{"run": "c16x2", "of": "c16x1", "training": 0.0125, "validation": 0.0005},
                   {"run": "resumed", "of": "c16x1", "training": 0.25, "validation": 0.125}]  # fmt: skip
    plans = [{"params": "gpu", "card": "h200", "cards": cards, "batch_tokens": tokens, "peak_gib": peak,
              "tokens_per_second": speed}
             for cards, tokens, peak, speed in (
                 (1, 16384, 1.0, 550_000), (1, 65536, 5.5, 660_000), (2, 131072, 5.5, 1_320_000))]  # fmt: skip
    return {"hardware": {"gpu": "NVIDIA H200", "gpu_count": "2"}, "versions": {"torch": "2.11.0+cu130"},
            "date": "2026-11-30T05:00:00+00:00", "differences": differences, "plans": plans, "runs": runs}  # fmt: skip


def test_several_cards_are_told_beside_one_and_beside_the_plan(tmp_path):
    """Efficiency at the same step and at the same part of it, curves, peaks and speeds; nothing without the record."""
    assert several_cards.tables(tmp_path) == ""
    path = tmp_path / several_cards.FILE
    path.parent.mkdir()
    path.write_text(json.dumps(of_cards()), encoding="utf-8")
    lines = several_cards.tables(tmp_path).splitlines()
    assert "2 x NVIDIA H200, torch 2.11.0, 2026-11-30." in lines[0]
    assert "| `gpu`, 16,384 tokens a step, 2 cards | 800,000 | 500,000 | 0.800 |  |  |" in lines
    assert "| `gpu`, 131,072 tokens a step, 2 cards | 1,200,000 | 625,000 | 0.960 | 600,000 | 1.000 |" in lines
    assert "| two cards | 0.013 | 0.0005 | 6.5000 |" in lines
    assert "| begun on two cards, ended on one, stopped after step 40 | 0.25 | 0.12 | 6.5000 |" in lines
    of_plan = [line for line in lines if " x h200" in line]
    assert of_plan == [
        "| `gpu`, 16,384 tokens a step, 1 x h200 | 1.000, 1.250: -20.0 % | 550,000, 500,000: +10.0 % |",
        "| `gpu`, 65,536 tokens a step, 1 x h200 | 5.500, 1.250: +340.0 % | 660,000, 600,000: +10.0 % |",
        "| `gpu`, 131,072 tokens a step, 2 x h200 | 5.500, 5.000: +10.0 % | 1,320,000, 1,200,000: +10.0 % |",
    ]
    (told,) = [line for line in lines if line.startswith("`muse plan`")]
    assert told.endswith("Speeds: Of 3 numbers 0 within 5 %, 3 within 25 %; the largest error is 10.0 %.")


def test_a_page_with_several_places_has_each_of_its_tables_where_it_belongs(monkeypatch, tmp_path):
    page = f"first\n{docs.BEGIN}old{docs.END}\nsecond\n{docs.BEGIN}{docs.END}\nlast\n"
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    monkeypatch.setattr(docs, "PAGES", {})
    monkeypatch.setattr(docs, "WITH_TABLES", {"page.md": (lambda reports: "one", lambda reports: "two")})
    expected = f"first\n{docs.BEGIN}one{docs.END}\nsecond\n{docs.BEGIN}two{docs.END}\nlast\n"
    assert docs.pages(tmp_path) == {"page.md": expected}
    (tmp_path / "page.md").write_text("no place\n", encoding="utf-8")
    with pytest.raises(ValueError, match="shorter"):
        docs.pages(tmp_path)
