"""What a paper needs of a run: its entry, and the table of its models in every form."""

from __future__ import annotations

import csv
import io

import pytest
from builders import make_report, metric, ratio, record, run_info, soup
from builders import write_run as write_records

from muse import cli
from muse.host.files import sha256_of
from muse.records.store import write_record
from muse.report.citation import PENDING, bibtex
from muse.report.provenance import provenance
from muse.report.runs import read_run

PERPLEXITY = record("perplexity", metrics=[
    metric("perplexity", "stage1", 8.0, interval=(7.5, 8.5)), metric("perplexity", "phase2", 4.0),
    metric("perplexity", "gpt2", 6.0), ratio("stage1", 2.0, (1.9, 2.1)), ratio("gpt2", None),
])  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_record(make_report([PERPLEXITY]), tmp_path / "report.json")
    return tmp_path


def test_a_run_is_cited_by_title_version_commit_date_and_hash(folder):
    run = run_info(versions={"muse-workbook": "0.1.0"})
    assert bibtex(make_report(run=run), folder / "report.json").splitlines() == [
        "@misc{quick-1,",
        "  title = {Does complex half precision keep its promise? MUSE run quick-1},",
        "  version = {0.1.0},",
        "  date = {2026-01-02},",
        f"  note = {{commit abc123; report.json SHA-256 {sha256_of(folder / 'report.json')}}},",
        "}",
    ]
    for dirty, words in (
        (True, "abc123 with uncommitted changes;"),
        (None, "abc123, perhaps with uncommitted changes;"),
    ):
        assert words in bibtex(make_report(run=run_info(git_dirty=dirty)), folder / "report.json")
    assert "version = {unknown}" in bibtex(
        make_report(run=run_info(versions={"muse-workbook": "not installed"})), folder
    )


def test_the_page_cites_the_report_beside_it(folder):
    report = read_run(folder).report
    shown = soup(provenance(report, folder)).pre.get_text()
    assert shown == bibtex(report, folder / "report.json")
    (folder / "report.json").unlink()
    assert PENDING in soup(provenance(report, folder)).pre.get_text()


def test_the_table_of_models_holds_what_was_measured(folder, capsys):
    assert cli.main(["report", str(folder), "--format", "csv"]) == 0
    head, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert head == ["quantity", "Stage 1", "Phase 2", "GPT-2", "commit", "report_sha256"]
    assert {tuple(row[4:]) for row in rows} == {("abc123", sha256_of(folder / "report.json"))}
    assert [row[:4] for row in rows] == [
        ["perplexity per token", "8", "4", "6"],
        ["95 % over documents and seeds", "7.5 to 8.5", "", ""],
        ["perplexity over Phase 2's, paired", "2.000 (1.900 to 2.100)", "1", ""],
    ]
    for form, sign in (("md", "\n```bibtex\n@misc{quick-1,\n"), ("tex", "\n% @misc{quick-1,\n")):
        assert cli.main(["report", str(folder), "--format", form]) == 0
        assert sign in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["report.json"]


def test_without_a_baseline_nothing_is_divided_by_it(tmp_path, capsys):
    write_records(tmp_path, record("perplexity", metrics=[metric("perplexity", "phase2", 4.0)]))
    assert cli.main(["report", str(tmp_path), "--format", "md"]) == 0
    assert "paired" not in capsys.readouterr().out
