"""Folders of runs and of trainings, read for lists and comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from muse.params import ParamsError
from muse.records.losses import Losses, read_losses
from muse.records.schema import Report, RunInfo, StageRecord
from muse.records.store import RecordError

from .assemble import assemble
from .companions import read_report, stage_of

WEIGHTS = "model.safetensors"
LONGEST_HEADER = 2**20  # bytes of the JSON before the weights; the largest model's has some ten thousand


def made(run: RunInfo, stage: StageRecord | None = None) -> str:
    """Return on what and when a run was made; of a bench its stage says on which device."""
    on_cpu = (stage or run).params.get("device") == "cpu"
    torch = run.versions["torch"].partition("+")[0]
    return f"{machine(run.hardware, on_cpu)}, torch {torch}, {run.started_utc:%Y-%m-%d}"


def machine(hardware: Mapping[str, str], on_cpu: bool = False) -> str:
    """Return what was computed on: the cards, where there are any, or the cores."""
    told = "{cores} cores of {cpu} ({cpu_capability})"
    if "gpu" in hardware and not on_cpu:
        told = "{gpu_count} x {gpu}" if int(hardware.get("gpu_count", 1)) > 1 else "{gpu}"
    return told.format_map(hardware)


@dataclass(frozen=True)
class Run:
    """A run by the name of its folder."""

    name: str
    folder: Path
    report: Report

    @property
    def finished(self) -> bool:
        """Whether the run came to its end with every stage done."""
        return self.report.run.finished_utc is not None and not self.failed

    @property
    def failed(self) -> list[str]:
        """The stages that did not finish."""
        return [stage.stage for stage in self.report.stages if stage.status != "ok"]


def read_run(folder: str | Path) -> Run:
    """Return the run of a folder, of an unfinished one what there is; ParamsError names the file, got and expected."""
    folder = Path(folder)
    if (folder / "report.json").is_file():
        return Run(folder.resolve().name, folder, read_report(folder / "report.json"))
    if not (folder / "run.json").is_file():
        raise ParamsError(f"{folder}: is not a run's folder: run.json is missing")
    try:
        return Run(folder.resolve().name, folder, assemble(folder))
    except RecordError as error:
        raise ParamsError(f"{folder}: got a run.json that is none, expected what muse run writes") from error


def find_runs(folder: str | Path, skip: Callable[[str], object] = lambda problem: None) -> list[Run]:
    """Return the runs that lie in a folder, the newest first; what cannot be read is told to `skip`."""
    if not Path(folder).is_dir():
        raise ParamsError(f"{folder}: got no such folder, expected a folder of runs, such as reports")
    found = []
    for entry in sorted(Path(folder).iterdir()):
        if any((entry / name).is_file() for name in ("run.json", "report.json")):
            try:
                found.append(read_run(entry))
            except ParamsError as error:
                skip(str(error))
    return sorted(found, key=lambda run: run.report.run.started_utc, reverse=True)


def losses_of(run: Run, model: str) -> Losses | None:
    """Return the kept losses of a model's targets; None where the run kept none or its files are not there.

    ParamsError for a file that is damaged.
    """
    record = stage_of(run.report, "perplexity")
    for artifact in record.artifacts if record else ():
        if artifact.kind == "losses" and artifact.model == model and (path := run.folder / artifact.path).is_file():
            try:
                return read_losses(path)
            except RecordError as error:
                raise ParamsError(str(error)) from error
    return None


@dataclass(frozen=True)
class Checkpoint:
    """A training on disk, or an exported model; what it came to is None as long as a training is not finished."""

    folder: Path
    model: str
    seed: int
    planned_tokens: int
    tokens: int | None = None
    loss: float | None = None  # best validation, nat/token
    exported: bool = False

    @property
    def weights(self) -> Path:
        """The file of the weights, which an unfinished training does not have."""
        return self.folder / WEIGHTS


def find_checkpoints(folder: str | Path, skip: Callable[[str], object] = lambda problem: None) -> list[Checkpoint]:
    """Return the trainings that lie in a folder, by model, seed and loss; what cannot be read is told to `skip`."""
    return _sorted(_found(folder, skip, _checkpoint, "a training's config.json"))


def find_models(
    folders: Iterable[str | Path], skip: Callable[[str], object] = lambda problem: None
) -> list[Checkpoint]:
    """Return the trainings and the exported models that lie in some folders; one that is not there holds none.

    Sorted by model, seed and loss (nat/token); what cannot be read is told to `skip`, a line each.
    """
    there = [folder for folder in folders if Path(folder).is_dir()]
    wanted = "config.json of a training or of an exported model"
    return _sorted(one for folder in there for one in _found(folder, skip, _training_or_export, wanted))


def _found(
    folder: str | Path, skip: Callable[[str], object], read: Callable[[Path], Checkpoint], wanted: str
) -> Iterator[Checkpoint]:
    if not Path(folder).is_dir():
        raise ParamsError(f"{folder}: got no such folder, expected a folder of trainings, such as checkpoints")
    for path in sorted(Path(folder).glob("*/config.json")):
        try:
            yield read(path.parent)
        except (OSError, ValueError, KeyError, TypeError) as error:
            skip(f"{path.parent}: got {type(error).__name__} ({error}), expected {wanted}")


def _sorted(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    return sorted(found, key=lambda one: (one.model, one.seed, one.loss is None, one.loss or 0))


def _checkpoint(folder: Path) -> Checkpoint:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    recipe, result = config["recipe"], {}
    if (folder / "result.json").is_file():
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    about = config["model_name"], int(recipe["seed"]), int(recipe["train_tokens"])
    return Checkpoint(folder, *about, result.get("tokens"), result.get("best_validation_loss"))


def _training_or_export(folder: Path) -> Checkpoint:
    """A training's folder, or that of a model which was exported after a training and says so in its weights."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "architectures" not in values:
        return _checkpoint(folder)
    about = _metadata(folder / WEIGHTS)
    recipe = about.get("recipe", {})
    tokens = int(recipe.get("train_tokens", 0))
    name = about.get("model_name") or values["architectures"][0]
    return Checkpoint(folder, name, recipe.get("seed", 0), tokens, tokens, about.get("validation_loss_nats"), True)


def _metadata(path: Path) -> dict[str, object]:
    """What the weights of an exported model say about their training, read without torch."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= LONGEST_HEADER:
            raise ValueError(f"{path.name}: a header of {length} bytes")
        return json.loads(json.loads(file.read(length))["__metadata__"]["muse"])
