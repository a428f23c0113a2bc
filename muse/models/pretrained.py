"""Models as folders, in the way of the Hugging Face hub: what the model is, its weights, and a card for people.

<folder>/
    model.safetensors    every parameter in its storage dtype; the metadata say how it was trained, where that is known
    README.md            the model card
    config.json          architecture, storage dtype, and every field of the configuration; written last
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from muse.host.files import write_atomic

from . import weights
from .build import build_model
from .model_card import model_card
from .weights import CONFIG_FILE, DTYPES, MODEL_FILE, WEIGHTS_FORMAT, CheckpointError, dtype_of

CARD_FILE = "README.md"
ARCHITECTURES = {
    "Phase3Stage1Model": ("stage1", "Phase3Stage1Config"),
    "RealTwinModel": ("real_twin", "RealTwinConfig"),
    "Phase2Model": ("phase2", "Phase2Config"),
    "Gpt2Model": ("gpt2", "Gpt2Config"),
}
"""Every class of model with the module that holds it and the name of its configuration."""


OWN_KEYS = ("architectures", "dtype", "library_name")  # of config.json, beside the configuration's fields


def save_pretrained(model: nn.Module, folder: str | Path, training: Mapping[str, object] | None = None) -> Path:
    """Write a model of this project as a folder that `from_pretrained` reads, and return the folder.

    `training` is what is known about how the weights were made: the metadata of a finished training. ValueError for a
    model that is not of this project or whose parameters differ in dtype; CheckpointError where `folder` holds
    something else.
    """
    folder, path = Path(folder), Path(folder) / CONFIG_FILE
    config = _config_of(model)
    if path.exists() and "architectures" not in weights.read_json(path):
        raise CheckpointError(f"{path}: belongs to something else, expected no folder there or one of a saved model")
    training = _without_folders(training or {})
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a folder without it is not a model, however the next lines end
    weights.save_weights(folder / MODEL_FILE, model, training)
    write_atomic(folder / CARD_FILE, model_card(model, training))
    write_atomic(path, json.dumps(config, indent=1, allow_nan=False) + "\n")
    return folder


def from_pretrained(folder: str | Path) -> nn.Module:
    """Return the model of a folder that `save_pretrained` wrote, bit for bit, in evaluation mode on the CPU.

    CheckpointError names the file, the key, what was got and what is expected.
    """
    folder = Path(folder)
    model_class, config, dtype = _read_config(folder / CONFIG_FILE)
    model = model_class(config).to(dtype)
    tensors, _ = weights.read_tensors(folder / MODEL_FILE, WEIGHTS_FORMAT, advice="save the model again")
    weights.fill(weights.model_tensors(model), tensors, folder / MODEL_FILE)
    return model.eval()


def export_checkpoint(folder: str | Path, out: str | Path, *, float32: bool = False) -> nn.Module:
    """Write the model of a finished training's folder as `save_pretrained` does, and return it.

    It is written in the form in which it is served, float16 planes for complex models, or with `float32` as it was
    trained. CheckpointError for a folder that holds no finished training, ValueError for weights beyond float16.
    """
    path = Path(folder) / MODEL_FILE
    if not path.exists():
        raise CheckpointError(f"{folder}: no {MODEL_FILE}, expected a finished training's <model>-s<seed>-<key> folder")
    model = weights.load_trained(path, build_model)
    _, about = weights.read_tensors(path, WEIGHTS_FORMAT)
    model = model if float32 else served(model)
    if broken := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise ValueError(f"{path}: {broken[0]} is not finite in {dtype_of(model)}; try float32")
    training = {key: value for key, value in about.items() if key not in ("format", "model_config")}
    save_pretrained(model, out, training)
    return model


def has_complex32(model: nn.Module) -> bool:
    """Whether the model has a form with float16 planes."""
    return hasattr(model, "to_complex32")


def served(model: nn.Module) -> nn.Module:
    """The form in which a trained model is measured and served: float16 planes where it has such a form."""
    return model.to_complex32() if has_complex32(model) else model


def _config_of(model: nn.Module) -> dict[str, object]:
    name = type(model).__name__
    if name not in ARCHITECTURES:
        raise ValueError(f"model: got {name}, expected one of {', '.join(ARCHITECTURES)}")
    about = {"architectures": [name], "dtype": dtype_of(model), "library_name": "muse-workbook"}
    return about | asdict(model.config)


def _read_config(path: Path) -> tuple[type[nn.Module], object, torch.dtype]:
    """Class, configuration and storage dtype of a saved model."""
    values = weights.read_json(path, advice=f"expected the folder of a saved model with {CONFIG_FILE}")
    names = values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise _wrong(path, "architectures", names, f"a list of one of {', '.join(ARCHITECTURES)}")
    if values.get("dtype") not in DTYPES:
        raise _wrong(path, "dtype", values.get("dtype"), f"one of {', '.join(DTYPES)}")
    module, config_name = ARCHITECTURES[names[0]]
    home = importlib.import_module(f"muse.models.{module}")
    config_class = getattr(home, config_name)
    fields, like = {key: value for key, value in values.items() if key not in OWN_KEYS}, asdict(config_class())
    fields = weights.completed(fields, like)
    _check_fields(fields, like, path)
    try:
        config = config_class(**fields)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return getattr(home, names[0]), config, getattr(torch, values["dtype"])


def _check_fields(values: Mapping[str, object], like: Mapping[str, object], path: Path, above: str = "") -> None:
    """Compare keys and types of a stored configuration with those of the default one."""
    for key in [*like, *values]:
        name = above + key
        if key not in values:
            raise _wrong(path, name, None, f"a value such as {like[key]!r}")
        if key not in like:
            raise _wrong(path, name, values[key], f"none but {', '.join(like)}")
        kinds = (int, float) if type(like[key]) is float else (type(like[key]),)
        if type(values[key]) not in kinds:
            raise _wrong(path, name, values[key], f"{kinds[-1].__name__}, such as {like[key]!r}")
        if isinstance(like[key], dict):
            _check_fields(values[key], like[key], path, f"{name}.")


def _wrong(path: Path, key: str, got: object, expected: str) -> CheckpointError:
    return CheckpointError(f"{path}: {key}: got {'nothing' if got is None else repr(got)}, expected {expected}")


def _without_folders(training: Mapping[str, object]) -> dict[str, object]:
    """The same facts with the last part of a folder's name only: where it lay is nobody's business elsewhere."""
    corpus = training.get("corpus")
    if not isinstance(corpus, Mapping):
        return dict(training)
    named = {key: Path(str(corpus[key])).name for key in ("name", "tokenizer") if key in corpus}
    return dict(training) | {"corpus": {**corpus, **named}}
