"""Sampling order, medians and units of throughput; FLOPs that can be counted by hand."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch
from measure_toys import Toy

from muse.measure import throughput
from muse.measure.throughput import (
    Ceiling,
    copy_ceiling,
    flops_per_token,
    forward_logits,
    forward_loss,
    matrix_ceiling,
    measure_throughput,
    training_step,
)
from muse.models.build import build_model
from muse.ops import planar


def test_paths_are_sampled_in_turn_and_warm_ups_are_not_counted():
    calls: list[str] = []
    paths = {name: lambda name=name: calls.append(name) for name in "abc"}
    seen = []

    def progress(iterable, description, total):
        seen.append((description, total))
        return iterable

    result = measure_throughput(paths, tokens_per_call=10, warmups=1, samples=3, device="cpu", progress=progress)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in result.seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert seen == [("throughput, a, b, c", 4)]


def test_tokens_per_second_is_the_median_of_what_the_clock_says(monkeypatch):
    durations = iter([9.0, 2.0, 1.0, 4.0, 2.0])
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(durations)

    result = measure_throughput(
        {"logits": call}, tokens_per_call=8, warmups=1, samples=4, device="cpu", flops_per_token=5.0,
        matrix_flops_per_second=40.0,
    )  # fmt: skip
    metrics = {metric.name: metric for metric in result.metrics("toy")}
    rate = metrics["throughput_logits"]
    assert (rate.value, rate.unit, rate.n) == (4.0, "token/s", 4)
    assert rate.samples == [4.0, 8.0, 2.0, 4.0]
    assert rate.interval == (3.5, 5.0)
    assert metrics["ceiling_share"].value == 4.0 * 5 / 40
    assert metrics["flops_per_token"].value == 5


def test_a_training_step_counts_three_forward_passes():
    result = measure_throughput(
        {"logits": lambda: time.sleep(0.001), "training": lambda: time.sleep(0.001)}, tokens_per_call=1, warmups=0,
        samples=1, device="cpu", flops_per_token=1.0, matrix_flops_per_second=1.0,
    )  # fmt: skip
    (share,) = [metric for metric in result.metrics("toy") if metric.name == "ceiling_share"]
    assert share.samples[1] / share.samples[0] == pytest.approx(
        3 * result.seconds["logits"][0] / result.seconds["training"][0]
    )


def test_the_three_protocols_do_what_they_are_called():
    ids = torch.randint(8, (2, 5))
    model = Toy()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    logits = forward_logits(model, ids)()
    assert logits.shape == (2, 5, 8)
    assert not logits.requires_grad
    assert not model.training
    assert forward_loss(model, ids, ids)().shape == ()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    step = training_step(model, ids, ids)
    losses = []
    for _ in range(3):
        step()
        losses.append(model.loss(ids, ids).item())
    assert losses[0] > losses[1] > losses[2]
    assert model.training


def test_training_runs_under_autocast():
    model = Toy()
    before = model.head.weight.detach().clone()
    training_step(model, torch.tensor([[1, 2]]), torch.tensor([[2, 3]]), autocast_dtype=torch.bfloat16)()
    assert not torch.equal(before, model.head.weight)


def test_a_timed_step_multiplies_as_a_training_does(monkeypatch):
    """Exact float32 products, of which angles by the token have some, take longer than those of a training."""
    seen = []

    @contextlib.contextmanager
    def watched(device_type):
        seen.append(device_type)
        yield
        seen.append(f"after {device_type}")

    monkeypatch.setattr(planar, "training_products", watched)
    model = Toy()
    model.head.weight.register_hook(lambda grad: seen.append("gradient"))
    training_step(model, torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))()
    assert seen == ["cpu", "gradient", "after cpu"]


def test_flops_are_those_of_the_matrix_products():
    assert flops_per_token(Toy(vocab_size=11, d_model=4)) == 2 * 11 * 4
    sizes = {"vocab_size": 31, "d_model": 8, "n_layers": 3, "n_seq": 16}
    model = build_model("stage1", use_complex32=True, **sizes)
    assert flops_per_token(model) == 3 * 2 * 16 * 16 + 2 * 8 * 31
    assert next(model.parameters()).dtype == torch.float16  # the model itself is untouched
    assert type(next(model.parameters()).data) is torch.Tensor


def test_attention_counts_its_scores_and_sums():
    model = build_model("gpt2", vocab_size=31, d_model=8, n_layers=3, n_seq=16)
    assert flops_per_token(model) == 3 * (24 * 8 * 8 + 4 * 16 * 8) + 2 * 8 * 31


def test_ceilings_are_work_over_time(monkeypatch):
    monkeypatch.setattr(throughput, "_seconds", lambda call, device, calls=1: call() is None or 0.5)
    matrix = matrix_ceiling("cpu", torch.float32, sizes=(64, 128))
    copy = copy_ceiling("cpu", num_bytes=2**20)
    assert matrix.samples == (2 * 64**3 / 0.5, 2 * 128**3 / 0.5)
    assert matrix.value == 2 * 128**3 / 0.5
    assert matrix.labels == ("64", "128")
    assert copy.value == 2 * 2**20 / 0.5
    (metric,) = Ceiling("matrix_ceiling", 2.0, "FLOP/s", (1.0, 2.0), ("1", "2")).metrics()
    assert (metric.name, metric.value, metric.samples, metric.model) == ("matrix_ceiling", 2.0, [1.0, 2.0], "")


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"warmups": -1}])
def test_counts_that_measure_nothing_are_errors(wrong):
    with pytest.raises(ValueError, match="samples >= 1"):
        measure_throughput({"a": lambda: None}, tokens_per_call=1, device="cpu", **wrong)


def test_a_slow_path_gets_fewer_samples_by_the_time_limit(monkeypatch):
    monkeypatch.setattr(throughput, "_seconds", lambda call, device, calls=1: call())
    paths = {"slow": lambda: 5.0, "fast": lambda: 0.5, "middle": lambda: 1.0}
    result = measure_throughput(paths, tokens_per_call=1, warmups=3, samples=8, device="cpu", limit_seconds=6.0)
    assert {name: len(seconds) for name, seconds in result.seconds.items()} == {"slow": 2, "fast": 8, "middle": 5}


@pytest.mark.parametrize(("device", "expected"), [("cuda", [0.5] * 5), ("cpu", [9.0, 0.5])])
def test_a_first_call_that_compiles_kernels_is_no_sample(monkeypatch, device, expected):
    """On a CPU nothing is compiled: what takes so long there takes as long every time."""
    durations = iter([9.0, *[0.5] * 20])
    monkeypatch.setattr(throughput, "_seconds", lambda call, device, calls=1: call())
    monkeypatch.setattr(throughput, "device_name", str)
    paths = {"eager": lambda: next(durations)}
    result = measure_throughput(paths, tokens_per_call=1, warmups=2, samples=5, device=device, limit_seconds=4.0)
    assert list(result.seconds["eager"]) == expected


def test_short_calls_on_cuda_are_timed_in_a_row():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [throughput.calls_in_a_row(s, cuda) for s in (1e-9, 5e-4, 1e-3, 4e-3, 1.0)] == [32, 10, 5, 1, 1]
    assert throughput.calls_in_a_row(1e-6, cpu) == 1


def test_a_sample_of_several_calls_is_their_mean():
    called = []
    seconds = throughput._seconds(lambda: called.append(time.sleep(0.01)), torch.device("cpu"), 3)
    assert len(called) == 3
    assert 0.01 <= seconds < 0.02
