"""The `muse` command: what it prints, how it exits, and that it does so quickly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from muse import cli
from muse.params import Settings
from muse.runner import rows
from muse.runner.notebooks import REPOSITORY


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("profile: tiny\nd_model: 64\nlearning_rates: [1e-5]\n")
    return str(path)


@pytest.fixture
def started(monkeypatch):
    """What `muse run` hands to the driver."""
    calls = []

    def fake_run(settings, **options):
        calls.append((settings, options))
        return 3

    monkeypatch.setattr(cli, "run", fake_run)  # of the published commands
    monkeypatch.setattr(rows, "run", fake_run)
    return calls


def test_run_hands_over_settings_and_options(params, started, tmp_path):
    arguments = ["run", params, "-p", "seed=4", "-p", "seeds=[0, 1]", "--out", str(tmp_path / "o u t"), "--gate"]
    assert cli.main(arguments) == 3
    settings, options = started[0]
    assert (settings.profile, settings.d_model, settings.seed, settings.seeds) == ("tiny", 64, 4, [0, 1])
    assert options["out"] == tmp_path / "o u t"
    assert options["gate"] is True
    command = f"muse run {params} -p seed=4 -p 'seeds=[0, 1]' --out '{tmp_path}/o u t' --gate"
    assert options["command"] == command


def test_run_without_options(params, started):
    cli.main(["run", params])
    assert started[0][1] == {"out": None, "notebooks": None, "gate": False, "command": f"muse run {params}"}


def test_the_published_commands_are_runs_of_profiles_that_came_along(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("wikitext2", "basic-test"):
        (tmp_path / name).write_text("profile: mine")  # what lies here does not matter
    cli.main(["basic-test"])
    cli.main(["basic-test", "-p", "device=cpu", "--out", "here", "--gate"])
    cli.main(["benchmark"])
    cli.main(["benchmark", "-p", "max_ppl_batches=3", "--skip-phase2", "--max-ppl-batches", "10", "--gate"])
    (plain, asked), (on_cpu, gated), (whole, _), (short, short_gated) = started
    assert (plain.profile, plain.stages, plain.device) == ("basic-test", ["basic_test"], "auto")
    assert asked == {"out": None, "gate": False, "command": "muse basic-test"}
    assert (on_cpu.device, gated["out"], gated["gate"]) == ("cpu", Path("here"), "basic_test")
    assert (whole.profile, whole.skip_phase2, whole.max_ppl_batches) == ("wikitext2", False, None)
    assert (short.skip_phase2, short.max_ppl_batches, short_gated["gate"]) == (True, 10, True)
    assert short_gated["command"].startswith("muse benchmark -p max_ppl_batches=3 --skip-phase2")


@pytest.mark.parametrize("batches", ["ten", "0", "-1", "1.5"])
def test_a_bad_number_of_batches_is_a_bad_parameter(batches, capsys, started):
    assert cli.main(["benchmark", f"--max-ppl-batches={batches}"]) == 2
    assert f"max_ppl_batches={batches}: " in capsys.readouterr().err
    assert not started


@pytest.mark.parametrize("command", [["benchmark"], ["run", "params/wikitext2.yaml"]])
def test_without_hub_and_cache_each_of_text_and_tokenizer_is_one_whole_line(tmp_path, command):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    arguments = [sys.executable, "-m", "muse", *command, "--out", str(tmp_path / "out")]
    done = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100)
    said = [line for line in done.stderr.splitlines() if "unavailable" in line]
    assert done.returncode == 2
    assert len(said) == 2
    told = ("corpus 'wikitext-", "test.txt or parquet"), ("the gpt2 tokenizer", "vocab.json, merges.txt")
    for line, (what, folder) in zip(said, told, strict=True):
        assert f"corpus, tokenizer: {what}" in line
        assert "(not cached; HF_HUB_OFFLINE forbids a download). Ways out: (1) a local folder (" in line
        assert folder in line
        assert line.endswith("; (2) HF_HOME of a run with a network; (3) corpus 'synthetic', tokenizer 'corpus'.")


def test_a_benchmark_without_text_says_so_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", "-p", f"corpus={tmp_path / 'nothing'}", "-p", f"tokenizer={tmp_path}"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "d_modell=3"], "did you mean d_model?"),
        (["-p", "d_model=3.5"], "d_model: got 3.5 (float)"),
        (["-p", "d_model"], "expected key=value"),
        (["-p", "corpus=no/such/folder"], "no folder"),
    ],
)
def test_bad_parameters_give_2_and_one_message(params, arguments, message, capsys, tmp_path):
    assert cli.main(["run", params, "--out", str(tmp_path / "out"), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("muse: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["nonsense"], ["params", "x.yaml", "nonsense"], ["run", "x", "--wrong"]]
)
def test_a_wrong_command_line_gives_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: muse" in capsys.readouterr().err


def test_an_interruption_gives_130_and_a_bug_4(params, monkeypatch, capsys):
    for error, code in ((KeyboardInterrupt, 130), (RuntimeError("a bug"), 4)):

        def broken(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(rows, "run", broken)
        assert cli.main(["run", params]) == code
    assert "a bug" in capsys.readouterr().err


def test_params_prints_what_papermill_reads_back_unchanged(params, capsys, tmp_path, monkeypatch):
    if not (REPOSITORY / "notebooks").is_dir():
        pytest.skip("not a checkout")
    from papermill.iorw import read_yaml_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "010").mkdir()
    assert (
        cli.main(["params", params, "train", "-p", "weight_decays=[1e-6]", "-p", "compile=false", "-p", "corpus='010'"])
        == 0
    )
    file = tmp_path / "train.yaml"
    file.write_text(capsys.readouterr().out)
    values = read_yaml_file(str(file))
    assert values["record_dir"] == str(tmp_path / "reports" / "tiny" / "records")
    assert values["learning_rates"] == [1e-5]
    assert values["weight_decays"] == [1e-6]
    assert values["compile"] is False
    assert values["corpus"] == str(tmp_path / "010")
    del values["record_dir"]
    Settings(**values)
    assert cli.main(["params", params, "report", "--out", "elsewhere"]) == 0
    assert f"record_dir: {tmp_path / 'elsewhere' / 'records'}" in capsys.readouterr().out


def test_schema_is_the_schema_of_the_report(capsys):
    assert cli.main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == "Report"
    assert schema["additionalProperties"] is False
    assert "pass" in schema["$defs"]["Summary"]["properties"]


def test_help_names_every_command_and_the_exit_codes(capsys):
    for arguments, words in (
        (["--help"], ("run", "params", "schema")),
        (["run", "--help"], ("--gate", "130", "KEY=VALUE")),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)


def test_the_command_starts_without_the_heavy_packages():
    program = (
        "import sys, runpy\nsys.argv = ['muse', 'run', 'no-such.yaml']\n"
        "try:\n    runpy.run_module('muse', run_name='__main__')\nexcept SystemExit as e:\n    print('code', e.code)\n"
        "print(sorted({'torch', 'papermill', 'nbformat', 'transformers', 'plotly', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["code 2", "[]"]
    assert "no-such.yaml: cannot be read" in done.stderr


def test_train_trains_resumes_and_says_where_the_weights_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = tmp_path / "p.yaml"
    params.write_text(
        "train_tokens: 256\nbatch_tokens: [128]\ntrain_d_model: 8\ntrain_n_layers: 1\ntrain_n_seq: 16\n"
        "evaluations: 1\nmodels: [stage1, phase2]\nskip_phase2: true\ndevice: cpu\n"
    )
    assert cli.main(["train", str(params)]) == 0
    first = capsys.readouterr().out
    assert first.startswith("stage1 seed 0: validation loss ")
    assert "phase2" not in first
    weights = Path(first.strip().rsplit(": ", 1)[1])
    assert weights.is_file()
    assert weights.is_relative_to(tmp_path / "checkpoints")
    assert cli.main(["train", str(params)]) == 0
    assert "found finished" in capsys.readouterr().out
    assert cli.main(["train", str(params), "-p", "train_tokens=0"]) == 2
    assert "train_tokens: got 0" in capsys.readouterr().err


def test_pages_that_are_none_are_bad_parameters(tmp_path, capsys):
    assert cli.main(["check-pages", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_a_signal_that_ends_any_command_gives_130(tmp_path, monkeypatch, capsys):
    def hang_up(*_):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")

    monkeypatch.setattr(cli, "load_params", hang_up)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["params", "params/quick.yaml", "train"]) == 130
    assert capsys.readouterr().err == "muse: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_link_to_nothing_as_out_does_not_make_its_target(tmp_path, params, command, capsys):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    assert cli.main([command, params, "--out", str(link)]) == 2
    assert "a link to" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


AFTERWARDS = """
import atexit, os, signal, sys
from muse import __main__, cli
cli.main = lambda: 3
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), os.write(1, b"went on")))
sys.exit(__main__.main())
"""


def test_a_signal_after_the_work_does_not_change_its_exit_code():
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_a_signal_while_the_command_is_imported_gives_130(tmp_path):
    lines = ["import os, signal", "os.kill(os.getpid(), signal.SIGTERM)", "os.write(1, b'went on')"]
    (tmp_path / "pydantic.py").write_text("\n".join(lines))
    program = "import runpy; runpy.run_module('muse', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_full_disk_gives_one_line_and_4(params, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "somewhere/record.json")

    monkeypatch.setattr(rows, "run", full)
    assert cli.main(["run", params]) == 4
    assert capsys.readouterr().err == "muse: [Errno 28] No space left on device: 'somewhere/record.json'\n"


def test_a_working_folder_that_is_gone_gives_one_line_and_2(tmp_path):
    program = "import os, sys\nfrom muse import cli\nos.rmdir(os.getcwd())\nsys.exit(cli.main(['schema']))"
    (tmp_path / "gone").mkdir()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "gone", capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "muse: the working folder is gone; expected one that is there\n"


def test_who_has_no_home_gets_one_until_the_end(params, started, monkeypatch):
    def nobody(*_):
        raise RuntimeError("Could not determine home directory.")

    def look(*arguments, **options):
        homes.append(Path(os.environ["HOME"]))
        assert homes[0].is_dir()
        return 0

    homes = []
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(rows, "run", look)
    assert cli.main(["run", params]) == 0
    assert "HOME" not in os.environ
    assert not homes[0].exists()
