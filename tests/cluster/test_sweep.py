"""Sweeps on the real engine, with kills of its parts: every row ends complete, exactly once, and no process is left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from builders import write_tiny_training
from slurm import Slurm

from muse.cluster.marked import MARK, trains
from muse.training.checkpoint import STATE_FILE

pytest.importorskip("parsl", reason="needs the extra cluster: make scale-test installs it")
ROOT = Path(__file__).resolve().parent.parent.parent
LOCAL = "provider: local\nworkers: 2\nretries: 100\n"


class Sweep:
    """A sweep as a command of its own, and the processes that it started, by what they do."""

    def __init__(self, folder: Path, params: str, executor: str, **environment: str) -> None:
        (folder / "e.yaml").write_text(executor)
        self.folder, self.log = folder, folder / "sweep.log"
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "muse", "train", params, "--executor", "e.yaml"], cwd=folder, stdout=log,
                stderr=log, env=os.environ | own, start_new_session=True,
            )  # fmt: skip
        self.mark = ""

    def all(self) -> list[psutil.Process]:
        """Everything that runs for this sweep: what carries the mark of its engine."""
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get(MARK)
                if process.status() != psutil.STATUS_ZOMBIE and mark and self._is_ours(process, mark):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def _is_ours(self, process, mark) -> bool:
        if not self.mark and process.ppid() == self.process.pid:
            self.mark = mark
        return mark == self.mark

    def trainings(self) -> list[psutil.Process]:
        return [process for process in self.all() if trains(process)]

    def runs(self) -> bool:
        """Wait for a training to run; whether one does, and the sweep has not ended."""
        until(lambda: self.trainings() or self.process.poll() is not None)
        return self.process.poll() is None

    def kill(self, what: str) -> None:
        """Kill what works on some training: its worker, or the manager above it."""
        while self.runs():
            with contextlib.suppress(IndexError, AttributeError, psutil.Error):  # it ended just now
                worker = random.choice(self.trainings()).parent()
                (worker if what == "worker" else worker.parent()).kill()
                return

    def end(self) -> None:
        """Leave nothing behind, after a test that failed."""
        for process in [*self.all(), self.process]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def wait(self, seconds: float) -> str:
        assert self.process.wait(seconds) == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture
def sweep_of(tmp_path):
    """Starts sweeps in the test's folder."""
    with contextlib.ExitStack() as ends:

        def start(params: str, executor: str = LOCAL, **environment: str) -> Sweep:
            sweep = Sweep(tmp_path, params, executor, **environment)
            ends.callback(sweep.end)
            return sweep

        yield start


def until(found, seconds=100):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(processes) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def check_complete(folder: Path, number: int) -> None:
    """Every training has its result and nothing unfinished, and was finished by one process alone."""
    trainings = [path for path in (folder / "checkpoints").iterdir() if path.name != "logs"]
    assert len(trainings) == number
    for path in trainings:
        assert json.loads((path / "result.json").read_text())["tokens"] > 0
        assert not (path / STATE_FILE).exists()
    logs = {path.stem: path.read_text() for path in (folder / "checkpoints" / "logs").glob("*.log")}
    assert len(logs) == number
    lines = [(name, line) for name, text in logs.items() for line in re.split(r"[\r\n]", text)]
    finished = Counter(
        name for name, line in lines if ": validation loss " in line and "found finished" not in line
    )
    assert len(finished) == number
    assert set(finished.values()) == {1}


def rows(folder: Path, models, seeds: int, **values: object) -> str:
    return write_tiny_training(folder, models=models, seeds=list(range(seeds)), train_tokens=128 * 60,
                               checkpoint_every_steps=10, **values)  # fmt: skip


def test_rows_survive_the_kill_of_a_worker(tmp_path, sweep_of):
    """The slice of every test run."""
    sweep = sweep_of(rows(tmp_path, ["stage1"], 3))
    assert sweep.runs(), sweep.log.read_text()
    sweep.kill("worker")
    text = sweep.wait(150)
    check_complete(tmp_path, 3)
    assert text.count("is handed to local") == 3
    assert len(re.findall(r"^stage1 seed \d: validation loss .*safetensors$", text, re.MULTILINE)) == 3
    assert sweep.mark
    assert not alive(sweep.all())


@pytest.mark.scale
@pytest.mark.timeout(900)
def test_24_rows_end_complete_whatever_is_killed(tmp_path, sweep_of):
    params = rows(tmp_path, ["stage1", "stage1_memory"], 6, matrix={"gradient_clip": [1.0, 2.0]})
    sweep = sweep_of(params)
    for what in ("worker", "manager", "parent", "worker", "manager"):
        assert sweep.runs(), sweep.log.read_text()
        time.sleep(random.uniform(0.5, 4.0))
        if what == "parent":
            everything = sweep.all()
            assert len(everything) >= 4
            sweep.process.kill()
            sweep.process.wait()
            until(lambda before=everything: not alive(before), 10)
            assert not alive(sweep.all())
            sweep = sweep_of(params)
        else:
            sweep.kill(what)
    sweep.wait(700)  # a minute or two where nothing else runs
    check_complete(tmp_path, 24)
    assert not alive(sweep.all())


@pytest.mark.scale
def test_ctrl_c_lets_trainings_save_their_state_and_the_same_command_resumes(tmp_path, sweep_of):
    params = write_tiny_training(tmp_path, models=["stage1"], seeds=[0, 1], train_tokens=128 * 800,
                                 checkpoint_every_steps=10**6)  # fmt: skip
    sweep = sweep_of(params)
    until(lambda: list(tmp_path.glob("checkpoints/*/config.json")) or sweep.process.poll() is not None)
    time.sleep(0.5)
    everything = sweep.all()
    os.killpg(sweep.process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
    assert sweep.process.wait(60) == 130
    assert sweep.log.read_text().rstrip().endswith("muse: interrupted")
    assert not alive(everything)
    assert list(tmp_path.glob(f"checkpoints/*/{STATE_FILE}"))
    sweep_of(params).wait(100)
    check_complete(tmp_path, 2)
    results = [json.loads(path.read_text()) for path in tmp_path.glob("checkpoints/*/result.json")]
    assert any(result["resumed_from_steps"] for result in results)


@pytest.mark.scale
def test_nothing_outlives_a_command_and_an_engine_that_were_killed_at_once(tmp_path, sweep_of):
    """Parsl's interchange would, and with it everything that waits for its word."""
    sweep = sweep_of(rows(tmp_path, ["stage1"], 2))
    assert sweep.runs(), sweep.log.read_text()
    everything = sweep.all()
    (engine,) = [process for process in everything if "muse.cluster.engine" in process.cmdline()]
    sweep.process.kill()
    engine.kill()
    until(lambda: not alive(everything), 40)
    assert not alive(sweep.all())


@pytest.mark.scale
def test_a_worker_without_the_data_ends_the_sweep_before_its_first_training(tmp_path, sweep_of):
    """The data is gone from where the worker looks, by the lines that run before it."""
    params = rows(tmp_path, ["stage1"], 2)
    sweep = sweep_of(params, LOCAL + f"init: ['mv {tmp_path}/text {tmp_path}/elsewhere']\n")
    assert sweep.process.wait(100) == 2
    last = sweep.log.read_text().splitlines()[-1]
    assert re.fullmatch(rf"muse: worker on \S+: corpus: {tmp_path}/text is not there", last)
    assert "is handed to" not in sweep.log.read_text()
    assert not alive(sweep.all())


@pytest.mark.scale
def test_a_real_slurm_runs_a_sweep_and_ends_a_cancelled_job(tmp_path, sweep_of):
    params = rows(tmp_path, ["stage1"], 4)
    with Slurm() as slurm:
        executor = 'provider: slurm\nworkers: 2\nwalltime: "00:10:00"\naddress: 127.0.0.1\nretries: 100\n'
        sweep = sweep_of(params, executor, SLURM_CONF=str(slurm.config))
        assert sweep.runs(), sweep.log.read_text()
        assert len(slurm.jobs()) == 1
        slurm.cancel(slurm.jobs()[0])  # as at the end of its walltime: what runs saves its state, another job goes on
        sweep.wait(250)
        check_complete(tmp_path, 4)
        until(lambda: not slurm.jobs(), 20)
        assert not alive(sweep.all())
