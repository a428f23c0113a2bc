"""Runs side by side: what may be compared, what is not, which models tie, and the ways in which it is told."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
from builders import metric, record, run_info, soup

from muse import cli, measure
from muse.params import ParamsError
from muse.records.losses import write_losses
from muse.records.schema import InputFile, Report, Summary
from muse.records.store import write_record
from muse.report import compare_tables, tables
from muse.report.check import check_page
from muse.report.compare import Standing, compare, letters
from muse.report.runs import read_run
from muse.report.texts import LANGUAGES, texts
from muse.stages import method, perplexity

DOCUMENTS = np.repeat(np.arange(5, dtype=np.int32), 20)
LOSSES = np.random.default_rng(0).gamma(2, 1.5, 100)
OTHER = {"git_commit": "def456"}
SETTINGS = {"n_seq": 64, "d_model": 8, "n_layers": 2, "train_tokens": 1000, "learning_rates": [0.01], "device": "cpu"}


def write_run(folder, shifts=None, *, data="a", text="some text", memory=1.5, method="", run=(), stage=(), **settings):
    """Write a run whose models have LOSSES moved by so much, with the perplexities and losses that follow."""
    settings, metrics, artifacts = SETTINGS | settings, [], []
    for model, shift in ({"stage1": 0.5, "phase2": 0.0} if shifts is None else shifts).items():
        by_seed = {seed: LOSSES + shift + seed / 4 for seed in (0, 1)}
        artifacts.append(write_losses(folder, model, by_seed, DOCUMENTS))
        samples = [float(np.exp(losses.mean())) for losses in by_seed.values()]
        about = {"samples": samples, "labels": ["seed 0", "seed 1"], "n": 100, "unit": "per token"}
        about |= {"trained": True, "method": method}
        metrics.append(metric("perplexity", model, sum(samples) / 2, **about))
    inputs = [InputFile(path="test.txt", sha256=data * 64, num_bytes=1)]
    params = {"window": 1, **settings}
    about = {"metrics": metrics, "artifacts": artifacts, "inputs": inputs, "text": text}
    stages = [
        record("perplexity", params=params, **about | dict(stage)),
        record("memory", metrics=[metric("peak_memory", value=memory, unit="GiB")], params=params),
    ]
    info = {"params": settings | {"stages": ["perplexity", "memory"]}, "hardware": {"cpu": "slow"}}
    report = Report(run=run_info(**info | dict(run)), criteria=[], summary=Summary(), stages=stages)
    write_record(report.run, folder / "run.json")
    write_record(report, folder / "report.json")
    return read_run(folder)


def rows(runs):
    (pair,) = compare(runs).pairs
    return {(row.metric, row.model): row for row in pair.rows}


def test_two_runs_that_gave_the_same_numbers_are_identical(tmp_path):
    (pair,) = compare([write_run(tmp_path / name) for name in "ab"]).pairs
    assert pair.identical
    assert (pair.settings, pair.code) == ([], {})
    assert all(row.difference.identical and row.comparable == "yes" for row in pair.rows)
    (pair,) = compare([write_run(tmp_path / "a"), write_run(tmp_path / "c", memory=1.5000001)]).pairs
    assert not pair.identical
    (pair,) = compare([write_run(tmp_path / "a"), write_run(tmp_path / "d", {"stage1": 0.5})]).pairs
    assert not pair.identical
    assert (pair.only_base, pair.only_run) == (["phase2"], [])


def test_a_changed_model_is_a_paired_difference(tmp_path):
    base = write_run(tmp_path / "a")
    run = write_run(tmp_path / "b", {"stage1": 0.25, "phase2": 0.0}, learning_rates=[0.1])
    (pair,) = compare([base, run]).pairs
    assert [(s.key, s.base, s.value, s.decides) for s in pair.settings] == [("learning_rates", [0.01], [0.1], "model")]
    found = rows([base, run])["perplexity", "stage1"]
    assert (found.comparable, found.reasons) == ("yes", ())
    assert found.difference.value == pytest.approx(found.value - found.base, rel=1e-3)
    assert found.difference.interval[1] < 0
    assert (found.difference.paired_by, found.difference.seeds) == ("targets", 2)
    assert rows([base, run])["perplexity", "phase2"].difference.identical


@pytest.mark.parametrize(
    ("changes", "comparable", "reasons"),
    [
        ({"text": "another"}, "no", ("text",)),
        ({"data": "b"}, "no", ("text",)),
        ({"n_seq": 32}, "no", ("settings",)),
        ({"max_ppl_batches": 3}, "yes", ()),  # the other record knows no such setting
        ({"train_d_model": 4, "train_tokens": 5}, "yes", ()),
        ({"run": {"git_commit": "def456"}}, "unknown", ("code",)),
        ({"run": {"git_dirty": True}}, "unknown", ("code",)),
        ({"run": {"git_dirty": None}}, "unknown", ("code",)),
        ({"run": {"hardware": {"cpu": "fast"}}}, "yes", ()),
        ({"stage": {"status": "failed"}}, "no", ("unfinished",)),
        ({"text": "another", "run": {"git_commit": "def456"}}, "no", ("text", "code")),
        ({"method": "1", "run": {"git_commit": "def456"}}, "unknown", ("code",)),  # the other record knows no method
    ],
)
def test_a_changed_method_is_no_changed_model(tmp_path, changes, comparable, reasons):
    found = rows([write_run(tmp_path / "a"), write_run(tmp_path / "b", **changes)])["perplexity", "stage1"]
    assert (found.comparable, found.reasons) == (comparable, reasons)
    assert (found.difference is None) == (comparable == "no")


@pytest.mark.parametrize("unknown", [{"git_dirty": None}, {"git_dirty": True}, {"git_commit": None}])
def test_one_commit_is_one_code_only_where_both_trees_are_known_to_be_clean(tmp_path, unknown):
    found = rows([write_run(tmp_path / name, run=unknown) for name in "ab"])["perplexity", "stage1"]
    assert (found.comparable, found.reasons) == ("unknown", ("code",))


def test_a_changed_method_is_told_from_a_changed_model_whatever_else_changed(tmp_path):
    other = {"run": {"git_commit": "def456", "git_dirty": True}, "shifts": {"stage1": 0.25, "phase2": 0.0}}
    base = write_run(tmp_path / "a", method="1")
    same, changed = (write_run(tmp_path / version, method=version, **other) for version in ("1", "2"))
    found = rows([base, same])["perplexity", "stage1"]
    assert (found.method, found.comparable, found.reasons) == ("same", "yes", ())
    assert found.difference.interval[1] < 0
    found = rows([base, changed])["perplexity", "stage1"]
    assert (found.method, found.comparable, found.reasons) == ("changed", "no", ("method",))
    assert found.difference is None
    assert rows([base, changed])["peak_memory", "stage1"].method == "unknown"
    assert {one.reasons for one in compare([base, changed]).standings if one.run == "2"} == {("method",)}
    assert {one.reasons for one in compare([base, same]).standings} == {()}


def test_measuring_code_that_changes_is_a_changed_method_and_other_code_is_not(tmp_path):
    package = shutil.copytree(method.PACKAGE, tmp_path / "muse", ignore=shutil.ignore_patterns("__pycache__"))
    by = (perplexity._on_test_split, measure.seed_metrics)
    base = write_run(tmp_path / "a", method=method.method_of(*by))
    for file, expected in (("models/stage1.py", "same"), ("measure/memory.py", "same"), ("data/batches.py", "changed")):
        text = (package / file).read_text()
        (package / file).write_text(text.replace("    return ", "    return 0, "))
        method._version.cache_clear()
        run = write_run(tmp_path / "b", method=method.method_of(*by, package=package), run={"git_commit": "def456"})
        assert rows([base, run])["perplexity", "stage1"].method == expected, file


def numbers_of(runs):
    return next(table for table in compare_tables.tables(compare(runs)) if table.title.startswith("Numbers"))


def test_what_is_unknown_of_every_method_stands_once_above_the_table(tmp_path):
    base, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", run={"git_commit": "def456"})
    table = numbers_of([base, other])
    assert table.lead == texts("en")["compare.methods.unknown"]
    assert not any("unknown" in row[3] for row in table.rows)
    assert tables.written([table], "terminal").splitlines()[1] == table.lead
    assert tables.written([table], "md").splitlines()[2] == table.lead
    compare_tables.page(compare([base, other]), tmp_path / "compare.html", "en")
    assert table.lead in soup((tmp_path / "compare.html").read_text()).get_text()
    table = numbers_of([write_run(tmp_path / "c", method="1"), write_run(tmp_path / "d", method="2", run=OTHER)])
    assert "of 3 numbers 0 were measured by the same code; for 2 the method changed" in table.lead
    assert [row[3] for row in table.rows if row[1] == "peak GPU memory"] == ["identical (method unknown)"]
    assert [row[3] for row in table.rows if row[1] == "perplexity"] == ["not comparable (the method changed)"] * 2
    assert numbers_of([base, write_run(tmp_path / "e")]).lead == texts("en")["compare.methods.same"]


def test_memory_is_that_of_a_machine_and_of_a_batch(tmp_path):
    base = write_run(tmp_path / "a", memory_batch_size=2)
    other_machine = {"run": {"hardware": {"cpu": "fast"}}}
    for changes, reason in ((other_machine, "hardware"), ({"memory_batch_size": 3}, "settings")):
        found = rows([base, write_run(tmp_path / "b", **{"memory_batch_size": 2} | changes)])
        assert found["peak_memory", "stage1"].reasons == (reason,)
        assert found["peak_memory", "stage1"].difference is None
        assert found["perplexity", "stage1"].comparable == "yes"


def test_losses_of_other_documents_are_not_compared(tmp_path, monkeypatch):
    base = write_run(tmp_path / "a")
    monkeypatch.setitem(globals(), "DOCUMENTS", [*DOCUMENTS[:-1].tolist(), 7])
    found = rows([base, write_run(tmp_path / "b")])["perplexity", "stage1"]
    assert (found.comparable, found.reasons, found.difference) == ("no", ("targets",), None)


def test_models_are_ranked_by_ties(tmp_path):
    models = {"stage1": 1.0, "stage1_memory": 0.0, "phase2": 0.0, "gpt2": 0.5}
    runs = [write_run(tmp_path / "a", models), write_run(tmp_path / "b", {"stage1": 1.0}, text="another")]
    *grouped, apart = compare(runs).standings
    assert [(one.model, one.groups) for one in grouped] == [
        ("stage1_memory", ("a",)), ("phase2", ("a",)), ("gpt2", ("b",)), ("stage1", ("c",)),
    ]  # fmt: skip
    assert apart == Standing("b", "stage1", apart.perplexity, (), ("text",))
    assert [letters(place) for place in (0, 25, 26, 27)] == ["a", "z", "aa", "ab"]


def test_without_losses_a_run_tells_by_the_ratios_it_recorded(tmp_path):
    run = write_run(tmp_path / "a", {"stage1": 0.1, "phase2": 0.0, "gpt2": 2.0})
    for path in (tmp_path / "a" / "losses").iterdir():
        path.unlink()
    ratios = {("stage1", "phase2"): (0.9, 1.2), ("gpt2", "phase2"): (1.1, 1.2), ("stage1", "gpt2"): (0.2, 0.3)}
    found = [metric(f"perplexity_ratio_to_{base}", name, 1.0, interval=ends) for (name, base), ends in ratios.items()]
    stage = run.report.stages[0]
    stage = stage.model_copy(update={"metrics": [*stage.metrics, *found]})
    run.report.stages[0] = stage
    told = {one.model: one.groups for one in compare([run, write_run(tmp_path / "b", {})]).standings}
    assert told == {"phase2": ("a",), "stage1": ("a",), "gpt2": ("b",)}


def test_a_single_run_is_refused_and_a_folder_without_one_named(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    with pytest.raises(ParamsError, match="got 1 run, expected two or more"):
        compare([run])
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"muse: {tmp_path}: is not a run's folder: run.json is missing\n"
    (tmp_path / "a" / "report.json").write_text("{}")
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a/report.json: got no valid Report" in error


def test_the_command_prints_every_form_and_writes_a_page(tmp_path, capsys):
    for name, shift in (("one", 0.5), ("two", 0.25)):
        write_run(tmp_path / name, {"stage1": shift, "phase2": 0.0})
    folders = [str(tmp_path / name) for name in ("one", "two")]
    assert cli.main(["compare", *folders, "--out", str(tmp_path)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == (tmp_path / "compare.html").as_uri()
    (line,) = [line for line in lines if "  differs  " in line]
    assert line.split()[:4] == ["Stage", "1", "perplexity", "per"]
    assert cli.main(["compare", *folders, "--baseline", folders[1], "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["baseline"], told["runs"]) == ("two", ["two", "one"])
    assert told["pairs"][0]["rows"][0]["difference"]["value"] > 0
    assert cli.main(["compare", *folders, "--format", "csv"]) == 0
    numbers = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert ["Stage 1", "peak GPU memory", "GiB", "identical", "1.5", "1.5"] in [row[:6] for row in numbers]
    for form, sign in (("md", "| Stage 1 |"), ("tex", r"\begin{tabular}")):
        assert cli.main(["compare", *folders, "--format", form]) == 0
        assert sign in capsys.readouterr().out


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_passes_the_check_and_shows_text_as_text(tmp_path, language):
    runs = [write_run(tmp_path / "a", text="<b>"), write_run(tmp_path / "<i>b", {"stage1": 1.0}, text="<b>", data="c")]
    page = tmp_path / "pages" / "compare.html"
    compare_tables.page(compare(runs), page, language)
    assert check_page(page) == []
    shown = soup(page.read_text())
    assert shown.html["lang"] == language
    assert "<i>b" in shown.h1.get_text()
    assert shown.i is None


def test_forms_keep_what_their_signs_mean():
    table = tables.Table("A & B", ("name", "a|b"), [("x_1 & y", "−1"), ("empty", "")], {1})
    assert tables.written([table], "md") == "## A & B\n\n| name | a\\|b |\n| --- | --- |\n| x_1 & y | −1 |"
    assert r"x\_1 \& y & $-$1 \\" in tables.written([table], "tex").splitlines()
    assert tables.written([table], "terminal").splitlines()[1:] == ["  name     a|b", "  x_1 & y  −1", "  empty"]
    assert tables.written([table], "csv") == "name,a|b\nx_1 & y,−1\nempty,"
