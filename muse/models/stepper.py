"""Steps of a Stage 1 with memory, its weights laid out once for products with one token.

The blocks' own steps convert every float16 weight to the dtype of the product and build [[A, -B], [B, A]] of it, for
each token again. Here each layer keeps [A, B] r(O 2I) in that dtype, half the size, which meets two columns:

    [A, B] [x; -y] = Re (A + iB)(x + iy),   [A, B] [y; x] = Im (A + iB)(x + iy)

and reads a real matrix G = [G_x, G_y] in the same product as [G_x, -G_y]. All that is between products is float32
(float64 stays), so a step rounds less often than the blocks do. A Stepper takes as much memory as the weights in the
dtype of the products: a copy, but for the token table and the head where they are stored so. Weights that change after
it was made do not change it. Its states lie in buffers that every step writes to, so that a CUDA graph may hold a step.

Glossary: B batch, D width (complex channels), H heads, X real channels a head, K = X/2, L layers; planes is 2 for
complex channels, 1 for real ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse.ops import planar

from . import layers, memory_block, step_kernels
from .angles import AngleMixer
from .linear_attention import MemoryMixer, MixerState, RealLinear
from .memory_block import OutputNorm
from .states import State
from .step_parts import BlockStep, Head, Table, Turns

MODELS = tuple(
    f"{__package__}.{name}"
    for name in ("stage1.Phase3Stage1Model", "real_twin.RealTwinModel", "angle_model.AngleModel")
)
"""The classes of model, by name: their modules import this one."""

PARTS = (
    *(memory_block.TokenTable, memory_block.MemoryBlock, memory_block.FeedForward, memory_block.RMSNorm, OutputNorm),
    *(MemoryMixer, AngleMixer, RealLinear, layers.ComplexLinear, layers.ModReLU, nn.ModuleList),
)
"""The layers that are known here; one of another class, an adapter say, computes something else."""


def knows(model: nn.Module) -> bool:
    """Whether a Stepper computes what this model's blocks do: a Stage 1 with memory, nothing put into it."""
    if f"{type(model).__module__}.{type(model).__qualname__}" not in MODELS or model.config.mixer != "memory":
        return False
    if any(type(part) not in PARTS or _hooked(part) for part in list(model.modules())[1:]) or _hooked(model):
        return False
    kinds = {(p.dtype, p.device) for p in model.parameters()}
    if len(kinds) > 1 or not all(type(p) is nn.Parameter for p in model.parameters()):
        return False
    storage, device = kinds.pop()
    if device.type not in ("cpu", "cuda") or torch.is_autocast_enabled(device.type) or torch.compiler.is_compiling():
        return False
    if storage not in {row.storage for row in planar.DTYPE_TABLE}:
        return False
    imitates = device.type == "cpu" and planar.compute_dtype(storage, device) == torch.float16
    return not imitates  # products in float16 imitate an accelerator on a CPU, slowly


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class Stepper:
    """Reads one token after another through states of its own, from a state that it leaves as it is."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, state: State) -> None:
        storage, device = model.head_bias.dtype, model.head_bias.device
        self.model, self.lengths = model, state.lengths.clone()
        self.compute, self.wide = planar.compute_dtype(storage, device), planar.accumulate_dtype(storage)
        self.table = Table(model, self.compute, self.wide)
        rotates = model.config.memory.rotation != "none"
        self.turns = Turns([block.memory for block in model.blocks], state.blocks, self.wide) if rotates else None
        pairs = zip(model.blocks, state.blocks, strict=True)
        self.blocks = [BlockStep(block, old, self.compute, self.wide) for block, old in pairs]
        self.head = Head(model, self.compute, self.wide)
        self.kernels = None
        if step_kernels.serve(self.table, self.blocks, self.lengths, self.wide):
            self.kernels = step_kernels.KernelSteps(self.table, self.blocks, self.turns, self.head, self.compute)

    @torch.no_grad()
    def __call__(self, new: Tensor) -> Tensor:
        """Logits r(B V) in the accumulation dtype after one new token (B 1)."""
        if self.kernels is not None:
            self.lengths.add_(1)
            return self.kernels(new[:, 0])
        z = self.table(new[:, 0], self.lengths)
        turns = [None] * len(self.blocks) if self.turns is None else self.turns.advance()
        for block, turn in zip(self.blocks, turns, strict=True):
            z = block(z, turn)
        self.lengths.add_(1)
        return self.head(z)

    def buffers(self) -> list[Tensor]:
        """What a step writes to, beside what it returns."""
        mixers = [block.mixer for block in self.blocks]
        found = [x for mixer in mixers for x in (mixer.matrix, mixer.recent)]
        return [self.lengths, *found, *([] if self.turns is None else [self.turns.angle])]

    def load(self, state: State) -> None:
        """Go on from another state of as many rows, in the same buffers."""
        self.lengths.copy_(state.lengths)
        for mixer, old in zip((block.mixer for block in self.blocks), state.blocks, strict=True):
            mixer.matrix.copy_(old.matrix)
            mixer.recent.copy_(old.recent)
        if self.turns is not None:
            self.turns.angle.copy_(torch.stack([old.angle for old in state.blocks]))

    def select(self, index: Tensor) -> None:
        """Go on with these rows, int64 (R), in this order; buffers are then other ones."""
        self.lengths = self.lengths.index_select(0, index)
        for mixer in (block.mixer for block in self.blocks):
            mixer.matrix, mixer.recent = (x.index_select(0, index) for x in (mixer.matrix, mixer.recent))
        if self.turns is not None:
            self.turns.angle = self.turns.angle.index_select(1, index)

    def state(self, logits: Tensor) -> State:
        """What was read so far, in memory of its own; `logits` r(B V) are those of the last step."""
        mixers = [block.mixer for block in self.blocks]
        heads, half = mixers[0].n_heads, mixers[0].width // 2
        still = self.lengths.new_zeros(len(self.lengths), heads, half, dtype=self.wide)
        angles = [still] * len(mixers) if self.turns is None else self.turns.angle
        pairs = zip(mixers, angles, strict=True)
        return State(tuple(MixerState(m.matrix, a, m.recent) for m, a in pairs), self.lengths, logits).copy()
