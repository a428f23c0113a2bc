"""A sweep over machines: plan, logs and results of trainings side by side, on the workers of an executor file."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from muse.catalog import NAMED
from muse.host.lines import cut
from muse.host.signals import Interruptions
from muse.params import ParamsError, Settings
from muse.training.parallel import GRACE_SECONDS, Poll, Pool, arguments_of, finish, read_outcome, schedule
from muse.training.tuning import Ended, Job, Plan

from . import marked
from .settings import Executor

TICK_SECONDS = 0.1
ENGINE_SECONDS = 20.0
"""How long the engine has to cancel what it has asked for."""


class EngineError(RuntimeError):
    """The engine could not be started, or is gone."""


class Engine:
    """The process that runs the engine, which answers calls. On leaving nothing of it is left on this machine."""

    def __init__(self, executor: Executor, folder: Path) -> None:
        self.executor, self.folder, self.mark = executor, folder, secrets.token_hex(8)
        self.answers: dict[int, dict] = {}
        self.failed = ""
        self.calls = 0

    def __enter__(self) -> Engine:
        self.folder.mkdir(parents=True, exist_ok=True)
        # without SPT_NOENV a title would take the place of the environment, and of the mark
        environment = os.environ | {marked.MARK: self.mark, "SPT_NOENV": "1"}
        self.log = self.folder / "engine.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "muse.cluster.engine"], env=environment, start_new_session=True, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._send({"executor": self.executor.model_dump(), "folder": str(self.folder)})
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _send(self, values: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):  # it is gone, which `answer` tells
            self.process.stdin.write(json.dumps(values) + "\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        for line in self.process.stdout:
            said = json.loads(line)
            if "failed" in said:
                self.failed = said["failed"]
            else:
                self.answers[said["call"]] = said
        self.failed = self.failed or "it ended"

    def call(self, name: str, **arguments: object) -> int:
        """Ask a worker to do something, once one is free; return the number of the call."""
        self.calls += 1
        self._send({"call": self.calls, "name": name, "arguments": arguments})
        return self.calls

    def answer(self, call: int) -> dict | None:
        """What a call gave, {"value"} or {"error"}, None before; EngineError where none will come."""
        if call not in self.answers and self.failed:
            raise EngineError(f"the engine failed: {self.failed}; log: {self.log}")
        return self.answers.get(call)

    def __exit__(self, *error: object) -> None:
        """End the engine; trainings save their state, and are killed when they have not ended after a while."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENGINE_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        marked.end(self.mark, GRACE_SECONDS)


class Remote:
    """Hands trainings to an engine, as `parallel.Launcher` starts them here: the same commands, logs and outcomes."""

    def __init__(self, engine: Engine, arguments: Sequence[str], logs: Path, cards: int) -> None:
        self.engine, self.arguments, self.logs = engine, list(arguments), logs
        self.cards = ["--gpus-per-model", str(cards)] if cards > 1 else []
        self.own = engine.folder / "outcomes" / engine.mark  # that workers see, as they see the logs
        self.own.mkdir(parents=True)

    def __call__(self, job: Job, device: str | None) -> Poll:
        log, outcome = self.logs / f"{job.name}.log", self.own / f"{job.name}.json"
        log.touch()
        begun = time.monotonic()
        call = self.engine.call(
            "train", arguments=[*self.arguments, *self.cards, *arguments_of(job), "--json", str(outcome)], log=str(log),
            folder=os.getcwd(), environment={"TQDM_MININTERVAL": "10"}, devices=self.engine.executor.devices,
        )  # fmt: skip

        def poll() -> Ended | None:
            answer = self.engine.answer(call)
            if answer is None:
                return None
            seconds = time.monotonic() - begun
            if "error" in answer:
                return Ended(seconds, error=f"{answer['error']}; log: {log}")
            return read_outcome(outcome, log, answer["value"], seconds)

        return poll


def train_on(
    executor: Executor, plans: Sequence[Plan], arguments: Sequence[str], cards: int = 1
) -> bool:
    """Train all that plans want on an engine's workers, print how each ends, and return whether none failed.

    The arguments are those of `parallel.train_side_by_side`. ParamsError, before any training, where a worker does not
    see what this process sees.
    """
    logs = Path(plans[0].settings.checkpoint_dir) / "logs"
    arguments = [str(Path(arguments[0]).absolute()), *arguments[1:]]
    with Interruptions(wait=True, insist=False) as signals, Engine(executor, logs / "parsl") as engine:
        launch = Remote(engine, arguments, logs, cards)

        def tick() -> None:
            signals.check()
            time.sleep(TICK_SECONDS)

        _check_worker(engine, [plan.settings for plan in plans], arguments, launch, tick)
        told = lambda device: f"is handed to {device}"  # noqa: E731
        ended = schedule(Pool(tuple(plans)), [executor.provider], sys.maxsize, launch, tick, told)
    return finish(plans, ended)


def _check_worker(engine: Engine, rows: Sequence[Settings], arguments: Sequence[str], launch: Remote, tick) -> None:
    """Let the first worker look for what it needs; ParamsError where it lacks something, EngineError without one."""
    named = [(name, getattr(settings, name)) for settings in rows for name in NAMED if getattr(settings, name)]
    paths = [[name, path] for name, path in dict.fromkeys(named) if Path(path).exists()]
    paths += [["checkpoint_dir", str(launch.own)], ["params", arguments[0]]]
    given = [*arguments, "-p", 'stages=["train"]']
    call = engine.call("problems", arguments=given, paths=paths, folder=os.getcwd())
    while (answer := engine.answer(call)) is None:
        tick()
    if "error" in answer:
        raise EngineError(f"no worker could be asked: {cut(answer['error'])}; log: {engine.log}")
    if answer["value"]:
        raise ParamsError("\n".join(answer["value"]))
