"""The counting bench: each arm finds its own learning rate with the same tries, then learns with fresh seeds."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import mean, median_low

import torch

from muse.catalog import ARMS
from muse.host.progress import track
from muse.params import Settings
from muse.records.schema import Metric, Series

from .arms import breaks_at, nearest_turn
from .learning import Job, Outcome, kept, learn

SOLVED = 0.9
"""From which score on a length counts as counted."""

BEYOND = 4
"""How many times the training length a sequence must have to say something of counting."""

TRIES_SEED = 1000
"""How far the seed of the tries lies above those that count."""

SLOWEST = ("real_householder_2", "real_householder", "gru")
"""Arms whose trainings take longest: they begin first, so that no card waits for them at the end."""


@dataclass(frozen=True)
class Cell:
    """One arm on one task: its tries, and the trainings at the learning rate that they chose."""

    task: str
    arm: str
    tries: tuple[Outcome, ...]
    runs: tuple[Outcome, ...]

    @property
    def name(self) -> str:
        """Arm and task: what its numbers are kept under."""
        return f"{self.arm} {self.task}"

    @property
    def learning_rate(self) -> float:
        """The one that the tries chose."""
        return chosen(self.tries)

    def metrics(self) -> list[Metric]:
        """What the cell came to, in seeds, lengths and scores, and each try."""
        lengths, runs = self.runs[0].job.lengths, self.runs
        far = beyond(lengths, runs[0].job.length)
        scores = [run.scores[lengths.index(far)] for run in runs]
        skewed = [run.skewed[lengths.index(far)] for run in runs]
        longest = [max((n for n, s in zip(lengths, run.scores, strict=True) if s >= SOLVED), default=0) for run in runs]
        seconds = [run.seconds for run in runs]
        graphs = "each step one CUDA graph" if all(run.captured for run in runs) else "steps without a CUDA graph"
        found = [
            self._metric("score", mean(scores), "share", scores, f"mean of seeds at length {far}"),
            self._metric("skewed", mean(skewed), "share", skewed, f"mean of seeds at length {far}"),
            self._metric("longest", median_low(longest), "tokens", longest, "median of seeds"),
            self._metric("solved", sum(s >= SOLVED for s in scores), "seeds", (), f"of {len(runs)} seeds", len(runs)),
            self._metric("learning_rate", self.learning_rate, "1", (), f"the best of {len(self.tries)} tries"),
            self._metric("scalars", runs[0].scalars, "scalars"),
            self._metric("seconds", median_low(seconds), "s", seconds, f"median of seeds, {graphs}"),
        ]
        for one in self.tries:
            model = f"{self.name} {one.job.learning_rate:g}"
            note = f"learning rate {one.job.learning_rate:g}, seed {one.job.seed}"
            note += ", diverged" if one.diverged else f", last loss {one.losses[-1]:.4f}"
            found.append(self._metric("try", one.validation, "share", (), note).model_copy(update={"model": model}))
        return found + self._drift()

    def _drift(self) -> list[Metric]:
        """How far the best plane's turns are from shares of the circle, and where that breaks a sum."""
        off = [nearest_turn(torch.tensor(run.angles), len(run.angles)) for run in self.runs if run.angles]
        if not off or not self.task.startswith("mod"):
            return []
        order = len(next(run.angles for run in self.runs if run.angles))
        errors, ends = [abs(error) for error, _ in off], [min(1e6, breaks_at(*one, order)) for one in off]
        return [
            self._metric("turn_error", median_low(errors), "rad", errors, "median of seeds, of the best plane"),
            self._metric("breaks_at", median_low(ends), "tokens", ends, "median of seeds, from the error of the turns"),
        ]

    def _metric(
        self, name: str, value: float, unit: str, samples: Sequence[float] = (), note: str = "", n: int = 1
    ) -> Metric:
        samples = [float(sample) for sample in samples]
        return Metric(name=f"counting_{name}", model=self.name, value=float(value), unit=unit,
                      samples=samples, n=len(samples) or n, note=note, trained=True)  # fmt: skip

    def series(self) -> list[Series]:
        """Score over length for each seed, and the turns of the seed that got furthest."""
        found = [
            Series(name=f"counting_{name}", model=self.name, seed=run.job.seed, x_name="length", y_name="score",
                   x=list(map(float, run.job.lengths)), y=[round(s, 5) for s in scores])
            for run in self.runs
            for name, scores in (("score", run.scores), ("skewed", run.skewed))
        ]  # fmt: skip
        best = max(self.runs, key=lambda run: sum(run.scores))
        if best.angles:
            points = [(float(token), angle / 6.283185307) for token, row in enumerate(best.angles) for angle in row]
            x, y = map(list, zip(*points, strict=True))
            found.append(
                Series(name="counting_turns", model=self.name, seed=best.job.seed, x_name="token", y_name="turns",
                       x=x, y=[round(turn % 1, 5) for turn in y])
            )  # fmt: skip
        return found


@dataclass(frozen=True)
class Missing:
    """One arm on one task that is not through: it says nothing yet, neither good nor bad."""

    task: str
    arm: str
    left: int  # trainings that have not been run
    wanted: int  # trainings, tries included

    def metrics(self) -> list[Metric]:
        """How many of its trainings have not been run."""
        note = f"of {self.wanted} trainings, tries included"
        return [Metric(name="counting_missing", model=f"{self.arm} {self.task}", value=float(self.left),
                       unit="trainings", n=self.wanted, note=note)]  # fmt: skip


def beyond(lengths: Sequence[int], trained: int) -> int:
    """The tested length that decides: the first that is four times the training length or more, else the longest."""
    return next((n for n in sorted(lengths) if n >= BEYOND * trained), max(lengths))


def chosen(tries: Sequence[Outcome]) -> float:
    """The learning rate of the try that scored best at the training length; of equals the one of the smallest loss."""
    return max(tries, key=lambda one: (one.validation, -one.losses[-1] if one.losses else 0.0)).job.learning_rate


def tasks_of(settings: Settings) -> list[str]:
    """Return the tasks by name, sums before products."""
    return [*(f"mod{m}" for m in settings.counting_moduli), *settings.counting_groups]


def job(settings: Settings, task: str, arm: str, learning_rate: float, seed: int, is_try: bool) -> Job:
    """Return one training of the bench."""
    sizes = {name: getattr(settings, f"counting_{name}") for name in ("width", "state", "layers", "steps", "batch")}
    return Job(task, arm, learning_rate, seed, **sizes, length=settings.counting_length,
               lengths=tuple(sorted(settings.counting_lengths)), sequences=settings.counting_sequences,
               is_try=is_try)  # fmt: skip


Pair = tuple[str, str]
"""Task and arm."""


def cells(settings: Settings, device: torch.device, folder: Path | None) -> Iterator[Cell | Missing]:
    """Yield each arm on each task, with all of its trainings; they run side by side where the settings say so.

    Task after task is finished, in the order of the settings. What is on disk in `folder` is not trained again. After
    `counting_minutes` no training begins: what lacks one by then is Missing.
    """
    arms = [arm for arm in ARMS if arm in settings.counting_arms]
    pairs = list(itertools.product(tasks_of(settings), arms))
    rates, seeds = len(settings.counting_learning_rates), len(settings.counting_seeds)
    total = len(pairs) * (rates + seeds)
    done = dict(track(_trainings(settings, pairs, device, folder), "trainings", total))
    for pair in pairs:
        found = [done[one] for one in _wanted(settings, pair, done) if one in done]
        if len(found) == rates + seeds:
            yield Cell(*pair, tuple(found[:rates]), tuple(found[rates:]))
        else:
            yield Missing(*pair, rates + seeds - len(found), rates + seeds)


def _wanted(settings: Settings, pair: Pair, done: Mapping[Job, Outcome]) -> list[Job]:
    """The tries of an arm on a task, and once they are done the trainings at the learning rate that they choose."""
    seeds = settings.counting_seeds
    tries = [job(settings, *pair, rate, max(seeds) + TRIES_SEED, True) for rate in settings.counting_learning_rates]
    if not all(one in done for one in tries):
        return tries
    rate = chosen([done[one] for one in tries])
    return tries + [job(settings, *pair, rate, seed, False) for seed in seeds]


def _trainings(
    settings: Settings, pairs: Sequence[Pair], device: torch.device, folder: Path | None
) -> Iterator[tuple[Job, Outcome]]:
    """Yield what is on disk, then each training as it ends."""
    latest = time.monotonic() + 60 * (math.inf if settings.counting_minutes is None else settings.counting_minutes)
    done: dict[Job, Outcome] = {}
    for pair in (pair for pair in pairs for _ in ("tries", "trainings")):
        for one in _wanted(settings, pair, done):
            if one not in done and (outcome := kept(one, device, folder)):
                done[one] = outcome
                yield one, outcome
    tasks = tasks_of(settings)
    in_order = sorted(pairs, key=lambda pair: (tasks.index(pair[0]), pair[1] not in SLOWEST))
    running: dict[Future[Outcome], Job] = {}
    with _workers(settings.counting_processes, device) as pool:
        while True:
            open_jobs = (one for pair in in_order for one in _wanted(settings, pair, done))
            waiting = (one for one in open_jobs if one not in done and one not in running.values())
            for one in itertools.islice(waiting, settings.counting_processes - len(running)):
                if time.monotonic() < latest:
                    running[pool.submit(learn, one, device, folder)] = one
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                one = running.pop(future)
                done[one] = future.result()
                yield one, done[one]


class _Here(Executor):
    """Does at once what it is given."""

    def submit(self, function: Callable[..., Outcome], /, *given: object) -> Future[Outcome]:
        """The result of function(*given), whose errors are raised here."""
        future: Future[Outcome] = Future()
        future.set_result(function(*given))
        return future


def _workers(processes: int, device: torch.device) -> Executor:
    """So many processes that compute, or this one."""
    if processes == 1:
        return _Here()
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(processes):
        numbers.put(number)
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(numbers, device))


def _begin(numbers: SimpleQueue[int], device: torch.device) -> None:
    """Give a process one thread, and on CUDA the cards in turn: a graph belongs to the card that is current."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(numbers.get() % torch.cuda.device_count())
