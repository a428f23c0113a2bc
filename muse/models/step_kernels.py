"""A Stepper's blocks and head by the kernels of `step_triton`: on CUDA, where a step of one text is launches.

Symbols as in `stepper`, whose own forms are what is computed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muse.ops.operator import has_kernels
from muse.ops.qkv import NORM_EPS

try:
    from muse.ops import step_triton
except ImportError:  # Triton comes with CUDA builds of PyTorch
    step_triton = None

if TYPE_CHECKING:
    from .stepper import BlockStep, Head, MixerStep, Stepper, Table


def serve(steps: Stepper) -> bool:
    """Whether kernels compute the blocks of these steps: those of the model itself, in float32 or less."""
    served = steps.wide.itemsize == 4 and steps.table.positions is None and all(map(_served, steps.blocks))
    return has_kernels(step_triton, steps.lengths) and served


def _served(block: BlockStep) -> bool:
    mixer = block.mixer
    others = mixer.pace, mixer.turning, mixer.writes, block.bias
    plain = not (mixer.options.qk_norm or mixer.options.input_scaling)
    return plain and all(x is None for x in others) and mixer.width <= 2 * step_triton.MOST_PAIRS


class KernelSteps:
    """From tokens (B) to logits r(B V); states are those of the steps."""

    def __init__(self, steps: Stepper) -> None:
        self.steps = steps
        frequencies = None if steps.turns is None else steps.turns.frequencies[:, 0].contiguous()
        layers = range(len(steps.blocks))
        turns = [None if frequencies is None else frequencies[layer] for layer in layers]
        self.memories = [_memory(block.mixer, turn) for block, turn in zip(steps.blocks, turns, strict=True)]

    def __call__(self, ids: Tensor) -> Tensor:
        dtype, update = self.steps.compute, None
        z = _stream(self.steps.table, ids, dtype)
        for layer, (block, memory) in enumerate(zip(self.steps.blocks, self.memories, strict=True)):
            mixer = block.mixer
            angle = None if self.steps.turns is None else self.steps.turns.angle[layer]
            z, u, read = step_triton.columns(z, update, mixer.reading.gain, None, NORM_EPS, dtype, mixer.planes)
            read = step_triton.product(read, mixer.reading.weight)
            read = step_triton.remember(memory, read, u, mixer.recent, angle, mixer.matrix, dtype)
            update = step_triton.product(read, mixer.writing.weight)
            z, _, read = step_triton.columns(z, update, block.reading.gain, None, NORM_EPS, dtype, mixer.planes)
            read = step_triton.gated(step_triton.product(read, block.reading.weight), mixer.planes, dtype)
            update = step_triton.product(read, block.writing.weight)
        return _logits(self.steps.head, z, update)


def _stream(table: Table, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens (B) to the stream r(B 2D) in float32."""
    if table.lift is None:
        return step_triton.embedded(ids, table.weight, table.scale, table.width, 1, torch.float32)
    rank, planes = table.weight.shape[1], table.lift.planes
    read = step_triton.embedded(ids, table.weight, table.scale, rank, planes, dtype)
    return step_triton.product(read, table.lift.weight).view(len(ids), -1).float()


def _logits(head: Head, z: Tensor, update: Tensor) -> Tensor:
    projection, dtype = head.projection, head.weight.dtype
    planes = 1 if projection is None else projection.planes
    _, _, read = step_triton.columns(z, update, head.gain_real, head.gain_imag, NORM_EPS, dtype, planes)
    if projection is not None:
        read = step_triton.product(read, projection.weight).view(len(z), -1)
    return step_triton.product(read[:, : head.weight.shape[1]], head.weight, head.bias)


def _memory(mixer: MixerStep, frequencies: Tensor | None) -> object:
    return step_triton.Memory(
        heads=mixer.n_heads, pairs=mixer.width // 2, planes=mixer.planes, taps=mixer.taps, decay=mixer.decay,
        logit=mixer.logit, frequencies=frequencies, gain=mixer.writing.gain, imaginary=mixer.options.imaginary_scores,
        gated=mixer.options.output_gate, cap=mixer.rate_cap, eps=mixer.eps,
    )  # fmt: skip
