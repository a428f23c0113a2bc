"""Trainings side by side: which, in which order, on which device, and what is left when they fail or are stopped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from muse import cli
from muse.host.parents import PARENT_VARIABLE
from muse.params import Settings, load_params
from muse.runner.check import resolved
from muse.stages import train
from muse.stages.stage import Stage
from muse.training import parallel, tuning
from muse.training.checkpoint import STATE_FILE, training_folder
from muse.training.choices import Choice
from muse.training.parallel import Launcher, schedule, visible_devices
from muse.training.recipe import TrainingResult
from muse.training.trainer import NonFiniteLossError
from muse.training.tuning import Ended, Job, Plan

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent.parent

PROFILE = {
    "train_tokens": 512,
    "batch_tokens": [128],
    "train_d_model": 8,
    "train_n_layers": 1,
    "train_n_seq": 16,
    "evaluations": 1,
    "device": "cpu",
}
SENTENCE = "the sun and the moon go round and a cat looks at the moon \n"
GPT2_LOG = "gpt2-s0-512.log"


def write_params(folder: Path, **values: object) -> str:
    """A params file with a small text of its own."""
    text = folder / "text"
    text.mkdir()
    for split, count in (("train", 80), ("validation", 5), ("test", 5)):
        (text / f"{split}.txt").write_text(SENTENCE * count)
    path = folder / "p.yaml"
    own = {"corpus": str(text), "cache_dir": str(folder / "cache")}
    path.write_text(json.dumps(PROFILE | own | values))
    return str(path)


def folders() -> list[str]:
    """Names of the trainings in the current folder."""
    return sorted(path.name for path in Path("checkpoints").iterdir() if path.name != "logs")


# The plan, without processes


def result(job: Job, loss: float) -> TrainingResult:
    curve = ((job.tokens, loss),)
    values = job.model_name, job.seed, *vars(job.choice).values(), "float32", loss, 1, 1, job.tokens, curve, curve
    when = "2026-01-02T03:04:05+00:00"
    weights = Path(f"{job.model_name}-{job.seed}-{job.choice}-{job.tokens}.safetensors")
    return TrainingResult(*values, 1.0, (1.0,), 1.0, when, when, "a card", weights, "", ())


def job(model_name: str, seed: int, rate: float, dropout: float, tokens: int) -> Job:
    """A training with the batch and the weight decay that settings have by default."""
    return Job(model_name, seed, Choice(rate, dropout, 16384, 0.1), tokens)


class Faked:
    """Launches nothing: every training ends after `ticks` ticks as `ends` says, else with its learning rate as loss."""

    def __init__(self, ticks=lambda job: 1, ends=lambda job: None):
        self.ticks, self.ends = ticks, ends
        self.now, self.running, self.most = 0, {}, 0
        self.events = []

    def __call__(self, job, device):
        self.events.append(("start", job, device))
        self.running[job] = self.now + self.ticks(job)
        self.most = max(self.most, len(self.running))

        def poll():
            if self.now < self.running[job]:
                return None
            del self.running[job]
            self.events.append(("end", job, device))
            return self.ends(job) or Ended(1.0, result(job, job.choice.learning_rate))

        return poll

    def tick(self):
        self.now += 1

    def schedule(self, processes=2, devices=(None,), models=("stage1", "gpt2"), **values):
        plan = Plan(
            Settings(**{"train_tokens": 512, "learning_rates": [0.2, 0.1], "seeds": [4, 5, 6]} | values), models
        )
        ended = schedule(plan, devices, processes, self, self.tick)
        return plan, ended

    @property
    def started(self):
        return [job for kind, job, _ in self.events if kind == "start"]


def short(jobs):
    return [(job.model_name, job.seed, job.choice.learning_rate) for job in jobs]


def test_tries_come_first_and_seeds_follow_across_models():
    fake = Faked()
    plan, ended = fake.schedule(processes=1)
    tries = [(name, 4, rate) for name in ("stage1", "gpt2") for rate in (0.2, 0.1)]
    seeds = [(name, seed, 0.1) for seed in (5, 6) for name in ("stage1", "gpt2")]
    assert short(fake.started) == tries + seeds  # a full try is the first seed's training
    assert fake.most == 1
    assert plan.failed(ended) == []
    assert short(plan.trainings("gpt2", ended)) == [("gpt2", seed, 0.1) for seed in (4, 5, 6)]


def test_a_models_seeds_wait_for_all_of_its_tries_and_for_no_others():
    fake = Faked(ticks=lambda job: 9 if (job.model_name, job.choice.learning_rate) == ("gpt2", 0.2) else 1)
    fake.schedule(processes=3, tune_tokens=128)
    events = [(kind, job.model_name, job.tokens, job.seed) for kind, job, _ in fake.events]
    last_try = max(i for i, event in enumerate(events) if event[:3] == ("end", "stage1", 128))
    slow_try = max(i for i, event in enumerate(events) if event[:3] == ("end", "gpt2", 128))
    firsts = {name: events.index(("start", name, 512, 4)) for name in ("stage1", "gpt2")}
    assert last_try < firsts["stage1"] < slow_try < firsts["gpt2"]
    assert len(fake.started) == 4 + 6
    assert fake.most == 3


def test_one_combination_has_no_tries():
    fake = Faked()
    fake.schedule(learning_rates=[0.1], tune_tokens=128, seeds=[4], models=("gpt2",))
    assert fake.started == [job("gpt2", 4, 0.1, 0.0, 512)]


def test_each_training_goes_to_the_device_with_the_fewest():
    fake = Faked(ticks=lambda job: 3 if job.seed == 4 else 1)
    fake.schedule(processes=4, devices=("2", "5"), learning_rates=[0.1], seeds=[4, 5, 6], models=("stage1", "gpt2"))
    starts = [device for kind, _, device in fake.events if kind == "start"]
    assert starts == ["2", "5", "2", "5", "2", "5"]
    uneven = Faked(ticks=lambda job: {4: 9, 5: 1, 6: 9, 7: 1}[job.seed])
    uneven.schedule(processes=2, devices=("2", "5"), learning_rates=[0.1], seeds=[4, 5, 6, 7], models=("stage1",))
    assert [device for kind, _, device in uneven.events if kind == "start"] == ["2", "5", "5", "2"]


def test_a_diverged_try_loses_and_a_broken_one_stops_its_model_only():
    diverged, broken = Ended(1.0, error="diverged", diverged=True), Ended(1.0, error="no memory")
    loses = Faked(ends=lambda job: diverged if job.choice.learning_rate == 0.1 else None)
    plan, ended = loses.schedule()
    assert {job.choice.learning_rate for job in loses.started if job.seed > 4} == {0.2}
    assert plan.failed(ended) == []

    for outcome, failing in ((broken, [0.1]), (diverged, [0.1, 0.2])):
        fake = Faked(ends=lambda job, outcome=outcome, failing=failing: outcome
                     if job.model_name == "stage1" and job.choice.learning_rate in failing else None)  # fmt: skip
        plan, ended = fake.schedule()
        assert {job.model_name for job in fake.started if job.seed > 4} == {"gpt2"}
        assert {job.choice.learning_rate for job in plan.failed(ended)} == set(failing)
        assert {job.model_name for job in plan.failed(ended)} == {"stage1"}

    fake = Faked(ends=lambda job: diverged if job.seed == 5 and job.model_name == "gpt2" else None)
    plan, ended = fake.schedule()
    assert short(plan.failed(ended)) == [("gpt2", 5, 0.1)]
    assert ("gpt2", 6, 0.1) in short(fake.started)


def test_a_list_of_visible_devices_is_respected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices("cuda") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5f,-1,7")
    assert visible_devices("cuda") == ["3", "GPU-5f"]
    assert visible_devices("cpu") == [None]


# The same plan in turn, in this process


PAIRS = {"models": ["gpt2"], "train_tokens": 512, "learning_rates": [0.2, 0.1], "dropouts": [0.0, 0.5], "seeds": [4, 5]}
TRIES = [(4, 0.2, 0.0), (4, 0.2, 0.5), (4, 0.1, 0.0), (4, 0.1, 0.5)]


def in_turn(monkeypatch, loss_of, settings):
    """What `choose_and_train` returns or raises, and its jobs; each ends at once with a loss, None diverges."""
    jobs = []

    def train(name, build, recipe, *_):
        jobs.append(Job(name, recipe.seed, Choice(**recipe.tried), recipe.train_tokens))
        if loss_of(jobs[-1]) is None:
            raise NonFiniteLossError(str(jobs[-1]))
        return result(jobs[-1], loss_of(jobs[-1]))

    monkeypatch.setattr(tuning, "train", train)
    try:
        return tuning.choose_and_train(settings, "gpt2", SimpleNamespace(vocab_size=3), build_model=dict), jobs
    except NonFiniteLossError as error:
        return error, jobs


def scheduled(loss_of, settings):
    """The plan, how its jobs ended, and the jobs in the order in which they started, one at a time."""
    fake = Faked(ends=lambda job: Ended(1.0, error="diverged", diverged=True) if loss_of(job) is None
                 else Ended(1.0, result(job, loss_of(job))))  # fmt: skip
    plan = Plan(settings, ("gpt2",))
    return plan, schedule(plan, (None,), 1, fake, fake.tick), fake.started


def loss_by_values(job):
    return job.choice.learning_rate + job.choice.dropout


@pytest.mark.parametrize(
    ("changes", "loss_of", "tries", "choice", "trained"),
    [
        ({"tune_tokens": 128}, loss_by_values, TRIES, (0.1, 0.0), [4, 5]),
        ({}, loss_by_values, TRIES, (0.1, 0.0), [5]),  # a full try is the first seed's training
        ({"tune_tokens": 128}, lambda job: None if job.choice.learning_rate == 0.1 else loss_by_values(job), TRIES,
         (0.2, 0.0), [4, 5]),
        ({}, lambda job: None if job.choice.dropout == 0.0 else loss_by_values(job), TRIES, (0.1, 0.5), [5]),
        ({}, lambda job: 1.0, TRIES, (0.2, 0.0), [5]),  # the first of equal ones
        ({"tune_tokens": 128, "learning_rates": [0.1], "dropouts": [0.5]}, loss_by_values, [], (0.1, 0.5), [4, 5]),
    ],
    ids=["tuned", "full", "diverged", "full-diverged", "equal-losses", "one"],
)  # fmt: skip
def test_in_turn_and_side_by_side_give_the_same_jobs_choice_and_result(
    monkeypatch, changes, loss_of, tries, choice, trained
):
    settings = Settings(**PAIRS | changes)
    expected = [job("gpt2", *values, settings.tune_tokens or 512) for values in tries]
    expected += [job("gpt2", seed, *choice, 512) for seed in trained]
    alone, jobs = in_turn(monkeypatch, loss_of, settings)
    plan, ended, started = scheduled(loss_of, settings)
    assert jobs == started == expected
    assert alone.choice == plan.best("gpt2", ended) == Choice(*choice, 16384, 0.1)
    assert alone.tries == plan.tried("gpt2", ended)
    told = [(t.choice, t.validation_loss) for t in alone.tries]
    assert told == [(job.choice, loss_of(job)) for job in plan.tries("gpt2")]
    assert alone.results == tuple(ended[job].result for job in plan.trainings("gpt2", ended))
    assert [found.seed for found in alone.results] == settings.seeds
    runs = [(run.seed, run.learning_rate, run.dropout, run.diverged) for run in alone.runs]
    assert runs == [(job.seed, job.choice.learning_rate, job.choice.dropout, loss_of(job) is None) for job in jobs]
    assert plan.failed(ended) == []


def test_all_tries_diverging_and_a_seed_that_does_are_errors_in_turn_and_failures_side_by_side(monkeypatch):
    settings = Settings(**PAIRS | {"tune_tokens": 128, "seeds": [4, 5, 6]})
    error, jobs = in_turn(monkeypatch, lambda job: None, settings)
    plan, ended, started = scheduled(lambda job: None, settings)
    assert jobs == started == plan.failed(ended) == [job("gpt2", *values, 128) for values in TRIES]
    assert isinstance(error, NonFiniteLossError)
    assert str(error) == str(jobs[-1])

    def broken(job):
        return None if job.seed == 5 else loss_by_values(job)

    error, jobs = in_turn(monkeypatch, broken, settings)
    plan, ended, started = scheduled(broken, settings)
    assert str(error) == str(jobs[-1])
    assert plan.failed(ended) == jobs[-1:] == [job("gpt2", 5, 0.1, 0.0, 512)]
    assert started == [*jobs, job("gpt2", 6, 0.1, 0.0, 512)], "in turn, an error leaves the seeds that follow"


# The command lines, run in this process


POPEN = subprocess.Popen


class Here:
    """Stands in for subprocess.Popen: runs a command of muse at once, in this process."""

    def __new__(cls, command, *arguments, **options):
        is_ours = command[:3] == [sys.executable, "-m", "muse"]
        return super().__new__(cls) if is_ours else POPEN(command, *arguments, **options)

    def __init__(self, command, stdout, **options):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            self.returncode = cli.main(command[3:])
        stdout.write(text.getvalue().encode())

    def poll(self):
        return self.returncode


@pytest.mark.parametrize("tune_tokens", [0, 256])
def test_all_trainings_are_those_of_the_plain_command(tmp_path, monkeypatch, capsys, tune_tokens):
    params = write_params(
        tmp_path, models=["stage1_memory", "phase2", "gpt2"], skip_phase2=True, stages=["train", "dynamics"],
        learning_rates=[1e-5, 0.0125], dropouts=[0.0, 0.1], seeds=[3, 4], tune_tokens=tune_tokens,
    )  # fmt: skip
    arguments = ["train", params, "-p", "learning_rates=[1e-5, 1.25e-2]", "-p", "weight_decays=[0.2]"]
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    assert cli.main(arguments) == 0
    plain, lines = folders(), capsys.readouterr().out.splitlines()
    assert len(plain) == 2 * (4 + (2 if tune_tokens else 1))

    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    with monkeypatch.context() as patched:
        patched.setattr(parallel.subprocess, "Popen", Here)
        assert cli.main([*arguments, "--processes", "3"]) == 0
    printed = capsys.readouterr().out
    assert folders() == plain
    assert len(list(Path("checkpoints", "logs").iterdir())) == len(plain)
    there = [line.replace(f"{os.sep}plain{os.sep}", f"{os.sep}beside{os.sep}") for line in lines]
    assert printed.splitlines()[-5:] == there
    assert there[-1].startswith("common to stage1_memory, gpt2: learning rate 0.0125, dropout 0")

    untouched = {path: path.stat().st_mtime_ns for path in Path("checkpoints").rglob("*.safetensors")}
    assert cli.main(arguments) == 0
    again = capsys.readouterr().out.splitlines()
    assert len(again) == 5
    assert all("found finished" in line for line in again[:-1])
    assert untouched == {path: path.stat().st_mtime_ns for path in Path("checkpoints").rglob("*.safetensors")}


def test_a_grid_of_batches_and_decays_chooses_the_same_in_turn_side_by_side_and_in_its_stage(
    tmp_path, monkeypatch, capsys
):
    grid = {"batch_tokens": [128, 32], "weight_decays": [0.1, 30.0]}
    params = write_params(
        tmp_path, models=["phase2", "gpt2"], learning_rates=[0.0125], tune_tokens=256, seeds=[3, 4], **grid
    )
    printed = []
    for folder, arguments in (("plain", []), ("beside", ["--processes", "2"])):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        monkeypatch.setattr(parallel.subprocess, "Popen", Here)
        assert cli.main(["train", params, *arguments]) == 0
        printed.append(capsys.readouterr().out.replace(f"{os.sep}{folder}{os.sep}", "/").splitlines()[-5:])
        results = [json.loads(path.read_text()) for path in Path("checkpoints").glob("*/result.json")]
        assert len(results) == 2 * (4 + 2)
    assert printed[0] == printed[1]
    logs = {path.name for path in Path("checkpoints", "logs").iterdir()}
    assert {"phase2-s3-batch32-decay30.0-256.log", "gpt2-s4-batch32-decay0.1-512.log"} < logs

    settings = resolved(load_params(params)).model_dump() | {"record_dir": tmp_path / "records"}
    record = train.run(Stage("train", settings))
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == printed[0][-1]
    for name in ("phase2", "gpt2"):
        tried = {(r["batch_tokens"], r["weight_decay"]): r["best_validation_loss"] for r in results
                 if (r["model_name"], r["tokens"]) == (name, 256)}  # fmt: skip
        assert set(tried) == {(128, 0.1), (128, 30.0), (32, 0.1), (32, 30.0)}
        assert len(set(tried.values())) == 4
        best = min(tried, key=tried.get)
        final = {(r["batch_tokens"], r["weight_decay"]) for r in results
                 if (r["model_name"], r["tokens"]) == (name, 512)}  # fmt: skip
        assert final == {best}
        assert tuple(record.find(value, name).value for value in ("batch_tokens", "weight_decay")) == best
        (line,) = (line for line in told if line.startswith(name))
        assert line.endswith(f" nat/token, batch tokens {best[0]}, weight decay {best[1]:g}")
        losses = record.find("tried_validation_loss", name)
        assert sorted(losses.samples) == sorted(tried.values())
        assert dict(zip(losses.labels, losses.samples, strict=True))["batch tokens 32, weight decay 30"] == (
            tried[32, 30.0]
        )
    assert record.find("common_batch_tokens").value == 32
    assert record.find("common_muon_weight_decay") is None
    assert "found finished on disk" in record.find("training_tokens", "gpt2").note


def test_a_diverging_training_leaves_the_others_and_gives_4(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel.subprocess, "Popen", Here)
    params = write_params(tmp_path, models=["phase2", "gpt2"], learning_rates=[1e-3, 1e30], seeds=[0, 1])
    assert cli.main(["train", params, "--processes", "2"]) == 0  # the sane rate wins
    assert "diverged: muse: phase2 seed 0 lr 1e+30" in capsys.readouterr().out

    started = Launcher.__call__

    def launch(self, job, device):
        """One seed of one model alone gets a rate that breaks it."""
        broken = job.model_name == "phase2" and job.seed == 1
        self.arguments = [params, "-p", f"gradient_clip={1e6 if broken else 1.0}", "-p", "weight_decays=[0.3]"]
        return started(self, job, device)

    command = Launcher.command
    monkeypatch.setattr(Launcher, "__call__", launch)
    monkeypatch.setattr(
        Launcher, "command", lambda self, job, outcome: [
            "learning_rates=[1e30]" if part.startswith("learning_rates") and (job.model_name, job.seed) == ("phase2", 1)
            else part for part in command(self, job, outcome)
        ],
    )  # fmt: skip
    assert cli.main(["train", params, "-p", "learning_rates=[1e-3]", "--processes", "2"]) == 4
    shown = capsys.readouterr()
    ends = [line.split(":")[0] for line in shown.out.splitlines() if line.endswith(".safetensors")]
    assert ends == ["phase2 seed 0", "gpt2 seed 0", "gpt2 seed 1"]
    (failure,) = shown.err.splitlines()
    assert failure.startswith("muse: phase2 seed 1, 512 tokens: diverged: ")
    log = Path(failure.rsplit("log: ", 1)[1])
    assert log == tmp_path / "checkpoints" / "logs" / "phase2-s1-512.log"
    assert "nan" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "--processes: got 0, expected at least 1"),
        (["--processes", "2", "-p", "seeds=[]"], "seeds: got []"),
        (["--processes", "2", "-p", "corpus=no/such/folder"], "no folder"),
    ],
)
def test_bad_parameters_give_2_before_anything_starts(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", write_params(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


# Processes


def wait_for(poll) -> Ended:
    deadline = time.monotonic() + 30
    while (outcome := poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return outcome


@contextlib.contextmanager
def launched(tmp_path, monkeypatch, program: str, device=None):
    """Give a launcher and the poll of a training that runs this program, with the test's folder as its argument."""
    monkeypatch.setattr(Launcher, "command", lambda *_: [sys.executable, "-c", program, str(tmp_path)])
    with Launcher(["p.yaml"], tmp_path / "logs", processes=2) as launcher:
        yield launcher, launcher(job("gpt2", 0, 1e-3, 0.0, 512), device)


def test_a_process_gets_its_device_its_share_of_the_threads_and_whom_to_follow(tmp_path, monkeypatch):
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", PARENT_VARIABLE)
    program = f"import os; print(*(os.environ.get(name) for name in {names}), flush=True)"
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    for threads, expected in ((None, f"4 GPU-5f {os.getpid()}"), ("7", f"7 GPU-5f {os.getpid()}")):
        monkeypatch.setenv("OMP_NUM_THREADS", threads) if threads else monkeypatch.delenv("OMP_NUM_THREADS")
        with launched(tmp_path, monkeypatch, program, "GPU-5f") as (_, poll):
            outcome = wait_for(poll)
        assert f"no result: not enough values to unpack (expected 1, got 0); log: {tmp_path}" in outcome.error
        assert (tmp_path / "logs" / GPT2_LOG).read_text().splitlines()[-1] == expected


def test_a_killed_process_is_a_failure_that_holds_no_lock(tmp_path, monkeypatch):
    program = (
        "import fcntl, os, sys\nfile = open(sys.argv[1] + '/held/.lock', 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('half way', flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "held").mkdir()
    with launched(tmp_path, monkeypatch, program) as (_, poll):
        outcome = wait_for(poll)
    assert outcome.error.startswith("failed with exit code -9: half way; log: ")
    assert not outcome.diverged
    with training_folder(tmp_path / "held"):
        pass


def test_a_process_that_does_not_end_is_killed_with_what_it_started(tmp_path, monkeypatch):
    program = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(parallel, "GRACE_SECONDS", 0.3)
    log = tmp_path / "logs" / GPT2_LOG
    with launched(tmp_path, monkeypatch, program) as (launcher, poll):
        while not log.read_text().splitlines()[-1].isdigit():
            assert poll() is None
            time.sleep(0.02)
        child = psutil.Process(int(log.read_text().splitlines()[-1]))
    assert launcher.started[0].returncode == -signal.SIGKILL
    assert gone([child])


def gone(processes) -> bool:
    """Whether all these processes end within a second."""
    deadline = time.monotonic() + 1
    while (left := [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return not left


def test_an_interrupt_ends_every_training_and_the_same_command_resumes(tmp_path, monkeypatch, capsys):
    params = write_params(
        tmp_path, models=["gpt2"], seeds=[0, 1], train_tokens=128 * 200, checkpoint_every_steps=10
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = ["train", params, "--processes", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "muse", *arguments], start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not list(tmp_path.glob(f"checkpoints/*/{STATE_FILE}")):
            assert process.poll() is None
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        assert [os.getsid(child.pid) for child in children] == [child.pid for child in children]  # Ctrl-C misses them
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
        began = time.monotonic()
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 20
    assert len(children) == 2
    assert gone(children)
    assert errors.strip() == "muse: interrupted"
    assert printed.count("starts on the CPU") == 2
    monkeypatch.setattr(parallel.subprocess, "Popen", Here)
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count("found finished") == 0
    results = [json.loads(path.read_text()) for path in tmp_path.glob("checkpoints/*/result.json")]
    assert len(results) == 2
    assert any(result["resumed_from_steps"] for result in results)


def test_a_training_that_could_not_write_its_log_is_a_failure_with_a_reason(tmp_path):
    (tmp_path / "log").write_text("")
    found = parallel.read_outcome(tmp_path / "none.json", tmp_path / "log", 4, 1.0)
    assert found.error.startswith("failed with exit code 4: the log is empty")


def test_a_training_overhears_what_was_ignored_and_saves_its_state_when_its_terminal_closes(tmp_path):
    """As a background job of a script ignores Ctrl-C."""
    params = write_params(tmp_path, models=["gpt2"], train_tokens=128 * 20000, checkpoint_every_steps=20000)
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    with started(tmp_path, params, ignore + "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])") as process:
        wait_until(process, lambda: list(tmp_path.glob("checkpoints/*/config.json")))
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().strip().endswith("muse: interrupted")
    assert list(tmp_path.glob(f"checkpoints/*/{STATE_FILE}"))


def started(folder, params, through):
    command = [sys.executable, "-c", through, "-m", "muse", "train", params]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams)


def wait_until(process, found):
    while not found():
        assert process.poll() is None
        time.sleep(0.02)
