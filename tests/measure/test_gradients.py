"""Gradient norms against hand-computed ones; missing, zero and non-finite gradients are named."""

from __future__ import annotations

import math

import pytest
import torch
from measure_toys import Causal, Toy
from torch import nn

from muse.measure.gradients import gradient_norm, measure_gradients
from muse.models.build import build_model


def by_name(result) -> dict:
    return {metric.name: metric for metric in result.metrics("toy")}


class Linear(Toy):
    """loss = sum(used) x 3 + sum(cancelled) x 0 (+ whatever a test adds)."""

    def __init__(self, factor: float = 3.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.ones(4, 4, dtype=dtype))
        self.cancelled = nn.Parameter(torch.ones(5, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.factor = factor

    def loss(self, token_ids, targets, reduction="mean"):
        return (self.used.float() * self.factor).sum() + (self.cancelled.float() * 0).sum()


def test_norms_and_names():
    model = Linear()
    result = measure_gradients(model, n_tokens=4)
    assert result.norms == {"used": pytest.approx(3 * math.sqrt(16)), "cancelled": 0.0}
    assert set(result.missing) == {"embedding.weight", "head.weight"}
    assert result.zero == ("cancelled",)
    found = by_name(result)
    assert found["gradient_norm"].value == pytest.approx(6)  # the median of 0 and 12
    assert dict(zip(found["gradient_norm"].labels, found["gradient_norm"].samples, strict=True)) == result.norms
    assert (found["gradient_norm_min"].value, found["gradient_norm_min"].labels) == (0, ["cancelled"])
    assert (found["gradient_norm_max"].value, found["gradient_norm_max"].labels) == (12, ["used"])
    assert found["parameters_without_gradient"].value == 3
    assert set(found["parameters_without_gradient"].labels) == {"embedding.weight", "head.weight", "cancelled"}
    assert found["loss_scale"].value == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_norms_agree_with_autograd_in_float64():
    model = Causal(torch.float64)
    result = measure_gradients(model, batch_size=3, n_tokens=7, seed=5)
    ids = torch.randint(8, (3, 8), generator=torch.Generator().manual_seed(5))
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert result.loss_nats == pytest.approx(loss.item())
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert result.norms[name] == pytest.approx(gradient.norm().item(), rel=1e-9), name


@pytest.mark.parametrize(("factor", "scale"), [(1.0, 2.0**15), (10.0, 2.0**11), (3e-9, 2.0**15), (6e4, 1.0)])
def test_float16_gradients_are_scaled_as_far_as_they_fit(factor, scale):
    result = measure_gradients(n_tokens=4, model=Linear(factor, torch.float16))
    assert result.loss_scale == scale
    assert result.norms["used"] == pytest.approx(4 * factor, rel=0.001)  # 3e-9 would be zero without the scale


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_non_finite_gradient_has_no_norm_and_is_named(factor):
    result = measure_gradients(n_tokens=4, model=Linear(factor))
    assert result.non_finite == ("used",)
    found = by_name(result)
    for name in ("gradient_norm", "gradient_norm_min", "gradient_norm_max"):
        assert found[name].value is None
        assert "used" in found[name].note
    assert found["gradient_norm"].labels == ["cancelled"]
    assert found["parameters_with_non_finite_gradient"].labels == ["used"]
    assert result.loss_scale == 1.0


@pytest.mark.parametrize("value", [1e30, 1e-30, 65504.0])
def test_norms_neither_overflow_nor_underflow(value):
    dtype = torch.float16 if value == 65504.0 else torch.float32
    assert gradient_norm(torch.full((5_000_011,), value, dtype=dtype)) == pytest.approx(value * math.sqrt(5_000_011))


def test_the_same_seed_gives_the_same_norms_also_with_dropout():
    model = build_model("stage1", vocab_size=31, d_model=8, n_layers=1, n_seq=16, dropout=0.5, use_complex32=True)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = measure_gradients(model, n_tokens=16, seed=3)
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert measure_gradients(model, n_tokens=16, seed=3) == first
    assert measure_gradients(model, n_tokens=16, seed=4).norms != first.norms
