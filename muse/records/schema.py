"""What a run leaves behind: strict, versioned records of every number, with unit, count, spread and raw samples."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from muse.host.files import write_atomic

from . import earlier as earlier

SCHEMA_VERSION = 1
READING = "reading"  # the context in which a record of before is given the fields that were sentences then
PLACES_SHOWN = 5  # of non-finite numbers, in an error
CRITERIA = ("perplexity", "vram", "stability", "gradients", "layout")
Verdict = Literal["pass", "fail", "not_measured"]
Basis = Literal["measured", "estimate", "none"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
R = TypeVar("R", bound=BaseModel)


class RecordError(ValueError):
    """A record that is missing, malformed or holds a number that strict JSON cannot express."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Record):
    """One measured quantity of one model; `value` is null where nothing finite was measured and `reason` says why."""

    name: str = Field(description="what was measured, with its unit where the name would be ambiguous")
    model: str = Field("", description="which model it belongs to; empty for a property of the run or the data")
    value: float | None = Field(description="the measured value in `unit`")
    unit: str
    n: int = Field(1, ge=0, description="how many observations the value summarises")
    basis: Literal["measured", "estimate"] = "measured"
    interval: tuple[float, float] | None = Field(None, description="95 % interval of the value")
    samples: list[float] = Field(default_factory=list, description="raw observations")
    labels: list[str] = Field(default_factory=list, description="names of the samples, where they have any")
    layers: list[int] = Field(default_factory=list, description="layers of the samples, where they belong to layers")
    trained: bool | None = Field(None, description="whether the model was trained; null where that is no question")
    reason: str = Field("", description="why there is no value")
    note: str = Field("", description="how it was measured, in words for people")

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, values: object, info: ValidationInfo) -> object:
        return earlier.metric_fields(values) if info.context == READING else values


class Series(_Record):
    """A curve: y over x, such as loss over training tokens."""

    name: str
    model: str = ""
    seed: int | None = Field(None, description="of the training that it belongs to, where there are several")
    layer: int | None = Field(None, description="number of the layer that it belongs to, where it belongs to one")
    x_name: str
    y_name: str
    x: list[float]
    y: list[float]

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, values: object, info: ValidationInfo) -> object:
        return earlier.series_fields(values) if info.context == READING else values


class Excerpt(_Record):
    """A piece of text that belongs to the evidence, such as what a trained model writes."""

    name: str
    model: str = ""
    text: str


class InputFile(_Record):
    """A file that was read, by content."""

    path: str
    sha256: str
    num_bytes: int


class Artifact(_Record):
    """A file that a stage made and that lies outside the run's folder, such as the weights of a training."""

    kind: Literal["weights"]
    model: str
    seed: int
    path: str = Field(description="seen from the folder of the checkpoints")
    sha256: str
    num_bytes: int


class Reduction(_Record):
    """A setting in which a stage was smaller than the published protocol; `published` null means all there is."""

    setting: str
    value: int | float | str
    published: int | float | str | None


class StageRecord(_Record):
    """Everything one stage measured, or how it failed."""

    schema_version: Literal[1] = SCHEMA_VERSION
    stage: str
    status: Literal["ok", "failed"] = "ok"
    error: str | None = None
    started_utc: datetime
    finished_utc: datetime
    scale: Literal["published", "reduced"] = Field(
        description="whether the stage ran at the published size and protocol, or at a smaller one"
    )
    reductions: list[Reduction] = Field(default_factory=list, description="in which way the scale is reduced")
    scale_note: str = Field("", description="the reductions in words")
    params: dict[str, object] = Field(default_factory=dict, description="the stage's resolved parameters")
    inputs: list[InputFile] = Field(default_factory=list)
    metrics: list[Metric] = Field(default_factory=list)
    series: list[Series] = Field(default_factory=list)
    excerpts: list[Excerpt] = Field(default_factory=list)
    artifacts: list[Artifact] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, values: object, info: ValidationInfo) -> object:
        return earlier.stage_fields(values) if info.context == READING else values

    def find(self, name: str, model: str = "") -> Metric | None:
        """Return the metric of that name and model, or None."""
        return next((m for m in self.metrics if m.name == name and m.model == model), None)

    def models(self, name: str) -> list[str]:
        """Return the models that have a metric of that name, in order of appearance."""
        return list(dict.fromkeys(m.model for m in self.metrics if m.name == name))


class Criterion(_Record):
    """One Stage 1 criterion: what was asked, what was found, and on which basis the verdict stands."""

    name: Literal["perplexity", "vram", "stability", "gradients", "layout"]
    target: str
    value: Finite | None
    verdict: Verdict
    basis: Basis
    reason: str


class Summary(_Record):
    """The handful of numbers a script asks for; null where not measured."""

    ppl: Finite | None = None
    ppl_phase2: Finite | None = None
    ppl_ratio: Finite | None = None
    vram_gb: Finite | None = Field(None, description="peak GiB of the Stage 1 model, published memory protocol")
    vram_phase2_gb: Finite | None = None
    vram_ratio: Finite | None = None
    pass_: bool | None = Field(
        None, alias="pass", description="true when every criterion passes, false when one fails, else null"
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Judged(_Record):
    """The criteria, asked of one model."""

    model: str
    criteria: list[Criterion]
    summary: Summary


class RunInfo(_Record):
    """Where, when and from what the run was made, and the command that repeats it."""

    id: str
    profile: str
    started_utc: datetime
    finished_utc: datetime | None = None
    git_commit: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    hardware: dict[str, str]
    seeds: list[int]
    command: str
    params: dict[str, object] = Field(default_factory=dict, description="all resolved parameters of the run")


class Report(_Record):
    """The whole run: `report.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: RunInfo
    criteria: list[Criterion] = Field(description="of the first of the run's candidates; they decide its exit code")
    summary: Summary
    others: list[Judged] = Field(default_factory=list, description="the further candidates")
    judged: list[Judged] = Field(default_factory=list, description="every candidate by name, the first one first")
    stages: list[StageRecord]

    @classmethod
    def of(cls, run: RunInfo, judged: Sequence[Judged], stages: Sequence[StageRecord]) -> Self:
        """Return the report of a run whose candidates were judged."""
        first, *others = judged
        parts = {"criteria": first.criteria, "summary": first.summary, "others": others}
        return cls(run=run, judged=list(judged), stages=list(stages), **parts)

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, values: object, info: ValidationInfo) -> object:
        return earlier.report_fields(values) if info.context == READING else values


class BenchRecord(_Record):
    """One `muse bench`: `bench.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: RunInfo
    stage: StageRecord


def to_json(record: BaseModel) -> str:
    """Return strict JSON; RecordError names the record when it holds NaN or infinity."""
    try:
        return json.dumps(_plain(record.model_dump(by_alias=True)), allow_nan=False, indent=1, ensure_ascii=False)
    except ValueError as error:
        found = _non_finite(record.model_dump(by_alias=True))
        more = f" and {len(found) - PLACES_SHOWN} more" if len(found) > PLACES_SHOWN else ""
        places = ", ".join(found[:PLACES_SHOWN])
        raise RecordError(
            f"{type(record).__name__} is not strict JSON: non-finite numbers at {places}{more}"
        ) from error


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _non_finite(value: object, path: str = "") -> list[str]:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return [f"{path or '/'} = {value}"]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [found for key, item in items for found in _non_finite(item, f"{path}/{key}")]


def write_record(record: BaseModel, path: str | Path) -> Path:
    """Write a record as strict JSON, atomically, and return its path."""
    path = Path(path)
    write_atomic(path, to_json(record) + "\n")
    return path


def read_record(kind: type[R], path: str | Path) -> R:
    """Read a record; RecordError names the file and what is wrong with it."""
    path = Path(path)
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"), context=READING)
    except FileNotFoundError as error:
        raise RecordError(f"{path}: no such record; expected a {kind.__name__}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a valid {kind.__name__}: {error}") from error


def schema() -> dict[str, object]:
    """Return the JSON schema of `report.json`."""
    return Report.model_json_schema(by_alias=True)


def utc_now() -> datetime:
    """Return the present time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def git_state(folder: str | Path = ".") -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout that holds `folder`.

    Where the code was copied without its history, MUSE_GIT_COMMIT may name the commit (dirty is then unknown); else
    (None, None).
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return os.environ.get("MUSE_GIT_COMMIT"), None
    status = git("status", "--porcelain")
    return commit, None if status is None else bool(status)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what the numbers mean."""
    found = {"python": platform.python_version()}
    for name in ("muse-workbook", "torch", "numpy", "transformers", "datasets", "papermill", "nbconvert", "plotly"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, str]:
    """Return processor, cores, memory and accelerator of this machine, as text."""
    import torch

    found = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if sys.platform != "win32":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gib"] = f"{pages / 2**30:.1f}"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = f"{properties.total_memory / 2**30:.1f}"
        found["gpu_count"] = str(torch.cuda.device_count())
        found["cuda"] = str(torch.version.cuda)
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
