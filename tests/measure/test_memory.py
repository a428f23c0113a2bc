"""The memory estimate against cases that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from measure_toys import Toy
from torch import nn

from muse.measure.live_bytes import LiveBytes
from muse.measure.memory import GIB, measure_memory
from muse.models.build import build_model
from muse.ops import planar


class Chain(Toy):
    """n square float32 products with a ReLU each, loss = mean; no head to speak of."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__(vocab_size=2, d_model=width, n_seq=1024)
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(width, width)) for _ in range(n)])

    def loss(self, token_ids, targets, reduction="mean"):
        x = self.embedding(token_ids)
        for weight in self.weights:
            x = F.relu(x @ weight)
        return x.mean()


def test_parameters_gradients_and_kept_activations_are_counted():
    n, width, tokens = 4, 256, 2 * 1024
    result = measure_memory(lambda: Chain(n, width), device="cpu")
    activation, weight, table = tokens * width * 4, width * width * 4, 2 * width * 4
    parameters = n * weight + 2 * table  # embedding and the unused head
    assert result.parameter_bytes == parameters
    assert result.held_bytes == pytest.approx(parameters + n * weight + table + 2 * tokens * 8, rel=0.002)
    # Kept: the embedding's output and each ReLU's. The peak comes early in the backward pass, with the gradients of a
    # ReLU's output and of its input beside them.
    kept = parameters + (n + 1) * activation
    assert kept + activation < result.peak_bytes < kept + 3 * activation
    assert result.basis == "estimate"
    assert result.reserved_bytes is None


def test_optimizer_state_is_two_more_copies_of_the_parameters():
    plain = measure_memory(lambda: Chain(3, 512), batch_size=1, n_seq=8, device="cpu")
    stepped = measure_memory(lambda: Chain(3, 512), batch_size=1, n_seq=8, device="cpu", with_optimizer=True)
    weights = 3 * 512 * 512 * 4
    assert stepped.held_bytes - plain.held_bytes == pytest.approx(2 * weights, rel=0.01)
    assert stepped.peak_bytes >= 4 * weights


def test_the_peak_with_optimizer_is_that_of_a_step_beside_its_state():
    plain = measure_memory(lambda: Chain(4, 128), device="cpu")
    stepped = measure_memory(lambda: Chain(4, 128), device="cpu", with_optimizer=True)
    weights = 4 * 128 * 128 * 4
    assert stepped.peak_bytes - plain.peak_bytes == pytest.approx(2 * weights, rel=0.1)


def test_metric_names_units_and_basis():
    result = measure_memory(lambda: Chain(1, 128), batch_size=1, n_seq=8, device="cpu")
    metrics = {metric.name: metric for metric in result.metrics("toy", variant="matched")}
    assert set(metrics) == {"peak_memory_matched", "held_memory_matched", "parameter_memory_matched"}
    assert metrics["peak_memory_matched"].value == result.peak_bytes / GIB
    assert metrics["peak_memory_matched"].basis == "estimate"
    assert metrics["parameter_memory_matched"].basis == "measured"
    assert {metric.unit for metric in metrics.values()} == {"GiB"}


def test_live_bytes_follow_storages_not_tensors():
    with LiveBytes() as live:
        a = torch.zeros(1024)
        view, alias = a[:10], a.view(2, 512)
        assert live.current == 4096
        b = a + 1
        assert live.current == 8192
        del a
        assert live.current == 8192
        del view, alias
        assert live.current == 4096
        b.add_(1)
        assert (live.current, live.peak) == (4096, 8192)
        assert torch.zeros(1).nbytes == 4
        assert live.current == 4096
        c = torch.zeros(1)
        assert live.current == 4096 + 512
        del c


def test_the_estimate_is_what_the_same_step_really_allocates():
    """Counting live storages of a real step on the CPU gives the peak of the run without data."""
    sizes = {"vocab_size": 997, "d_model": 64, "n_layers": 2, "n_seq": 64}
    estimate = measure_memory(lambda: build_model("stage1", use_complex32=True, **sizes), n_seq=64, device="cpu")
    model = build_model("stage1", use_complex32=True, **sizes)
    ids = torch.randint(997, (2, 64))
    with planar.cpu_compute("storage"), LiveBytes() as live:
        live.track([*model.parameters(), *model.buffers(), ids])
        model.loss(ids, ids.clone()).backward()
    assert estimate.peak_bytes == pytest.approx(live.peak, rel=0.01)


def test_fewer_layers_and_half_precision_take_less():
    sizes = {"vocab_size": 997, "d_model": 64, "n_layers": 2, "n_seq": 128}
    half = measure_memory(lambda: build_model("stage1", use_complex32=True, **sizes), n_seq=128, device="cpu")
    full = measure_memory(lambda: build_model("stage1", use_complex32=False, **sizes), n_seq=128, device="cpu")
    assert half.parameter_bytes * 2 == full.parameter_bytes
    assert half.peak_bytes < full.peak_bytes
    assert half.parameter_dtypes == ("float16",)
