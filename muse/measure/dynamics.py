"""What the numbers of Stage 1 with memory do: use of the imaginary plane, spread of phases, forgetting and rotation.

Needs a model with `embed` and with blocks that hold a `muse.models.linear_attention.MemoryMixer`: Stage 1 with memory,
or its real counterpart, of which only the decays mean anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muse.ops.planar import unpack
from muse.records.schema import Metric, Series

from .common import training_mode

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class LayerDynamics:
    """One layer: the residual stream behind it and the decays and rotations of its memory."""

    imaginary_share: float  # energy of the imaginary plane over that of both, 0.5 for circular numbers
    phase_spread: float  # 1 - |sum z| / sum |z| over tokens, mean over channels: 0 one phase each, 1 spread evenly
    half_life_tokens: tuple[tuple[float, ...], ...]  # per head: QUANTILES over tokens of ln 2 / gamma
    read_share: tuple[float, ...]  # per head: energy of what it reads, before its norm, over that of all heads
    periods_tokens: tuple[tuple[float, ...], ...]  # per head and channel: 2 pi / theta; empty without rotation


@dataclass(frozen=True)
class DynamicsResult:
    """Every layer of one model on the same tokens."""

    layers: tuple[LayerDynamics, ...]
    num_tokens: int

    def metrics(self, model_name: str) -> list[Metric]:
        """Return the two shares of the plane, half-lives and what is read, one sample per layer or head."""
        names = [f"layer {i}" for i in range(len(self.layers))]
        heads = [
            (f"layer {i} head {h}", i, life, share)
            for i, layer in enumerate(self.layers)
            for h, (life, share) in enumerate(zip(layer.half_life_tokens, layer.read_share, strict=True))
        ]
        labels, layers, lives, shares = map(list, zip(*heads, strict=True))
        common = {"model": model_name, "n": self.num_tokens}
        of_heads = common | {"layers": layers}
        common["layers"] = list(range(len(self.layers)))
        ends = {"": 1, "_low": 0, "_high": 2}  # QUANTILES of one head over tokens
        return [
            _summary("imaginary_energy_share", "share", names, [x.imaginary_share for x in self.layers], common),
            _summary("phase_spread", "share", names, [x.phase_spread for x in self.layers], common),
            *(
                _summary(f"memory_half_life{end}", "tokens", labels, [life[i] for life in lives], of_heads)
                for end, i in ends.items()
            ),
            _summary("memory_read_share", "share", labels, shares, of_heads),
        ]

    def series(self, model_name: str) -> list[Series]:
        """Return the spectra of each layer: half-lives over heads, periods over rotating channels, both sorted."""
        curves = []
        for i, layer in enumerate(self.layers):
            spectra = {
                "half-life": sorted(life[1] for life in layer.half_life_tokens),
                "period": sorted(period for head in layer.periods_tokens for period in head),
            }
            curves += [
                Series(
                    name=f"layer {i} {name}",
                    model=model_name,
                    layer=i,
                    x_name="rank",
                    y_name=f"{name} (tokens)",
                    x=list(range(len(values))),
                    y=values,
                )
                for name, values in spectra.items()
                if values
            ]
        return curves


@torch.no_grad()
def measure_dynamics(model: nn.Module, token_ids: Tensor) -> DynamicsResult:
    """Run token_ids (B T) through the model and look at every layer."""
    blocks = getattr(model, "blocks", ())
    if not blocks or not all(hasattr(block, "memory") for block in blocks):
        raise ValueError(f"dynamics need a model whose blocks have a memory, got {type(model).__name__}")
    layers = []
    with training_mode(model, False):
        z = model.embed(token_ids)
        for block in blocks:
            u = block.memory_norm(z)
            z = block(z)
            layers.append(_layer(block.memory, u, z))
    return DynamicsResult(tuple(layers), token_ids.numel())


def _layer(memory: nn.Module, u: Tensor, z: Tensor) -> LayerDynamics:
    real, imag = (plane.flatten(0, -2).double() for plane in unpack(z))
    size = (real.square() + imag.square()).sqrt()
    aligned = (real.sum(0).square() + imag.sum(0).square()).sqrt() / size.sum(0).clamp_min(1e-300)
    rate = -memory.log_decay(u).double().transpose(0, 1).flatten(1)  # (H tokens)
    lives = math.log(2) / rate.clamp_min(1e-12)
    quantiles = lives.quantile(torch.tensor(QUANTILES, dtype=lives.dtype, device=lives.device), dim=1).T
    energy = memory.remembered(u)[0].double().square().sum((0, 2, 3))
    periods = 2 * math.pi / memory.frequencies().double() if memory.turn_bias is not None else torch.empty(0, 0)
    return LayerDynamics(
        imaginary_share=(imag.square().sum() / size.square().sum()).item(),
        phase_spread=1 - aligned.mean().item(),
        half_life_tokens=tuple(tuple(row) for row in quantiles.tolist()),
        read_share=tuple((energy / energy.sum()).tolist()),
        periods_tokens=tuple(tuple(row) for row in periods.tolist()),
    )


def _summary(name: str, unit: str, labels: list[str], values: list[float], common: dict) -> Metric:
    """The median over layers or heads, with every value as a sample."""
    median = sorted(values)[len(values) // 2]
    return Metric(name=name, unit=unit, value=median, samples=values, labels=labels, note="median", **common)
