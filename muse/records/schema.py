"""What a run leaves behind: strict, versioned records of every number, with unit, count, spread and raw samples."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from . import earlier as earlier

SCHEMA_VERSION = 1
READING = "reading"  # the context in which a record of before is given the fields that were sentences then
Verdict = Literal["pass", "fail", "not_measured"]
Basis = Literal["measured", "estimate", "none"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


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
    method: str = Field("", description="version of the code that measured it; empty where that is not known")
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
    normalized: list[Literal["byte_order_mark", "cr", "crlf"]] = Field(
        default_factory=list, description="what was replaced in its text before it was cut into tokens"
    )


class Artifact(_Record):
    """A file that a stage made beside its record: the weights of a training, or the losses of a model's targets."""

    kind: Literal["weights", "losses"]
    model: str
    seed: int | None = Field(None, description="of the training; null where a file holds all seeds of a model")
    path: str = Field(description="weights: seen from the folder of the checkpoints; losses: from that of the run")
    sha256: str
    num_bytes: int
    verified: bool | None = Field(
        None, description="weights: false for a training from before files carried the SHA-256 that each read checks"
    )


class TrainingRun(_Record):
    """One training, be it a try or that of a seed: with what, when, on what and for how long, and how it ended."""

    model: str
    seed: int
    learning_rate: float
    dropout: float
    optimizer: str
    batch_tokens: int
    weight_decay: float
    muon_weight_decay: float | None = Field(None, description="null where AdamW trained everything")
    steps: int = Field(description="of the whole budget, also where the training diverged before")
    tokens: int = Field(description="of the whole budget, also where the training diverged before")
    seconds: float = Field(description="all of it, summed over interruptions; to the error where it diverged")
    started_utc: datetime = Field(description="of the first start, whatever interrupted it since")
    finished_utc: datetime
    hardware: str = Field(description="CUDA device or CPU that it ended on")
    resumed_from_steps: list[int] = Field(default_factory=list)
    skipped_steps: int = Field(0, description="by the loss scaler of float16, since a gradient was not finite")
    reused: bool = Field(False, description="found finished on disk; then all else is of the run that trained it")
    commit: str = Field("", description="of the code of a try of which only the numbers are known here")
    diverged: bool = Field(False, description="a loss or gradient was not finite: a try without result, which lost")
    best_validation_loss: float | None = Field(description="nat/token; null where the training diverged")


class Reduction(_Record):
    """A setting in which a stage was smaller than the published protocol; `published` null means all there is."""

    setting: str
    value: int | float | str
    published: int | float | str | None


class Imported(_Record):
    """What the process of a stage really imported; a run whose driver has something else fails."""

    package: str = Field(description="folder of the package, seen from the driver's")
    git_commit: str | None
    versions: dict[str, str]


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
    text: str = Field("", description="which text was read, such as wikitext-2-v1; empty where none was")
    inputs: list[InputFile] = Field(default_factory=list)
    metrics: list[Metric] = Field(default_factory=list)
    series: list[Series] = Field(default_factory=list)
    excerpts: list[Excerpt] = Field(default_factory=list)
    artifacts: list[Artifact] = Field(default_factory=list)
    trainings: list[TrainingRun] = Field(default_factory=list, description="all that were needed, tries included")
    imported: Imported | None = Field(None, description="the code that ran; null in records of before")

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

    name: str
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
    beside: list[Criterion] = Field(
        default_factory=list, description="verdicts on equal terms, such as vram_recomputed beside vram; no exit code"
    )

    def in_order(self) -> list[Criterion]:
        """Return the criteria, each followed by what stands beside it."""
        return [
            found
            for criterion in self.criteria
            for found in (criterion, *(other for other in self.beside if other.name.startswith(f"{criterion.name}_")))
        ]


class RunInfo(_Record):
    """Where, when and from what the run was made, and the command that repeats it."""

    id: str
    profile: str
    started_utc: datetime
    finished_utc: datetime | None = None
    interrupted: bool = Field(default=False, description="whether it was stopped before its last stage")
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
    """One `muse bench`: `bench.json`. Its parameters stand in the stage; records of before have them twice."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: RunInfo
    stage: StageRecord
