"""State on disk of a training: safetensors and strict JSON, never pickle, each file written whole or not at all.

<directory>/<model>-s<seed>-<key>/
    config.json                    everything that decides the result, resolved
    state.safetensors              weights, moments, RNG states, scalars as metadata (gone when finished)
    weights-<step>.safetensors     best weights so far (becomes model.safetensors when finished)
    result.json                    the finished training, written last
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from muse.host.files import FolderInUseError, hold, remove_unfinished, write_atomic
from muse.models.tensor_file import (
    CheckpointError,
    NonFiniteError,
    first_non_finite,
    first_non_finite_number,
    read_tensors,
    sha256_of_json,
    write_tensors,
)
from muse.models.weights import CONFIG_FILE, fill, model_tensors, read_json
from muse.models.weights import RESULT_FILE as RESULT_FILE

from .nonfinite import moments

STATE_FILE = "state.safetensors"
STATE_FORMAT = "muse-training-state-1"


def training_key(config: Mapping[str, object]) -> str:
    """Return the SHA-256 of a resolved configuration: one key for equal trainings, another for any difference."""
    return sha256_of_json(config)


@contextlib.contextmanager
def training_folder(folder: Path) -> Iterator[None]:
    """Create the folder of a training and hold it alone; CheckpointError if another process has it.

    What a killed process had written in part is removed.
    """
    try:
        held = hold(folder)
    except FolderInUseError as error:
        raise CheckpointError(f"{folder}: another process trains here; wait for it or stop it") from error
    with held:
        remove_unfinished(folder)
        yield


def open_folder(folder: Path, config: Mapping[str, object], about: Mapping[str, object]) -> None:
    """Write a folder's config.json, or check that the one there has this very configuration."""
    path = folder / CONFIG_FILE
    if not path.exists():
        write_atomic(path, json.dumps({"config": config, "about": about}, indent=1, allow_nan=False) + "\n")
    elif training_key(read_json(path).get("config", {})) != training_key(config):
        raise CheckpointError(f"{path}: belongs to a training with other settings; move {folder} away")


def save_state(
    folder: Path,
    key: str,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    scalars: Mapping[str, object],
) -> None:
    """Write a training's whole state into one file: weights, optimizers, RNG states, and JSON scalars as metadata.

    NonFiniteError names the first weight, buffer, moment or scalar that is NaN or infinite; the old file then stays.
    """
    path = folder / STATE_FILE
    unsaved = {f"buffer:{name}": buffer for name, buffer in model.named_buffers()}
    if found := first_non_finite(unsaved) or first_non_finite_number(scalars):
        raise NonFiniteError(f"{path}: not written: {found}")
    tensors = {f"weight:{name}": tensor for name, tensor in model_tensors(model).items()}
    tensors |= moments(model, optimizers)
    tensors["rng:cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng:cuda"] = torch.cuda.get_rng_state(device)
    write_tensors(path, tensors, {"format": STATE_FORMAT, "key": key, "scalars": scalars})


def load_state(
    folder: Path, key: str, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, object] | None:
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
    owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for kind, values in parts.items():
        for name, value in values.items():
            if name not in parameters or value.shape not in (parameters[name].shape, torch.Size()):
                raise CheckpointError(f"{path}: {kind} {tuple(value.shape)} of {name!r} does not fit the model")
            owners[parameters[name]].state[parameters[name]][kind] = value.to(parameters[name].device, copy=True)
    device = next(model.parameters()).device
    if "cpu" not in rng or (device.type == "cuda") != ("cuda" in rng):
        raise CheckpointError(f"{path}: random states of {sorted(rng)}, expected those of a training on {device.type}")
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(rng["cuda"], device)
    return about["scalars"]
