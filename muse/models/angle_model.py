"""Stage 1 with memory, rotated by angles from the token (`rotation="angles"`): sizes and model of their own.

All else is as in `stage1`. A model of the same sizes with `rotation="none"` and as wide a feed-forward starts with the
same weights and computes the same, until a training turns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from muse.catalog import ANGLES

from .angles import AngleMixer, AngleOptions
from .stage1 import Phase3Stage1Config, Phase3Stage1Model


@dataclass(frozen=True)
class AngleConfig(Phase3Stage1Config):
    """Sizes and storage, named as in Stage 1."""

    mixer: str = "memory"
    memory: AngleOptions = field(default_factory=AngleOptions)

    def __post_init__(self) -> None:
        if self.mixer != "memory":
            raise ValueError(f"rotation {ANGLES!r} is of a memory, expected mixer 'memory', got {self.mixer!r}")
        if isinstance(self.memory, Mapping):  # as read back from a record
            object.__setattr__(self, "memory", AngleOptions(**self.memory))
        if not isinstance(self.memory, AngleOptions):
            raise ValueError(f"memory: got rotation {self.memory.rotation!r}, expected AngleOptions")
        super().__post_init__()


class AngleModel(Phase3Stage1Model):
    """Token ids (B T) to next-token logits r(B T V), through memories that each token turns."""

    def __init__(self, config: AngleConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        for block in self.blocks:
            block.memory = AngleMixer(block.memory)
