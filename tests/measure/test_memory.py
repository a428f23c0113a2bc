"""The memory estimate against cases that can be counted by hand."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from measure_toys import Toy
from torch import nn

import muse.ops
from muse.measure import as_on_cuda, live_bytes, memory
from muse.measure.as_on_cuda import WORKSPACE_BYTES
from muse.measure.live_bytes import LiveBytes, WithoutData
from muse.measure.memory import GIB, MemoryResult, Training, count, small_gpu_metrics
from muse.measure.memory import measure_memory as measured_memory
from muse.models.build import build_model
from muse.models.weights import WithoutDraws
from muse.ops import planar
from muse.records.schema import Report
from muse.records.store import read_record
from muse.training.recipe import Recipe
from muse.training.trainer import OptimizerStep

REPORTS = Path(__file__).resolve().parent.parent.parent / "reports"
KERNEL_MODELS = ("stage1", "stage1_compact", "phase2")
SMALL = {"vocab_size": 9000, "d_model": 64, "n_layers": 1, "n_seq": 64, "use_complex32": True}
measure_memory = partial(measured_memory, workspace_bytes=0)  # which is no part of what is counted by hand


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


def training(optimizer="adamw", precision="float32"):
    """A training step as the trainer makes it."""
    recipe = Recipe(train_tokens=64, batch_tokens=32, n_seq=8, learning_rate=1e-3, optimizer=optimizer,
                    precision=precision)  # fmt: skip
    return Training(partial(OptimizerStep, recipe=recipe, description="x"), f"training step with {optimizer}")


def test_optimizer_state_is_two_more_copies_of_the_parameters():
    size = {"batch_size": 1, "n_seq": 8, "device": "cpu"}
    plain = measure_memory(lambda: Chain(3, 512), **size)
    stepped = measure_memory(lambda: Chain(3, 512), **size, training=training())
    weights = 3 * 512 * 512 * 4
    # the step has dropped the gradients, which a pass holds
    assert stepped.held_bytes - plain.held_bytes == pytest.approx(weights, rel=0.01)
    assert stepped.peak_bytes >= 4 * weights


def test_the_peak_of_a_training_step_is_that_of_a_step_beside_its_state():
    plain = measure_memory(lambda: Chain(4, 128), device="cpu")
    stepped = measure_memory(lambda: Chain(4, 128), device="cpu", training=training())
    weights = 4 * 128 * 128 * 4
    assert stepped.peak_bytes - plain.peak_bytes == pytest.approx(2 * weights, rel=0.1)
    assert "training step with adamw, the second of two" in stepped.metrics("toy")[0].note


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


@pytest.mark.parametrize("step", ["pass", "adamw"])
@pytest.mark.parametrize("name", ["stage1_compact", "phase2"])
def test_without_data_a_step_allocates_what_it_really_allocates(name, step):
    """Counting live storages of a real step on the CPU gives the peak of the run without data."""
    sizes = {"vocab_size": 997, "d_model": 64, "n_layers": 2, "n_seq": 64}
    ids, kind, peaks = torch.randint(997, (2, 64)), training("adamw", "bfloat16"), []
    for mode in (LiveBytes, WithoutData):
        model = build_model(name, use_complex32=step == "pass", **sizes).train()
        update = kind.step_of(model) if step == "adamw" else lambda inputs, targets, number, model=model: model.loss(
            inputs, targets).backward()  # fmt: skip
        with planar.cpu_compute("storage"), mode() as live:
            live.track([*model.parameters(), *model.buffers(), ids])
            for number in range(1 + (step == "adamw")):
                update(ids, ids.clone(), number)
        peaks.append(live.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


@pytest.mark.parametrize("name", ["stage1_compact", "phase2", "gpt2"])
def test_the_estimate_is_what_a_card_said(name):
    """Peaks of the committed record: passes in half precision and float32, recomputed or not, training steps."""
    from muse.stages.plan_errors import peaks

    found = {row.what: row.error for row in peaks(REPORTS, "gpu-memory", (name,))}
    assert len(found) == 7
    assert all(abs(error) < 0.03 for error in found.values()), found


def test_the_workspace_is_that_of_one_model_of_the_record():
    """What the reference held after a backward pass on a card beyond parameters, gradients and the batch, halved."""
    report = read_record(Report, REPORTS / "gpu" / "report.json")
    record = next(stage for stage in report.stages if stage.stage == "memory")
    with WithoutDraws():
        model = build_model("stage1", vocab_size=50257, d_model=512, n_layers=6, n_seq=1024, use_complex32=True)
    beyond = record.find("held_memory", "stage1").value * GIB - count(model, 2, 1024, workspace_bytes=0).held_bytes
    assert pytest.approx(beyond / 2, rel=0.001) == WORKSPACE_BYTES


def test_without_triton_the_estimate_is_the_same():
    """The kernels' modules name Triton; where it is not installed they are read with something in its place."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from muse.measure.memory import measure_memory\nfrom muse.models.build import build_model\n"
        f"for name in {KERNEL_MODELS}:\n"
        f"    print(measure_memory(lambda: build_model(name, **{SMALL}), n_seq=64, device='cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [measured_memory(partial(build_model, name, **SMALL), n_seq=64, device="cpu") for name in KERNEL_MODELS]
    assert done.stdout.splitlines() == list(map(str, here))


@pytest.mark.parametrize("kind", [None, training()])
def test_an_estimate_computes_nothing_and_can_be_repeated(kind):
    model = build_model("phase2", vocab_size=97, d_model=32, n_layers=2, n_seq=64)
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    found = [measure_memory(lambda: model, n_seq=64, device="cpu", training=kind) for _ in range(2)]
    assert found[0] == found[1]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_data_results_have_the_shapes_and_the_storages_of_real_ones():
    def everything():
        a = torch.zeros(4, 6)
        return [
            a, a.add_(1), a.t().contiguous(), a.view(6, 4)[1:], torch.mm(a, a.t(), out=torch.zeros(4, 4)), a.half(),
            torch.ops.aten._unsafe_view(a, [24]), *torch.split(a, 2), torch.stack([a, a]), a.to(torch.bfloat16) @ a.t()
            .bfloat16(), torch._foreach_add([a, a], 1)[0], torch.arange(5), a.sum(), *a.max(0), torch.full((2,), 1),
            torch.full((2,), 1.0), torch.full((2,), True),
        ]  # fmt: skip

    def described(tensors):
        storages = [tensor.untyped_storage()._cdata for tensor in tensors]
        return [
            (t.shape, t.stride(), t.dtype, t.storage_offset(), storages.index(storage), t.device)
            for t, storage in zip(tensors, storages, strict=True)
        ]

    with LiveBytes() as live:
        kept = everything()
        real = described(kept)
        held = live.current
        del kept
    for _ in range(2):  # asked of the meta device, then known
        with WithoutData() as live:
            kept = everything()
            assert described(kept) == real
            assert live.current == held
            values = torch.full((2,), 7.0)
            assert (values[0].item(), values.long()[1].item(), bool(values[0] > 1)) == (1.0, 0, False)
            del kept, values


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_written_to_comes_back_without_asking_for_its_shape(in_place):
    """Not every PyTorch knows the shapes of every product that writes to a tensor of another dtype."""
    total, a, b = torch.zeros(2, 3), torch.ones(2, 4).bfloat16(), torch.ones(4, 3).bfloat16()
    operation, given, options, tensors = torch.ops.aten.addmm_.default, [total, a, b], {"beta": 0}, [total, a, b]
    if not in_place:
        operation, given, options = torch.ops.aten.addmm.dtype_out, [*given, torch.float32], {"beta": 1, "out": total}
        tensors = [*tensors, total]
    asked = Mock(side_effect=TypeError("got multiple values for argument 'beta'"), _schema=operation._schema)
    assert live_bytes._made(live_bytes._plan(asked, given, options), tensors) is total
    with WithoutData():
        assert operation(*given, **options) is total
    with pytest.raises(TypeError, match="multiple"):
        live_bytes._plan(Mock(side_effect=asked.side_effect, _schema=torch.ops.aten.mm.default._schema), (a, b), {})


class Cuda:
    """What a cap on the allocator touches, without a GPU: 80 GiB of which other work has 1 GiB."""

    def __init__(self, monkeypatch):
        self.fraction, self.history = 0.9, []
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *arguments: None)
        properties = SimpleNamespace(total_memory=80 * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", self.get)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.set)

    def get(self, device):
        assert isinstance(device, int), "torch refuses a device without a number here"
        return self.fraction

    def set(self, fraction, device):
        assert isinstance(device, int)
        self.fraction = fraction
        self.history.append(fraction)

    def measure(self, needed, monkeypatch):
        """Measure a step that needs so many GiB."""

        def measured(build, **protocol):
            if needed > self.fraction * 80 - 1:
                raise torch.OutOfMemoryError(f"CUDA out of memory at {self.fraction:.4f}\nand much more")
            return MemoryResult(2, 8, "step", False, 4, int(needed * GIB), 4, 4, ("float32",), "measured", "note")

        monkeypatch.setattr(memory, "measure_memory", measured)
        return {metric.name: metric for metric in small_gpu_metrics(None, "toy", device="cuda")}


@pytest.mark.parametrize(
    ("needed", "fits", "peak"), [(7.9, 1.0, 7.9), (8.0, 1.0, 8.0), (8.1, 0.0, 8.1), (75.0, 0.0, None)]
)
def test_a_training_step_is_tried_within_8_gib_and_the_cap_is_put_back(monkeypatch, needed, fits, peak):
    cuda = Cuda(monkeypatch)
    found = cuda.measure(needed, monkeypatch)
    assert set(found) == {"peak_memory_recipe_step", "trains_within_8_gib"}
    assert found["trains_within_8_gib"].value == fits
    assert cuda.history == [9 / 80, 0.9], "1 GiB was there before"
    if fits:
        assert "capped at 8 GiB" in found["trains_within_8_gib"].note
    else:
        assert found["trains_within_8_gib"].note == "CUDA out of memory at 0.1125"
    if peak is None:
        assert found["peak_memory_recipe_step"].n == 0
        assert found["peak_memory_recipe_step"].reason == "CUDA out of memory at 0.9000"
    assert found["peak_memory_recipe_step"].value == pytest.approx(peak) if peak else peak is None


def test_the_cap_is_put_back_after_any_error(monkeypatch):
    cuda = Cuda(monkeypatch)

    def broken(build, **protocol):
        raise ZeroDivisionError

    monkeypatch.setattr(memory, "measure_memory", broken)
    with pytest.raises(ZeroDivisionError):
        small_gpu_metrics(None, "toy", device="cuda")
    assert cuda.fraction == 0.9


def test_without_cuda_a_step_of_the_recipe_is_estimated_and_nothing_is_claimed():
    size = {"batch_size": 1, "n_seq": 8}
    (found,) = small_gpu_metrics(lambda: Chain(1, 64), "toy", device="cpu", training=training(), **size)
    assert (found.name, found.model, found.basis) == ("peak_memory_recipe_step", "toy", "estimate")
    assert "estimate" in found.note


def test_fewer_layers_and_half_precision_take_less():
    sizes = {"vocab_size": 997, "d_model": 64, "n_layers": 2, "n_seq": 128}
    half = measure_memory(lambda: build_model("stage1", use_complex32=True, **sizes), n_seq=128, device="cpu")
    full = measure_memory(lambda: build_model("stage1", use_complex32=False, **sizes), n_seq=128, device="cpu")
    assert half.parameter_bytes * 2 == full.parameter_bytes
    assert half.peak_bytes < full.peak_bytes
    assert half.parameter_dtypes == ("float16",)


def test_every_module_of_kernels_that_a_training_calls_is_counted_and_none_is_launched():
    """One that is forgotten would launch its kernels, on cards that are not there."""
    found = {path.stem for path in Path(muse.ops.__file__).parent.glob("*_triton.py")}
    assert set(as_on_cuda.KERNELS) == found - {"tile_triton", "step_triton"}  # parts of others, and writing
