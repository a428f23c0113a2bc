"""Kills trainings, drivers and kernels and closes outputs at random moments, and counts what must never happen.

python -m tests.force.lifecycle [--trials N] [--seconds S] [--seed K]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FAULTS = (
    *("tracebacks", "hangs_over_10_s", "wrong_exit_codes", "orphans_after_10_s", "lost_reports", "unloadable_states"),
    "changed_numbers",
)
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 10.0  # seconds
TOKEN = "MUSE_FORCE"
"""A variable in the environment of all that a trial starts, by which it is found."""

PROFILE = {
    "train_tokens": 128 * 40, "batch_tokens": [128], "train_d_model": 8, "train_n_layers": 1, "train_n_seq": 16,
    "evaluations": 3, "checkpoint_every_steps": 5, "models": ["gpt2"], "device": "cpu", "seeds": [0, 1],
}  # fmt: skip
SENTENCE = "the sun and the moon go round and a cat looks at the moon \n"
RECORD = """
import time
from pathlib import Path
from muse.records.environment import utc_now
from muse.records.schema import Metric, StageRecord
from muse.records.store import write_record
time.sleep(1)
metrics = [Metric(name="seed", value=seed, unit="1")]
record = StageRecord(stage="basic_test", started_utc=utc_now(), finished_utc=utc_now(), scale="published",
                     metrics=metrics)
written = write_record(record, Path(record_dir) / "basic_test.json")
"""


class Force:
    """The trials of one call, in a folder of their own, and the faults they found."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.choice = folder, random.Random(seed)
        self.faults, self.trials = dict.fromkeys(FAULTS, 0), 0
        self.run_seconds: dict[Path, float] = {}  # that a run of these notebooks takes
        self.params = folder / "p.yaml"
        text = folder / "text"
        text.mkdir()
        for split, count in (("train", 80), ("validation", 5), ("test", 5)):
            (text / f"{split}.txt").write_text(SENTENCE * count)
        own = {"corpus": str(text), "cache_dir": str(folder / "cache")}
        self.params.write_text(json.dumps(PROFILE | own))
        self.train(folder / "first").wait()  # reads the text, which the others find read
        began = time.monotonic()
        self.train(folder / "whole").wait()
        self.seconds = time.monotonic() - began  # that a training takes
        print(f"one training takes {self.seconds:.1f} s", flush=True)
        self.whole = self.weights(folder / "whole")
        assert len(self.whole) == 2, (folder / "whole" / "err").read_text()

    def fault(self, kind: str, what: str) -> None:
        self.faults[kind] += 1
        print(f"trial {self.trials}: {kind}: {what}", flush=True)

    def weights(self, folder: Path) -> dict[str, bytes]:
        """The finished weights below a folder, by the name of their training."""
        found = folder.glob("checkpoints/*/model.safetensors")
        return {path.parent.name: path.read_bytes() for path in found if (path.parent / "result.json").exists()}

    def train(self, folder: Path, **how: object) -> Child:
        return Child(folder, ["train", str(self.params)], **how)

    def check_output(self, child: Child) -> None:
        for name in ("out", "err"):
            path = child.folder / name
            text = path.read_text(errors="replace") if path.exists() else ""
            for word in ("Traceback (most", "Exception ignored"):
                if word in text:
                    self.fault("tracebacks", text[text.index(word) :][-1500:])

    def stop(self, child: Child, number: int, expected: tuple[int, ...] = (130, 0)) -> None:
        """End a command by a signal and look at how it ends: killed, with one of these codes, or not at all."""
        child.send(number)
        code = child.wait(PATIENCE)
        if code is None:
            self.fault("hangs_over_10_s", f"{child.arguments} after signal {number}")
            child.send(signal.SIGKILL)
            child.wait()
        elif code not in ((-signal.SIGKILL, 0) if number == signal.SIGKILL else expected):
            self.fault("wrong_exit_codes", f"{child.arguments}: {code} after signal {number}")
        self.check_output(child)

    def finish(self, folder: Path) -> None:
        """Let what was stopped come to its end and compare it with what never was."""
        child = self.train(folder)
        if code := child.wait(60 + 10 * self.seconds):
            self.fault("unloadable_states", f"{code}: {(folder / 'err').read_text()[-1000:]}")
        elif self.weights(folder) != self.whole:
            self.fault("changed_numbers", f"{folder}")
        self.check_output(child)

    def no_orphans(self, token: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while (left := alive(token)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            self.fault("orphans_after_10_s", f"{[process.info['cmdline'] for process in left]}")
            for process in left:
                process.kill()

    # Trials

    def trainings(self, folder: Path) -> None:
        """A training stopped up to three times, then finished."""
        for _ in range(self.choice.randint(1, 3)):
            child = self.train(folder)
            time.sleep(0.05 + self.choice.random() * self.seconds * 0.7)
            self.stop(child, self.choice.choice((*ENDS, signal.SIGKILL)))
        self.finish(folder)

    def ignored(self, folder: Path) -> None:
        """What was ignored when a training began never stops it."""
        number = self.choice.choice((signal.SIGINT, signal.SIGHUP))
        child = self.train(folder, ignored=(number,))
        for _ in range(3):
            time.sleep(self.choice.random() * self.seconds / 3)
            child.send(number)
        code = child.wait(60 + 10 * self.seconds)
        if code != 0 or self.weights(folder) != self.whole:
            self.fault("wrong_exit_codes", f"{code} after {number}, which was ignored")
        self.check_output(child)

    def streams(self, folder: Path) -> None:
        """Commands whose outputs are closed, full or without a reader from some moment on."""
        out, err = (self.choice.choice(("closed", "full", "no reader", "file")) for _ in range(2))
        child = self.train(folder, out=out, err=err)
        if (code := child.wait(60 + 10 * self.seconds)) != 0 or self.weights(folder) != self.whole:
            self.fault("wrong_exit_codes", f"train with {out}, {err}: {code}")
        self.check_output(child)
        for arguments in (["schema"], ["params", str(self.params), "train"]):
            child = Child(folder, arguments, out=out, err=err)
            if (code := child.wait(60)) != (0 if out == "file" else 4):
                self.fault("wrong_exit_codes", f"{arguments} with {out}, {err}: {code}")
            self.check_output(child)
        (checkpoint,) = list(folder.glob("checkpoints/gpt2-s0-*"))
        child = Child(folder, ["export", str(checkpoint), "model"], out=out, err=err)
        if (code := child.wait(60)) != 0 or not (folder / "model" / "model.safetensors").exists():
            self.fault("wrong_exit_codes", f"export with {out}, {err}: {code}")
        self.check_output(child)

    def folders(self, folder: Path) -> None:
        """Runs that are killed while they move folders or later, or interrupted, or come to their end."""
        out, last = folder / "reports", ""
        for number in range(25):
            how = self.choice.choice(("finished", "interrupted", "killed", "killed", "killed"))
            pid = os.fork()
            if not pid:
                os._exit(_run_of_nothing(out, f"run {number}", how))
            if how == "killed":
                time.sleep(self.choice.random() * 0.01)
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if how != "killed" and status:
                self.fault("wrong_exit_codes", f"a run was refused the folder that killed ones left: {status}")
            last = f"run {number}" if how == "finished" else last
            kept = [out.with_name(name) / "report.json" for name in ("reports", "reports.previous")]
            if last and last not in [json.loads(path.read_text())["run"]["id"] for path in kept if path.exists()]:
                self.fault("lost_reports", f"{last} is gone")

    def pairs(self, folder: Path) -> None:
        """A comparison side by side whose parent is killed; its trainings save their state and end."""
        child = Child(folder, ["train", str(self.params), "--processes", "2"])
        time.sleep(self.choice.random() * 8)
        self.stop(child, self.choice.choice((signal.SIGKILL, *ENDS)))
        self.no_orphans(child.token)
        self.finish(folder)

    def drivers(self, folder: Path) -> None:
        """A finished run, then one whose driver or any of whose processes is ended; half of them fork their kernels."""
        books, out = self.folder / self.choice.choice(("books", "computing")), self.folder / "reports"
        if not books.exists():
            _write_notebooks(books, "import muse.stages\n" * (books.name == "computing"))
            began = time.monotonic()
            code = self.drive(folder, books, out).wait(120)
            self.run_seconds[books] = time.monotonic() - began
            if code:
                self.fault("wrong_exit_codes", f"a run ended with {code}: {(folder / 'out').read_text()[-500:]}")
        child = self.drive(folder, books, out)
        time.sleep(0.05 + self.choice.random() * self.run_seconds[books])
        below = alive(child.token) if self.choice.random() < 0.3 else []
        if below:
            with contextlib.suppress(Exception):
                self.choice.choice(below).kill()
            code = child.wait(self.run_seconds[books] * 2 + PATIENCE)
            if code is None:
                self.fault("hangs_over_10_s", "a run one of whose processes was killed")
                child.send(signal.SIGKILL)
                child.wait()
            elif code not in (0, 4):
                self.fault("wrong_exit_codes", f"a run one of whose processes was killed ended with {code}")
        else:
            self.stop(child, self.choice.choice((signal.SIGKILL, *ENDS)))
        self.no_orphans(child.token)
        finished = [path for path in (out, out.with_name("reports.previous")) if _is_finished(path)]
        if not finished:
            self.fault("lost_reports", "no finished report is left")

    def drive(self, folder: Path, books: Path, out: Path) -> Child:
        """`muse run` with other notebooks."""
        words = ["run", str(self.params), "-p", "stages=[basic_test]", "--out", str(out)]
        return Child(folder, words, books=books)


class Child:
    """A `muse` command in a process forked from this one, which has imported all that takes long."""

    def __init__(
        self, folder: Path, arguments: list[str], *, out: str = "file", err: str = "file",
        ignored: tuple[int, ...] = (), books: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.arguments, self.token = folder, arguments, f"{os.getpid()}-{random.getrandbits(64):x}"
        folder.mkdir(exist_ok=True)
        sys.stdout.flush()
        self.code: int | None = None
        ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(told)
            os.read(ready, 1)  # or nothing, where it ended before
            os.close(ready)
            return
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            for number in ENDS:
                plain = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, signal.SIG_IGN if number in ignored else plain)
            os.environ |= {TOKEN: self.token, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            _open(1, out), _open(2, err)
            code = _muse(arguments, books, told)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def send(self, number: int) -> None:
        if self.wait(0) is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> int | None:
        """Return the exit code, None where the time was too short."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.005)
        return self.code


def _open(number: int, how: str) -> None:
    """Make a standard stream of this process a file, a full disk, a pipe without a reader, or nothing."""
    if how == "closed":
        os.close(number)
    else:
        target = {"file": {1: "out", 2: "err"}[number], "full": "/dev/full"}.get(how)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if target else _pipe_without_reader()
        os.dup2(handle, number)
        os.close(handle)
    name = {1: "stdout", 2: "stderr"}[number]
    setattr(sys, name, None if how == "closed" else open(number, "w", 1, closefd=False))  # noqa: SIM115


def _pipe_without_reader() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def _muse(arguments: list[str], books: Path | None, told: int) -> int:
    """Run the command line in this process, and tell when it hears signals."""
    from muse import __main__
    from muse.host import parents

    parents.follow_parent = lambda: os.close(told)  # the first that it does then

    if books:
        from muse.runner import rows
        from muse.runner.run import run

        rows.run = partial(run, notebooks=books)
    sys.argv = ["muse", *arguments]
    return __main__.main()


def _run_of_nothing(out: Path, name: str, how: str) -> int:
    from muse.host.files import write_atomic
    from muse.runner.folder import fresh_folder

    with fresh_folder(out):
        write_atomic(out / "run.json", json.dumps({"id": name}))
        if how == "killed":
            time.sleep(10)
        write_atomic(out / "report.json", json.dumps({"run": {"id": name, "interrupted": how == "interrupted"}}))
    return 0


def _is_finished(folder: Path) -> bool:
    from muse.runner.folder import is_finished

    return is_finished(folder)


def _write_notebooks(folder: Path, first: str) -> None:
    from nbformat import v4, write

    folder.mkdir()
    for name, cells in (("01_basic_test", [first + RECORD]), ("07_report", ["1"])):
        parameters = v4.new_code_cell("seed: int = 0\nrecord_dir: str = '.'", metadata={"tags": ["parameters"]})
        cells = [v4.new_markdown_cell("# Title"), parameters, *map(v4.new_code_cell, cells)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
        write(v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


def alive(token: str) -> list:
    """Return the processes that a trial has started, but for those that nobody has waited for."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(psutil.Error):
            if process.environ().get(TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _import_all() -> None:
    """Import what a training takes long to import, with one thread, so that this process can be forked."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])
    for name in ("transformers.models.gpt2.modeling_gpt2", "muse.models.pretrained", "muse.stages.stage",
                 "muse.training.parallel", "muse.training.trainer"):  # fmt: skip
        importlib.import_module(name)


def main(arguments: list[str] | None = None) -> int:
    """Run trials until there were enough or the time is over; return 1 where any found a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=64, help="how many at most (default: 64)")
    words = "no trial but the first begins after so many"
    parser.add_argument("--seconds", type=float, default=float("inf"), help=words)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    _import_all()
    memory = Path("/dev/shm")  # where there is one: syncing a disk takes longer than all the rest
    with tempfile.TemporaryDirectory(prefix="muse-force-", dir=memory if memory.is_dir() else None) as folder:
        force = Force(Path(folder), options.seed)
        kinds = (force.folders, force.trainings, force.streams, force.trainings, force.ignored, force.drivers,
                 force.trainings, force.pairs)  # fmt: skip
        while not force.trials or (force.trials < options.trials and time.monotonic() - began < options.seconds):
            own = Path(folder) / f"trial-{force.trials}"
            own.mkdir()
            kinds[force.trials % len(kinds)](own)
            force.trials += 1
            shutil.rmtree(own, ignore_errors=True)
    for kind, count in force.faults.items():
        print(f"{kind:20} {count}")
    told = {"script": "tests.force.lifecycle", "trials": force.trials, "faults": force.faults}
    print(json.dumps(told | {"seconds": round(time.monotonic() - began, 1)}))
    return int(any(force.faults.values()))


if __name__ == "__main__":
    sys.exit(main())
