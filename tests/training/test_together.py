"""One model trained by several processes: the same curve, the same files, one who writes, and no process left over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import training_together as acts
from builders import write_tiny_training

from muse import cli
from muse.models.weights import read_tensors
from muse.params import ParamsError, Settings
from muse.training import together
from muse.training.checkpoint import STATE_FILE
from muse.training.parallel import by_cards
from muse.training.ranks import Ranks
from muse.training.together import check_share
from muse.training.trainer import OptimizerStep, train

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDING = 2e-5  # nat/token: float32 sums of a batch in another order, over 24 steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the scenarios left that two and that four processes went through together."""
    folder = tmp_path_factory.mktemp("together")
    for size in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            alone(folder / str(size) / "alone", acts.RECIPE, on_report=acts.stop(0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, acts.__file__, str(folder)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return folder


def told(folder, name, size, rank=0):
    return json.loads((folder / f"{name}-{size}-{rank}.json").read_text())


def alone(tmp_path, recipe, **more):
    build = partial(acts.build_model, "stage1_memory", **acts.SIZES)
    return train("stage1_memory", build, recipe, acts.usual(), tmp_path, **more)


def losses(result):
    values = result if isinstance(result, dict) else vars(result)
    return [loss for name in ("training_curve", "validation_curve") for _, loss in values[name]]


def trained(folder: Path):
    """The one training in a folder: its files, and its weights."""
    (path,) = folder.iterdir()
    return path, read_tensors(path / "model.safetensors", "muse-weights-1")[0]


@pytest.mark.parametrize(("optimizer", "sizes"), [("adamw", (2, 4)), ("muon", (2,))])
def test_the_curve_and_the_key_are_those_of_one_process(folder, tmp_path, optimizer, sizes):
    one = alone(tmp_path, replace(acts.RECIPE, optimizer=optimizer))
    expected, weights = trained(tmp_path)
    for size in sizes:
        path, found = trained(folder / str(size) / optimizer)
        assert path.name == expected.name, "the number of processes is no part of the key"
        assert sorted(file.name for file in path.iterdir()) == sorted(file.name for file in expected.iterdir())
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=0)
        for rank in range(size):
            several = told(folder, optimizer, size, rank)
            assert losses(several) == pytest.approx(losses(one), abs=ROUNDING)
            assert several["best_step"] == one.best_step
            assert several["weights_sha256"] == told(folder, optimizer, size)["weights_sha256"], "one of them wrote"


def test_processes_share_a_batch_in_equal_parts():
    rows = torch.arange(24).reshape(8, 3)
    assert torch.equal(torch.cat([Ranks(rank, 4).part(rows) for rank in range(4)]), rows)
    assert Ranks(1, 2).part(rows).tolist() == rows[4:].tolist()
    assert Ranks().part(rows) is rows


def test_each_process_draws_its_own_at_each_step_and_the_first_one_as_it_would_alone():
    def drawn(rank: int, step: int) -> tuple[float, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            Ranks(rank, 4).draw_apart(7, step)
            return tuple(torch.rand(3).tolist())

    others = [drawn(rank, step) for rank in (1, 2, 3) for step in (0, 1)]
    assert len({*others, drawn(0, 0)}) == 7
    assert drawn(0, 0) == drawn(0, 1)
    assert others == [drawn(rank, step) for rank in (1, 2, 3) for step in (0, 1)]


def test_with_dropout_the_loss_stays_within_the_spread_of_seeds(folder, tmp_path):
    seeds = [alone(tmp_path, replace(acts.DROPOUT, seed=seed)).best_validation_loss for seed in range(4)]
    several = told(folder, "dropout", 2)
    assert abs(several["best_validation_loss"] - statistics.fmean(seeds)) < 3 * statistics.stdev(seeds)
    assert losses(several) != pytest.approx(losses(told(folder, "adamw", 2)), abs=ROUNDING)


def test_checkpoints_of_one_two_and_four_processes_are_interchangeable(folder, tmp_path):
    whole = losses(alone(tmp_path / "whole", acts.RECIPE))
    for size in (2, 4):
        assert [told(folder, "stopped", size, rank) for rank in range(size)] == [{"interrupted": True}] * size
        assert len(list((folder / str(size) / "stopped").glob(f"*/{STATE_FILE}"))) == 1
        shutil.copytree(folder / str(size) / "stopped", tmp_path / str(size))
        resumed = alone(tmp_path / str(size), acts.RECIPE)
        assert resumed.resumed_from_steps == (acts.STOP_AT,)
        assert losses(resumed) == pytest.approx(whole, abs=ROUNDING)
        begun_by_one = told(folder, "alone", size)
        assert begun_by_one["resumed_from_steps"] == [acts.STOP_AT]
        assert losses(begun_by_one) == pytest.approx(whole, abs=ROUNDING)
    resumed = told(folder, "resumed-dropout", 2)
    assert resumed["resumed_from_steps"] == [acts.STOP_AT]
    assert losses(resumed) == losses(told(folder, "dropout", 2)), "it draws what it would have drawn"


def test_a_loss_that_is_not_finite_in_one_part_ends_all_with_the_same_words(folder):
    for size in (2, 4):
        said = [told(folder, "bad", size, rank)["error"] for rank in range(size)]
        assert len(set(said)) == 1
        assert said[0].startswith("toy seed 0 lr 0.01 dropout 0 batch 64 decay 0.1: loss is inf at step ")
        assert "first found: the loss itself, of finite features; no checkpoint in " in said[0]


def test_every_model_takes_steps_in_two_processes(folder):
    for name in acts.MODELS:
        assert told(folder, f"model-{name}", 2)["steps"] == 3
        assert losses(told(folder, f"model-{name}", 2, 0)) == losses(told(folder, f"model-{name}", 2, 1))


@pytest.mark.parametrize(
    ("size", "devices", "message"),
    [
        (0, [None], "got 0, expected at least 1"),
        (3, ["0", "1"], "got 3, expected at most the 2 CUDA devices in sight"),
        (3, [None], "got 3, expected a number that divides the 8 sequences of batch_tokens = 130"),
    ],
)
def test_a_batch_has_an_equal_part_for_each_process(size, devices, message):
    with pytest.raises(ParamsError, match=f"^--gpus-per-model: {message}$"):
        check_share(Settings(batch_tokens=[96, 130], train_n_seq=16), size, devices)
    check_share(Settings(batch_tokens=[96, 64], train_n_seq=16), 2, ["0", "1"])


def test_side_by_side_each_training_has_its_cards():
    assert by_cards(["3", "GPU-5f", "7", "8", "9"], 2) == ["3,GPU-5f", "7,8"]
    assert by_cards(["3", "7"], 1) == ["3", "7"]
    assert by_cards([None], 4) == [None]


@pytest.mark.parametrize(
    ("first", "second", "code", "said"),
    [
        ("sys.exit(0)", "sys.exit(0)", 0, ""),
        ("print('muse: loss is inf', file=sys.stderr); time.sleep(0.5); sys.exit(4)", "sys.exit(4)", 4, ""),
        ("time.sleep(0.5); sys.exit(75)", "print('x\\nno memory\\n', file=sys.stderr); sys.exit(4)", 4,
         "muse: process 2 of 2 ended with exit code 4: no memory; the same command resumes\n"),
        ("time.sleep(600)", "os.kill(os.getpid(), 9)", 4,
         "muse: process 2 of 2 ended with exit code -9; the same command resumes\n"),
        ("os.kill(os.getpid(), 9)", "time.sleep(600)", 4,
         "muse: process 1 of 2 ended with exit code -9; the same command resumes\n"),
        ("sys.exit(4)", "time.sleep(600)", 4, ""),
    ],
)  # fmt: skip
def test_one_of_them_says_why_all_ended(monkeypatch, capsys, first, second, code, said):
    popen, programs = subprocess.Popen, iter((first, second))
    monkeypatch.setattr(
        together.subprocess, "Popen",
        lambda command, **more: popen([sys.executable, "-c", f"import os, sys, time\n{next(programs)}"], **more),
    )  # fmt: skip
    monkeypatch.setattr(together, "ENDING_SECONDS", 1.5)
    assert together.train_together(["train"], [None, None]) == code
    assert capsys.readouterr().err == said


# The command


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def gone_within(seconds, processes):
    deadline = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(processes)


def started(tmp_path, params):
    """The command, training, and the processes that it started."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"checkpoints/*/{STATE_FILE}")}
    command = [sys.executable, "-m", "muse", "train", params, "--gpus-per-model", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                               start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def saved():
        return [path for path in tmp_path.glob(f"checkpoints/*/{STATE_FILE}")
                if path.stat().st_mtime_ns != before.get(path)]  # fmt: skip

    while not saved():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert [os.getsid(child.pid) for child in children] == [child.pid for child in children]  # Ctrl-C misses them
    assert len(children) == 2
    return process, children


@pytest.mark.scale
def test_whichever_process_ends_all_end_and_the_same_command_resumes(tmp_path, monkeypatch, capsys):
    params = write_tiny_training(tmp_path, models=["stage1_memory"], seeds=[0], train_tokens=128 * 400,
                          checkpoint_every_steps=5, evaluations=1)  # fmt: skip
    process, children = started(tmp_path, params)
    children[1].kill()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 4
    said = [line for line in errors.splitlines() if line.startswith("muse: ")]
    assert said == ["muse: process 2 of 2 ended with exit code -9; the same command resumes"]
    assert "Traceback" not in errors
    assert not alive(children)

    process, children = started(tmp_path, params)
    process.kill()
    process.communicate()
    assert gone_within(10, children)

    process, children = started(tmp_path, params)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert not alive(children)
    said = [line for line in errors.splitlines() if line.startswith("muse: ")]
    assert said == ["muse: interrupted"]

    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", params, "-p", "train_tokens=51200"]) == 0
    (path,) = tmp_path.glob("checkpoints/*/result.json")
    assert len(json.loads(path.read_text())["resumed_from_steps"]) == 3
    assert "validation loss" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_of_several_reads_and_writes_the_same_places_every_time(monkeypatch, optimizer):
    """As graphs of it have to; two processes with the same rows are here one, whose sums are doubled."""
    recipe = replace(acts.RECIPE, optimizer=optimizer, precision="float32")
    tokens = torch.randint(acts.VOCAB_SIZE, (4, acts.N_SEQ + 1), generator=torch.Generator().manual_seed(2))
    rows = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    one, several = (acts.build_model("stage1_memory", **acts.SIZES).train() for _ in range(2))
    alone = OptimizerStep(one, recipe, "alone")
    monkeypatch.setattr(Ranks, "here", classmethod(lambda cls: cls(0, 2)))
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, src: None)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    shared = OptimizerStep(several, recipe, "shared")
    places = set()
    for step in range(4):
        wanted, got = alone(*rows, step), shared(*rows, step)
        assert torch.allclose(torch.stack(got), torch.stack(wanted), rtol=1e-5)
        places.add(tuple(p.grad.data_ptr() for p in several.parameters() if p.requires_grad))
    assert len(places) == 1
    assert all(p.grad is None for p in one.parameters())
    for mine, theirs in zip(several.parameters(), one.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
