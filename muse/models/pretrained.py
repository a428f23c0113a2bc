"""Models as folders, in the way of the Hugging Face hub: what the model is, its weights, and a card for people.

<folder>/
    model.safetensors    every parameter in its storage dtype; the metadata say how it was trained, where that is known
    modeling_muse.py     for transformers, which finds it by config.json
    tokenizer.json, ...  a tokenizer's files, where one was given
    README.md            the model card
    config.json          architecture, storage dtype, every field of the configuration, the SHA-256 of the two above,
                         the one that the weights carry, and its own; written last

What another tool has written again, without these SHA-256, is read unverified, with one line of warning.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from muse.catalog import SYNTHETIC
from muse.data.corpus import Corpus
from muse.host.files import check_no_dangling_link, is_unfinished, replaced, sha256_of, write_atomic

from . import weights
from .build import build_model
from .hub_files import (
    AUTO_MAP,
    MODEL_TYPE,
    MODELING_FILE,
    TOKENIZER_FILES,
    TokenizerFiles,
    modeling_source,
    symbol_files,
    tokenizer_files,
)
from .model_card import model_card
from .tensor_file import METADATA_KEY, NonFiniteError, first_non_finite, is_of_others, metadata_of, sha256_of_json
from .weights import CONFIG_FILE, DTYPES, MODEL_FILE, WEIGHTS_FORMAT, CheckpointError, dtype_of

CARD_FILE = "README.md"
ARCHITECTURES = {
    "Phase3Stage1Model": ("stage1", "Phase3Stage1Config"),
    "AngleModel": ("angle_model", "AngleConfig"),
    "RealTwinModel": ("real_twin", "RealTwinConfig"),
    "Phase2Model": ("phase2", "Phase2Config"),
    "Gpt2Model": ("gpt2", "Gpt2Config"),
}
"""Every class of model with the module that holds it and the name of its configuration."""


LIBRARY = "muse-workbook"
SEALS = ("weights_sha256", "sha256")  # of config.json: the one that the weights carry, and its own of all but itself
OF_OUR_FILES = ("files", *SEALS)  # what holds for files as they were written here
FOR_CLIENTS = {"model_type": MODEL_TYPE, "auto_map": AUTO_MAP}
OWN_KEYS = ("architectures", "dtype", "library_name", *FOR_CLIENTS, *OF_OUR_FILES)  # beside the configuration's fields
OF_OTHERS = ("transformers_version", "torch_dtype", "_name_or_path")  # what other tools add
FILES = (CONFIG_FILE, MODEL_FILE, CARD_FILE)
MORE_FILES = (MODELING_FILE, *TOKENIZER_FILES)
logger = logging.getLogger(__name__)


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    training: Mapping[str, object] | None = None,
    tokenizer: str | Path | Corpus | TokenizerFiles | None = None,
) -> Path:
    """Write a model of this project as a folder that `from_pretrained` reads, and return the folder.

    `training` is what is known about how the weights were made: the metadata of a finished training. `tokenizer` is
    "gpt2", a folder, or the corpus that was read with it; its files go along. ValueError for a model that is not of
    this project, whose parameters differ in dtype or are not finite, and for another tokenizer than the training's;
    CheckpointError where `folder` is there and holds anything but a saved model.
    """
    folder, path = Path(folder), Path(folder) / CONFIG_FILE
    config = _config_of(model)
    if found := first_non_finite(weights.model_tensors(model)):
        raise NonFiniteError(f"{folder}: not written: {found}")
    check_ours(folder)
    training, files = _without_folders(training or {}), {MODELING_FILE: modeling_source().encode()}
    if tokenizer is not None:
        files |= _tokenizer_of(tokenizer, training)
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a folder without it is not a model, however the next lines end
    config["weights_sha256"] = weights.save_weights(folder / MODEL_FILE, model, training)
    config["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    config["sha256"] = sha256_of_json(config)
    for name in MORE_FILES:
        _write(folder / name, files.get(name))
    write_atomic(folder / CARD_FILE, model_card(model, training))
    write_atomic(path, json.dumps(config, indent=1, allow_nan=False) + "\n")
    return folder


def _tokenizer_of(tokenizer: object, training: Mapping[str, object]) -> Mapping[str, bytes]:
    found = tokenizer if isinstance(tokenizer, TokenizerFiles) else tokenizer_files(tokenizer)
    check_tokenizer(training, found.vocabulary_sha256, found.name)
    return found.files


def _write(path: Path, content: bytes | None) -> None:
    """A file with this content, or none."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    with replaced(path) as new:
        new.write_bytes(content)


def check_ours(folder: Path) -> None:
    """Raise CheckpointError unless a saved model may be written there: no folder, an empty one, or one of our own."""
    check_no_dangling_link(folder)
    if not folder.exists():
        return
    expected = "expected no folder there, an empty one or one that holds a saved model and nothing else"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, {expected}")
    names = sorted(entry.name for entry in folder.iterdir() if not is_unfinished(entry))
    more = [name for name in names if name in MORE_FILES]
    if foreign := [name for name in names if name not in (*FILES, *more)]:
        raise CheckpointError(f"{folder}: holds {foreign[0]}, {expected}")
    if CONFIG_FILE in names:
        values = weights.read_json(folder / CONFIG_FILE, advice=expected)
        known = values.get("library_name") == LIBRARY and values.get("architectures") in [[a] for a in ARCHITECTURES]
        if not known:
            raise CheckpointError(f"{folder / CONFIG_FILE}: belongs to something else, {expected}")
        ours = values.get("files") or {}
        if foreign := [name for name in more if sha256_of(folder / name) != ours.get(name)]:
            raise CheckpointError(f"{folder}: holds {foreign[0]}, which was not written with it, {expected}")
    if names and METADATA_KEY not in _metadata_there(folder / MODEL_FILE, expected):
        raise CheckpointError(f"{folder / MODEL_FILE}: belongs to something else, {expected}")


def _metadata_there(path: Path, expected: str) -> Mapping[str, str]:
    """The metadata of the weights in a folder that holds something; a saving that was killed leaves weights first."""
    if not path.exists():
        raise CheckpointError(f"{path.parent}: no {path.name} there, {expected}")
    return metadata_of(path, expected)


def from_pretrained(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Return the model of a folder that `save_pretrained` wrote, bit for bit, in evaluation mode on the CPU.

    "user/repository" names one on the hub, of which `revision` may choose a version, where no such folder is there.
    With `dtype` and `device` the model is brought there. CheckpointError names the file, the key, what was got and
    what is expected: also where config.json or the weights are not as they were written, belong to two models, or are
    not finite. Files that another tool wrote again are read unverified, with one line of warning.
    """
    return read_pretrained(local_folder(folder, revision))[0].to(device=device, dtype=dtype)


def local_folder(folder: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or where the hub's cache has a repository of that name."""
    path = Path(folder)
    if path.exists() or path.is_absolute() or len(path.parts) != 2 or Path(path.parts[0]).exists():
        return path
    from huggingface_hub import snapshot_download

    names = [*FILES, *MORE_FILES]
    try:
        return Path(snapshot_download(str(folder), revision=revision, allow_patterns=names))
    except Exception as error:  # of the hub's client: no such repository, no network, no right to read
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder}: no such folder, and not to be had from the hub: {first}") from error


def read_pretrained(folder: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """Return the model of a folder as `from_pretrained` does, and what its weights say about their training.

    `verified` in the latter is whether all of it was found to be as it was written.
    """
    folder = Path(folder)
    path, advice = folder / MODEL_FILE, "save the model again"
    model_class, config, dtype, seal, resaved = _read_config(folder / CONFIG_FILE)
    tensors, about = weights.read_tensors(path, WEIGHTS_FORMAT, advice=advice, others=True)
    metadata = metadata_of(path)
    carried = metadata.get("sha256")
    if carried != seal and not (resaved if carried else is_of_others(metadata)):
        raise CheckpointError(
            f"{path}: carries {_short(carried)}, but {CONFIG_FILE} names {_short(seal)}: files of two models; {advice}"
        )
    if carried and not seal:
        logger.warning("%s: another tool has written it: read unverified", folder / CONFIG_FILE)
    model = model_class(config).to(dtype)
    weights.fill(weights.model_tensors(model), tensors, path)
    return model.eval(), about | {"verified": bool(carried and seal)}


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


def export_checkpoint(
    folder: str | Path,
    out: str | Path,
    *,
    float32: bool = False,
    tokenizer: str | Path | None = None,
    corpus: str | None = None,
) -> nn.Module:
    """Write the model of a finished training's folder as `save_pretrained` does, and return it.

    It is written in the form in which it is served, float16 planes for complex models, or with `float32` as it was
    trained. The tokenizer is as for `tokenizer_files`; symbols of the synthetic language go along by themselves.
    CheckpointError for a folder that holds no finished training, ValueError for weights beyond float16 and for a
    tokenizer that is not the training's.
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
    files = tokenizer_files(tokenizer, corpus) if tokenizer else None
    if files is None and dict(training.get("corpus") or {}).get("name") == SYNTHETIC:
        files = symbol_files()
    save_pretrained(model, out, training, files)
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
    about = {"architectures": [name], **FOR_CLIENTS, "dtype": dtype_of(model), "library_name": LIBRARY}
    return about | asdict(model.config)


def _read_config(path: Path) -> tuple[type[nn.Module], object, torch.dtype, str | None, bool]:
    """Class, configuration, storage dtype and weights' SHA-256 of a saved model, and whether others wrote it again.

    The SHA-256 is None in one from before it had any, and in one that another tool wrote.
    """
    values = weights.read_json(path, advice=f"expected the folder of a saved model with {CONFIG_FILE}")
    model_class, config = configured(values, path)
    dtype = str(values.get("dtype", values.get("torch_dtype"))).removeprefix("torch.")
    if dtype not in DTYPES:
        raise _wrong(path, "dtype", values.get("dtype"), f"one of {', '.join(DTYPES)}")
    _check_seal(values, path)
    return model_class, config, getattr(torch, dtype), values.get("weights_sha256"), "transformers_version" in values


def configured(values: Mapping[str, object], path: str | Path) -> tuple[type[nn.Module], object]:
    """The class and the configuration that a config.json describes; CheckpointError names what is wrong in it.

    Keys that are none of ours are wrong too, but for those of other tools.
    """
    names = values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise _wrong(path, "architectures", names, f"a list of one of {', '.join(ARCHITECTURES)}")
    module, config_name = ARCHITECTURES[names[0]]
    home = importlib.import_module(f"muse.models.{module}")
    config_class = getattr(home, config_name)
    like, others = asdict(config_class()), "transformers_version" in values
    known = {key: value for key, value in values.items() if key in like or not others}
    fields = {key: value for key, value in known.items() if key not in (*OWN_KEYS, *OF_OTHERS)}
    fields = weights.completed(fields, like)
    _check_fields(fields, like, path)
    try:
        return getattr(home, names[0]), config_class(**fields)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_seal(values: Mapping[str, object], path: Path) -> None:
    """Compare a configuration with the SHA-256 it carries, whatever keys other tools added to it.

    One without any is from before there was one, or another tool has written it.
    """
    there = [key for key in SEALS if key in values]
    if not there:
        return
    for key in SEALS:
        if not isinstance(values.get(key), str):
            raise _wrong(path, key, values.get(key), "a SHA-256")
    found = [_seal_without(values, more) for more in ((), OF_OTHERS, (*OF_OTHERS, *FOR_CLIENTS))]
    if values["sha256"] not in found:
        raise CheckpointError(
            f"{path}: changed since it was written: got SHA-256 {found[0][:12]}, expected {values['sha256'][:12]}; "
            "save the model again"
        )


def _seal_without(values: Mapping[str, object], more: tuple[str, ...]) -> str:
    return sha256_of_json({key: value for key, value in values.items() if key not in ("sha256", *more)})


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
