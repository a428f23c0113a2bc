"""The package as a wheel: everything that a run needs travels in it, and `muse` works from any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from muse import cli
from muse.host import workbook

TINY = ("stages=[basic_test]", "d_model=8", "n_layers=1", "n_seq=8", "vocab_size=16", "throughput_n_tokens=8",
        "gradient_n_tokens=8", "stability_n_tokens=8", "train_tokens=0")  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `muse` of a virtual environment that has the wheel, and all other packages from this one."""
    pytest.importorskip("setuptools")
    if not (workbook.CHECKOUT / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in ("muse", "notebooks", "params"):
        skipped = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(workbook.CHECKOUT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(workbook.CHECKOUT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    given = {"check": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 200}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], **given)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], **given)
    return python.with_name("muse")


def muse(installed, folder, *arguments):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([installed, *arguments], cwd=folder, env=kept, capture_output=True, text=True, timeout=200)


def test_a_wheel_holds_every_notebook_and_params_file(installed, tmp_path):
    assert muse(installed, tmp_path, "init", "mine").returncode == 0
    files = subprocess.run(["git", "ls-files", "notebooks", "params"], cwd=workbook.CHECKOUT, capture_output=True)
    wanted = files.stdout.decode().split() or pytest.skip("no git")
    assert sorted(str(p.relative_to(tmp_path / "mine")) for p in (tmp_path / "mine").rglob("*.*")) == sorted(wanted)


def test_a_run_from_an_empty_folder(installed, tmp_path):
    done = muse(installed, tmp_path, "run", "quick", *(part for value in TINY for part in ("-p", value)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (tmp_path / "reports" / "quick" / "index.html").as_uri()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports"]


def test_the_basic_test_from_an_empty_folder(installed, tmp_path):
    sizes = (part for value in TINY[1:] for part in ("-p", value))
    done = muse(installed, tmp_path, "basic-test", "--gate", "-p", "device=cpu", *sizes)
    assert done.returncode == 3, done.stderr  # another size than published, and an estimate of memory
    lines = [line.split()[2:5] for line in done.stdout.splitlines() if line.startswith("basic test: ")][:4]
    named = ["model_creation", "forward_pass", "backward_pass", "memory_usage"]
    assert [line[0] for line in lines] == named
    assert [line[1:] for line in lines] == [["–", "not"], ["✓", "PASS"], ["✓", "PASS"], ["–", "not"]]
    found = json.loads((tmp_path / "reports" / "basic-test" / "phase3_stage1_basic_test.json").read_text())
    assert [test["status"] for test in found["test_results"].values()] == [
        "NOT_MEASURED", "PASS", "PASS", "NOT_MEASURED"
    ]  # fmt: skip


def test_what_an_extra_needs_can_be_installed_by_the_command_that_is_said(installed, tmp_path):
    code = "from muse.host.workbook import to_install as t; print(t('eval')); print(t('peers'))"
    command = [installed.with_name("python"), "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = ["'lm-eval>=0.4.13'", "'complexPyTorch>=0.4' 'complextorch>=2.1'"]
    said = [f"python -m pip install {packages}" for packages in said]
    assert done.stdout.splitlines() == said, "the name of the workbook is on no index"
    assert workbook.to_install("eval") == "python -m pip install -e '.[eval]' in the checkout"


def test_version(installed, tmp_path, capsys):
    told = muse(installed, tmp_path, "--version")
    assert (told.returncode, told.stdout) == (0, "muse-workbook 0.1.0\n")


def test_a_name_that_is_no_profile_is_refused_with_the_nearest(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, hint in (("quik", "did you mean quick?"), ("nothing", "")):
        assert cli.main(["run", name]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"muse: {name}: no such file, expected a params file or one of basic-test, compact-")
        assert told.endswith(f"{hint}\n")
        assert told.count("\n") == 1
    assert cli.main(["params", "quick.yaml", "memory"]) == 2  # the name of a file is a file


def test_a_file_of_that_name_comes_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text("profile: mine\n")
    assert cli.main(["check", "quick", "-p", "stages=[planar_complex]"]) == 0
    assert cli.main(["params", "quick", "memory"]) == 0
    assert "reports/mine" in capsys.readouterr().out


def test_copies_write_over_nothing(capsys, tmp_path):
    assert cli.main(["init", str(tmp_path / "mine")]) == 0
    book = next((tmp_path / "mine" / "notebooks").glob("*.ipynb"))
    for path in (tmp_path / "mine").rglob("*.*"):
        if path != book:
            path.unlink()
    book.write_text("mine")
    assert cli.main(["init", str(tmp_path / "mine")]) == 2
    assert f"{book} is there" in capsys.readouterr().err
    assert list((tmp_path / "mine").rglob("*.*")) == [book]
    assert book.read_text() == "mine"


def test_an_installation_without_its_files_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(workbook, "CHECKOUT", Path(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    assert cli.main(["run", "quick"]) == 2
    assert "no notebooks and params files; expected those of muse-workbook" in capsys.readouterr().err
