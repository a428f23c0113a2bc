"""The parts of a Stepper by the kernels of `step_triton`: on CUDA, where a step of one text is launches.

Symbols as in `stepper`; the parts' own forms are what is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muse.ops import logits
from muse.ops.qkv import NORM_EPS
from muse.ops.step import serves
from muse.ops.step import step_triton as kernels

from .step_parts import BlockStep, Head, MixerStep, Table, Turns


def serve(table: Table, blocks: Sequence[BlockStep], lengths: Tensor, wide: torch.dtype) -> bool:
    """Whether kernels compute these blocks: those of the model itself, in float32 or less."""
    if table.positions is not None or not all(map(_served, blocks)):
        return False
    return serves(lengths, wide, max((block.mixer.width // 2 for block in blocks), default=0))


def _served(block: BlockStep) -> bool:
    mixer = block.mixer
    others = mixer.pace, mixer.turning, mixer.writes, block.bias
    plain = not (mixer.options.qk_norm or mixer.options.input_scaling)
    return plain and all(x is None for x in others)


class KernelSteps:
    """From tokens (B) to logits r(B V); states are those of the steps."""

    def __init__(
        self, table: Table, blocks: Sequence[BlockStep], turns: Turns | None, head: Head, compute: torch.dtype
    ) -> None:
        self.table, self.blocks, self.turns, self.head, self.compute = table, blocks, turns, head, compute
        frequencies = [None] * len(blocks) if turns is None else turns.frequencies[:, 0].contiguous()
        self.head_pieces, _ = logits.cut(head.weight, None, head.weight.dtype)  # an odd number of outputs is slow
        self.memories = [_memory(block.mixer, turn) for block, turn in zip(blocks, frequencies, strict=True)]

    def __call__(self, ids: Tensor) -> Tensor:
        dtype, update = self.compute, None
        z = _stream(self.table, ids, dtype)
        for layer, (block, memory) in enumerate(zip(self.blocks, self.memories, strict=True)):
            mixer = block.mixer
            angle = None if self.turns is None else self.turns.angle[layer]
            z, u, read = kernels.columns(z, update, mixer.reading.gain, None, NORM_EPS, dtype, mixer.planes)
            read = kernels.product(read, mixer.reading.weight)
            read = kernels.remember(memory, read, u, mixer.recent, angle, mixer.matrix, dtype)
            update = kernels.product(read, mixer.writing.weight)
            z, _, read = kernels.columns(z, update, block.reading.gain, None, NORM_EPS, dtype, mixer.planes)
            read = kernels.gated(kernels.product(read, block.reading.weight), mixer.planes, dtype)
            update = kernels.product(read, block.writing.weight)
        return self._logits(z, update)

    def _logits(self, z: Tensor, update: Tensor) -> Tensor:
        head, projection = self.head, self.head.projection
        planes = 1 if projection is None else projection.planes
        _, _, read = kernels.columns(z, update, head.gain_real, head.gain_imag, NORM_EPS, head.weight.dtype, planes)
        if projection is not None:
            read = kernels.product(read, projection.weight).view(len(z), -1)
        outputs, channels = head.weight.shape
        if len(z) > kernels.THIN_ROWS:
            return logits.products(read[:, :channels], self.head_pieces)[:, :outputs] + head.bias
        return kernels.product(read[:, :channels], head.weight, head.bias)


def _stream(table: Table, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens (B) to the stream r(B 2D) in float32."""
    if table.lift is None:
        return kernels.embedded(ids, table.weight, table.scale, table.width, 1, torch.float32)
    rank, planes = table.weight.shape[1], table.lift.planes
    read = kernels.embedded(ids, table.weight, table.scale, rank, planes, dtype)
    return kernels.product(read, table.lift.weight).view(len(ids), -1).float()


def _memory(mixer: MixerStep, frequencies: Tensor | None) -> object:
    return kernels.Memory(
        heads=mixer.n_heads, pairs=mixer.width // 2, planes=mixer.planes, taps=mixer.taps, decay=mixer.decay,
        logit=mixer.logit, frequencies=frequencies, gain=mixer.writing.gain, imaginary=mixer.options.imaginary_scores,
        gated=mixer.options.output_gate, cap=mixer.rate_cap, eps=mixer.eps,
    )  # fmt: skip
