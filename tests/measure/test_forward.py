"""Forward: every logit that is no finite number is counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from muse.measure import measure_forward
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model

TINY = Phase3Stage1Config(vocab_size=11, d_model=4, n_layers=1, n_seq=8)


def test_a_sound_model_has_finite_logits_of_the_expected_shape():
    model = Phase3Stage1Model(TINY).train()
    result = measure_forward(model, batch_size=3, n_tokens=5)
    assert (result.shape, result.nan, result.infinite) == ((3, 5, 11), 0, 0)
    metrics = {metric.name: metric for metric in result.metrics("stage1")}
    assert {name: (metric.value, metric.n) for name, metric in metrics.items()} == {
        "nan_logits": (0, 165), "infinite_logits": (0, 165)
    }  # fmt: skip
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("value", "expected"), [(math.nan, (10, 0)), (math.inf, (0, 10)), (-math.inf, (0, 10))])
def test_what_is_not_finite_is_counted_by_kind(value, expected):
    model = Phase3Stage1Model(TINY)
    with torch.no_grad():
        model.head_bias[7] = value
    result = measure_forward(model, batch_size=2, n_tokens=5)
    assert (result.nan, result.infinite) == expected


def test_logits_of_another_shape_are_refused():
    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.weight = TINY, nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            return torch.zeros(*inputs.shape, 10)

    with pytest.raises(ValueError, match=r"got shape \(2, 4, 10\), expected \(2, 4, 11\)"):
        measure_forward(Short(), batch_size=2, n_tokens=4)
