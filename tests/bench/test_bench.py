"""The benchmark: fast paths equal the naive one, a wrong one gets no speed, a missing or broken one stops no other."""

from __future__ import annotations

import copy
import json
import os
import shutil
import statistics
import time
from dataclasses import replace
from functools import partial
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from builders import corpus, run_info
from devices import AsCaptured, without_data
from reference import rms_error
from torch._subclasses.fake_tensor import FakeTensorMode

from muse import cli
from muse.bench import bench, generation, gradient_gate
from muse.bench import paths as ways
from muse.bench import stack as stack_bench
from muse.bench import training as training_bench
from muse.bench.bench import GROUPS, measure_bench
from muse.bench.context import Context
from muse.bench.equality import Check, check, check_gradients, gradients, relative_rms, worst_gradient
from muse.bench.libraries import PathMissingError
from muse.bench.naive import NaiveStage1, PlanarStack, perturb
from muse.bench.static_gpt2 import StaticGpt2
from muse.bench.timing import Trial, compare
from muse.bench.training import compare_models
from muse.catalog import BENCH_GROUPS, COMPACT, COMPACT_ANGLES, COMPARED, GATE_STATES, WRITTEN_TOKENS, YARDSTICK
from muse.measure.common import passthrough
from muse.measure.throughput import copy_ceiling, flops_per_token, matrix_ceiling
from muse.models import step_parts
from muse.models.build import build_model
from muse.ops import cross_entropy, planar
from muse.ops.cuda_graph import WARMUPS
from muse.params import Settings
from muse.records.environment import utc_now
from muse.records.schema import BenchRecord, Metric, StageRecord
from muse.records.store import read_record
from muse.report.figures.bench import bench_figures
from muse.report.plain import bench_tables
from muse.stages import throughput

SIZES = {"vocab_size": 53, "d_model": 6, "n_layers": 2, "n_seq": 13}
TIMED = ["forward", "training", "head", "stack"]
TINY = {"throughput_n_tokens": 11, "bench_forward_batches": [3], "bench_training_batches": [2], "bench_head_tokens": 17,
        "throughput_warmups": 1, "throughput_samples": 3, "bench_seconds": 1.0, "bench_groups": TIMED}  # fmt: skip
CPU = torch.device("cpu")
no_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile on a CPU needs a C++ compiler"
)


def build(name, use_complex32):
    return build_model(name, **SIZES, use_complex32=use_complex32)


def tiny(groups=TIMED, sizes=MappingProxyType({}), **options):
    settings = Settings(**SIZES | TINY | {"bench_groups": list(groups)} | sizes)
    return measure_bench(build, settings, "cpu", corpus, **options)


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(bench, "matrix_ceiling", partial(matrix_ceiling, sizes=(64,)))
    monkeypatch.setattr(bench, "copy_ceiling", partial(copy_ceiling, num_bytes=2**16))


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(ways, "compiler_problem", lambda device: "no compiler: none for this test")


def paths(result, group):
    (found,) = [one for one in result.groups if one.group.startswith(group)]
    return {path.name: path for path in found.paths}


PRECISIONS = [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 3e-2, 6e-2), (torch.float16, 2e-3, 2e-2)]


class Toy:
    """A perturbed model in one precision, a batch, and what the naive form gives for it in float64."""

    def __init__(self, dtype):
        self.model = perturb(build("stage1", use_complex32=False)).to(dtype)
        ids = torch.randint(53, (3, 12), generator=torch.Generator().manual_seed(0))
        self.inputs, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        exact = NaiveStage1(self.model).double()
        exact.loss(self.inputs, self.targets).backward()
        self.logits, self.gradients = exact(self.inputs), {k: g for k, g in gradients(exact).items() if g is not None}

    def both(self):
        """Loss and logits, as one function to compile."""
        return self.model.loss(self.inputs, self.targets), self.model(self.inputs)

    def agrees(self, module, found, forward, gradient):
        loss, logits = found
        module.zero_grad()
        (loss * 64).backward()
        got = {key: grad.float() / 64 for key, grad in gradients(module).items() if grad is not None}
        assert worst_gradient(got, self.gradients) < gradient
        assert rms_error(logits, self.logits) < forward


@pytest.mark.parametrize(("dtype", "forward", "gradient"), PRECISIONS)
def test_naive_and_eager_agree_in_forward_and_gradients(dtype, forward, gradient):
    toy = Toy(dtype)
    naive = NaiveStage1(toy.model)
    with planar.cpu_compute("float32"):  # the compute dtype of halves differs between processors
        toy.agrees(toy.model, toy.both(), forward, gradient)
        toy.agrees(naive, (naive.loss(toy.inputs, toy.targets), naive(toy.inputs)), forward, gradient)


@no_compiler
@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles; this test is about numbers
@pytest.mark.parametrize(("dtype", "forward", "gradient"), PRECISIONS)
def test_compiled_they_agree_too(dtype, forward, gradient):
    toy = Toy(dtype)
    torch.compiler.reset()
    with planar.cpu_compute("float32"):
        compiled = torch.compile(toy.both, dynamic=False)  # loss and logits in one: their kernels are the same ones
        toy.agrees(toy.model, compiled(), forward, gradient)


def test_every_path_is_timed_after_its_checks(without_compiler):
    result = tiny()
    assert [group.group for group in result.groups] == ["forward_3x11", "training_2x11", "head_17", "stack_2x11"]
    for group in result.groups:
        for path in group.paths:
            if path.status == "timed":
                assert path.checks, path
                assert all(check.ok for check in path.checks), path
                assert 2 <= len(path.seconds) <= 3
        assert {"muse eager", group.baseline} <= {path.name for path in group.paths if path.status == "timed"}
    assert {name: path.status for name, path in paths(result, "forward").items()} == {
        "muse compiled": "missing", "muse eager": "timed", "naive": "timed",
    }  # fmt: skip
    assert {check.quantity for check in paths(result, "training")["naive"].checks} == {
        "loss", "gradient", "worst_gradient",
    }  # fmt: skip
    assert paths(result, "head")["muse eager"].extra_bytes > 0
    assert paths(result, "stack")["complex64"].status == "timed"


def test_metrics_follow_the_record_contract(without_compiler):
    result = tiny(groups=("head",))
    metrics = {(metric.name, metric.model): metric for metric in result.metrics()}
    speed = metrics["bench_head_17_speed", "naive"]
    assert (speed.unit, speed.n) == ("token/s", len(speed.samples))
    assert speed.interval[0] <= speed.value <= speed.interval[1]
    assert metrics["bench_head_17_ratio", "naive"].value == 1
    assert metrics["bench_head_17_loss_error", "muse eager"].unit == "nat"
    assert metrics["bench_head_17_gradient_error", "muse eager"].value < 0.1
    assert metrics["bench_head_17_extra_memory", "naive"].basis == "estimate"
    share = metrics["bench_head_17_matrix_share", "naive"].value
    seconds = metrics["bench_head_17_milliseconds", "naive"].value / 1e3
    assert share == pytest.approx(6 * 53 * 6 * 17 / seconds / metrics["bench_matrix_ceiling", ""].value)
    stack = {metric.name: metric for metric in tiny(groups=("stack",)).metrics() if metric.model == "muse compiled"}
    missing = stack["bench_stack_2x11_speed"]
    assert (missing.value, missing.n) == (None, 0)
    assert missing.note == "missing: no compiler: none for this test"


def flipped(z, weight_real, weight_imag, *bias, linear=planar.linear):
    return linear(z, weight_real, -weight_imag, *bias)


def forgetful(z, weight_real, weight_imag, *bias, linear=planar.linear):
    return linear(z, weight_real, weight_imag)


@pytest.mark.parametrize("broken", [flipped, forgetful])
def test_a_wrong_sign_or_a_forgotten_bias_is_refused(broken, monkeypatch, without_compiler):
    monkeypatch.setattr(planar, "linear", broken)
    result = tiny(groups=("forward", "training", "stack"))
    for group in ("forward", "training", "stack"):
        found = paths(result, group)
        assert found["muse eager"].status == "refused", group
        assert not found["muse eager"].seconds
        assert not all(check.ok for check in found["muse eager"].checks)
        assert found["naive"].status == "timed"
    metrics = {(metric.name, metric.model): metric for metric in result.metrics()}
    speed = metrics["bench_forward_3x11_speed", "muse eager"]
    assert (speed.value, speed.samples) == (None, [])
    assert "refused: not equal to the reference" in speed.note
    assert ("bench_forward_3x11_ratio", "muse eager") not in metrics
    table = "\n".join(bench_tables(result.metrics()))
    assert "refused: not equal to the reference, so no speed is given; forward error" in table


def test_a_wrong_gradient_of_the_head_is_refused(monkeypatch, without_compiler):
    def wrong(total, g, x, first, add=cross_entropy._add_weight_gradient):
        return add(total, -g, x, first)

    monkeypatch.setattr(cross_entropy, "_add_weight_gradient", wrong)
    monkeypatch.setattr(cross_entropy, "default_chunk_tokens", lambda num_tokens, on_cpu: 5)
    found = paths(tiny(groups=("head",)), "head")["muse eager"]
    assert found.status == "refused"
    assert [check.ok for check in found.checks] == [True, False, False]


def test_libraries_that_are_not_installed_are_reported(monkeypatch, without_compiler):
    def absent(name, stack):
        raise PathMissingError(f"{name} is not here")

    monkeypatch.setattr(stack_bench, "build_library_stack", absent)
    result = tiny(groups=("stack",))
    found = paths(result, "stack")
    for name in ("complex64", "complextorch", "complexPyTorch"):
        assert (found[name].status, found[name].note) == ("missing", f"{name} is not here")
    assert found["muse eager"].status == found["naive"].status == "timed"
    assert "complextorch is not here" in "\n".join(bench_tables(result.metrics()))


def test_without_a_compiler_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "some-compiler")
    assert ways.compiler_problem(CPU) == "no compiler: some-compiler is not on this machine"
    with pytest.raises(PathMissingError, match="some-compiler"):
        ways.compiled(lambda: None, CPU)


def test_without_cuda_models_say_so_and_memory_is_an_estimate():
    metrics = tiny(groups=("models", "angles", "memory")).metrics()
    notes = {metric.name: metric.note for metric in metrics if metric.value is None}
    why = "missing: full-size models are trained in turn on CUDA only"
    assert notes == {"bench_models_speed": why, "bench_angles_speed": why}
    peaks = {metric.model: metric for metric in metrics if metric.name == "bench_peak_memory"}
    assert {metric.basis for metric in peaks.values()} == {"estimate"}
    assert peaks["naive"].value > peaks["muse eager"].value > 0


def context(**changes):
    return Context(build, Settings(**SIZES | TINY | changes), CPU, torch.float32, passthrough, corpus)


def test_every_model_is_compared_with_gpt2_behind_one_gate(without_compiler, monkeypatch):
    monkeypatch.setattr(gradient_gate, "TRAINING_STEPS", 3)
    sizes = SIZES | {"vocab_size": 199, "d_model": 64, "n_layers": 1, "n_seq": 64}
    bench_of_models = replace(context(**sizes, throughput_n_tokens=64), build=partial(build_model, **sizes))
    result = compare_models(bench_of_models, "eager", 2)
    assert {path.name: path.status for path in result.paths} == dict.fromkeys(COMPARED, "timed")
    for path in result.paths:
        assert [check.quantity for check in path.checks] == [f"gradient_{state}" for state in GATE_STATES]
        assert {check.tolerance for check in path.checks} == {gradient_gate.GATE}
    shares = {m.model: m.value for m in result.metrics(1.0, 1.0) if m.name == "bench_models_eager_2x64_matrix_share"}
    times = {path.name: statistics.median(path.seconds) for path in result.paths}
    flops = {name: 3 * flops_per_token(build_model(name, **sizes), 64) for name in COMPARED}
    assert shares == {name: pytest.approx(128 * flops[name] / times[name]) for name in COMPARED}
    assert "gradient_trained" in "\n".join(bench_tables(result.metrics(1.0, 1.0)))
    assert {path.status for path in compare_models(bench_of_models, "compiled", 2).paths} == {"missing"}


def test_chosen_models_are_compared_and_gated_beside_the_yardstick(monkeypatch):
    chosen = replace(context(bench_models=["stage1_memory", "stage1_compact"]), device=torch.device("cuda"))
    in_order = [name for name in COMPARED if name in ("stage1_memory", "stage1_compact", YARDSTICK)]
    asked = []
    monkeypatch.setattr(training_bench, "compare_models", lambda bench, *about: asked.append(about) or about)
    list(training_bench.models(chosen))
    assert [(about[0], about[3]) for about in asked] == [("eager", in_order), ("compiled", in_order)]
    asked.clear()
    one_mode = chosen.settings.model_copy(update={"bench_modes": ["compiled"]})
    list(training_bench.models(replace(chosen, settings=one_mode)))
    assert [about[0] for about in asked] == ["compiled"]
    monkeypatch.setattr(gradient_gate, "_errors", lambda bench, name: iter([name]))
    monkeypatch.setattr(gradient_gate, "free", lambda device: None)
    assert list(gradient_gate.gate(replace(chosen, device=CPU))) == in_order
    assert list(gradient_gate.gate(context())) == list(COMPARED)


def test_what_angles_from_the_token_cost_is_a_ratio_of_two_trainings(without_compiler, monkeypatch):
    monkeypatch.setattr(gradient_gate, "TRAINING_STEPS", 3)
    asked = []
    monkeypatch.setattr(training_bench, "compare_models", lambda bench, *about: asked.append(about) or about)
    on_cuda = replace(context(), device=torch.device("cuda"))
    assert list(training_bench.angles(on_cuda)) == asked
    assert [about[:2] for about in asked] == [("eager", 2), ("compiled", 2)]
    sizes = SIZES | {"vocab_size": 199, "d_model": 64, "n_layers": 1, "n_seq": 64}
    here = replace(context(**sizes, throughput_n_tokens=64), build=partial(build_model, **sizes))
    result = compare_models(here, "eager", 2, *asked[0][2:])
    assert {path.name: path.status for path in result.paths} == dict.fromkeys((COMPACT_ANGLES, COMPACT), "timed")
    took = {path.name: path.typical_seconds for path in result.paths}
    (ratio,) = [m for m in result.metrics(1.0, 1.0) if m.name.endswith("_ratio") and m.model == COMPACT_ANGLES]
    assert ratio.value == pytest.approx(took[COMPACT] / took[COMPACT_ANGLES])


def test_a_group_that_cannot_be_prepared_stops_no_other(monkeypatch, without_compiler):
    def broken(self):
        raise MemoryError("too large")
        yield

    monkeypatch.setitem(GROUPS, "forward", broken)
    result = tiny(groups=("forward", "head"))
    assert [group.group for group in result.groups] == ["head_17"]
    (metric,) = [metric for metric in result.metrics() if metric.name == "bench_forward_speed"]
    assert metric.note == "failed: MemoryError: too large"


def test_every_result_is_handed_over_as_soon_as_it_is_there(without_compiler):
    seen = []
    tiny(groups=("memory", "head"), on_result=lambda so_far: seen.append(so_far.results))
    assert [len(results) for results in seen] == [1, 2, 3]
    assert seen[0] == seen[2][:1]


def test_trials_of_the_stack_do_not_share_their_input(without_compiler):
    stack = perturb(PlanarStack(6, 1), 0)
    z, g = torch.randn(2, 2, 11, 12, generator=torch.Generator().manual_seed(0))
    inputs = stack_bench.Inputs.of(stack, z, g)
    for module in (stack, copy.deepcopy(stack)):
        checks = stack_bench.stack_trial(context(n_layers=1), inputs, module, None).check()
        assert all(check.ok for check in checks), checks
        assert not z.requires_grad


def compared(candidates, **changes):
    work = {"baseline": "good", "tokens_per_call": 4, "device": CPU, "flops_per_token": 1.0, "least_bytes": 8,
            "warmups": 0, "samples": 4, "limit_seconds": 9.0} | changes  # fmt: skip
    return {path.name: path for path in compare("toy", candidates, **work).paths}


def good(call=lambda: None):
    return Trial(call, lambda: [Check("forward", 0.0, 1e-3)])


def test_one_path_that_raises_stops_no_other():
    calls = iter(range(9))

    def breaks_later():
        if next(calls) == 2:
            raise RuntimeError("CUDA out of memory.\nTried to allocate")

    def breaks_at_once():
        raise RuntimeError("\n cannot compile\nmore")

    found = compared({"later": partial(good, breaks_later), "once": breaks_at_once, "good": good})
    assert (found["later"].status, found["later"].note) == ("failed", "RuntimeError: CUDA out of memory.")
    assert found["later"].seconds == ()
    assert (found["once"].status, found["once"].note) == ("failed", "RuntimeError: cannot compile")
    assert len(found["good"].seconds) == 4


def test_what_compiles_at_its_first_calls_is_timed_after_them():
    """A step that is compiled for what is timed, and captured, takes seconds before it takes what it takes."""
    clock, done = [], []

    def call():
        time.sleep(0.0 if len(done) > 2 else 0.05)
        done.append(1)

    def ready():
        clock.append("ready")
        for _ in range(3):
            call()

    trials = {"good": lambda: Trial(call, lambda: clock.append("check") or [Check("forward", 0.0, 1e-3)], ready=ready)}
    found = compared(trials, limit_seconds=0.04)["good"]
    assert clock == ["check", "ready"]
    assert len(found.seconds) == 4
    assert max(found.seconds) < 0.04
    refused = {"good": lambda: Trial(call, lambda: [Check("forward", 1.0, 1e-3)], ready=ready)}
    assert compared(refused)["good"].status == "refused"
    assert clock == ["check", "ready"], "what is refused is not made ready"


def test_a_compiled_step_is_captured_before_it_is_timed(monkeypatch):
    counted, made = [], []
    monkeypatch.setattr(training_bench, "compiled", lambda loss, device: loss)
    monkeypatch.setattr(training_bench, "training_step", lambda *a, replayed, **how: lambda: counted.append(replayed))
    for device in (CPU, torch.device("cuda")):
        on = replace(context(), device=device)
        for compile_loss in (False, True):
            trial = training_bench.training_trial(on, lambda: build("stage1", use_complex32=False), ids=None,
                                                  targets=None, check=print, compile_loss=compile_loss)  # fmt: skip
            if trial.ready:
                trial.ready()
            made.append(len(counted))
            counted.clear()
    assert made == [0, 1, 0, WARMUPS + 1]


def test_a_path_without_checks_or_with_nan_is_not_timed():
    found = compared({
        "none": lambda: Trial(lambda: None, list),
        "nan": lambda: Trial(lambda: None, lambda: [check("forward", float("nan"), torch.float32)]),
        "good": good,
    })  # fmt: skip
    assert found["none"].status == "failed"
    assert found["nan"].status == "refused"
    assert found["nan"].seconds == ()


def test_an_interruption_is_no_failure_of_a_path():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared({"good": partial(good, interrupted)})


def test_errors_are_relative_and_the_worst_gradient_counts():
    assert relative_rms([(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))]) == pytest.approx(0.5**0.5)
    assert relative_rms([(torch.zeros(2), torch.zeros(2))]) == 0
    assert relative_rms([(torch.ones(2), torch.zeros(2))]) == float("inf")
    with pytest.raises(ValueError, match="shapes differ"):
        relative_rms([(torch.ones(2), torch.ones(1))])
    want = {"large": torch.full((100,), 10.0), "small": torch.ones(1)}
    assert worst_gradient({"large": want["large"], "small": -torch.ones(1)}, want) == 2
    assert worst_gradient({"large": want["large"]}, want) == float("inf")
    hidden = check_gradients(want | {"small": torch.tensor([-1.0])}, want, torch.bfloat16)
    assert [found.ok for found in hidden] == [True, False], "a wrong sign in a small parameter must not hide"
    for wrong in (want | {"small": torch.tensor([torch.nan])}, {"large": want["large"]}):
        assert not any(found.ok for found in check_gradients(wrong, want, torch.bfloat16))


@pytest.mark.parametrize("language", ["en", "ja"])
def test_each_group_has_a_figure_that_names_every_path(language, without_compiler):
    metrics = tiny(groups=("head", "models")).metrics()
    now = utc_now()
    record = StageRecord(stage="bench", started_utc=now, finished_utc=now, scale="published", metrics=metrics)
    (figure,) = bench_figures(record, language)
    assert len(figure.data) == sum(metric.name == "bench_head_17_ratio" for metric in metrics)
    for path in ("muse eager", "naive", "naive float32"):
        assert path in figure.layout.meta["alt"]
    assert "1.00×" in figure.layout.meta["alt"]


SETTINGS = ["vocab_size=53", "d_model=6", "n_layers=1", "n_seq=128", "throughput_n_tokens=5", "bench_head_tokens=7",
            "throughput_samples=2", "throughput_warmups=1", "device=cpu", "bench_groups=[head]"]  # fmt: skip


def test_the_command_prints_tables_and_writes_a_record(tmp_path, capsys, monkeypatch, without_compiler):
    monkeypatch.chdir(tmp_path)  # where a relative folder starts, unlike those of a notebook
    arguments = ["bench", "--out", "out", *(word for one in SETTINGS for word in ("-p", one))]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "head 7" in shown
    assert "muse eager" in shown
    assert shown.rstrip().endswith("bench.json")
    record = read_record(BenchRecord, tmp_path / "out" / "bench.json")
    assert (record.stage.stage, record.stage.scale) == ("bench", "reduced")
    assert (record.stage.params["bench_head_tokens"], record.run.params) == (7, {})
    assert record.run.hardware["cpu"]
    assert record.run.command.startswith("muse bench --out")
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["schema_version"] == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "bench_groups=[nonsense]"], "bench_groups[0]: got 'nonsense'"),
        (["-p", "bench_seconds=0"], "bench_seconds: got 0"),
        (["no-such-file.yaml"], "cannot be read"),
        (["--out", __file__], "is no folder"),
    ],
)
def test_bad_parameters_give_2(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_every_group_of_the_catalog_is_there():
    assert set(GROUPS) == set(BENCH_GROUPS)


def test_a_bench_that_is_cut_keeps_what_it_has_and_the_finished_one(tmp_path, monkeypatch):
    def cut(stage, keep):
        keep(SimpleNamespace(metrics=lambda: [Metric(name="bench_seconds", value=1.0, unit="s")]))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_info", lambda *_: run_info())
    monkeypatch.setattr(throughput, "run_bench", cut)
    (tmp_path / "bench.json").write_text("finished")
    assert cli.main(["bench", "--out", str(tmp_path), "-p", "device=cpu"]) == 130
    assert (tmp_path / "bench.json").read_text() == "finished"
    assert read_record(BenchRecord, tmp_path / "bench.unfinished.json").stage.find("bench_seconds").value == 1.0


def test_writing_is_timed_beside_a_cached_gpt2_and_each_path_is_checked():
    result = tiny(groups=("generation",))
    found = paths(result, "generation_2")
    assert list(found) == ["stage1_memory", "stage1_compact", "gpt2", "stage1_memory by its blocks"]
    assert all(path.status == "timed" and path.checks for path in found.values()), found
    assert result.groups[0].tokens_per_call == SIZES["n_seq"] - 2


@pytest.mark.parametrize("batch", [1, 3])
def test_paths_of_graphs_are_right_here_without_a_graph(batch):
    """As on CUDA, but for the capture: their logits, their tokens, and both again from the start."""
    here = replace(context(), build=partial(build_model, vocab_size=53, d_model=8, n_layers=2, n_seq=40))
    built = {name: here.build(name).eval() for name in ("stage1_memory", "stage1_compact", "gpt2")}
    ids, first = here.tokens(batch, 30), here.tokens(batch, 23)[:, 22:]
    found = generation.paths_of(built, graphs=True)
    static = {name: path for name, path in found.items() if "one graph" in name}
    assert list(static) == ["stage1_memory one graph", "stage1_compact one graph", "gpt2 static cache, one graph"]
    with torch.no_grad():
        for name, (model, start) in static.items():
            plain = found[model][1](built[model], ids[:, :22])
            writes = start(built[model], ids[:, :22])
            for more in (ids[:, 22:], ids[:, 22:].flip(1)):
                want = built[model](torch.cat([ids[:, :22], more], 1))[:, 22:]
                assert rms_error(writes.logits(more), want) < 1e-5, name
                assert torch.equal(writes.write(first, 7), plain.write(first, 7)), name


def test_the_step_with_a_static_cache_needs_no_number_that_only_the_device_knows():
    """On tensors without data whoever asks for one fails, as a capture would."""
    model, ids = build("gpt2", use_complex32=False).eval(), context().tokens(3, 7)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        library = without_data(model, mode).gpt2
        library.tie_weights()
        step = StaticGpt2(library, mode.from_tensor(ids), 12)
        with AsCaptured():
            step.restart(step.token.clone())
            step()
        assert step.logits.shape == (3, SIZES["vocab_size"])


def test_prompts_and_batches_are_those_of_the_settings_and_a_reference_is_computed_once(monkeypatch):
    exact, asked = generation.exact, []
    monkeypatch.setattr(generation, "exact", lambda model, *given: (asked.append(model), exact(model, *given))[1])
    monkeypatch.setitem(SIZES, "n_seq", WRITTEN_TOKENS + 7)
    result = tiny(groups=("generation",), sizes={"bench_prompts": [7, 3, 99], "bench_generation_batches": [1, 2]})
    assert [group.group for group in result.groups] == [f"generation_{name}" for name in ("3", "7", "2x3", "2x7")]
    assert all(path.status == "timed" for group in result.groups for path in group.paths)
    assert len(asked) == 4 * 3


def test_launches_are_counted_after_the_timing_and_one_that_cannot_be_costs_no_speed():
    def trial(launches):
        return lambda: Trial(lambda: None, lambda: [Check("forward", 0.0, 1.0)], launches=launches)

    def refuse():
        raise RuntimeError("no profiler")

    counts = {"counted": trial(lambda: 7), "unknown": trial(lambda: None), "refused": trial(refuse)}
    found = compare("x", counts, baseline="counted", tokens_per_call=1, device=CPU, flops_per_token=1.0, least_bytes=5,
                    warmups=0, samples=2, limit_seconds=1.0)  # fmt: skip
    assert [(path.status, path.launches) for path in found.paths] == [("timed", 7), ("timed", None), ("timed", None)]
    assert found.paths[2].note == "launches not counted: RuntimeError: no profiler"
    told = {(m.name, m.model): m.value for m in found.metrics(1.0, 1.0)}
    assert told["bench_x_launches", "counted"] == 7
    assert told["bench_x_least_bytes", "refused"] == 5
    assert ("bench_x_launches", "unknown") not in told


def test_a_long_reference_is_read_in_pieces(monkeypatch):
    ids = context().tokens(1, 12)
    for name in ("stage1_memory", "gpt2"):
        model = build(name, use_complex32=False).eval()
        with torch.no_grad():
            want = generation.exact(model, ids, 9)
            monkeypatch.setattr(generation, "WHOLE_TOKENS", 5)
            assert rms_error(generation.exact(model, ids, 9), want) < 1e-10
        monkeypatch.undo()


def test_a_step_that_is_wrong_gets_no_speed(monkeypatch):
    step = step_parts.Table.__call__
    monkeypatch.setattr(step_parts.Table, "__call__", lambda table, *given: 1.5 * step(table, *given).roll(1, 1))
    found = paths(tiny(groups=("generation",)), "generation")
    refused = {name for name, path in found.items() if path.status == "refused"}
    assert refused == {"stage1_memory", "stage1_compact"}
