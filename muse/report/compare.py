"""Two or more runs side by side: what differs in settings and code, what of the rest can be compared, and what ties.

A number is compared only where both runs measured the same thing in the same way; else its row says why not. The way
is a number's `method`, a version of the code that measured it: code of models may change, that is what is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

from muse.catalog import MODEL_NAMES
from muse.params import ParamsError
from muse.records.losses import Losses
from muse.records.schema import Metric, StageRecord

from .companions import RATIO, settings_of, stage_of, trained_size
from .paired import Difference, by_seeds, by_targets, same_targets, tied
from .runs import Run, losses_of

METHOD = {
    "basic_test": ("memory_batch_size", "gradient_batch_size", "gradient_n_tokens", "n_seq"),
    "train": ("window",),
    "perplexity": ("window", "max_ppl_batches"),
    "memory": ("n_seq", "memory_batch_size", "recompute"),
    "throughput": ("throughput_batch_size", "throughput_n_tokens", "throughput_warmups", "throughput_samples"),
    "gradients_stability": (
        *("gradient_batch_size", "gradient_n_tokens"),
        *("stability_trials", "stability_batch_size", "stability_n_tokens"),
    ),
    "dynamics": ("window", "dynamics_windows"),
    "counting": ("counting_length", "counting_lengths", "counting_sequences"),
}
"""The settings that decide how a stage measures. All others decide what is measured: another model or training."""

ON_HARDWARE = ("memory", "throughput")
"""Stages whose numbers are those of a machine."""

OF_TIME = ("s", "ms", "tokens/s", "token/s", "FLOP/s", "byte/s")
"""Units of what no repetition gives again to the last digit."""

LOSSES = ("loss", "perplexity")
Comparable = Literal["yes", "unknown", "no"]
Method = Literal["same", "changed", "unknown"]


@dataclass(frozen=True)
class Row:
    """A metric that two runs have; `reasons` are keys of the texts `compare.reason.<key>`."""

    stage: str
    metric: str
    model: str
    unit: str
    base: float
    value: float
    comparable: Comparable
    reasons: tuple[str, ...]
    method: Method  # whether the same code measured both
    difference: Difference | None  # None where the two cannot be compared


@dataclass(frozen=True)
class Setting:
    """A setting that two runs do not share; `decides` is what hangs on it."""

    key: str
    base: object
    value: object
    decides: Literal["method", "model"]


@dataclass(frozen=True)
class Pair:
    """A run beside the baseline."""

    run: str
    settings: list[Setting]
    code: dict[str, tuple[object, object]]  # commit, versions, hardware: of the baseline, of the run
    rows: list[Row]
    only_base: list[str]  # models
    only_run: list[str]
    identical: bool  # whether all that repeats exactly is the same, and whether there is any


@dataclass(frozen=True)
class Standing:
    """A model of a run among all whose perplexity was measured on the same targets; letters are shared by ties."""

    run: str
    model: str
    perplexity: float
    groups: tuple[str, ...]
    reasons: tuple[str, ...] = ()  # why it stands in no group


@dataclass(frozen=True)
class Comparison:
    """What a page, a table or a script tells of some runs."""

    baseline: str
    runs: list[str]
    pairs: list[Pair]
    standings: list[Standing] = field(default_factory=list)


def compare(runs: Sequence[Run]) -> Comparison:
    """Return the runs beside the first of them; ParamsError for fewer than two."""
    if len(runs) < 2:
        raise ParamsError(f"compare: got {len(runs)} run, expected two or more folders of runs")
    base, *others = _told_apart(runs)
    return Comparison(
        baseline=base.name,
        runs=[base.name, *(run.name for run in others)],
        pairs=[_pair(base, run) for run in others],
        standings=standings([base, *others]),
    )


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that share a name under their folder's path."""
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def _pair(base: Run, run: Run) -> Pair:
    rows = list(_rows(base, run))
    exact = [row for row in rows if row.unit not in OF_TIME and row.stage != "throughput"]
    compared = [row.difference for row in exact if row.difference]
    ours, theirs = (dict.fromkeys(m.model for m in _metrics(side) if m.model in MODEL_NAMES) for side in (run, base))
    return Pair(
        run=run.name,
        settings=_settings(base, run),
        code=_code(base, run),
        rows=rows,
        only_base=[model for model in theirs if model not in ours],
        only_run=[model for model in ours if model not in theirs],
        identical=bool(exact)
        and ours.keys() == theirs.keys()
        and len(compared) == len(exact)
        and all(found.identical for found in compared),
    )


def _metrics(run: Run) -> Iterator[Metric]:
    return chain.from_iterable(stage.metrics for stage in run.report.stages)


def _settings(base: Run, run: Run) -> list[Setting]:
    """The settings that differ, those that decide how something is measured first."""
    before, after = (settings_of(side.report) for side in (base, run))
    of_method = {name for names in METHOD.values() for name in names} | {"corpus", "tokenizer", "n_seq"}
    found = [
        Setting(key, before.get(key), after.get(key), "method" if key in of_method else "model")
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]
    return sorted(found, key=lambda setting: setting.decides == "model")


def _code(base: Run, run: Run) -> dict[str, tuple[object, object]]:
    """Commit, versions and hardware that differ."""
    before, after = (_made_from(side) for side in (base, run))
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def _made_from(run: Run) -> dict[str, object]:
    info = run.report.run
    return {"git_commit": info.git_commit, "git_dirty": info.git_dirty, **info.versions, **info.hardware}


def _rows(base: Run, run: Run) -> Iterator[Row]:
    """Every metric with a value on both sides, stage by stage."""
    for record in run.report.stages:
        before = stage_of(base.report, record.stage)
        if before is None:
            continue
        of_stage = stage_reasons(base, run, record.stage)
        first = {(m.name, m.model): m for m in before.metrics if m.value is not None}
        for metric in record.metrics:
            other = first.get((metric.name, metric.model))
            if other is not None and metric.value is not None:
                sizes = [side.find("num_targets", metric.model) for side in (before, record)]
                counted = all(sizes) and sizes[0].value != sizes[1].value
                yield _row(base, run, record.stage, (other, metric), [*of_stage, *["targets"] * counted])


def _row(base: Run, run: Run, stage: str, pair: tuple[Metric, Metric], of_stage: Sequence[str]) -> Row:
    before, metric = pair
    method = method_of(base, run, pair)
    of_method: dict[Method, list[str]] = {"same": [], "changed": ["method"], "unknown": ["code"]}
    reasons = [*of_stage, *of_method[method]]
    reasons += [key for key in ("unit", "basis") if getattr(before, key) != getattr(metric, key)]
    if None not in (before.trained, metric.trained) and before.trained != metric.trained:
        reasons.append("trained")
    comparable: Comparable = "yes" if not reasons else "unknown" if reasons == ["code"] else "no"
    found = None
    if comparable != "no":
        found = _difference(stage, pair, [losses_of(side, metric.model) for side in (base, run)])
        if found is None:
            comparable, reasons = "no", [*reasons, "targets"]
    about = {"stage": stage, "metric": metric.name, "model": metric.model, "unit": metric.unit, "method": method}
    values = {"base": before.value, "value": metric.value, "reasons": tuple(reasons)}
    return Row(**about, **values, comparable=comparable, difference=found)


def _difference(stage: str, pair: tuple[Metric, Metric], losses: Sequence[Losses | None]) -> Difference | None:
    """The difference of the later to the earlier metric; None where they are of other targets."""
    before, metric = pair
    if stage == "perplexity" and metric.name in LOSSES and all(losses):
        return by_targets(losses[1], losses[0], metric.name)
    return by_seeds(metric, before)


def method_of(base: Run, run: Run, pair: tuple[Metric, Metric]) -> Method:
    """Return whether the same code measured a metric of two runs.

    Records from before metrics had a method tell only where both runs are of one commit with nothing uncommitted.
    """
    before, after = (metric.method for metric in pair)
    if before and after:
        return "same" if before == after else "changed"
    commits = {(side.report.run.git_commit, side.report.run.git_dirty) for side in (base, run)}
    (commit, dirty), *others = commits
    return "same" if not others and commit is not None and dirty is False else "unknown"


def stage_reasons(base: Run, run: Run, stage: str) -> list[str]:
    """Return why the numbers that two runs have of a stage cannot be compared, whatever code measured them."""
    before, after = (stage_of(side.report, stage) for side in (base, run))
    found = []
    if before.status != "ok" or after.status != "ok":
        found.append("unfinished")
    if before.text != after.text or _content(before) != _content(after):
        found.append("text")
    methods = [_method(side, stage) for side in (base, run)]
    if any(methods[0][key] != methods[1][key] for key in methods[0].keys() & methods[1].keys()):
        found.append("settings")
    if stage in ON_HARDWARE and _machine(base, before) != _machine(run, after):
        found.append("hardware")
    return found


def _content(record: StageRecord) -> set[str]:
    return {file.sha256 for file in record.inputs}


def _method(run: Run, stage: str) -> dict[str, object]:
    """The settings that decide how a stage of a run measures, those of them that its record knows."""
    settings: Mapping[str, object] = settings_of(run.report, stage)
    settings = {**settings, "window": trained_size(settings, "n_seq")}
    return {name: settings[name] for name in METHOD.get(stage, ()) if name in settings}


def _machine(run: Run, record: StageRecord) -> tuple[object, ...]:
    device = str(record.params.get("device", ""))
    on = "gpu" if device.startswith("cuda") else "cpu"
    return on, run.report.run.hardware.get(on), run.report.run.hardware.get("torch_threads") if on == "cpu" else None


@dataclass(frozen=True)
class _Entry:
    """A model of a run with its perplexity."""

    run: Run
    metric: Metric
    losses: Losses | None


def standings(runs: Sequence[Run]) -> list[Standing]:
    """Return every model's perplexity on the first run's targets, the lowest first; ties share a letter.

    Two models tie where the interval of their difference contains none. Models of runs that measured other targets, or
    in another way, or whose difference to another model has no interval, stand last and in no group.
    """
    grouped, apart, ties = [], [], {}
    for run in runs:
        record = stage_of(run.report, "perplexity")
        for metric in record.metrics if record else ():
            if metric.name != "perplexity" or metric.value is None:
                continue
            entry = _Entry(run, metric, losses_of(run, metric.model))
            why = _apart(grouped[0], entry) if grouped else []
            found = {} if why else {frozenset((id(entry), id(other))): tie(entry, other) for other in grouped}
            if why or None in found.values():
                apart.append((entry, tuple(why or ["spread"])))
            else:
                grouped.append(entry)
                ties |= found
    grouped.sort(key=lambda entry: entry.metric.value)
    groups = tied(len(grouped), lambda one, other: ties[frozenset((id(grouped[one]), id(grouped[other])))])
    told = [
        (entry, tuple(letters(at) for at, group in enumerate(groups) if place in group), ())
        for place, entry in enumerate(grouped)
    ]
    told += [(entry, (), why) for entry, why in apart]
    return [Standing(one.run.name, one.metric.model, one.metric.value, *more) for one, *more in told]


def _apart(first: _Entry, entry: _Entry) -> list[str]:
    """Why a model's perplexity is none of the first one's targets, or was measured in another way."""
    why = stage_reasons(first.run, entry.run, "perplexity")
    if method_of(first.run, entry.run, (first.metric, entry.metric)) == "changed":
        why.append("method")
    if first.metric.trained != entry.metric.trained:
        why.append("trained")
    if first.losses and entry.losses and not same_targets(first.losses, entry.losses):
        why.append("targets")
    return why


def tie(one: _Entry, other: _Entry) -> bool | None:
    """Return whether nothing shows that two models differ; None where no interval tells.

    Without losses, models of one run are told apart by the ratio that it recorded, others by their seeds.
    """
    if one.losses and other.losses:
        found = by_targets(one.losses, other.losses, "perplexity")
        return found and found.is_zero_possible
    if one.run is other.run:
        record, models = stage_of(one.run.report, "perplexity"), (one.metric.model, other.metric.model)
        for model, base in (models, models[::-1]):
            ratio = record.find(f"{RATIO}{base}", model)
            if ratio is not None and ratio.interval:
                return ratio.interval[0] <= 1 <= ratio.interval[1]
    return by_seeds(one.metric, other.metric).is_zero_possible


def letters(place: int) -> str:
    """Return a, b, ... z, aa, ab ... for the places from 0."""
    return (letters(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)
