"""Lists of runs and of trainings: what stands in a row, what cannot be read, and the page with its links."""

from __future__ import annotations

import json

import pytest
from builders import LATER, NOW, criterion, metric, record, run_info, soup, write_run

from muse import cli
from muse.records.schema import Judged, Report, Summary
from muse.records.store import write_record
from muse.report import run_list
from muse.report.check import check_page
from muse.report.explorer_page import models_table
from muse.report.runs import find_checkpoints, find_models, find_runs, read_run
from muse.report.texts import LANGUAGES


def write_finished(folder, *, started=NOW, verdict="fail", status="ok", **info):
    found = [metric("perplexity", "phase2", 5.0), metric("perplexity", "stage1", 4.0)]
    stages = [record("perplexity", metrics=found, text="<text>", status=status)]
    judged = [Judged(model="stage1", criteria=[criterion("perplexity", verdict)], summary=Summary())]
    params = {"models": ["stage1", "phase2", "gpt2"]}
    run = run_info(**{"started_utc": started, "finished_utc": LATER, "params": params} | info)
    write_record(run, folder / "run.json")
    write_record(Report.of(run, judged, stages), folder / "report.json")


def test_runs_are_listed_the_newest_first(tmp_path, capsys):
    write_finished(tmp_path / "old", started=NOW.replace(year=2025))
    write_finished(tmp_path / "new", verdict="pass")
    write_finished(tmp_path / "stopped", started=NOW.replace(year=2024), status="failed")
    write_run(tmp_path / "running")  # it has no report yet
    (tmp_path / "bench").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text("{")
    assert cli.main(["list", "reports", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    lines = {line.split()[0]: line for line in shown.out.splitlines()[2:]}
    assert list(lines) == ["new", "running", "old", "stopped"]
    assert "2026-01-02 03:04  Stage 1; Phase 2  published  <text>  All five" in lines["new"]
    assert "1 fail, 0 not measured.  finished" in " ".join(lines["old"].split(" ")).replace("   ", "  ")
    assert lines["running"].endswith("unfinished")
    assert lines["stopped"].endswith("did not finish: Perplexity")
    assert shown.err.startswith(f"muse: {tmp_path}/broken/report.json: got no valid Report")
    assert read_run(tmp_path / "new").finished
    assert not read_run(tmp_path / "running").finished


def test_a_folder_without_runs_says_so_and_none_is_an_error(tmp_path, capsys):
    assert cli.main(["list", "reports", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"All runs\nNo run was found in {tmp_path}.\n"
    assert cli.main(["list", "reports", str(tmp_path / "no")]) == 2
    assert (
        capsys.readouterr().err
        == f"muse: {tmp_path}/no: got no such folder, expected a folder of runs, such as reports\n"
    )
    assert cli.main(["list", "checkpoints", str(tmp_path), "--html"]) == 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_all_runs_links_to_those_that_have_one(tmp_path, language, capsys):
    for name in ("with <page>", "without"):
        write_finished(tmp_path / name)
    (tmp_path / "with <page>" / "index.html").write_text("x")
    assert run_list.further_links(tmp_path / "without", language) == []
    assert cli.main(["list", "reports", str(tmp_path), "--html", "--language", language]) == 0
    page = tmp_path / "index.html"
    assert capsys.readouterr().out.splitlines()[-1] == page.as_uri()
    assert check_page(page) == []
    shown = soup(page.read_text())
    assert [(a.get_text(), a["href"]) for a in shown.select("td a")] == [
        ("with <page>", "with%20%3Cpage%3E/index.html")
    ]
    assert "<text>" in shown.table.get_text()
    ((label, href),) = run_list.further_links(tmp_path / "without", language)
    assert (label, href) == (shown.h1.get_text(), "../index.html")
    page.write_text("the page of something else")
    assert run_list.further_links(tmp_path / "without", language) == []


def test_trainings_are_listed_with_their_loss(tmp_path, capsys):
    for name, result in (("b", {"tokens": 1024, "best_validation_loss": 1.5}), ("a", None), ("c", {})):
        folder = tmp_path / f"stage1-s3-{name}"
        folder.mkdir()
        config = {"config": {"model_name": "stage1", "recipe": {"seed": 3, "train_tokens": 1000}}}
        (folder / "config.json").write_text(json.dumps(config if name != "c" else {}))
        if result:
            (folder / "result.json").write_text(json.dumps(result))
    assert cli.main(["list", "checkpoints", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()[2:]] == [
        ["stage1", "3", "1,024", "1.5000", "stage1-s3-b"], ["stage1", "3", "1,000", "unfinished", "stage1-s3-a"],
    ]  # fmt: skip
    assert shown.err == f"muse: {tmp_path}/stage1-s3-c: got KeyError ('config'), expected a training's config.json\n"
    assert len(find_checkpoints(tmp_path)) == 2
    assert find_runs(tmp_path) == []


def test_trainings_and_exported_models_are_one_list(tmp_path):
    torch = pytest.importorskip("torch")
    from muse.models.build import build_model
    from muse.models.pretrained import save_pretrained

    model = build_model("stage1", vocab_size=9, d_model=4, n_layers=1, n_seq=8).to(torch.float16)
    about = {"model_name": "stage1", "recipe": {"seed": 3, "train_tokens": 5000}, "validation_loss_nats": 1.25}
    save_pretrained(model, tmp_path / "out" / "known", about)
    save_pretrained(model, tmp_path / "out" / "made")
    training = tmp_path / "checkpoints" / "phase2-s1-a"
    training.mkdir(parents=True)
    config = {"config": {"model_name": "phase2", "recipe": {"seed": 1, "train_tokens": 700}}}
    (training / "config.json").write_text(json.dumps(config))
    for name, content in (("damaged", b"\xff" * 20), ("cut", b""), ("empty", None)):
        (tmp_path / "out" / name).mkdir()
        config = (tmp_path / "out" / "known" / "config.json").read_text()
        (tmp_path / "out" / name / "config.json").write_text(config)
        if content is not None:
            (tmp_path / "out" / name / "model.safetensors").write_bytes(content)
    problems = []
    found = find_models([tmp_path / "out", tmp_path / "checkpoints", tmp_path / "no"], problems.append)
    assert [(one.model, one.seed, one.tokens, one.loss, one.exported) for one in found] == [
        ("Phase3Stage1Model", 0, 0, None, True), ("phase2", 1, None, None, False), ("stage1", 3, 5000, 1.25, True)
    ]  # fmt: skip
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in problems] == ["cut", "damaged", "empty"]
    assert all(", expected config.json of a training or of an exported model" in line for line in problems)
    table = models_table(found)
    kinds = [row[1:4] for row in table.rows]
    assert kinds == [["exported", "–", "–"], ["training", "700", "unfinished"], ["exported", "5,000", "1.25"]]
    size = (tmp_path / "out" / "known" / "model.safetensors").stat().st_size
    assert [row[4] for row in table.rows] == [table.rows[0][4], "–", f"{size / 1000:.0f}"]
    assert table.rows[1][5] == "–"
    assert len(table.rows[2][5]) == len("2026-01-02")
    assert models_table([]).note == "No saved model was found."
    assert find_checkpoints(tmp_path / "checkpoints")[0].exported is False
