"""The counting bench: each arm finds its own learning rate with the same tries, then learns with fresh seeds."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
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
from .learning import Job, Outcome, learn

SOLVED = 0.9
"""From which score on a length counts as counted."""

BEYOND = 4
"""How many times the training length a sequence must have to say something of counting."""

TRIES_SEED = 1000
"""How far the seed of the tries lies above those that count."""


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
        found = [
            self._metric("score", mean(scores), "share", scores, f"mean of seeds at length {far}"),
            self._metric("skewed", mean(skewed), "share", skewed, f"mean of seeds at length {far}"),
            self._metric("longest", median_low(longest), "tokens", longest, "median of seeds"),
            self._metric("solved", sum(s >= SOLVED for s in scores), "seeds", (), f"of {len(runs)} seeds", len(runs)),
            self._metric("learning_rate", self.learning_rate, "1", (), f"the best of {len(self.tries)} tries"),
            self._metric("scalars", runs[0].scalars, "scalars"),
            self._metric("seconds", median_low([run.seconds for run in runs]), "s", [run.seconds for run in runs]),
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


def cells(settings: Settings, device: torch.device, folder: Path | None) -> Iterator[Cell]:
    """Yield each arm on each task, with all of its trainings; they run side by side where the settings say so."""
    arms = [arm for arm in ARMS if arm in settings.counting_arms]
    pairs = list(itertools.product(tasks_of(settings), arms))
    rates, seeds = settings.counting_learning_rates, settings.counting_seeds
    tries_seed = max(seeds) + TRIES_SEED
    with _workers(settings.counting_processes, device, folder) as run:
        wanted = [job(settings, *pair, rate, tries_seed, is_try=True) for pair in pairs for rate in rates]
        tries = _by_pair(run(wanted, "tries"))
        wanted = [job(settings, *pair, chosen(tries[pair]), seed, is_try=False) for pair in pairs for seed in seeds]
        runs = _by_pair(run(wanted, "trainings"))
    for pair in pairs:
        yield Cell(*pair, tuple(tries[pair]), tuple(runs[pair]))


def _by_pair(outcomes: Mapping[Job, Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    found: dict[tuple[str, str], list[Outcome]] = {}
    for one, outcome in outcomes.items():
        found.setdefault((one.task, one.arm), []).append(outcome)
    return found


@contextmanager
def _workers(processes: int, device: torch.device, folder: Path | None) -> Iterator:
    """A function of jobs and a word for them, to their outcomes in the order of the jobs."""
    if processes == 1:
        yield lambda jobs, word: {one: learn(one, device, folder) for one in track(jobs, word)}
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(processes):
        numbers.put(number)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(numbers, device)) as pool:

        def run(jobs: Sequence[Job], word: str) -> dict[Job, Outcome]:
            waiting = {pool.submit(learn, one, device, folder): one for one in jobs}
            done = {waiting[future]: future.result() for future in track(as_completed(waiting), word, len(jobs))}
            return {one: done[one] for one in jobs}

        yield run


def _begin(numbers: SimpleQueue[int], device: torch.device) -> None:
    """Give a process one thread, and on CUDA the cards in turn: a graph belongs to the card that is current."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(numbers.get() % torch.cuda.device_count())
