"""The executor file: what it may say, what is wrong with it in a line, and what becomes of it without the engine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from builders import write_tiny_training

from muse import cli
from muse.cluster import marked, settings, sweep, task
from muse.cluster.engine import provider_of
from muse.cluster.settings import Executor, load_executor
from muse.params import ParamsError, Settings


def write(tmp_path, text):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers: 2", "provider: got nothing, expected local, slurm or kubernetes"),
        ("provider: slrum", "provider: got 'slrum' (str), expected 'local', 'slurm' or 'kubernetes'"),
        ("provider: local\nworkres: 2", "unknown key workres: did you mean workers?"),
        ("provider: local\nworkers: 0", "workers: got 0 (int), expected greater than or equal to 1"),
        ("provider: local\nworkers: '2'", "workers: got '2' (str), expected integer"),
        ("provider: slurm\nwalltime: 90", "walltime: got 90 (int), expected string"),
        ("provider: slurm\nwalltime: 1:99:00", "walltime: got '1:99:00' (str), expected"),
        ("provider: local\ndevices: [0]", "devices[0]: got 0 (int), expected string"),
        ('provider: local\ninit: ["a\\nb"]', "init[0]: got 'a\\nb' (str), expected"),
        ("provider: local\npartition: all", "partition: got it with provider local, expected it with slurm alone"),
        ("provider: slurm\nimage: x", "image: got it with provider slurm, expected it with kubernetes alone"),
        ("provider: kubernetes", "image: got nothing, expected the image of the pods"),
        ("[local]", "got list, expected a mapping that names a provider"),
        ("provider: [", "not YAML"),
    ],
)
def test_one_line_names_file_key_got_and_expected(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(ParamsError) as error:
        load_executor(path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}: {said}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"none\.yaml: cannot be read \(No such file or directory\); expected local"):
        load_executor(tmp_path / "none.yaml")


KUBERNETES = "provider: kubernetes\nimage: lab/muse:1\nclaims: [[data, /data]]\n"


def test_each_provider_gets_what_it_knows(tmp_path):
    local = provider_of(load_executor(write(tmp_path, "provider: local\nblocks: 3\ninit: [module load x, export Y=1]")))
    assert local[0] == "LocalProvider"
    assert local[1] == {"init_blocks": 1, "min_blocks": 0, "max_blocks": 3, "nodes_per_block": 1,
                        "worker_init": "module load x\nexport Y=1\n"}  # fmt: skip
    name, arguments = provider_of(
        load_executor(write(tmp_path, 'provider: slurm\nnodes: 4\ngpus: 8\npartition: a\noptions: ["#SBATCH -q x"]'))
    )
    assert name == "SlurmProvider"
    assert (arguments["nodes_per_block"], arguments["gpus_per_node"], arguments["partition"]) == (4, 8, "a")
    assert arguments["scheduler_options"] == "#SBATCH -q x\n"
    assert arguments["walltime"] == "01:00:00"
    name, arguments = provider_of(load_executor(write(tmp_path, KUBERNETES)))
    assert name == "KubernetesProvider"
    assert (arguments["image"], arguments["namespace"]) == ("lab/muse:1", "default")
    assert arguments["persistent_volumes"] == [("data", "/data")]


def test_the_engine_is_named_where_it_is_missing_and_a_file_excludes_other_ways(tmp_path, monkeypatch, capsys):
    params, path = write_tiny_training(tmp_path), str(write(tmp_path, "provider: local"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    for arguments, said in (
        (["--executor", path], f"--executor: got {path}, expected local, or the engine of such a file: python -m pip"),
        (["--executor", path, "--processes", "2"], "--processes: got it with an executor file, expected one of them"),
        (["--executor", path, "--index", "0"], "--index: got it with --executor, expected one of them"),
        (["--executor", "none.yaml"], "none.yaml: cannot be read"),
    ):
        assert cli.main(["train", params, *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"muse: {said}")
    assert not (tmp_path / "checkpoints").exists()


def test_local_is_a_training_at_a_time_on_each_device(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("muse.training.parallel.train_side_by_side", lambda *given: asked.append(given[-2:]) or True)
    params = write_tiny_training(tmp_path, models=["stage1"])
    assert cli.main(["train", params, "--executor", "local"]) == 0
    assert cli.main(["train", params, "--executor", "local", "--processes", "3"]) == 0
    monkeypatch.setattr("muse.training.parallel.visible_devices", lambda kind: ["0", "1", "2", "3", "4"])
    assert cli.main(["train", params, "--executor", "local", "--gpus-per-model", "2"]) == 0
    assert asked == [(1, 1), (3, 1), (2, 2)]


def test_a_matrix_of_nothing_or_of_too_much_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(sweep, "Engine", None)
    rates = json.dumps([x / 200 for x in range(1, 100)])
    params = write_tiny_training(tmp_path, models=["phase2"])
    for path in ("local", str(write(tmp_path, "provider: local"))):
        for given in (["skip_phase2=true"], [f"learning_rates={rates}", f"dropouts={rates}", f"weight_decays={rates}"]):
            overrides = [part for value in given for part in ("-p", value)]
            assert cli.main(["train", params, "--executor", path, *overrides]) == 2
            assert "trainings, expected 1 to 10,000" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


# What a worker does, here


def test_a_worker_without_the_data_says_what_it_does_not_see(tmp_path):
    params = write_tiny_training(tmp_path, models=["stage1"])
    paths = [("corpus", str(tmp_path / "gone")), ("params", params)]
    (line,) = task.problems([params], paths, str(tmp_path))
    assert line.endswith(f": corpus: {tmp_path / 'gone'} is not there")
    (line,) = task.problems([params], [], str(tmp_path / "gone"))
    assert line.endswith(f": the working folder: {tmp_path / 'gone'} is not there")
    (line,) = task.problems([params, "-p", "dropouts=[2]"], [("params", params)], str(tmp_path))
    assert line.startswith("worker on ")
    assert "dropouts[0]: got 2 (int)" in line


def trained(tmp_path, monkeypatch, program, devices=(), worker="0"):
    """What `task.train` returns where `muse train` is this program, and its log."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        task.subprocess, "Popen", lambda command, **more: popen([sys.executable, "-c", program, *command[4:]], **more)
    )
    monkeypatch.setenv("PARSL_WORKER_RANK", worker)
    log = tmp_path / "logs" / "x.log"
    (log.parent / "parsl").mkdir(parents=True, exist_ok=True)
    code = task.train(["p.yaml", "-p", "seeds=[1]"], str(log), str(tmp_path), {"A": "b"}, devices)
    return code, log.read_text().splitlines()


def test_a_worker_pins_its_training_and_keeps_what_it_prints(tmp_path, monkeypatch):
    program = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['A'], os.getcwd(), sys.argv[1:])\n"
    program += "print(os.getsid(0) == os.getpid(), file=sys.stderr); sys.exit(4)"
    code, lines = trained(tmp_path, monkeypatch, program, ["GPU-5f", "GPU-6a"], worker="3")
    assert code == 4
    assert lines[0].startswith(f"$ {sys.executable} -m muse train p.yaml -p 'seeds=[1]'  # on ")
    assert sorted(lines[1:]) == sorted([f"GPU-6a b {tmp_path} ['p.yaml', '-p', 'seeds=[1]']", "True"])


def test_an_interrupted_training_is_told_apart_from_one_that_failed(tmp_path, monkeypatch):
    with pytest.raises(task.RowInterruptedError):
        trained(tmp_path, monkeypatch, "raise SystemExit(130)")


def test_a_row_waits_for_its_earlier_process_whose_worker_was_lost(tmp_path, monkeypatch):
    """The earlier one inherited the lock, and says in the log when it lets go of it."""
    log = tmp_path / "logs" / "x.log"
    (log.parent / "parsl").mkdir(parents=True)
    code = "import sys, time; print(1, flush=True); time.sleep(0.6); open(sys.argv[1], 'w').write('saved\\n')"
    with task._held(task._lock_of(log), task.os.getppid()) as lock:
        earlier = subprocess.Popen([sys.executable, "-c", code, str(log)], pass_fds=[lock], stdout=subprocess.PIPE)
        earlier.stdout.readline()
    assert trained(tmp_path, monkeypatch, "print('second')")[1][::2] == ["saved", "second"]
    assert earlier.wait() == 0
    earlier.stdout.close()


def test_what_is_marked_is_found_and_trainings_get_time(tmp_path, monkeypatch):
    code = "import sys, time; sys.argv[0] = 'x'; print(1, flush=True); time.sleep(600)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *words], env={marked.MARK: mark}, stdout=subprocess.PIPE)
        for words, mark in ((["a"], "one"), (["muse", "train"], "one"), (["b"], "other"))
    ]
    for process in processes:
        process.stdout.readline()
    try:
        found = {process.pid for process in marked.marked("one")}
        assert found == {process.pid for process in processes[:2]}
        trains = psutil.Process(processes[1].pid)
        monkeypatch.setattr(marked, "trains", lambda process: process == trains)
        began = marked.time.monotonic()
        marked.end("one", 0.5)
        assert 0.5 < marked.time.monotonic() - began < 5
        assert [process.poll() for process in processes] == [-9, -9, None]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_training_is_known_by_its_command():
    line = [sys.executable, "-m", "muse", "train", "p.yaml"]
    assert marked.trains(SimpleNamespace(cmdline=lambda: line))
    assert not marked.trains(SimpleNamespace(cmdline=lambda: [sys.executable, "-m", "muse.cluster.engine"]))


def test_an_answer_that_will_not_come_is_an_error_with_the_log(tmp_path):
    engine = sweep.Engine(Executor(provider="local"), tmp_path)
    engine.log, engine.answers = tmp_path / "engine.log", {1: {"call": 1, "value": 0}}
    assert engine.answer(2) is None
    engine.failed = "no sbatch"
    assert engine.answer(1) == {"call": 1, "value": 0}
    with pytest.raises(sweep.EngineError, match=r"the engine failed: no sbatch; log: .*engine\.log"):
        engine.answer(2)
    assert json.loads(json.dumps(engine.executor.model_dump()))["provider"] == "local"


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({"value": []}, None, ""),
        ({"value": ["worker on n1: corpus: x is not there"]}, ParamsError, "^worker on n1: corpus: x is not there$"),
        ({"error": "BadStateException: no sbatch"}, sweep.EngineError, r"^no worker could be asked: Bad.*no sbatch"),
    ],
)
def test_the_first_worker_looks_before_anything_starts(tmp_path, answer, error, said):
    (tmp_path / "text").mkdir()
    asked, answers = [], iter((None, answer))
    ask = lambda name, **more: asked.append((name, more))  # noqa: E731
    engine = SimpleNamespace(call=ask, answer=lambda _: next(answers), log="e")
    launch, chosen = SimpleNamespace(own=tmp_path), Settings(corpus=str(tmp_path / "text"), tokenizer="gpt2")
    with pytest.raises(error, match=said) if error else contextlib.nullcontext():
        sweep._check_worker(engine, [chosen, chosen], ["p.yaml", "-p", "seed=1"], launch, lambda: None)
    ((name, more),) = asked
    assert name == "problems"
    assert more["arguments"] == ["p.yaml", "-p", "seed=1", "-p", 'stages=["train"]']
    assert more["paths"] == [["corpus", chosen.corpus], ["checkpoint_dir", str(tmp_path)], ["params", "p.yaml"]]
