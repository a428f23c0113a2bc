"""A model with one thing about it changed for one text: copies, so that the model itself stays as it is.

Nothing is trained again. What such a copy loses tells what this model leans on, not what a model could do without: that
is what the ablations of the catalog ask.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from muse.models.angles import AngleMixer
from muse.models.pretrained import has_complex32
from muse.ops import planar

from .common import device_of, training_mode
from .reads import complex_blocks


@torch.no_grad()
def _no_rotation(model: nn.Module) -> None:
    """Queries and keys stay as they are: how long ago something was written leaves no angle."""
    for block in complex_blocks(model):
        if isinstance(block.memory, AngleMixer):
            block.memory.turning.weight.zero_()
            continue
        block.memory.turn_bias = block.memory.pace = None
        block.memory.options = replace(block.memory.options, rotation="none")


def _no_decay(model: nn.Module) -> None:
    """Nothing is forgotten."""
    for block in complex_blocks(model):
        block.memory.decay = block.memory.decay_bias = None
        block.memory.options = replace(block.memory.options, decay="none")


def _no_imaginary(model: nn.Module) -> None:
    """The stream has real parts only, behind the embedding and behind each layer."""

    def real_only(module: nn.Module, given: object, z: Tensor) -> Tensor:
        real, imag = planar.unpack(z)
        return planar.pack(real, torch.zeros_like(imag))

    for module in (model.embedding, *complex_blocks(model)):
        module.register_forward_hook(real_only)


def _stored(model: nn.Module, dtype: torch.dtype) -> None:
    model.to(dtype)


SWITCHES: dict[str, Callable[[nn.Module], None]] = {
    "float32": partial(_stored, dtype=torch.float32),
    "bfloat16": partial(_stored, dtype=torch.bfloat16),
    "complex32": partial(_stored, dtype=torch.float16),
    "no_rotation": _no_rotation,
    "no_decay": _no_decay,
    "no_imaginary": _no_imaginary,
}
"""What can be changed, by name; the first changes nothing of a model in float32. Formats are those of stored numbers:
products and sums are float32 on a CPU."""


def switches_of(model: nn.Module) -> list[str]:
    """Return the names of SWITCHES that mean something for a model: the formats, and what its complex memory has."""
    found = ["float32", "bfloat16"] + ["complex32"] * has_complex32(model)
    try:
        options = [block.memory.options for block in complex_blocks(model)]
    except ValueError:
        return found
    parts = {"no_rotation": options[0].rotation, "no_decay": options[0].decay, "no_imaginary": ""}
    return found + [name for name, part in parts.items() if part != "none"]


def switched(model: nn.Module, name: str) -> nn.Module:
    """Return a float32 copy of a model with one of SWITCHES thrown, in evaluation mode; the model stays as it is.

    KeyError for another name, ValueError for a model that has nothing of the kind.
    """
    throw, changed = SWITCHES[name], copy.deepcopy(model).float().eval()
    throw(changed)
    return changed


@torch.no_grad()
def token_losses(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Return the surprise of each token but the first given those before it: int64 (T,) to float32 (T-1,), in nats.

    Half-precision numbers are multiplied in float32 on a CPU. ValueError for fewer than 2 tokens or more than n_seq.
    """
    if token_ids.ndim != 1 or not 2 <= len(token_ids) <= model.config.n_seq:
        raise ValueError(f"token_ids: got shape {tuple(token_ids.shape)}, expected 2 to {model.config.n_seq} tokens")
    ids = token_ids[None].long().to(device_of(model))
    with training_mode(model, False), planar.cpu_compute("float32"):
        return model.loss(ids[:, :-1], ids[:, 1:], reduction="none")[0].float().cpu()


@torch.no_grad()
def next_tokens(model: nn.Module, token_ids: Tensor, count: int) -> list[tuple[int, float]]:
    """Return the `count` likeliest tokens after int64 (T,), each with its probability, the likeliest first."""
    with training_mode(model, False), planar.cpu_compute("float32"):
        probability = model(token_ids[None].long().to(device_of(model)))[0, -1].double().softmax(-1)
    found = probability.topk(min(count, len(probability)))
    return [*zip(found.indices.tolist(), found.values.tolist(), strict=True)]
