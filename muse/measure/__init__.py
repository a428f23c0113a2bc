"""One module per measured quantity: each returns a dataclass with `.metrics(model_name)`, prints and judges nothing."""

from .comparison import ComparisonResult, compare, ensemble_metrics, ratio_metrics, seed_metrics
from .dynamics import DynamicsResult, measure_dynamics
from .forward import ForwardResult, measure_forward
from .gradients import GradientResult, measure_gradients
from .layout import LayoutResult, check_layout
from .memory import MemoryResult, Training, measure_memory, small_gpu_metrics
from .perplexity import NonFiniteBatchError, PerplexityResult, average_probabilities, measure_perplexity
from .properties import (
    CausalityResult,
    MixingResult,
    StatefulnessResult,
    check_causality,
    check_mixing,
    check_statefulness,
)
from .reads import Read, Traffic, read_at, states, traffic
from .stability import StabilityResult, measure_stability
from .switches import SWITCHES, next_tokens, switched, switches_of, token_losses
from .throughput import (
    Ceiling,
    ThroughputResult,
    copy_ceiling,
    flops_per_token,
    forward_logits,
    forward_loss,
    matrix_ceiling,
    measure_throughput,
    training_step,
)
