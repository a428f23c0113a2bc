"""One way to build every model of a comparison from the sizes they share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from muse import catalog
from muse.catalog import ANGLES, MODEL_NAMES


def build_model(
    name: str,
    *,
    vocab_size: int,
    d_model: int,
    n_layers: int,
    n_seq: int,
    dropout: float = 0.0,
    use_complex32: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return a freshly initialised model by its name.

    `use_complex32` stores the complex models in float16 planes and has no effect on the real ones, which are float32.
    Raises ValueError for an unknown name.
    """
    sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": n_layers, "n_seq": n_seq, "dropout": dropout}
    model_class, config = configured(name, use_complex32=use_complex32, **sizes)
    return model_class(config, seed=seed)


def configured(
    name: str, *, d_model: int, use_complex32: bool = False, **sizes: float
) -> tuple[Callable[..., nn.Module], object]:
    """Return the class of a model and its configuration; ValueError for sizes that it cannot have."""
    if name not in MODEL_NAMES:
        raise ValueError(f"model name: got {name!r}, expected one of {', '.join(MODEL_NAMES)}")
    sizes, row = {"d_model": d_model, **sizes}, catalog.model(name)
    low_rank = {"table_rank": max(2, d_model // row.rank_divisor // 2 * 2)} if row.rank_divisor else {}
    if name in (catalog.BASELINE, catalog.COMPACT_BASELINE):
        from .phase2 import Phase2Config, Phase2Model

        return Phase2Model, Phase2Config(**sizes, **low_rank)
    if name == catalog.YARDSTICK:
        from .gpt2 import Gpt2Config, Gpt2Model

        return Gpt2Model, Gpt2Config(**sizes)
    if name in (catalog.TWIN, catalog.COMPACT_TWIN):
        from .real_twin import REAL, RealTwinConfig, RealTwinModel

        return RealTwinModel, RealTwinConfig(memory=REAL | low_rank, **sizes)
    memory = {**row.options, **low_rank}
    if memory.get("rotation") == ANGLES:
        from .angle_model import AngleConfig, AngleModel

        return AngleModel, AngleConfig(use_complex32=use_complex32, memory=memory, **sizes)
    from .stage1 import Phase3Stage1Config, Phase3Stage1Model

    mixer = "none" if name == catalog.REFERENCE else "memory"
    return Phase3Stage1Model, Phase3Stage1Config(use_complex32=use_complex32, mixer=mixer, memory=memory, **sizes)
