"""Runs that stand beside a run: read, and told apart by what their records say, never by their names."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from muse.catalog import ABLATIONS, WITH_MEMORY
from muse.params import ParamsError, of_today
from muse.records.schema import Metric, Report, StageRecord
from muse.records.store import RecordError, read_record

RATIO = "perplexity_ratio_to_"
WHOLE_MEMORY = f"{RATIO}{WITH_MEMORY}"
KINDS = ("repeat", "lengths", "changes", "texts", "other")

RECIPE = (
    *("train_tokens", "batch_tokens", "learning_rates", "dropouts", "tune_tokens"),
    *("weight_decays", "optimizer", "muon_learning_rate", "muon_weight_decays", "warmup_share", "gradient_clip"),
    *("evaluations", "max_ppl_batches"),
)
"""Settings, beside the sizes, that decide what a training gives and what is measured of it."""

WITHIN_SDS = 2 * math.sqrt(2)
"""Two independent trainings differ by less in 19 of 20 cases, given the sd: sqrt(2) for a difference, 2 for 95 %."""


@dataclass(frozen=True)
class Companion:
    """A finished run that is shown in the report of another one, under the name of its folder."""

    name: str
    report: Report


def read_companion(path: Path, name: str) -> Companion:
    """Read a report; ParamsError names the file, what was got and what is expected."""
    try:
        return Companion(name, read_report(path))
    except ParamsError as error:
        raise ParamsError(f"companion {name}: {error}") from error


def read_report(path: Path) -> Report:
    """Read a report.json; ParamsError names the file, what was got and what is expected, in one line."""
    try:
        return read_record(Report, path)
    except (RecordError, OSError) as error:
        expected = "expected the report.json that muse run writes into its folder"
        raise ParamsError(f"{path}: got {_found(error)}; {expected}") from error


def _found(error: Exception) -> str:
    """What is there instead of a report, in one line."""
    cause = error.__cause__ or error
    if isinstance(cause, ValidationError):
        problem = cause.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        return f"no valid Report, which first fails with {place + ': ' if place else ''}{problem['msg']}"
    return f"no readable file ({getattr(cause, 'strerror', None) or cause})"


def check_names(folders: Sequence[Path], own: Path) -> None:
    """Raise ParamsError where a folder is the report's own, or shares its name with another one."""
    if own in folders:
        raise ParamsError(f"--with: got {own}, the run itself; expected the folder of another run")
    names = [folder.name for folder in folders]
    for folder in folders:
        if names.count(folder.name) > 1:
            raise ParamsError(f"--with: got two folders named {folder.name}; expected names that differ")


def in_bins(values: Sequence[float], most: int = 256) -> list[float]:
    """Return the means of runs of neighbouring values, at most so many, all runs but the last equally long."""
    size = max(1, -(-len(values) // most))
    return [statistics.fmean(values[i : i + size]) for i in range(0, len(values), size)]


def stage_of(report: Report, name: str) -> StageRecord | None:
    """Return the record of a stage, or None."""
    return next((stage for stage in report.stages if stage.stage == name), None)


def metrics_of(report: Report, stage: str, name: str) -> list[Metric]:
    """Return the metrics of that name that have a value."""
    record = stage_of(report, stage)
    return [m for m in record.metrics if m.name == name and m.value is not None] if record else []


def settings_of(report: Report, stage: str = "perplexity") -> Mapping[str, object]:
    """Return the settings of a run as one of its stages has resolved them, under the names of today."""
    record = stage_of(report, stage)
    return of_today(report.run.params | (record.params if record else {}))


def context(report: Report) -> int | None:
    """Return the number of tokens in a window of the perplexity stage; None where the record does not say."""
    return trained_size(settings_of(report), "n_seq")


def trained_size(settings: Mapping[str, object], size: str) -> object:
    """A size of the models whose perplexity is measured: that of the training where one is given."""
    return (settings.get(f"train_{size}") if settings.get("train_tokens") else None) or settings.get(size)


def changed_settings(main: Report, other: Report) -> dict[str, tuple[object, object]]:
    """Return {setting: (its value, the main run's)} where the recipes differ, the length of the context aside."""
    theirs, ours = (
        {size: trained_size(settings, size) for size in ("d_model", "n_layers")}
        | {key: settings[key] for key in RECIPE if key in settings}
        for settings in (settings_of(other), settings_of(main))
    )
    return {key: (theirs[key], ours[key]) for key in theirs if key in ours and theirs[key] != ours[key]}


def same_data(main: Report, other: Report) -> bool | None:
    """Return whether both perplexity stages read the same files, by SHA-256; None where one of them is missing."""
    first, second = (stage_of(report, "perplexity") for report in (main, other))
    if first is None or second is None:
        return None
    return {file.sha256 for file in first.inputs} == {file.sha256 for file in second.inputs}


def kind(main: Report, other: Report) -> str:
    """Return which of KINDS a companion is.

    repeat: a training of the main run done again, same profile, recipe and length; lengths: models at another length of
    context; changes: ratios of changed memories to the whole one; texts: models trained alike, tested on another text.
    Other data is never compared: other.
    """
    if same_data(main, other) is False:
        elsewhere = settings_of(other).get("test_corpus") and not changed_settings(main, other)
        return "texts" if elsewhere and context(other) == context(main) else "other"
    if context(other) != context(main):
        return "lengths"
    if other.run.profile == main.run.profile and not changed_settings(main, other) and repeats(main, other):
        return "repeat"
    whole = metrics_of(other, "perplexity", WHOLE_MEMORY)
    return "changes" if any(metric.model in ABLATIONS for metric in whole) else "other"


def of_kind(main: Report, companions: Iterable[Companion], wanted: str) -> list[Companion]:
    """Return the companions of one kind."""
    return [companion for companion in companions if kind(main, companion.report) == wanted]


@dataclass(frozen=True)
class Repeat:
    """One training of the main run and its repetition, beside the spread of the main run's seeds."""

    model: str
    seed: str
    first: float  # perplexity in the main run
    again: float
    of_seeds: tuple[float, ...]  # perplexities of all seeds of the main run

    @property
    def difference(self) -> float:
        return self.again - self.first

    @property
    def sd(self) -> float | None:
        """Standard deviation over the main run's seeds; None where there is a single one."""
        return statistics.stdev(self.of_seeds) if len(self.of_seeds) > 1 else None

    @property
    def within(self) -> bool | None:
        """Whether the difference is at most WITHIN_SDS standard deviations; None where the spread is unknown."""
        return None if self.sd is None else abs(self.difference) <= WITHIN_SDS * self.sd


def repeats(main: Report, other: Report) -> list[Repeat]:
    """Return every model and seed that both runs have a perplexity of."""
    found = []
    again = {metric.model: _by_seed(metric) for metric in metrics_of(other, "perplexity", "perplexity")}
    for metric in metrics_of(main, "perplexity", "perplexity"):
        first = _by_seed(metric)
        found += [
            Repeat(metric.model, seed.removeprefix("seed "), value, again[metric.model][seed], tuple(first.values()))
            for seed, value in first.items()
            if seed in again.get(metric.model, ())
        ]
    return found


def _by_seed(metric: Metric) -> dict[str, float]:
    return dict(zip(metric.labels, metric.samples, strict=False))
