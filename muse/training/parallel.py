"""The trainings of a comparison side by side: each is a `muse train` of its own, on one of the visible devices."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from muse.host.files import write_atomic
from muse.host.parents import followed
from muse.host.signals import Interruptions
from muse.models.weights import CheckpointError, read_json
from muse.params import GRID, Row, as_overrides

from .kept import Kept
from .recipe import TrainingResult, read_result
from .tuning import Ended, Job, Outcomes, Plan, result_line

TICK_SECONDS = 0.1
GRACE_SECONDS = 30.0
"""How long an interrupted training has to save its state."""


Poll = Callable[[], Ended | None]


def on_device(device: str | None) -> str:
    """What is said of a training that starts on a device of this machine."""
    return f"starts on {'the CPU' if device is None else f'CUDA device {device}'}"


@dataclass(frozen=True)
class Pool:
    """Several plans as one: the rows of a matrix, whose trainings share devices and, where they are equal, results."""

    plans: tuple[Plan, ...]

    @property
    def known(self) -> dict[Job, Kept]:
        """Tries of all plans that need not be done."""
        return {job: found for plan in self.plans for job, found in plan.known.items()}

    def wanted(self, ended: Outcomes) -> list[Job]:
        """Everything that is known to be needed, plan by plan, each training once."""
        return list(dict.fromkeys(job for plan in self.plans for job in plan.wanted(ended)))


def schedule(
    plan: Plan | Pool,
    devices: Sequence[str | None],
    processes: int,
    launch: Callable[[Job, str | None], Poll],
    tick: Callable[[], None] = lambda: time.sleep(TICK_SECONDS),
    told: Callable[[str | None], str] = on_device,
) -> dict[Job, Ended]:
    """Run what the plan wants, `processes` at a time, each on the device with the fewest, and return how all ended.

    `launch(job, device)` starts one and returns a function that tells how it ended, None before; `tick` waits; `told`
    says where one starts.
    """
    for job, found in plan.known.items():
        print(f"{job}: known from before, validation loss {found.result.best_validation_loss:.4f} nat/token")
    ended: dict[Job, Ended] = {}
    running: dict[Job, tuple[str | None, Poll]] = {}
    while True:
        for job in plan.wanted(ended):
            if len(running) < processes and job not in running and job not in ended:
                busy = [device for device, _ in running.values()]
                device = min(devices, key=busy.count)
                print(f"{job}: {told(device)}", flush=True)
                running[job] = device, launch(job, device)
        if not running:
            return ended
        tick()
        for job, (_, poll) in list(running.items()):
            if (outcome := poll()) is not None:
                del running[job]
                ended[job] = outcome
                print(f"{job}: {outcome}", flush=True)


def visible_devices(device_type: str) -> list[str | None]:
    """Return what CUDA_VISIBLE_DEVICES says for each of the devices that this process sees; [None] is the CPU."""
    if device_type != "cuda":
        return [None]
    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if listed is None else listed.split(",")
    return [name.strip() for name in names][:count]


def by_cards(devices: Sequence[str | None], cards: int) -> list[str | None]:
    """The devices in groups of so many, each as one name; those that are left over are not used."""
    if devices == [None]:
        return [None]
    return [",".join(devices[first : first + cards]) for first in range(0, len(devices) - cards + 1, cards)]


def arguments_of(job: Job) -> list[str]:
    """The overrides that make `muse train` this training; stages are named: some ask for models it leaves out."""
    values = {
        "models": [job.model_name],
        "seeds": [job.seed],
        **{GRID[name]: [value] for name, value in job.choice.values().items()},
        "train_tokens": job.tokens,
        "tune_tokens": 0,
        "stages": ["train"],
    }
    return [*(job.row.overrides if job.row else ()), *as_overrides(values)]


class Launcher:
    """Starts trainings as processes, writes what they print to logs, and on leaving stops those that still run."""

    def __init__(self, arguments: Sequence[str], logs: Path, processes: int) -> None:
        """`arguments` of `muse train`: a params file and its overrides."""
        self.arguments, self.logs = list(arguments), logs
        self.defaults = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),  # else they stall one another
            "TQDM_MININTERVAL": "10",
        }
        self.started: list[subprocess.Popen] = []

    def __enter__(self) -> Launcher:
        self.outcomes = tempfile.TemporaryDirectory(prefix="muse-")
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def command(self, job: Job, outcome: Path) -> list[str]:
        """The training as a command line."""
        given = [*self.arguments, *arguments_of(job), "--json", str(outcome)]
        return [sys.executable, "-m", "muse", "train", *given]

    def __call__(self, job: Job, device: str | None) -> Poll:
        """Start a training on a device; Ctrl-C does not reach it, since it leads a session of its own.

        When this process is gone, the training is told to end as `__exit__` would tell it.
        """
        log, outcome = self.logs / f"{job.name}.log", Path(self.outcomes.name) / f"{job.name}.json"
        command = self.command(job, outcome)
        chosen = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        environment = self.defaults | os.environ | chosen | followed()
        with log.open("ab", buffering=0) as stream:
            with contextlib.suppress(OSError):  # a full disk: the training may still find room for what counts
                stream.write(f"$ {shlex.join(command)}\n".encode())
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.started.append(process)
        begun = time.monotonic()

        def poll() -> Ended | None:
            if process.poll() is None:
                return None
            return read_outcome(outcome, log, process.returncode, time.monotonic() - begun)

        return poll

    def __exit__(self, *error: object) -> None:
        """Let what still runs save its state and end; kill, with all it started, what has not after a while."""
        running = [process for process in self.started if process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.outcomes.cleanup()


def write_outcome(path: Path, results: Sequence[TrainingResult], diverged: bool) -> None:
    """Write where finished trainings lie and whether one diverged, for whoever started this process."""
    trainings = [{"folder": str(result.weights.parent), "reused": result.reused} for result in results]
    write_atomic(path, json.dumps({"trainings": trainings, "diverged": diverged}, indent=1) + "\n")


def read_outcome(path: Path, log: Path, code: int, seconds: float) -> Ended:
    """Return how a process that trained one model ended, from what `write_outcome` left, its exit code and its log."""
    lines = [line for line in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")) if line.strip()]
    try:
        about = read_json(path) if path.exists() else {"trainings": [], "diverged": False}
        if code == 0:
            (training,) = about["trainings"]
            found = read_result(Path(training["folder"]))
            return Ended(seconds, TrainingResult(**vars(found) | {"reused": training["reused"]}))
    except (CheckpointError, KeyError, ValueError) as error:
        return Ended(seconds, error=f"no result: {error}; log: {log}")
    what = "diverged" if about["diverged"] else f"failed with exit code {code}"
    last = lines[-1].strip()[:500] if lines else "the log is empty, as on a full disk"
    return Ended(seconds, error=f"{what}: {last}; log: {log}", diverged=about["diverged"])


def train_side_by_side(
    plans: Sequence[Plan], device_type: str, arguments: Sequence[str], processes: int, cards: int = 1
) -> bool:
    """Train all that plans want, `processes` at a time, print how each ends, and return whether none failed.

    `arguments` are the params file and the overrides that the plans' settings were made from; trainings of all of them
    have one folder. Each training has `cards` devices. Ctrl-C and SIGTERM let every training save its state before
    KeyboardInterrupt is raised.
    """
    logs = Path(plans[0].settings.checkpoint_dir) / "logs"
    arguments = [*arguments, *(["--gpus-per-model", str(cards)] if cards > 1 else [])]
    with Interruptions(wait=True, insist=False) as signals, Launcher(arguments, logs, processes * cards) as launch:

        def tick() -> None:
            signals.check()
            time.sleep(TICK_SECONDS)

        devices = by_cards(visible_devices(device_type), cards)
        ended = schedule(Pool(tuple(plans)), devices, processes, launch, tick)
    return finish(plans, ended)


def finish(plans: Sequence[Plan], ended: Outcomes) -> bool:
    """Print every training of plans that has ended, and which failed; return whether none did."""
    failed: list[Job] = []
    for plan in plans:
        if plan.row:
            print(heading(plan.row))
        for name in plan.models:
            for job in plan.trainings(name, ended):
                if ended[job].result:
                    print(result_line(ended[job].result))
        if common := plan.common(ended):
            print(common)
        failed += plan.failed(ended)
    for job in dict.fromkeys(failed):
        print(f"muse: {job}: {ended[job].error}", file=sys.stderr)
    return not failed


def heading(row: Row) -> str:
    """The line above what is printed of a row of a matrix."""
    return f"{row.name}:"
