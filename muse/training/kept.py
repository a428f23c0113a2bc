"""Numbers of finished trainings without weights and training curve: what was tried on one machine is known elsewhere.

A file is found by what was asked for (model, recipe, tokens, device type), not by the code that computed it: which code
that was stands in it, and in the record of whoever takes its result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from muse.host.files import write_atomic
from muse.models import weights
from muse.records.environment import git_state

from .checkpoint import training_key
from .recipe import TrainingResult, result_of

CODE = "code_sha256"


@dataclass(frozen=True)
class Kept:
    """A training's result and the commit of the code that it was trained by, empty where that is unknown."""

    result: TrainingResult
    commit: str


def keep(folder: Path, config: Mapping[str, object], result: TrainingResult) -> None:
    """Write a finished training's result beside what it was asked for, whole or not at all."""
    commit, dirty = git_state(Path(__file__).resolve().parent.parent.parent)
    dropped = {"weights": None, "reused": False, "training_curve": (), "tokens_per_second_samples": ()}
    code = "" if commit is None else f"{commit} with changes" if dirty else commit
    values = {"config": config, "commit": code, "result": asdict(result) | dropped}
    path = _path(folder, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(values, allow_nan=False) + "\n")


def find(folder: Path, config: Mapping[str, object]) -> Kept | None:
    """Return what an equal training left, by whatever code; None where none did.

    Raises CheckpointError for a file that is damaged or of another training.
    """
    path = _path(folder, config)
    if not path.exists():
        return None
    values = weights.read_json(path)
    try:
        if _asked(values["config"]) != _asked(config):
            raise ValueError("of another training")
        return Kept(replace(result_of(values["result"]), reused=True), str(values["commit"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise weights.CheckpointError(f"{path}: not the result of a training ({error}); remove it to train") from error


def _asked(config: Mapping[str, object]) -> dict[str, object]:
    """All of it but the code, and of the corpus its ids alone, which say what the tokenizer made of the text."""
    asked = {key: value for key, value in config.items() if key != CODE}
    return json.loads(json.dumps(asked | {"corpus": config["corpus"]["sha256"]}))


def _path(folder: Path, config: Mapping[str, object]) -> Path:
    asked = _asked(config)
    return folder / f"{asked['model_name']}-s{asked['recipe']['seed']}-{training_key(asked)[:12]}.json"
