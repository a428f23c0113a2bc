"""Models as folders, in the way of the Hugging Face hub: what the model is, its weights, and a card for people.

<folder>/
    model.safetensors    every parameter in its storage dtype; the metadata say how it was trained, where that is known
    README.md            the model card
    config.json          architecture, storage dtype, every field of the configuration, the SHA-256 that the weights
                         carry, and its own; written last
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from muse.host.files import check_no_dangling_link, is_unfinished, write_atomic

from . import weights
from .build import build_model
from .model_card import model_card
from .tensor_file import METADATA_KEY, NonFiniteError, first_non_finite, metadata_of, sha256_of_json
from .weights import CONFIG_FILE, DTYPES, MODEL_FILE, WEIGHTS_FORMAT, CheckpointError, dtype_of

CARD_FILE = "README.md"
ARCHITECTURES = {
    "Phase3Stage1Model": ("stage1", "Phase3Stage1Config"),
    "RealTwinModel": ("real_twin", "RealTwinConfig"),
    "Phase2Model": ("phase2", "Phase2Config"),
    "Gpt2Model": ("gpt2", "Gpt2Config"),
}
"""Every class of model with the module that holds it and the name of its configuration."""


LIBRARY = "muse-workbook"
SEALS = ("weights_sha256", "sha256")  # of config.json: the one that the weights carry, and its own of all but itself
OWN_KEYS = ("architectures", "dtype", "library_name", *SEALS)  # of config.json, beside the configuration's fields
FILES = (CONFIG_FILE, MODEL_FILE, CARD_FILE)


def save_pretrained(model: nn.Module, folder: str | Path, training: Mapping[str, object] | None = None) -> Path:
    """Write a model of this project as a folder that `from_pretrained` reads, and return the folder.

    `training` is what is known about how the weights were made: the metadata of a finished training. ValueError for a
    model that is not of this project, whose parameters differ in dtype or are not finite; CheckpointError where
    `folder` is there and holds anything but a saved model.
    """
    folder, path = Path(folder), Path(folder) / CONFIG_FILE
    config = _config_of(model)
    if found := first_non_finite(weights.model_tensors(model)):
        raise NonFiniteError(f"{folder}: not written: {found}")
    check_ours(folder)
    training = _without_folders(training or {})
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a folder without it is not a model, however the next lines end
    config["weights_sha256"] = weights.save_weights(folder / MODEL_FILE, model, training)
    config["sha256"] = sha256_of_json(config)
    write_atomic(folder / CARD_FILE, model_card(model, training))
    write_atomic(path, json.dumps(config, indent=1, allow_nan=False) + "\n")
    return folder


def check_ours(folder: Path) -> None:
    """Raise CheckpointError unless a saved model may be written there: no folder, an empty one, or one of our own."""
    check_no_dangling_link(folder)
    if not folder.exists():
        return
    expected = "expected no folder there, an empty one or one that holds a saved model and nothing else"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, {expected}")
    names = sorted(entry.name for entry in folder.iterdir() if not is_unfinished(entry))
    if foreign := [name for name in names if name not in FILES]:
        raise CheckpointError(f"{folder}: holds {foreign[0]}, {expected}")
    if CONFIG_FILE in names:
        values = weights.read_json(folder / CONFIG_FILE, advice=expected)
        known = values.get("library_name") == LIBRARY and values.get("architectures") in [[a] for a in ARCHITECTURES]
        if not known:
            raise CheckpointError(f"{folder / CONFIG_FILE}: belongs to something else, {expected}")
    if names and METADATA_KEY not in _metadata_there(folder / MODEL_FILE, expected):
        raise CheckpointError(f"{folder / MODEL_FILE}: belongs to something else, {expected}")


def _metadata_there(path: Path, expected: str) -> Mapping[str, str]:
    """The metadata of the weights in a folder that holds something; a saving that was killed leaves weights first."""
    if not path.exists():
        raise CheckpointError(f"{path.parent}: no {path.name} there, {expected}")
    return metadata_of(path, expected)


def from_pretrained(folder: str | Path) -> nn.Module:
    """Return the model of a folder that `save_pretrained` wrote, bit for bit, in evaluation mode on the CPU.

    CheckpointError names the file, the key, what was got and what is expected: also where config.json or the weights
    are not as they were written, belong to two models, or are not finite.
    """
    return read_pretrained(folder)[0]


def read_pretrained(folder: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """Return the model of a folder as `from_pretrained` does, and what its weights say about their training."""
    folder = Path(folder)
    path, advice = folder / MODEL_FILE, "save the model again"
    model_class, config, dtype, seal = _read_config(folder / CONFIG_FILE)
    tensors, about = weights.read_tensors(path, WEIGHTS_FORMAT, advice=advice)
    carried = metadata_of(path).get("sha256")
    if carried != seal:
        raise CheckpointError(
            f"{path}: carries {_short(carried)}, but {CONFIG_FILE} names {_short(seal)}: files of two models; {advice}"
        )
    model = model_class(config).to(dtype)
    weights.fill(weights.model_tensors(model), tensors, path)
    return model.eval(), about


def check_tokenizer(about: Mapping[str, object], vocabulary_sha256: str, name: str) -> None:
    """Raise ValueError for another vocabulary than that of the training, where a saved model tells which it was."""
    corpus = about.get("corpus")
    expected = corpus.get("tokenizer_sha256") if isinstance(corpus, Mapping) else None
    if expected and vocabulary_sha256 != expected:
        raise ValueError(
            f"tokenizer {name}: got the vocabulary {vocabulary_sha256[:12]}, expected {str(expected)[:12]}, with which "
            f"the model was trained ({corpus.get('tokenizer')})"
        )


def _short(seal: str | None) -> str:
    return f"SHA-256 {seal[:12]}" if seal else "no SHA-256"


def export_checkpoint(folder: str | Path, out: str | Path, *, float32: bool = False) -> nn.Module:
    """Write the model of a finished training's folder as `save_pretrained` does, and return it.

    It is written in the form in which it is served, float16 planes for complex models, or with `float32` as it was
    trained. CheckpointError for a folder that holds no finished training, ValueError for weights beyond float16.
    """
    path = Path(folder) / MODEL_FILE
    check_ours(Path(out))
    if not path.exists():
        raise CheckpointError(f"{folder}: no {MODEL_FILE}, expected a finished training's <model>-s<seed>-<key> folder")
    model = weights.load_trained(path, build_model)
    _, about = weights.read_tensors(path, WEIGHTS_FORMAT)
    model = model if float32 else served(model)
    if broken := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise ValueError(f"{path}: {broken[0]} is not finite in {dtype_of(model)}; try float32")
    training = {key: value for key, value in about.items() if key not in ("format", "key", "model_config")}
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
    about = {"architectures": [name], "dtype": dtype_of(model), "library_name": LIBRARY}
    return about | asdict(model.config)


def _read_config(path: Path) -> tuple[type[nn.Module], object, torch.dtype, str | None]:
    """Class, configuration, storage dtype and weights' SHA-256 of a saved model; None in one from before it had any."""
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
    _check_seal(values, path)
    try:
        config = config_class(**fields)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return getattr(home, names[0]), config, getattr(torch, values["dtype"]), values.get("weights_sha256")


def _check_seal(values: Mapping[str, object], path: Path) -> None:
    """Compare a configuration with the SHA-256 it carries; one without any is from before there was one."""
    there = [key for key in SEALS if key in values]
    if not there:
        return
    for key in SEALS:
        if not isinstance(values.get(key), str):
            raise _wrong(path, key, values.get(key), "a SHA-256")
    said = {key: value for key, value in values.items() if key != "sha256"}
    if (found := sha256_of_json(said)) != values["sha256"]:
        raise CheckpointError(
            f"{path}: changed since it was written: got SHA-256 {found[:12]}, expected {values['sha256'][:12]}; "
            "save the model again"
        )


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
