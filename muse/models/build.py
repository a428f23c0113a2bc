"""One way to build every model of a comparison from the sizes they share."""

from __future__ import annotations

from torch import nn

from muse.catalog import ABLATIONS, BASELINE, MODEL_NAMES, REFERENCE, TWIN, WITH_MEMORY, YARDSTICK


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
    if name in (REFERENCE, WITH_MEMORY) or name in ABLATIONS:
        from .stage1 import Phase3Stage1Config, Phase3Stage1Model

        mixer, memory = "none" if name == REFERENCE else "memory", ABLATIONS.get(name, {})
        config = Phase3Stage1Config(use_complex32=use_complex32, mixer=mixer, memory=memory, **sizes)
        return Phase3Stage1Model(config, seed=seed)
    if name == BASELINE:
        from .phase2 import Phase2Config, Phase2Model

        return Phase2Model(Phase2Config(**sizes), seed=seed)
    if name == YARDSTICK:
        from .gpt2 import Gpt2Config, Gpt2Model

        return Gpt2Model(Gpt2Config(**sizes), seed=seed)
    if name == TWIN:
        from .real_twin import RealTwinConfig, RealTwinModel

        return RealTwinModel(RealTwinConfig(**sizes), seed=seed)
    raise ValueError(f"model name: got {name!r}, expected one of {', '.join(MODEL_NAMES)}")
