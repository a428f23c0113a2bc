"""Every figure of the report and of the notebooks: one function each, from a stage's record to a plotly figure."""

from .complex import complex_plane, phase_magnitude
from .dynamics import half_lives, plane_use, rotation_periods
from .ratios import perplexity_ratios
from .stage import (
    gradient_norms,
    loss_by_position,
    loss_curves,
    memory_bars,
    of_stage,
    perplexity_bars,
    scale_stress,
    throughput_bars,
)
from .style import NothingToDraw, show

__all__ = [
    "NothingToDraw",
    "complex_plane",
    "gradient_norms",
    "half_lives",
    "loss_by_position",
    "loss_curves",
    "memory_bars",
    "of_stage",
    "perplexity_bars",
    "perplexity_ratios",
    "phase_magnitude",
    "plane_use",
    "rotation_periods",
    "scale_stress",
    "show",
    "throughput_bars",
]
