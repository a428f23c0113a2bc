"""How large a model may be at all: what lies beyond is a mistake or a bomb, and is refused before it takes memory."""

from __future__ import annotations

LARGEST = {
    "vocab_size": 2**24,
    "d_model": 2**16,
    "n_layers": 2**10,
    "n_seq": 2**20,
    "n_heads": 2**16,
    "d_ff": 2**20,
    "n_chains": 2**16,
    "table_rank": 2**17,
    "convolution": 2**10,
    "chunk_tokens": 2**20,
}
"""Upper limits of the sizes that configurations have."""

MOST_NUMBERS = 2**34
"""Of a table of tokens or positions, and of one square matrix a layer: 64 GiB in float32."""


def check_largest(config: object) -> None:
    """Raise ValueError where a configuration, or a part of one, is larger than any model that was meant."""
    for name, largest in LARGEST.items():
        if getattr(config, name, 0) > largest:
            raise ValueError(f"{name} must be at most {largest:,}, got {getattr(config, name)}")
    width = getattr(config, "d_model", 0)
    for name, per_unit in (("vocab_size", width), ("n_seq", width), ("n_layers", width**2)):
        if getattr(config, name, 0) * per_unit > MOST_NUMBERS:
            raise ValueError(f"{name} = {getattr(config, name)} is more than a d_model of {width} allows here")
