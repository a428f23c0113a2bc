"""What a stage's process gets of the user's surroundings, and what a run says when other code ran than its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from builders import fake_export, write_notebook

from muse.params import Settings
from muse.records.environment import git_state, imported, versions
from muse.records.schema import Report, RunInfo, StageRecord
from muse.records.store import read_record
from muse.runner.notebooks import REPOSITORY
from muse.runner.run import other_code, run
from muse.runner.surroundings import PACKAGE, surroundings

LOOK = """
import importlib.util, json, os, sys
from pathlib import Path
names = ("torch", "datasets", "numpy", "yaml", "muse")
seen = {name: importlib.util.find_spec(name).origin for name in names}
seen |= {"path": sys.path, "python": sys.executable, "extra": "injected" in globals(), "cwd": os.getcwd()}
seen |= {"environment": {k: v for k, v in os.environ.items() if k.startswith(("GIT_", "IPYTHON", "JUPYTER", "PYTHON"))}}
written = Path(record_dir, "seen.json").write_text(json.dumps(seen))
"""
RECORD = """
from muse.stages.stage import Stage
record = Stage("memory", globals()).write([])
"""


def commit_in(folder):
    folder.mkdir()
    own = {"GIT_AUTHOR_NAME": "x", "GIT_COMMITTER_NAME": "x", "GIT_AUTHOR_EMAIL": "x", "GIT_COMMITTER_EMAIL": "x"}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, env=own)
    return folder


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run in a working folder, with variables and a profile that would all bring in something else."""
    world = tmp_path_factory.mktemp("world")
    folders = [world / name for name in ("work", "path")]
    for folder in folders:
        folder.mkdir()
        for name in ("torch", "datasets", "numpy", "yaml", "papermill", "nbformat"):
            (folder / f"{name}.py").write_text("raise SystemExit('other code')\n")
    startup = world / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("injected = 1\nd_model = 128\n")
    (world / "start.py").write_text("injected = 1\n")
    kernel = world / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    books = world / "books"
    books.mkdir()
    write_notebook(books, "04_memory.ipynb", LOOK, RECORD)
    write_notebook(books, "07_report.ipynb", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world / "work")
        patch.setenv("PYTHONPATH", str(world / "path"))
        patch.setenv("PYTHONSTARTUP", str(world / "start.py"))
        patch.setenv("IPYTHONDIR", str(world / "ipython"))
        for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(world / "jupyter"))
        patch.setenv("GIT_DIR", str(commit_in(world / "other") / ".git"))
        run(Settings(stages=["memory"], d_model=64), out=world / "out", notebooks=books, export=fake_export)
    return world


def test_a_stage_sees_nothing_of_the_users_surroundings(hostile_run):
    seen = json.loads((hostile_run / "out" / "records" / "seen.json").read_text())
    assert [name for name, found in seen.items() if str(found).startswith(str(hostile_run))] == ["cwd"]
    assert seen["muse"] == str(PACKAGE / "__init__.py")
    assert seen["python"] == sys.executable
    assert seen["extra"] is False
    assert seen["cwd"] == str(hostile_run / "work"), "paths of settings are seen from where one works"
    assert not {"", ".", str(hostile_run / "work"), str(hostile_run / "path")} & set(seen["path"])
    assert not any(str(hostile_run / name) in str(seen["environment"]) for name in ("ipython", "jupyter", "other"))


def test_what_a_stage_imported_stands_in_its_record(hostile_run):
    report = read_record(Report, hostile_run / "out" / "report.json")
    record = next(stage for stage in report.stages if stage.stage == "memory")
    assert (record.status, record.error) == ("ok", None)
    assert record.imported.package == "muse"
    assert record.imported.git_commit == report.run.git_commit == git_state(REPOSITORY)[0]
    assert record.imported.versions["torch"] == report.run.versions["torch"]
    assert record.find("d_model") is None


def info(**changes):
    given = {"id": "x", "profile": "x", "started_utc": "2026-01-01T00:00:00Z", "git_commit": "abc", "git_dirty": False}
    given |= {"versions": {"torch": "2", "python": "3"}, "hardware": {}, "seeds": [0], "command": "x"}
    return RunInfo.model_validate(given | changes)


def test_other_code_than_the_runs_is_one_line():
    own = imported()
    same = info(git_commit=own.git_commit, versions=versions())
    assert other_code(own, same) is None
    assert other_code(None, same) is None, "records of before"
    built = info(git_commit=own.git_commit, versions=versions() | {"torch": "2.11.0"})
    cuda, cpu = (own.model_copy(update={"versions": {"torch": f"2.11.0+{build}"}}) for build in ("cu130", "cpu"))
    assert other_code(cuda, built) is None, "metadata that leaves out the build"
    named = info(git_commit=own.git_commit, versions={"torch": "2.11.0+cu130"})
    assert other_code(cuda, named) is None
    assert "torch 2.11.0+cpu, not 2.11.0+cu130" in other_code(cpu, named)
    for change, words in (
        ({"package": ".../other/muse"}, "muse .../other/muse, not muse"),
        ({"git_commit": "def"}, "commit def, not "),
        ({"versions": own.versions | {"torch": "1.0"}}, "torch 1.0, not "),
        ({"versions": own.versions | {"numpy": "unknown"}}, "numpy unknown, not "),
    ):
        line = other_code(own.model_copy(update=change), same)
        assert words in line
        assert "\n" not in line


def test_another_package_is_told_apart(monkeypatch, tmp_path):
    assert imported().package == "muse"
    monkeypatch.setenv("MUSE_PACKAGE", str(tmp_path / "muse"))
    assert imported().package == f".../{REPOSITORY.name}/muse"


def test_a_record_of_before_names_no_imported_code():
    record = {"stage": "memory", "started_utc": "2026-01-01T00:00:00Z", "finished_utc": "2026-01-01T00:00:00Z"}
    assert StageRecord.model_validate(record | {"scale": "published"}).imported is None


def test_own_variables_are_added(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_WORK_TREE", "/elsewhere")
    monkeypatch.setenv("KEPT", "yes")
    found = surroundings(tmp_path, MORE="more")
    assert (found["MORE"], found["KEPT"]) == ("more", "yes")
    assert found["PYTHONPATH"].split(os.pathsep)[1:] == [str(REPOSITORY)]
    assert "GIT_WORK_TREE" not in found


def test_only_the_repository_whose_top_is_asked_names_a_commit(tmp_path, monkeypatch):
    other = commit_in(tmp_path / "other")
    (other / "inside").mkdir()
    monkeypatch.delenv("MUSE_GIT_COMMIT", raising=False)
    assert git_state(other / "inside") == (None, None)
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_state(outside) == (None, None)
    monkeypatch.setenv("MUSE_GIT_COMMIT", "abc")
    assert git_state(outside) == ("abc", None)


def test_a_kernel_that_starts_in_the_checkout_finds_the_package_though_it_is_not_installed(tmp_path):
    """A kernel takes the first place of its path away where that is its working folder."""
    program = """
        import contextlib, importlib.util, runpy, sys
        sys.meta_path = [finder for finder in sys.meta_path if "ditable" not in f"{finder}"]  # of an editable install
        sys.argv = ["ipykernel_launcher", "--version"]
        with contextlib.suppress(SystemExit):
            runpy.run_module("ipykernel_launcher", run_name="__main__")
        print(importlib.util.find_spec("muse").origin)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    given = {"cwd": REPOSITORY, "env": surroundings(tmp_path), "capture_output": True, "text": True}
    assert subprocess.run(command, **given, check=True).stdout.splitlines()[-1] == str(REPOSITORY / "muse/__init__.py")
