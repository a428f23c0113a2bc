"""One way to build every model of a comparison from the sizes they share."""

from __future__ import annotations

from torch import nn

from muse import catalog
from muse.catalog import MODEL_NAMES


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
    if name not in MODEL_NAMES:
        raise ValueError(f"model name: got {name!r}, expected one of {', '.join(MODEL_NAMES)}")
    row = catalog.model(name)
    low_rank = {"table_rank": max(2, d_model // row.rank_divisor // 2 * 2)} if row.rank_divisor else {}
    if name in (catalog.BASELINE, catalog.COMPACT_BASELINE):
        from .phase2 import Phase2Config, Phase2Model

        return Phase2Model(Phase2Config(**sizes, **low_rank), seed=seed)
    if name == catalog.YARDSTICK:
        from .gpt2 import Gpt2Config, Gpt2Model

        return Gpt2Model(Gpt2Config(**sizes), seed=seed)
    if name in (catalog.TWIN, catalog.COMPACT_TWIN):
        from .real_twin import REAL, RealTwinConfig, RealTwinModel

        return RealTwinModel(RealTwinConfig(memory=REAL | low_rank, **sizes), seed=seed)
    from .stage1 import Phase3Stage1Config, Phase3Stage1Model

    mixer, memory = "none" if name == catalog.REFERENCE else "memory", {**row.options, **low_rank}
    config = Phase3Stage1Config(use_complex32=use_complex32, mixer=mixer, memory=memory, **sizes)
    return Phase3Stage1Model(config, seed=seed)
