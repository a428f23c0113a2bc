"""Weights on disk: safetensors with strict JSON beside them, never pickle, each file written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from muse.host.files import replaced

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
WEIGHTS_FORMAT = "muse-weights-1"
METADATA_KEY = "muse"
DTYPES = ("float16", "bfloat16", "float32", "float64")
DRAWS = frozenset({"normal_", "uniform_", "kaiming_uniform_"})  # what initialisation calls of torch


LATER_FIELDS = {"table_rank": 0, "head_norm_eps": 1e-6}
"""Fields that configurations did not have before, and what models computed without them."""


class CheckpointError(ValueError):
    """A file of a training that is missing, damaged or belongs to another training; the message names it."""


def read_json(path: Path, advice: str = "remove its folder to start again") -> dict:
    """Read a JSON object; CheckpointError names the file when it is missing or damaged, and gives the advice."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: got {type(value).__name__}, expected a JSON object")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    """Write a safetensors file so that a kill or a power cut leaves the old file or the new one, never half of it.

    `about` becomes one JSON metadata entry, so that equal contents make equal files.
    """
    metadata = {METADATA_KEY: json.dumps(about, allow_nan=False)}
    with replaced(path) as temporary:
        try:
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"{path}: {error}") from error


def read_tensors(
    path: Path, expected_format: str, advice: str = "remove it to start again"
) -> tuple[dict[str, Tensor], dict]:
    """Read what write_tensors wrote; CheckpointError names the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); {advice}") from error
    if about.get("format") != expected_format:
        raise CheckpointError(f"{path}: got format {about.get('format')!r}, expected {expected_format!r}")
    return tensors, about


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and saved buffer by name, tied ones once."""
    saved = model.state_dict(keep_vars=True)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in saved}


def dtype_of(model: nn.Module) -> str:
    found = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if len(found) != 1 or found[0] not in DTYPES:
        raise ValueError(
            f"dtype of the parameters: got {', '.join(found)}, expected one of {', '.join(DTYPES)} for all"
        )
    return found[0]


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], path: Path) -> None:
    """Copy values into targets of the same names, shapes and dtypes; CheckpointError otherwise."""
    if odd := sorted(targets.keys() ^ values.keys()):
        got, expected = ("a tensor", "none") if odd[0] in values else ("none", "a tensor")
        raise CheckpointError(
            f"{path}: tensors differ from the model's, first {odd[0]}: got {got}, expected {expected}"
        )
    for name, target in targets.items():
        value = values[name]
        if (value.shape, value.dtype) != (target.shape, target.dtype):
            raise CheckpointError(
                f"{path}: {name}: got {value.dtype} {tuple(value.shape)}, expected {target.dtype} {tuple(target.shape)}"
            )
        target.copy_(value)


def save_weights(path: Path, model: nn.Module, about: Mapping[str, object]) -> None:
    """Write a model's weights with `about` (model name, resolved config, ...) as their metadata."""
    write_tensors(path, model_tensors(model), {**about, "format": WEIGHTS_FORMAT})


def completed(stored: Mapping[str, object], like: Mapping[str, object]) -> dict[str, object]:
    """Return a stored configuration with the later fields that one like `like` has, at the values from before them."""
    added = {key: value for key, value in LATER_FIELDS.items() if key in like and key not in stored}
    parts = {key: completed(value, like.get(key, {})) for key, value in stored.items() if isinstance(value, Mapping)}
    return {**stored, **parts, **added}


def _without_later(config: Mapping[str, object]) -> dict[str, object]:
    kept = {key: value for key, value in config.items() if key not in LATER_FIELDS}
    return {key: _without_later(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


class WithoutDraws(TorchFunctionMode):
    """Leaves the memory of a new parameter as it is, where nobody needs its first value: to draw one takes longer."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.__name__ in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def load_trained(path: str | Path, build_model: Callable[..., nn.Module]) -> nn.Module:
    """Return the model of a finished training's folder, or of a weights file, in evaluation mode on the CPU.

    `build_model` is `muse.models.build.build_model`; the stored configuration must be what it makes. Raises
    CheckpointError where it is not or where the file is damaged.
    """
    path = Path(path)
    path = path / MODEL_FILE if path.is_dir() else path
    tensors, about = read_tensors(path, WEIGHTS_FORMAT)
    if not {"model_name", "model_config"} <= about.keys():
        raise CheckpointError(f"{path}: got the weights of a saved model, expected those of a training")
    stored: dict = about["model_config"]
    sizes = ("vocab_size", "d_model", "n_layers", "n_seq", "dropout", "use_complex32")
    with WithoutDraws():
        model = build_model(about["model_name"], **{name: stored[name] for name in sizes if name in stored})
        built = asdict(model.config)
        stored = completed(stored, built)
        if stored != built and _without_later(stored) == _without_later(built):
            model = type(model)(type(model.config)(**stored))
    if asdict(model.config) != stored:
        raise CheckpointError(f"{path}: holds a model with {stored}, but the code builds {built}")
    fill(model_tensors(model), tensors, path)
    return model.eval()
