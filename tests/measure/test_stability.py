"""Injected NaN and infinities are counted and named; overflow under scaling appears where it must."""

from __future__ import annotations

import math

import pytest
import torch
from measure_toys import Toy
from torch import nn

from muse.measure.common import all_finite
from muse.measure.stability import measure_stability
from muse.models.build import build_model


def measure(model, trials=4):
    return measure_stability(model, trials=trials, batch_size=2, n_tokens=8)


class Body(nn.Module):
    """Damages the output, or only its gradient, in the calls that are listed."""

    def __init__(self, calls=(), gradient_calls=(), value=math.nan) -> None:
        super().__init__()
        self.calls, self.gradient_calls, self.value, self.call = calls, gradient_calls, value, -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.call += 1
        if self.call in self.gradient_calls:
            middle = x * 1
            middle.register_hook(lambda gradient: gradient * self.value)
            x = middle * 1
        return torch.where(torch.arange(x.numel()).view_as(x) == 3, self.value, x) if self.call in self.calls else x


def test_a_sound_model_has_no_non_finite_trial():
    model = Toy()
    result = measure(model)
    assert (result.failed_trials, result.first_place) == ((), None)
    trials, _ = result.metrics("toy")
    assert (trials.value, trials.n, trials.unit) == (0, 4, "trials")
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_output_is_counted_and_named(value):
    model = Toy()
    model.body = Body(calls=(1, 2), value=value)  # call 2 is the second pass over trial 1
    result = measure(model)
    assert result.failed_trials == (1,)
    assert result.first_place == "forward, output of body (Body)"
    assert "trial 1: forward, output of body" in result.metrics("toy")[0].note


def test_a_non_finite_gradient_is_counted_and_named():
    model = Toy()
    model.body = Body(gradient_calls=(0, 1, 2))
    result = measure(model)
    assert result.failed_trials == (0, 1)
    assert result.first_place == "backward, gradient of the output of embedding (Embedding)"


def test_a_gradient_that_only_a_parameter_gets_is_named():
    model = Toy()
    model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    result = measure(model)
    assert result.failed_trials == (0, 1, 2, 3)
    assert result.first_place == "backward, gradient of head.weight"


def test_a_logit_that_only_the_head_overflows_is_found():
    """One logit of minus infinity leaves the loss and every gradient finite."""
    model = Toy(torch.float16)
    with torch.no_grad():
        model.embedding.weight.fill_(400.0)
        model.head.weight.fill_(0.0)
        model.head.weight[3] = -400.0
        model.embedding.weight[3] = 0.0
    ids = torch.tensor([[0, 1, 2]])
    assert model(ids)[0, 0, 3].isneginf()
    loss = model.loss(ids, torch.tensor([[1, 2, 0]]))
    loss.backward()
    assert all_finite([loss, *(p.grad for p in model.parameters())])
    result = measure_stability(model, trials=2, batch_size=1, n_tokens=1, seed=0)
    assert result.failed_trials
    assert result.first_place == "forward, logits of the head"


def test_float16_overflows_at_the_scale_that_arithmetic_says():
    """The largest embedding element is 5: 5 x 4^6 = 20480 fits in float16, 5 x 4^7 = 81920 does not."""
    model = Toy(torch.float16)
    with torch.no_grad():
        model.embedding.weight.fill_(5.0)
        model.head.weight.fill_(2**-20)
    result = measure(model, trials=1)
    assert result.first_non_finite_scale == 4.0**7
    assert result.stress_place == "forward, output of embedding (Embedding)"
    assert result.stress_largest == tuple(5 * 4.0**k for k in range(7))
    _, metric = result.metrics("toy")
    assert metric.value == 4.0**7
    (series,) = result.series("toy")
    assert (series.x[-1], series.y[-1]) == (4.0**6, 20480)


def test_stress_names_the_layer_that_overflows_first():
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    model = Toy(torch.float16)
    model.body = Square()
    with torch.no_grad():
        model.embedding.weight.fill_(5.0)
        model.head.weight.fill_(2**-20)
    result = measure(model, trials=1)
    assert result.first_non_finite_scale == 4.0**3  # (5 x 64)^2 > 65504 > (5 x 16)^2
    assert result.stress_place == "forward, output of body (Square)"


def test_a_model_that_never_overflows_has_no_scale():
    model = build_model("stage1", vocab_size=31, d_model=8, n_layers=1, n_seq=16)
    result = measure(model, trials=1)
    assert result.first_non_finite_scale is None
    assert result.metrics("toy")[1].value is None
    assert "nothing non-finite" in result.metrics("toy")[1].note


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_among_many_is_found(dtype, bad):
    tensor = torch.full((100_003,), 60000.0, dtype=dtype)
    assert all_finite([tensor, torch.zeros(0), torch.zeros(3, dtype=torch.int64)])
    tensor[77_777] = bad
    assert not all_finite([torch.zeros(3), tensor])
