"""What every group of a benchmark shares: settings, device, tokens, precisions, and how paths are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from muse.catalog import COMPARED, YARDSTICK, recomputes
from muse.data.corpus import Corpus
from muse.measure.common import Progress
from muse.params import Settings
from muse.records.schema import Metric

from .timing import GroupResult, Trial, compare

Build = Callable[..., nn.Module]
FORWARD_BATCHES = {"cuda": [4, 64], "cpu": [4]}
TRAINING_BATCHES = {"cuda": [16, 64], "cpu": [1]}


@dataclass(frozen=True)
class Context:
    """One benchmark on one device."""

    build: Build
    settings: Settings
    device: torch.device
    half: torch.dtype  # of products of half-precision numbers on this device
    progress: Progress
    text: Callable[[], Corpus]  # what models are trained on, where a few steps are asked of them
    gates: dict[str, object] = field(default_factory=dict)  # those of `muse.bench.gradient_gate` that are made

    @property
    def n_tokens(self) -> int:
        """Tokens of a sequence."""
        return self.settings.throughput_n_tokens

    @property
    def forward_batches(self) -> list[int]:
        return self.settings.bench_forward_batches or FORWARD_BATCHES[self.device.type]

    @property
    def training_batches(self) -> list[int]:
        return self.settings.bench_training_batches or TRAINING_BATCHES[self.device.type]

    @property
    def models(self) -> list[str]:
        """The models that are compared, with the one that the others are compared with, in the catalog's order."""
        asked = self.settings.bench_models or COMPARED
        return [name for name in COMPARED if name in asked or name == YARDSTICK]

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What training computes in: bfloat16, or None where this machine has no fast half precision."""
        return None if self.half == torch.float32 else torch.bfloat16

    @property
    def complex32(self) -> torch.dtype:
        """What decides how exact complex32 numbers can be: float16 where only their storage is in half precision."""
        return torch.float16 if self.half == torch.float32 else self.half

    def master(self, name: str) -> nn.Module:
        """Return an untrained model with float32 weights that recomputes its blocks as it does by default."""
        model = self.build(name, use_complex32=False)
        model.recompute = recomputes(name, self.settings.recompute)
        return model

    def cast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Return normal random numbers, drawn on the host."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.settings.seed + seed))

    def tokens(self, *shape: int) -> Tensor:
        """Return random token ids."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randint(self.settings.vocab_size, shape, generator=generator).to(self.device)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Return random inputs and targets (B T)."""
        ids = self.tokens(size, self.n_tokens + 1)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def compare(self, group: str, paths: Mapping[str, Callable[[], Trial]], **work) -> GroupResult:
        """Compare the paths of a group; `work` as `timing.compare` takes it."""
        settings = self.settings
        work = {"baseline": "naive", "samples": settings.throughput_samples} | work
        return compare(group, paths, device=self.device, warmups=settings.throughput_warmups,
                       limit_seconds=settings.bench_seconds, progress=self.progress, **work)  # fmt: skip


def no_value(name: str, unit: str, note: str) -> Metric:
    """Return a metric without a value, and why."""
    return Metric(name=name, value=None, unit=unit, n=0, reason=note, note=note)
