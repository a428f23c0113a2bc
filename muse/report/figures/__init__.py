"""Every figure of the report and of the notebooks: one function each, from a stage's record to a plotly figure."""

from .bars import memory_bars, throughput_bars
from .complex import complex_plane, phase_magnitude
from .curves import loss_by_position, loss_curves, scale_stress
from .dynamics import half_lives, plane_use, rotation_periods
from .gradients import gradient_norms
from .perplexity import perplexity_bars
from .quality import quality_over_memory
from .ratios import perplexity_ratios
from .stage import of_stage
from .style import NothingToDraw, show, show_bundle

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
    "quality_over_memory",
    "rotation_periods",
    "scale_stress",
    "show",
    "show_bundle",
    "throughput_bars",
]
