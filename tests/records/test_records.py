"""Records: strict, atomic, and readable again."""

from __future__ import annotations

import json
import math
import os
import subprocess
from datetime import datetime, timedelta, timezone

import pytest

from muse.host.files import write_atomic
from muse.records import earlier
from muse.records.criteria import CRITERIA
from muse.records.environment import git_state, hardware, utc_now, versions
from muse.records.schema import Criterion, Metric, Report, RunInfo, Series, StageRecord, Summary, TrainingRun
from muse.records.store import RecordError, read_record, schema, to_json, write_record

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=9)))


def stage(**changes):
    fields = {"stage": "memory", "started_utc": NOW, "finished_utc": NOW, "scale": "published"}
    return StageRecord(**(fields | changes))


def report(**changes):
    info = RunInfo(
        id="x", profile="quick", started_utc=NOW, git_commit=None, git_dirty=None, versions={}, hardware={}, seeds=[0],
        command="muse run",
    )  # fmt: skip
    criteria = [
        Criterion(name=name, target="t", value=None, verdict="not_measured", basis="none", reason="理由")
        for name in CRITERIA
    ]
    metrics = [Metric(name="peak", model="stage1", value=1.5, unit="GiB", interval=(1.0, 2.0), samples=[1.0, 2.0])]
    fields = {"run": info, "criteria": criteria, "summary": Summary(), "stages": [stage(metrics=metrics)]}
    return Report(**(fields | changes))


def test_a_report_survives_the_disk(tmp_path):
    path = write_record(report(), tmp_path / "deep" / "report.json")
    found = read_record(Report, path)
    assert found == report()
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "理由" in text
    assert "2026-03-01T03:00:00+00:00" in text, "times are UTC"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_the_summary_says_pass_in_json(tmp_path):
    path = write_record(report(summary=Summary(pass_=True)), tmp_path / "r.json")
    assert json.loads(path.read_text())["summary"]["pass"] is True
    assert read_record(Report, path).summary.pass_ is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_strict_json_are_refused_and_located(tmp_path, bad):
    path = tmp_path / "r.json"
    path.write_text("before")
    for record, place in (
        (stage(metrics=[Metric(name="m", value=bad, unit="1")]), "/metrics/0/value"),
        (stage(metrics=[Metric(name="m", value=1.0, unit="1", samples=[0.0, bad])]), "/metrics/0/samples/1"),
        (stage(series=[Series(name="s", x_name="x", y_name="y", x=[bad], y=[0.0])]), "/series/0/x/0"),
        (stage(params={"a": {"b": bad}}), "/params/a/b"),
    ):
        with pytest.raises(RecordError, match=place):
            write_record(record, path)
    assert path.read_text() == "before"


def test_an_error_about_many_numbers_names_the_first_and_counts_the_rest(tmp_path):
    metrics = [Metric(name="x", value=math.nan, unit="1", samples=[math.inf] * 9)]
    with pytest.raises(RecordError, match=r"/metrics/0/value = nan, .*/metrics/0/samples/3 = inf and 5 more$"):
        write_record(stage(metrics=metrics), tmp_path / "r.json")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_verdicts_and_summaries_hold_finite_numbers_only(value):
    with pytest.raises(ValueError, match="finite"):
        Summary(ppl=value)
    with pytest.raises(ValueError, match="finite"):
        Criterion(name="vram", target="t", value=value, verdict="pass", basis="measured", reason="r")


@pytest.mark.parametrize(
    "change",
    [{"surprise": 1}, {"stage": None}, {"schema_version": 2}, {"status": "fine"}, {"metrics": [{"name": "m"}]}],
)
def test_malformed_records_are_refused(tmp_path, change):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(json.loads(to_json(stage())) | change))
    with pytest.raises(RecordError, match=r"r\.json: not a valid StageRecord"):
        read_record(StageRecord, path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"stage": NaN}'])
def test_files_that_are_not_records_are_refused(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(RecordError):
        read_record(StageRecord, path)
    with pytest.raises(RecordError, match="no such record"):
        read_record(StageRecord, tmp_path / "missing.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    write_atomic(path, "old")

    def broken(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_metrics_are_found_by_name_and_model():
    metrics = [Metric(name="a", model=model, value=i, unit="1") for i, model in enumerate(("", "x", "y", "x"))]
    found = stage(metrics=[*metrics, Metric(name="b", model="z", value=9, unit="1")])
    assert found.find("a").value == 0
    assert found.find("a", "x").value == 1
    assert found.find("b") is None
    assert found.models("a") == ["", "x", "y"]


def test_records_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        stage().status = "failed"


def test_trainings_survive_the_disk_and_a_record_of_before_has_none(tmp_path):
    run = TrainingRun(model="stage1", seed=3, learning_rate=1e-3, dropout=0.1, optimizer="adamw", batch_tokens=8,
                      weight_decay=0.1, steps=2, tokens=16, seconds=1.5, started_utc=NOW, finished_utc=NOW,
                      hardware="a card", diverged=True, best_validation_loss=None)  # fmt: skip
    path = write_record(stage(trainings=[run]), tmp_path / "train.json")
    assert read_record(StageRecord, path).trainings == [run]
    assert json.loads(path.read_text())["trainings"][0]["started_utc"] == "2026-03-01T03:00:00+00:00"
    assert read_back(tmp_path, StageRecord, OLD_STAGE).trainings == []


def test_weights_of_before_name_their_seed(tmp_path):
    weights = {"kind": "weights", "model": "stage1", "seed": 3, "path": "x", "sha256": "0", "num_bytes": 1}
    (found,) = read_back(tmp_path, StageRecord, OLD_STAGE | {"artifacts": [weights]}).artifacts
    assert found.model_dump() == weights | {"verified": None}, "nothing is known of its own hash"


def test_the_schema_is_closed_and_complete():
    found = schema()
    assert found["additionalProperties"] is False
    assert set(found["required"]) == {"run", "criteria", "summary", "stages"}
    assert all(part["additionalProperties"] is False for part in found["$defs"].values() if part["type"] == "object")


def test_where_and_when():
    assert utc_now().utcoffset() == timedelta(0)
    assert utc_now().microsecond == 0
    assert {"python", "torch", "papermill"} <= set(versions())
    assert int(hardware()["cores"]) >= 1


def test_git_state_outside_a_checkout_and_inside_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == (None, None)
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "x")
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    commit, dirty = git_state(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "new").write_text("x")
    assert git_state(tmp_path) == (commit, True)


def read_back(folder, kind, values):
    path = folder / "record.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return read_record(kind, path)


OLD_STAGE = {
    "schema_version": 1, "stage": "perplexity", "started_utc": "2026-11-01T00:00:00Z",
    "finished_utc": "2026-11-01T00:00:01Z", "scale": "reduced",
    "scale_note": "synthetic corpus (published: WikiText-2), n_seq 8 (published: 1024), "
    "max_ppl_batches 10 (published: all)",
    "metrics": [
        {"name": "perplexity", "value": 9.5, "unit": "per token", "note": "untrained; test split"},
        {"name": "perplexity", "value": 9.5, "unit": "per token", "note": "test split"},
        {"name": "bench_head_speed", "value": None, "unit": "token/s", "note": "missing: no such module; gate"},
        {"name": "memory_half_life", "value": 1, "unit": "tokens", "samples": [1, 2],
         "labels": ["layer 0 head 1", "layer 12 head 0"]},
    ],
    "series": [
        {"name": "training_loss", "model": "stage1 (seed 3)", "x_name": "x", "y_name": "y", "x": [1], "y": [1]},
        {"name": "layer 4 period", "model": "stage1", "x_name": "x", "y_name": "y", "x": [1], "y": [1]},
    ],
}  # fmt: skip


def test_a_record_of_before_gets_the_fields_that_were_sentences_then(tmp_path):
    record = read_back(tmp_path, StageRecord, OLD_STAGE)
    assert [(r.setting, r.value, r.published) for r in record.reductions] == [
        ("corpus", "synthetic", "wikitext-2"), ("n_seq", 8, 1024), ("max_ppl_batches", 10, None)]  # fmt: skip
    assert [m.trained for m in record.metrics] == [False, None, None, None]
    assert [m.reason for m in record.metrics] == ["", "", "missing: no such module", ""]
    assert record.metrics[3].layers == [0, 12]
    assert [(s.model, s.seed, s.layer) for s in record.series] == [("stage1", 3, None), ("stage1", None, 4)]


def test_a_record_of_before_gets_the_text_that_its_files_belong_to(tmp_path):
    """By content, whatever the folder's name; a text that is said stays."""
    files = [{"path": "x/test.txt", "sha256": sha256, "num_bytes": 1} for sha256 in ("0" * 64, *earlier.TEXTS)]
    assert read_back(tmp_path, StageRecord, OLD_STAGE | {"inputs": files}).text == "wikitext-2-v1"
    assert read_back(tmp_path, StageRecord, OLD_STAGE | {"inputs": files[:1]}).text == ""
    assert read_back(tmp_path, StageRecord, OLD_STAGE | {"inputs": files, "text": "synthetic"}).text == "synthetic"


def test_sentences_of_todays_records_mean_nothing():
    metric = OLD_STAGE["metrics"][0]
    assert Metric.model_validate(metric).trained is None
    assert StageRecord.model_validate(OLD_STAGE).reductions == []


def test_fields_of_todays_records_stand_whatever_their_sentences_say(tmp_path):
    today = OLD_STAGE | {"reductions": [], "metrics": [OLD_STAGE["metrics"][0] | {"trained": True}]}
    record = read_back(tmp_path, StageRecord, today)
    assert (record.reductions, record.metrics[0].trained) == ([], True)


@pytest.mark.parametrize(("candidates", "first"), [(["stage1_memory", "stage1"], "stage1_memory"), (None, "stage1")])
def test_a_report_of_before_names_its_candidates(tmp_path, candidates, first):
    run = {"id": "x", "profile": "x", "started_utc": "2026-11-01T00:00:00Z", "git_commit": None, "git_dirty": None,
           "versions": {}, "hardware": {}, "seeds": [0], "command": "x",
           "params": {"candidates": candidates} if candidates else {}}  # fmt: skip
    other = {"model": "stage1", "criteria": [], "summary": {}}
    old = {"run": run, "criteria": [], "summary": {"ppl": 2.0}, "others": [other] if candidates else [], "stages": []}
    report = read_back(tmp_path, Report, old)
    assert [one.model for one in report.judged] == [first, *(["stage1"] if candidates else [])]
    assert report.judged[0].summary.ppl == 2.0
