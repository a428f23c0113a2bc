"""What every group of a bench shares: sizes, device, tokens, precisions, and how a race is run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from muse.catalog import BENCH_GROUPS
from muse.measure.common import Progress
from muse.records.schema import Metric

from .race import RaceResult, Trial, race

Build = Callable[..., nn.Module]
FORWARD_BATCHES = {"cuda": (4, 64), "cpu": (4,)}
TRAINING_BATCHES = {"cuda": (16, 64), "cpu": (1,)}


@dataclass(frozen=True)
class BenchSizes:
    """How much is raced; empty batch sizes take those of the device."""

    vocab_size: int = 50257
    d_model: int = 512
    n_layers: int = 6
    n_seq: int = 1024
    n_tokens: int = 1024  # per sequence
    forward_batches: tuple[int, ...] = ()
    training_batches: tuple[int, ...] = ()
    head_tokens: int = 2048
    stack_batch: int = 2
    memory_batch: int = 2
    warmups: int = 10
    samples: int = 30
    seconds: float = 2.0  # timed calls of one path
    seed: int = 0
    groups: tuple[str, ...] = BENCH_GROUPS

    def for_device(self, device_type: str) -> BenchSizes:
        """Return the same with the batch sizes filled in."""
        forward = self.forward_batches or FORWARD_BATCHES.get(device_type, FORWARD_BATCHES["cpu"])
        training = self.training_batches or TRAINING_BATCHES.get(device_type, TRAINING_BATCHES["cpu"])
        return replace(self, forward_batches=forward, training_batches=training)


@dataclass
class Context:
    """One bench on one device."""

    build: Build
    sizes: BenchSizes
    device: torch.device
    half: torch.dtype  # of products of half-precision numbers on this device
    progress: Progress

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What training computes in: bfloat16, or None where this machine has no fast half precision."""
        return None if self.half == torch.float32 else torch.bfloat16

    @property
    def complex32(self) -> torch.dtype:
        """What decides how exact complex32 numbers can be: float16 where only their storage is in half precision."""
        return torch.float16 if self.half == torch.float32 else self.half

    def cast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Return normal random numbers, drawn on the host."""
        generator = torch.Generator().manual_seed(self.sizes.seed + seed)
        return torch.randn(shape, generator=generator)

    def tokens(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return random inputs and targets (B T)."""
        generator = torch.Generator().manual_seed(self.sizes.seed)
        ids = torch.randint(self.sizes.vocab_size, (batch, self.sizes.n_tokens + 1), generator=generator)
        ids = ids.to(self.device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def race(self, group: str, candidates: Mapping[str, Callable[[], Trial]], **work) -> RaceResult:
        sizes = self.sizes
        work = {"baseline": "naive", "samples": sizes.samples, "limit_seconds": sizes.seconds} | work
        return race(group, candidates, device=self.device, warmups=sizes.warmups, progress=self.progress, **work)


def nothing(name: str, unit: str, note: str) -> Metric:
    """Return a metric without a value, and why."""
    return Metric(name=name, value=None, unit=unit, n=0, reason=note, note=note)
