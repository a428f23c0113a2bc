"""The real twin: the wiring of Stage 1 with memory on real numbers. Does complex help, or just the memory?

The residual stream has as many real scalars (2D real channels for D complex ones), every matrix as many parameters (a
real 2D x E one for a complex D x E one), the token table, the gates and the memory's state as many scalars (half the
heads, twice as wide). What it lacks is the constraint and its meaning: no complex products, no imaginary scores, no
rotation. It spends half the matrix FLOPs, because each complex weight is used twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from .memory_options import MemoryOptions
from .stage1 import Phase3Stage1Config, Phase3Stage1Model

REAL = {"numbers": "real", "imaginary_scores": False, "rotation": "none"}


@dataclass(frozen=True)
class RealTwinConfig(Phase3Stage1Config):
    """Sizes of the twin, named as in the model it mirrors: d_model counts pairs of real channels."""

    use_complex32: bool = False  # store parameters as float16, else as float32
    mixer: str = "memory"
    memory: MemoryOptions = field(default_factory=partial(MemoryOptions, **REAL))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixer != "memory" or self.memory.numbers != "real":
            raise ValueError(
                f"the twin needs mixer 'memory' with real numbers, got {self.mixer!r} with {self.memory.numbers!r} ones"
            )


class RealTwinModel(Phase3Stage1Model):
    """Token ids (B T) to next-token logits r(B T V), all real."""
