"""The gate of gradients: every model of a comparison passes it, and what would spoil a comparison does not."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
from builders import corpus

from muse.bench import gradient_gate
from muse.bench.context import Context
from muse.bench.gradient_gate import GATE, Gate, gate
from muse.catalog import COMPARED, GATE_STATES
from muse.measure.common import passthrough
from muse.models.build import build_model
from muse.models.memory_options import MemoryOptions
from muse.models.real_twin import REAL, RealTwinConfig, RealTwinModel
from muse.ops import gate as feed_gate
from muse.ops import operator, planar
from muse.params import Settings
from muse.report.plain import bench_tables

SIZES = {"vocab_size": 199, "d_model": 64, "n_layers": 2, "n_seq": 64}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(gradient_gate, "TRAINING_STEPS", 3)


def context(build=None, **sizes):
    sizes = SIZES | sizes
    settings = Settings(**sizes, throughput_n_tokens=sizes["n_seq"])
    build = build or partial(build_model, **sizes)
    return Context(build, settings, torch.device("cpu"), torch.float32, passthrough, corpus)


def checks(model, bench=None):
    return {check.quantity: check for check in Gate(bench or context(), model).checks(model, model.loss)}


def test_all_eight_models_pass_the_same_gate_in_every_state():
    metrics = list(gate(context()))
    errors = {metric.model: metric for metric in metrics if metric.name == "bench_gradient_error"}
    assert tuple(errors) == COMPARED
    assert len(COMPARED) == 8
    for name, metric in errors.items():
        assert metric.labels == list(GATE_STATES)
        assert 0 < min(metric.samples) <= max(metric.samples) == metric.value <= GATE, name
    assert {m.value for m in metrics if m.name == "bench_gradient_within"} == {1.0}
    assert sum("gradients: 0.00" in line or "gradients: 0.01" in line for line in bench_tables(metrics)) == 8


def test_what_is_compared_multiplies_as_a_training_and_what_it_is_compared_with_exactly(monkeypatch):
    seen = []

    @contextlib.contextmanager
    def watched(device_type):
        seen.append("training")
        yield
        seen.append("exact")

    monkeypatch.setattr(planar, "training_products", watched)
    model = build_model("phase2", **SIZES)
    made = Gate(context(), model)
    assert not seen
    made.checks(model, lambda *batch: (seen.append("loss"), model.loss(*batch))[1])
    assert seen == ["training", "loss", "exact"] * len(GATE_STATES)


def twin(eps, seed):
    config = RealTwinConfig(vocab_size=101, d_model=256, n_layers=2, n_seq=128, memory=REAL | {"head_norm_eps": eps})
    return RealTwinModel(config, seed=seed)


def test_the_old_epsilon_of_the_norm_per_head_is_caught():
    bench = context(d_model=256, n_seq=128, vocab_size=101)
    default = MemoryOptions().head_norm_eps
    old, new = ([checks(twin(eps, seed), bench) for seed in (2, 5)] for eps in (1e-6, default))
    assert all(check.ok for found in new for check in found.values())
    assert not any(all(check.ok for check in found.values()) for found in old)


@pytest.mark.parametrize("factor", [-1.0, 1.05], ids=["sign", "five percent"])
def test_a_wrong_fast_path_is_caught_in_every_state(factor, monkeypatch):
    """What is off in one form only, here in half precision, is off against the other."""
    model = build_model("stage1_compact", **SIZES)
    right = feed_gate.gated

    def wrong(value, g, planes):
        return right(value, g, planes) * (factor if torch.is_autocast_enabled("cpu") else 1.0)

    monkeypatch.setattr("muse.models.memory_block.gated", wrong)
    found = checks(model)
    assert [check.ok for check in found.values()] == [False] * 3, found


def test_the_model_is_left_as_it_was_and_its_states_differ():
    model = build_model("stage1_memory", **SIZES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = Gate(context(), model)
    made.checks(model, model.loss)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    gains = [state.weights["blocks.0.memory_norm.gain"] for state in made.states.values()]
    assert not any(torch.equal(gains[i], gains[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    tables = [state.weights["embedding.weight"] for state in made.states.values()]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_a_lost_gradient_and_a_model_that_breaks_stop_no_other():
    class BrokenError(Exception):
        pass

    def build(name, use_complex32):
        if name == "phase2":
            raise BrokenError("no such thing")
        model = build_model(name, **SIZES)
        if name == "gpt2":
            loss = model.loss
            model.loss = lambda ids, targets, **how: loss(ids, targets, **how).detach() + next(model.parameters()).sum()
        return model

    metrics = {(m.name, m.model): m for m in gate(context(build, bench_models=["phase2", "gpt2", "real_twin"]))}
    assert metrics["bench_gradient_error", "phase2"].reason == "failed: BrokenError: no such thing"
    assert metrics["bench_gradient_error", "gpt2"].reason.startswith("failed: ValueError: ")
    assert metrics["bench_gradient_error", "real_twin"].value <= GATE
    assert ("bench_gradient_within", "phase2") not in metrics


def test_plain_forms_know_no_kernel_and_end():
    kernels = operator.KERNEL_DEVICE
    with operator.plain_forms():
        assert not operator.has_kernels(operator, torch.zeros(1))
        assert not operator.KERNEL_DEVICE
    assert kernels == operator.KERNEL_DEVICE
