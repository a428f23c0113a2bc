"""The training loop: what it computes, what it chooses, how it stops and how it goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from muse.data.batches import evaluation_batches, num_targets
from muse.data.corpus import Corpus, TokenSplit
from muse.host.signals import ENDING
from muse.models.build import build_model
from muse.models.weights import DRAWS, CheckpointError, load_trained, read_tensors
from muse.params import Settings
from muse.records.environment import device_hardware
from muse.training import trainer as module
from muse.training.live import Followed, curves_svg, live_curve, marks, training_bar
from muse.training.recipe import Recipe, Report
from muse.training.trainer import DeadGradientError, NonFiniteLossError, train
from muse.training.tuning import choose_and_train

VOCAB_SIZE, N_SEQ = 13, 8
SIZES = {"vocab_size": VOCAB_SIZE, "d_model": 8, "n_layers": 1, "n_seq": N_SEQ}
RECIPE = Recipe(train_tokens=40 * 32, batch_tokens=35, n_seq=N_SEQ, learning_rate=0.01, dropout=0.2, evaluations=4)
stage1 = partial(build_model, "stage1", **SIZES)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def split(name: str, ids: torch.Tensor) -> TokenSplit:
    ids = ids.to(torch.int32)
    return TokenSplit(name, ids, torch.zeros(1, dtype=torch.int64), len(ids), len(ids), f"{name} {ids.tolist()}")


def make_corpus(num_train: int = 400, num_validation: int = 61, seed: int = 0, step: int = 3) -> Corpus:
    """Tokens that mostly grow by `step`, with some noise."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> torch.Tensor:
        noisy = torch.rand(count, generator=generator) < 0.1
        noise = noisy * torch.randint(VOCAB_SIZE, (count,), generator=generator)
        return (torch.arange(count) * step + noise) % VOCAB_SIZE

    splits = {"train": split("train", ids(num_train)), "validation": split("validation", ids(num_validation))}
    return Corpus("made", "corpus", VOCAB_SIZE, splits, (), None, str)


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = VOCAB_SIZE
    d_model: int = 8
    n_layers: int = 1
    n_seq: int = N_SEQ
    dropout: float = 0.0


class Toy(nn.Module):
    """A bigram table, with a way to spoil its loss or its gradient at a given step."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, spoil: str = "", at_step: int = 0, **sizes: int) -> None:
        super().__init__()
        self.config = ToyConfig(dropout=dropout, **sizes)
        self.table = nn.Embedding(VOCAB_SIZE, VOCAB_SIZE)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(seed))
        self.bias = nn.Parameter(torch.zeros(VOCAB_SIZE))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.calls, self.spoil, self.at_step = 0, spoil, at_step

    def loss(self, token_ids, targets, reduction="mean"):
        logits = self.table(token_ids) + self.bias
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        if self.training:
            self.calls += 1
            if self.spoil == "loss" and self.calls == self.at_step:
                loss = loss * math.inf
            if self.spoil == "gradient" and self.calls == self.at_step:
                logits.register_hook(lambda gradient: gradient * math.nan)
        return loss


def same(first: module.TrainingResult, second: module.TrainingResult) -> bool:
    """Whether two trainings computed the very same things, however often they were interrupted."""
    timing = {"tokens_per_second": 0.0, "tokens_per_second_samples": (), "seconds": 0.0, "started_utc": "",
              "finished_utc": "", "weights": Path(), "weights_sha256": "", "resumed_from_steps": (),
              "reused": False}  # fmt: skip
    tensors = [read_tensors(result.weights, "muse-weights-1")[0] for result in (first, second)]
    equal = all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    return replace(first, **timing) == replace(second, **timing) and tensors[0].keys() == tensors[1].keys() and equal


def at_step(step: int, act) -> module.OnReport:
    """Call `act` once, when the training reports its `step`."""
    done = []

    def on_report(report: Report) -> None:
        if report.step == step and not done:
            done.append(step)
            act()

    return on_report


def stopped_and_resumed(name: str, build, recipe: Recipe, corpus, folder: Path) -> module.TrainingResult:
    """A training that an interrupt stopped after its step 15, and that the same command went on with."""
    stop = at_step(15, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(name, build, recipe, corpus, folder, on_report=stop)
    resumed = train(name, build, recipe, corpus, folder)
    assert resumed.resumed_from_steps == (15,)
    return resumed


# The recipe


def test_the_budget_becomes_whole_steps_of_whole_sequences():
    assert (RECIPE.batch_size, RECIPE.tokens_per_step, RECIPE.steps) == (4, 32, 40)
    assert replace(RECIPE, train_tokens=40 * 32 + 1).steps == 41
    assert replace(RECIPE, train_tokens=1).steps == 1


def test_learning_rate_rises_linearly_and_falls_like_a_cosine():
    recipe = Recipe(train_tokens=80, batch_tokens=8, n_seq=8, learning_rate=0.5, warmup_share=0.2)
    cosine = [1, math.cos(math.pi / 16) ** 2, math.cos(math.pi / 8) ** 2]
    expected = [0.25, 0.5, *(0.5 * c for c in cosine)]
    assert [recipe.learning_rate_at(step) for step in range(5)] == pytest.approx(expected)
    assert recipe.learning_rate_at(6) == pytest.approx(0.25)  # half way between step 2 and step 10
    assert 0 < recipe.learning_rate_at(9) < 0.02
    assert replace(recipe, warmup_share=0.0).learning_rate_at(0) == 0.5


def test_evaluations_are_evenly_spaced_and_end_at_the_end():
    assert sorted(RECIPE.evaluation_steps()) == [10, 20, 30, 40]
    assert sorted(replace(RECIPE, evaluations=3).evaluation_steps()) == [13, 27, 40]
    assert sorted(replace(RECIPE, train_tokens=64, evaluations=9).evaluation_steps()) == [1, 2]


@pytest.mark.parametrize("wrong", [{"train_tokens": 0}, {"batch_tokens": 7}, {"precision": "half"}, {"evaluations": 0},
                                   {"optimizer": "sgd"}])  # fmt: skip
def test_a_recipe_says_what_is_wrong_with_it(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got .*expected"):
        replace(RECIPE, **wrong)


def test_only_trained_matrices_decay():
    model = Toy()
    decayed, others = module.parameter_groups(model, 0.3)
    assert decayed["params"] == [model.table.weight]
    assert others["params"] == [model.bias]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)


def test_weight_decay_reaches_the_weights(tmp_path):
    results = [train("toy", Toy, replace(RECIPE, weight_decay=d), make_corpus(), tmp_path) for d in (0.0, 10.0)]
    norms = [read_tensors(result.weights, "muse-weights-1")[0]["table.weight"].norm() for result in results]
    assert norms[1] < 0.8 * norms[0]


def test_gradients_are_clipped(tmp_path):
    """A clip far below AdamW's epsilon leaves nothing to learn from."""
    recipe = replace(RECIPE, weight_decay=0.0, gradient_clip=1e-13)
    tensors, _ = read_tensors(train("toy", Toy, recipe, make_corpus(), tmp_path).weights, "muse-weights-1")
    assert (tensors["table.weight"] - Toy().table.weight).abs().max() < 1e-4


# What a training computes


def test_overfits_one_batch(tmp_path):
    corpus = make_corpus(num_train=N_SEQ + 1)
    recipe = replace(RECIPE, train_tokens=150 * 32, dropout=0.0, weight_decay=0.0, learning_rate=0.03)
    result = train("stage1", stage1, recipe, corpus, tmp_path)
    assert result.training_curve[0][1] > 2
    assert result.training_curve[-1][1] < 0.05


@pytest.mark.parametrize("name", ["stage1", "phase2", "gpt2"])
def test_every_model_learns_and_comes_back_from_its_file(tmp_path, name):
    corpus = make_corpus()
    result = train(name, partial(build_model, name, **SIZES), replace(RECIPE, train_tokens=3200), corpus, tmp_path)
    assert result.steps == 100
    assert result.best_validation_loss < 0.9 * math.log(VOCAB_SIZE)
    model = load_trained(result.weights.parent, build_model)
    assert not model.training
    assert validation_loss(model, corpus) == pytest.approx(result.best_validation_loss, rel=1e-5)


def validation_loss(model: nn.Module, corpus: Corpus) -> float:
    ids = corpus.splits["validation"].ids
    with torch.no_grad():
        losses = [model.loss(x, y, reduction="none").flatten() for x, y in evaluation_batches(ids, N_SEQ, 3)]
    assert sum(map(len, losses)) == num_targets(ids)
    return torch.cat(losses).double().mean().item()


def test_equal_seeds_are_equal_and_leave_the_callers_random_state_alone(tmp_path):
    corpus, before = make_corpus(), torch.get_rng_state()
    first = train("stage1", stage1, RECIPE, corpus, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    second = train("stage1", stage1, RECIPE, corpus, tmp_path / "b")
    other = train("stage1", stage1, replace(RECIPE, seed=1), corpus, tmp_path / "b")
    assert same(first, second)
    assert other.training_curve[0] != first.training_curve[0]


def test_curves_count_tokens(tmp_path):
    corpus = make_corpus()
    result = train("toy", Toy, replace(RECIPE, train_tokens=450 * 32), corpus, tmp_path)
    assert [tokens for tokens, _ in result.training_curve] == [32 * step for step in [*range(3, 451, 3)]]
    assert [tokens for tokens, _ in result.validation_curve] == [32 * step for step in (112, 225, 338, 450)]
    assert len(result.tokens_per_second_samples) == 150
    assert result.tokens_per_second == statistics.median(result.tokens_per_second_samples) > 0


def test_curve_points_are_means_of_their_steps(tmp_path, monkeypatch):
    corpus = make_corpus()
    each = train("toy", Toy, RECIPE, corpus, tmp_path / "each")
    monkeypatch.setattr(module, "CURVE_POINTS", 8)
    fives = train("toy", Toy, RECIPE, corpus, tmp_path / "fives")
    losses = [loss for _, loss in each.training_curve]
    means = [statistics.fmean(losses[i : i + 5]) for i in range(0, 40, 5)]
    assert [loss for _, loss in fives.training_curve] == pytest.approx(means, rel=1e-12)


def test_the_checkpoint_is_the_best_on_validation(tmp_path):
    corpus = make_corpus(num_train=33)
    corpus.splits["validation"] = make_corpus(step=5, num_train=90).splits["train"]  # what is learned is wrong there
    recipe = replace(RECIPE, train_tokens=96 * 32, evaluations=16, dropout=0.0)
    result = train("stage1", stage1, recipe, corpus, tmp_path)
    losses = [loss for _, loss in result.validation_curve]
    assert result.best_validation_loss == min(losses) < losses[-1] - 0.1
    assert result.best_step * 32 == result.validation_curve[losses.index(min(losses))][0]
    assert validation_loss(load_trained(result.weights, build_model), corpus) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_float32_masters(tmp_path, precision):
    corpus = make_corpus()
    full = train("stage1", stage1, replace(RECIPE, precision="float32"), corpus, tmp_path)
    half = train("stage1", stage1, replace(RECIPE, precision=precision), corpus, tmp_path)
    assert half.precision == precision
    assert half.training_curve != full.training_curve
    assert half.best_validation_loss == pytest.approx(full.best_validation_loss, rel=0.05)
    tensors, _ = read_tensors(half.weights, "muse-weights-1")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_auto_is_float32_on_the_cpu(tmp_path):
    corpus = make_corpus()
    first = train("stage1", stage1, RECIPE, corpus, tmp_path)
    assert first.precision == "float32"
    assert train("stage1", stage1, replace(RECIPE, precision="float32"), corpus, tmp_path).reused


# Stopping and going on


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_non_finite_step_stops_with_its_number_and_learning_rate(tmp_path, spoil):
    recipe = replace(RECIPE, checkpoint_every_steps=5)
    rate = f"{recipe.learning_rate_at(16):.3g}"
    with pytest.raises(NonFiniteLossError, match=rf"toy seed 0.*{spoil}.* (inf|nan) at step 17 of 40.*{rate};"):
        train("toy", partial(Toy, spoil=spoil, at_step=17), recipe, make_corpus(), tmp_path)
    (folder,) = tmp_path.iterdir()
    tensors, about = read_tensors(folder / "state.safetensors", "muse-training-state-1")
    assert about["scalars"]["step"] == 15
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_no_checkpoint_holds_unread_losses(tmp_path, monkeypatch):
    """With losses that stay on the device for 25 steps, a checkpoint still finds the bad one first."""
    monkeypatch.setitem(module.READ_EVERY_STEPS, "cpu", 25)
    build, recipe = partial(Toy, spoil="loss", at_step=9), replace(RECIPE, checkpoint_every_steps=10)
    with pytest.raises(NonFiniteLossError, match="at step 9 of 40"):
        train("toy", build, recipe, make_corpus(), tmp_path)
    assert not list(tmp_path.glob("*/state.safetensors"))


def test_rare_reading_changes_nothing(tmp_path, monkeypatch):
    corpus = make_corpus()
    often = train("stage1", stage1, RECIPE, corpus, tmp_path / "often")
    monkeypatch.setitem(module.READ_EVERY_STEPS, "cpu", 7)
    assert same(often, train("stage1", stage1, RECIPE, corpus, tmp_path / "rarely"))


def test_a_float16_overflow_skips_the_step_and_goes_on(tmp_path):
    recipe = replace(RECIPE, precision="float16")
    result = train("toy", partial(Toy, spoil="gradient", at_step=17), recipe, make_corpus(), tmp_path)
    assert result.steps == 40


@pytest.mark.parametrize(("number", "precision"), [(signal.SIGINT, "float16"), *((n, "float32") for n in ENDING)])
def test_an_interrupt_saves_the_state_once_and_the_same_command_resumes(tmp_path, monkeypatch, number, precision):
    """Stopped twice between checkpoints and curve points, and once during a validation pass."""

    def stop(at: int):
        def learning_rate_at(recipe, step):
            if step == at:
                signal.raise_signal(number)
            return rate_at(recipe, step)

        return learning_rate_at

    def stopped_evaluation(*arguments):
        signal.raise_signal(number)
        return evaluation_batches(*arguments)

    corpus, recipe, rate_at = make_corpus(), replace(RECIPE, precision=precision), Recipe.learning_rate_at
    monkeypatch.setattr(module, "CURVE_POINTS", 13)
    hours = [datetime(2026, 1, 2, hour, tzinfo=UTC) for hour in range(7)]
    clock = iter(hours)  # looked at when a training starts, also again, and when it ends
    monkeypatch.setattr(module, "utc_now", lambda: next(clock))
    whole = train("stage1", stage1, recipe, corpus, tmp_path / "whole")
    folder = tmp_path / "stopped"
    stops = [(Recipe, "learning_rate_at", stop(17)), (Recipe, "learning_rate_at", stop(29)),
             (module, "evaluation_batches", stopped_evaluation)]  # fmt: skip
    for change, step in zip(stops, (18, 30, 30), strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            with pytest.raises(KeyboardInterrupt):
                train("stage1", stage1, recipe, corpus, folder)
        (state,) = folder.glob("*/state.safetensors")
        assert read_tensors(state, "muse-training-state-1")[1]["scalars"]["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = train("stage1", stage1, recipe, corpus, folder)
    assert resumed.resumed_from_steps == (18, 30, 30)
    assert same(whole, resumed)
    times = [(result.started_utc, result.finished_utc) for result in (whole, resumed)]
    assert times == [(hours[at].isoformat(), hours[end].isoformat()) for at, end in ((0, 1), (2, 6))]
    assert resumed.hardware == whole.hardware == device_hardware(torch.device("cpu")) != ""
    assert sorted(p.name for p in resumed.weights.parent.iterdir()) == [
        ".lock", "config.json", "model.safetensors", "result.json"]  # fmt: skip


KILLED = """
import os, random, signal, socket, sys, time
import test_trainer as t
import torch

torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])  # its first use imports much

def start(folder, line):
    pid = os.fork()
    if pid:
        return pid
    try:
        def report(report):
            if line is not None:
                line.send(b"%d " % report.step)
                line.recv(1)  # goes on when it is told to
        t.train("stage1", t.stage1, t.TO_KILL, t.make_corpus(), sys.argv[1] + folder, on_report=report)
        os._exit(0)
    finally:
        os._exit(1)

choice = random.Random(int(sys.argv[2]))
for moment in sorted(choice.sample(range(10, 100), 3)):
    line, end = socket.socketpair()
    pid, step = start("/killed", end), 0
    end.close()
    while step < moment:
        step = int(line.recv(100))
        line.send(b".")
    time.sleep(choice.random() * 0.02)
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    print(step, flush=True)
for folder in ("/killed", "/whole"):
    assert os.waitpid(start(folder, None), 0)[1] == 0
"""
TO_KILL = replace(RECIPE, train_tokens=120 * 32, checkpoint_every_steps=7, evaluations=9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_three_times_is_bit_identical_to_never_killed(tmp_path):
    seed = str(random.SystemRandom().randrange(2**31))
    command = [sys.executable, "-c", KILLED, str(tmp_path), seed]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    killed, whole = (train("stage1", stage1, TO_KILL, make_corpus(), tmp_path / name) for name in ("killed", "whole"))
    assert killed.reused, seed
    assert whole.reused, seed
    assert whole.resumed_from_steps == ()
    reached = max(map(int, done.stdout.split()))
    assert 0 <= reached + 1 - killed.resumed_from_steps[-1] <= TO_KILL.checkpoint_every_steps + 1, (seed, done.stdout)
    assert same(killed, whole), seed
    assert killed.weights.read_bytes() == whole.weights.read_bytes(), seed


def test_a_finished_training_is_found_without_drawing_a_weight(tmp_path):
    class Draws(TorchFunctionMode):
        count = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.count += function.__name__ in DRAWS
            return function(*args, **(kwargs or {}))

    build, corpus = partial(build_model, "stage1", **SIZES), make_corpus()
    for found in (False, True):
        with Draws() as draws:
            assert train("stage1", build, RECIPE, corpus, tmp_path).reused == found
        assert (draws.count == 0) == found


@pytest.mark.parametrize("name", ["stage1", "stage1_memory", "phase2", "gpt2"])
def test_blocks_that_compute_again_train_to_the_same_weights_interrupted_or_not(tmp_path, name):
    built = []

    def build(**choices) -> nn.Module:
        built.append(build_model(name, **SIZES, **choices))
        return built[-1]

    corpus, again = make_corpus(), replace(RECIPE, recompute=True)
    kept = train(name, build, RECIPE, corpus, tmp_path / "kept")
    whole = train(name, build, again, corpus, tmp_path / "kept")
    assert [model.recompute for model in built[1::2]] == [False, True], "every other one is asked for its configuration"
    assert not whole.reused, "its speed is another"
    resumed = stopped_and_resumed(name, build, again, corpus, tmp_path / "stopped")
    assert same(kept, whole)
    assert same(whole, resumed)


@pytest.mark.parametrize("name", ["stage1_compact", "real_twin_compact", "phase2_compact", "gpt2"])
def test_muon_learns_interrupted_or_not_to_the_same_weights(tmp_path, name):
    def build(**choices) -> nn.Module:
        return build_model(name, **SIZES, **choices)

    corpus, recipe = make_corpus(), replace(RECIPE, optimizer="muon", muon_weight_decay=0.2)
    whole = train(name, build, recipe, corpus, tmp_path / "whole")
    resumed = stopped_and_resumed(name, build, recipe, corpus, tmp_path / "stopped")
    assert same(whole, resumed)
    assert whole.training_curve[-1][1] < whole.training_curve[0][1]
    adamw = train(name, build, RECIPE, corpus, tmp_path / "adamw")
    assert not same(whole, adamw)
    assert (whole.muon_weight_decay, adamw.muon_weight_decay) == (0.2, None)


def test_different_settings_never_share_a_folder(tmp_path):
    corpus, results = make_corpus(), []
    variants = [{}, {"learning_rate": 0.02}, {"weight_decay": 0.2}, {"warmup_share": 0.5}, {"evaluations": 2},
                {"gradient_clip": 0.5}, {"dropout": 0.0}, {"train_tokens": 320}, {"seed": 3}]  # fmt: skip
    short = replace(RECIPE, train_tokens=128)
    for change in variants:
        results.append(train("toy", Toy, replace(short, **change), corpus, tmp_path))
    results.append(train("toy", Toy, short, make_corpus(seed=5), tmp_path))
    results.append(train("other", Toy, short, corpus, tmp_path))
    assert not any(result.reused for result in results)
    assert len({result.weights for result in results}) == len(results)
    same_again = train("toy", Toy, replace(short, checkpoint_every_steps=1), corpus, tmp_path)
    assert same_again == replace(results[0], reused=True)


def test_equal_tokens_are_trained_once_wherever_they_were_read(tmp_path):
    corpus = make_corpus()
    first = train("toy", Toy, RECIPE, corpus, tmp_path)
    moved = train("toy", Toy, RECIPE, replace(corpus, name="/another/folder", tokenizer_name="/a/third"), tmp_path)
    assert moved.reused
    assert moved.weights == first.weights
    about = json.loads((first.weights.parent / "config.json").read_text())["about"]
    assert about["corpus"] == {"name": corpus.name, "tokenizer": corpus.tokenizer_name}


def test_foreign_and_damaged_folders_are_named(tmp_path):
    corpus = make_corpus()
    folder = train("toy", Toy, RECIPE, corpus, tmp_path).weights.parent
    result = (folder / "result.json").read_text()
    (folder / "result.json").write_text(result[:-30])
    with pytest.raises(CheckpointError, match=r"result\.json"):
        train("toy", Toy, RECIPE, corpus, tmp_path)
    (folder / "result.json").write_text(result)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["recipe"]["learning_rate"] = 1.0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json.*other settings"):
        train("toy", Toy, RECIPE, corpus, tmp_path)


def test_a_state_without_its_best_weights_is_refused(tmp_path):
    corpus = make_corpus()
    with pytest.raises(KeyboardInterrupt):
        train("toy", Toy, RECIPE, corpus, tmp_path, on_report=at_step(15, lambda: signal.raise_signal(signal.SIGINT)))
    (weights,) = tmp_path.glob("*/weights-*.safetensors")
    weights.unlink()
    with pytest.raises(CheckpointError, match=weights.name):
        train("toy", Toy, RECIPE, corpus, tmp_path)


# Choosing


def settings(folder: Path, **changes) -> Settings:
    values = {"train_tokens": 640, "batch_tokens": [32], "train_n_seq": N_SEQ, "train_d_model": 8,
              "train_n_layers": 1, "evaluations": 2, "checkpoint_dir": str(folder), "learning_rates": [1e-5, 1e-2],
              "dropouts": [0.0, 0.5]}  # fmt: skip
    return Settings(**values | changes)


def test_every_combination_is_tried_and_the_best_trains_every_seed(tmp_path):
    chosen = settings(tmp_path, tune_tokens=320, seeds=[4, 5])
    trained = choose_and_train(chosen, "stage1", make_corpus(), build_model)
    tried = {(t.choice.learning_rate, t.choice.dropout): t.validation_loss for t in trained.tries}
    assert set(tried) == {(1e-5, 0.0), (1e-5, 0.5), (1e-2, 0.0), (1e-2, 0.5)}
    assert (trained.choice.learning_rate, trained.choice.dropout) == min(tried, key=tried.get) == (1e-2, 0.0)
    for result, seed in zip(trained.results, (4, 5), strict=True):
        assert (result.seed, result.tokens, result.learning_rate, result.dropout) == (seed, 640, 1e-2, 0.0)
    assert not any(result.reused for result in trained.results)
    assert len(list(tmp_path.iterdir())) == 6
    assert [(run.seed, run.tokens) for run in trained.runs] == [(4, 320)] * 4 + [(4, 640), (5, 640)]
    assert [run.best_validation_loss for run in trained.runs[:4]] == [t.validation_loss for t in trained.tries]
    for run, result in zip(trained.runs[4:], trained.results, strict=True):
        assert (run.seconds, run.steps, run.hardware) == (result.seconds, result.steps, result.hardware)
        assert (run.started_utc.isoformat(), run.finished_utc.isoformat()) == (result.started_utc, result.finished_utc)
        assert (run.optimizer, run.batch_tokens, run.weight_decay) == ("adamw", 32, 0.1)
        assert run.muon_weight_decay is None


def test_a_full_try_is_the_first_seeds_training(tmp_path):
    trained = choose_and_train(settings(tmp_path, seeds=[4, 5]), "stage1", make_corpus(), build_model)
    assert not any(result.reused for result in trained.results)
    assert len(list(tmp_path.iterdir())) == len(trained.tries) + 1


def test_one_combination_needs_no_try(tmp_path):
    one = settings(tmp_path, learning_rates=[1e-2], dropouts=[0.1], tune_tokens=320)
    trained = choose_and_train(one, "stage1", make_corpus(), build_model)
    assert trained.tries == ()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_diverging_try_loses_and_all_diverging_is_an_error(tmp_path):
    def build(name, dropout, seed, bad=(0.5,), **sizes):
        return Toy(seed=seed, dropout=dropout, spoil="loss" if dropout in bad else "", at_step=3)

    corpus = make_corpus()
    chosen_settings = settings(tmp_path, learning_rates=[1e-2])
    trained = choose_and_train(chosen_settings, "toy", corpus, build)
    assert trained.choice.dropout == 0.0
    assert [t.validation_loss is None for t in trained.tries] == [False, True]
    metrics = {metric.name: metric for metric in trained.metrics("Toy")}
    (loss,) = metrics["tried_validation_loss"].samples
    chosen = {"learning_rate": 1e-2, "dropout": 0.0, "batch_tokens": 32, "weight_decay": 0.1}
    assert {name: metrics[name].value for name in chosen} == chosen
    for name in chosen:
        assert (metrics[name].n, metrics[name].note) == (2, f"dropout 0: {loss:.4f}; dropout 0.5: diverged")
    assert "muon_weight_decay" not in metrics
    best = metrics["tried_validation_loss"]
    assert (best.value, best.labels, best.note) == (loss, ["dropout 0"], "best of 2 tries")
    good, diverged = trained.runs
    assert [(run.dropout, run.diverged) for run in (good, diverged)] == [(0.0, False), (0.5, True)]
    assert (good.best_validation_loss, diverged.best_validation_loss) == (trained.results[0].best_validation_loss, None)
    assert (diverged.model, diverged.steps, diverged.tokens, diverged.reused) == ("toy", 20, 640, False)
    assert diverged.started_utc <= diverged.finished_utc
    assert diverged.hardware == good.hardware
    again = choose_and_train(chosen_settings, "toy", corpus, build).runs
    assert [run.reused for run in again] == [True, False], "what diverged has left nothing to be found"
    assert again[0].model_copy(update={"reused": False}) == good
    with pytest.raises(NonFiniteLossError):
        choose_and_train(settings(tmp_path / "all"), "toy", corpus, partial(build, bad=(0.0, 0.5)))


# What it tells


def test_results_become_metrics_and_series(tmp_path):
    one = settings(tmp_path, learning_rates=[1e-2], dropouts=[0.1], seeds=[4, 5])
    trained = choose_and_train(one, "stage1", make_corpus(), build_model)
    metrics = {metric.name: metric for metric in trained.metrics("Stage 1")}
    losses = [result.best_validation_loss for result in trained.results]
    assert metrics["validation_loss"].value == pytest.approx(sum(losses) / 2)
    assert (metrics["validation_loss"].samples, metrics["validation_loss"].labels) == (losses, ["seed 4", "seed 5"])
    assert metrics["training_tokens"].value == 640
    assert metrics["training_tokens"].note == (
        "seed 4, learning rate 0.01, dropout 0.1, batch tokens 32, weight decay 0.1, float32"
    )
    assert "tried_validation_loss" not in metrics
    assert {metric.model for metric in metrics.values()} == {"Stage 1"}
    found = [result.artifact(one.checkpoint_dir) for result in trained.results]
    assert [(a.kind, a.model, a.seed) for a in found] == [("weights", "stage1", 4), ("weights", "stage1", 5)]
    for artifact in found:
        content = (Path(one.checkpoint_dir) / artifact.path).read_bytes()
        assert (artifact.sha256, artifact.num_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert len(metrics) == len(trained.metrics("Stage 1"))
    series = trained.series("Stage 1")
    assert [(s.name, s.model, s.seed, len(s.x)) for s in series] == [
        ("training_loss", "Stage 1", 4, 20), ("validation_loss", "Stage 1", 4, 2),
        ("training_loss", "Stage 1", 5, 20), ("validation_loss", "Stage 1", 5, 2)]  # fmt: skip
    assert series[0].x[-1] == 640
    assert {s.y_name for s in series} == {"loss (nat/token)"}


def test_progress_goes_to_the_drivers_file_or_to_a_bar(tmp_path, monkeypatch, capsys):
    corpus = make_corpus()
    train("toy", Toy, RECIPE, corpus, tmp_path / "bar", bar=training_bar)
    bar = capsys.readouterr().err
    assert "toy seed 0" in bar
    assert "tok/s" in bar
    assert "loss" in bar
    monkeypatch.setenv("MUSE_PROGRESS_FILE", str(tmp_path / "progress.json"))
    train("toy", Toy, RECIPE, corpus, tmp_path / "batch", bar=training_bar)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["done"], progress["total"]) == (40, 40)
    assert progress["step"] == "toy seed 0 lr 0.01 dropout 0.2 batch 35 decay 0.1"
    assert capsys.readouterr().err == ""


def test_curves_are_drawn_with_axes_and_told_in_words(tmp_path):
    reports = []
    train("toy", Toy, RECIPE, make_corpus(), tmp_path, on_report=reports.append)
    assert [r.step for r in reports if r.step < 10] == list(range(1, 10))
    drawing = curves_svg(reports[-1:], width=720)
    assert drawing.count("<circle") == 4 + 1, "a dot each validation, and one before the words"
    assert "step 40 of 40, training loss" in drawing
    points = drawing.split('points="')[1].split('"')[0].split()
    assert len(points) == 40
    assert float(points[-1].split(",")[0]) == 720 - 16
    assert "tokens seen" in drawing
    assert "no model can go below" not in drawing
    assert curves_svg([]).startswith("<svg")
    assert curves_svg([Report("nothing yet", 0, 10, 0, (), ())]).startswith("<svg")
    live_curve()(reports[-1])  # not in a notebook: nothing happens


def test_several_trainings_share_one_drawing_with_the_floor_and_the_time_that_is_left():
    """Heights are those of the losses; a name that is HTML stays text."""
    first = Report("one", 10, 10, 1000, ((500, 4.0), (1000, 3.0)), ((1000, 3.5),))
    second = Report("<b>two</b>", 5, 10, 500, ((500, 2.0),), ())
    drawing = curves_svg([first, second], floor=1.0, seconds_left=61)
    lines = [[tuple(map(float, p.split(","))) for p in part.split('"')[0].split()]
             for part in drawing.split('points="')[1:]]  # fmt: skip
    (x, high), (end, low) = lines[0]
    ((same, lowest),) = lines[1]
    assert (x, round(lowest - low, 1)) == (same, round(low - high, 1))
    assert end > x
    assert "one: step 10 of 10" in drawing
    assert "step 5 of 10, training loss 2.000, about 1 min 01 s left" in drawing
    assert "<b>" not in drawing
    assert "entropy of the text 1.000" in drawing


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (2.3, 6.1, [3, 4, 5, 6]), (0, 2e5, [0, 5e4, 1e5, 1.5e5, 2e5])],
)
def test_marks_of_an_axis_are_round_numbers(low, high, found):
    assert marks(low, high) == found


def test_a_bar_that_is_followed_says_where_an_interruption_came(tmp_path):
    followed = Followed(training_bar)
    assert followed.told == "stopped before the first step; run this cell again to go on"
    with followed("toy", RECIPE, 7) as show:
        show(2, 1.0, 0)
        show(1, 1.0, 0)
    assert followed.told == "toy: stopped at step 10 of 40; run this cell again to go on"


def test_nothing_is_pickled(tmp_path):
    result = train("toy", Toy, replace(RECIPE, checkpoint_every_steps=3), make_corpus(), tmp_path)
    assert {path.suffix for path in result.weights.parent.iterdir()} <= {".json", ".safetensors", ""}
    for source in (module.__file__, Path(module.__file__).with_name("checkpoint.py")):
        text = Path(source).read_text()
        assert not any(word in text for word in ("import pickle", "torch.save", "torch.load", "numpy"))


# On a CUDA device

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch 2.11, compiling
@pytest.mark.parametrize(
    ("precision", "compile"), [("auto", False), ("float16", False), ("float32", False), ("auto", True)]
)
def test_cuda_learns_and_resumes(tmp_path, precision, compile):
    kind = {"precision": precision, "compile": compile}
    corpus, recipe = make_corpus(), replace(RECIPE, **kind, train_tokens=3200, dropout=0.0)
    whole = train("stage1", stage1, recipe, corpus, tmp_path / "whole", "cuda")
    stop = at_step(2 * module.READ_EVERY_STEPS["cuda"], lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train("stage1", stage1, recipe, corpus, tmp_path / "stopped", "cuda", on_report=stop)
    resumed = train("stage1", stage1, recipe, corpus, tmp_path / "stopped", "cuda")
    assert len(resumed.resumed_from_steps) == 1
    assert whole.best_validation_loss < 0.9 * math.log(VOCAB_SIZE)
    assert resumed.best_validation_loss == pytest.approx(whole.best_validation_loss, rel=0.02)
    assert load_trained(resumed.weights, build_model).eval()


@cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_cuda_steps_do_not_wait_for_the_host(tmp_path):
    """Between two readings of the loss nothing may synchronise."""
    corpus, recipe = make_corpus(), replace(RECIPE, train_tokens=3200, evaluations=1)
    step = module._Training.train_step

    def strict(self):
        last = self.num_unread + 1 == len(self.unread)
        torch.cuda.set_sync_debug_mode("default" if last or self.state.step < 2 else "error")
        try:
            step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Training, "train_step", strict)
        train("stage1", stage1, recipe, corpus, tmp_path, "cuda")


def test_a_compiled_loss_that_forgets_parameters_is_refused(tmp_path, monkeypatch):
    def forgetful(loss, **how):
        model = loss.__self__
        features = model.features
        model.features = lambda ids: features(ids).detach()
        return loss

    monkeypatch.setattr(torch, "compile", forgetful)
    with pytest.raises(DeadGradientError, match=r"such as embedding.weight_real, get no gradient .* compile: false"):
        train("stage1", stage1, replace(RECIPE, compile=True), make_corpus(), tmp_path)
    monkeypatch.setattr(torch, "compile", lambda loss, **how: loss)
    assert train("stage1", stage1, replace(RECIPE, compile=True), make_corpus(), tmp_path).steps == 40


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_not_compiled_on_a_cpu(tmp_path, precision):
    """A `torch.cat` of transposed halves comes out wrong there, and not always with a nan that would show it."""
    asked = replace(RECIPE, compile=True, precision=precision)
    with pytest.raises(ValueError, match=f"compile: on a CPU expected precision float32, got {precision}"):
        train("stage1", stage1, asked, make_corpus(), tmp_path)
