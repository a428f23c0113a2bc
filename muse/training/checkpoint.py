"""State on disk of a training: safetensors and strict JSON, never pickle, each file written whole or not at all.

<directory>/<model>-s<seed>-<key>/
    config.json                    everything that decides the result, resolved
    state.safetensors              weights, AdamW moments, RNG states, scalars as metadata (gone when finished)
    weights-<step>.safetensors     best weights so far (becomes model.safetensors when finished)
    result.json                    the finished training, written last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from muse.host.files import FolderInUseError, locked, replacing, write_atomic

CONFIG_FILE = "config.json"
STATE_FILE = "state.safetensors"
RESULT_FILE = "result.json"
MODEL_FILE = "model.safetensors"
STATE_FORMAT = "muse-training-state-1"
WEIGHTS_FORMAT = "muse-weights-1"
METADATA_KEY = "muse"
DRAWS = frozenset({"normal_", "uniform_", "kaiming_uniform_"})  # what initialisation calls of torch


class CheckpointError(ValueError):
    """A file of a training that is missing, damaged or belongs to another training; the message names it."""


def training_key(config: Mapping[str, object]) -> str:
    """Return the SHA-256 of a resolved configuration: one key for equal trainings, another for any difference."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def training_folder(folder: Path) -> Iterator[None]:
    """Create the folder of a training and hold it alone; CheckpointError if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except FolderInUseError as error:
            raise CheckpointError(f"{folder}: another process trains here; wait for it or stop it") from error
        yield


def open_folder(folder: Path, config: Mapping[str, object], about: Mapping[str, object]) -> None:
    """Write a folder's config.json, or check that the one there has this very configuration."""
    path = folder / CONFIG_FILE
    if not path.exists():
        write_atomic(path, json.dumps({"config": config, "about": about}, indent=1, allow_nan=False) + "\n")
    elif training_key(read_json(path).get("config", {})) != training_key(config):
        raise CheckpointError(f"{path}: belongs to a training with other settings; move {folder} away")


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
    with replacing(path) as temporary:
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, metadata=metadata)


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


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}:{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def save_state(
    folder: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, scalars: Mapping[str, object]
) -> None:
    """Write a training's whole state into one file: weights, optimizer, RNG states, and JSON scalars as metadata."""
    tensors = {f"weight:{name}": tensor for name, tensor in model_tensors(model).items()}
    tensors |= _moments(model, optimizer)
    tensors["rng:cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng:cuda"] = torch.cuda.get_rng_state(device)
    write_tensors(folder / STATE_FILE, tensors, {"format": STATE_FORMAT, "key": key, "scalars": scalars})


def load_state(folder: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object] | None:
    """Restore what save_state wrote, bit for bit, and return its scalars; None where nothing was saved.

    Raises CheckpointError for a damaged file, another training's state, or tensors that do not fit the model.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    tensors, about = read_tensors(path, STATE_FORMAT)
    if about.get("key") != key:
        raise CheckpointError(f"{path}: holds the state of another training; remove it to start again")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(":")
        parts.setdefault(kind, {})[rest] = tensor
    rng = parts.pop("rng", {})
    fill(model_tensors(model), parts.pop("weight", {}), path)
    parameters = dict(model.named_parameters())
    for kind, values in parts.items():
        for name, value in values.items():
            if name not in parameters or value.shape not in (parameters[name].shape, torch.Size()):
                raise CheckpointError(f"{path}: {kind} {tuple(value.shape)} of {name!r} does not fit the model")
            optimizer.state[parameters[name]][kind] = value.to(parameters[name].device, copy=True)
    device = next(model.parameters()).device
    if "cpu" not in rng or (device.type == "cuda") != ("cuda" in rng):
        raise CheckpointError(f"{path}: random states of {sorted(rng)}, expected those of a training on {device.type}")
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(rng["cuda"], device)
    return about["scalars"]


def save_weights(path: Path, model: nn.Module, about: Mapping[str, object]) -> None:
    """Write a model's weights with `about` (model name, resolved config, ...) as their metadata."""
    write_tensors(path, model_tensors(model), {**about, "format": WEIGHTS_FORMAT})


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
    stored = about["model_config"]
    sizes = ("vocab_size", "d_model", "n_layers", "n_seq", "dropout", "use_complex32")
    with WithoutDraws():
        model = build_model(about["model_name"], **{name: stored[name] for name in sizes if name in stored})
    if asdict(model.config) != stored:
        raise CheckpointError(f"{path}: holds a model with {stored}, but the code builds {asdict(model.config)}")
    fill(model_tensors(model), tensors, path)
    return model.eval()
