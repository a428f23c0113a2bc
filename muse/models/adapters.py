"""Matrices that a model reads instead of calling the layer that holds them, with whatever was put in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def matrix_of(layer: nn.Module, plain: type[nn.Module] = nn.Linear) -> Tensor:
    """What a linear layer without a bias multiplies by, r(O I): its weight, where it is still a `plain` one.

    Of an adapter (of PEFT, say) around it that is what the unit vectors become: exact, and an adapter's gradient comes
    back through it. Its dropout then drops the same channels for all tokens.
    """
    if type(layer) is plain:
        return layer.weight
    weight = layer.weight
    with torch.autocast(weight.device.type, enabled=False):
        return layer(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)).t().contiguous()
