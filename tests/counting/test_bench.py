"""The bench: the same tries for every arm, fresh seeds, and numbers that follow from the trainings."""

from __future__ import annotations

import itertools
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

from muse.counting import bench, learning
from muse.counting.bench import Cell, beyond, cells, chosen
from muse.counting.learning import Job, Outcome
from muse.params import Settings

SETTINGS = Settings(
    counting_moduli=[2, 3], counting_arms=["gru", "complex_angles"], counting_learning_rates=[1e-3, 3e-3],
    counting_seeds=[4, 2], counting_length=8, counting_lengths=[64, 8, 32], counting_steps=2, counting_batch=2,
    counting_width=16, counting_state=16, counting_sequences=4,
)  # fmt: skip


def outcome(scores=(1.0, 0.95, 0.2), rate=1e-3, seed=0, validation=1.0, losses=(0.5, 0.1), angles=(), name="mod3"):
    job = Job(name, "complex_angles", rate, seed, 16, 16, 1, 2, 2, 8, (8, 32, 64), 4)
    return Outcome(job, validation, tuple(scores), tuple(s / 2 for s in scores), losses, 100, 2.0, False, angles)


def test_every_arm_has_the_same_tries_and_then_seeds_that_no_try_had(monkeypatch):
    made = []

    def learn(job, device, folder):
        made.append(job)
        scores = () if job.is_try else (0.5, 0.5, 0.5)
        return Outcome(job, job.learning_rate * 100, scores, scores, (0.1,), 9, 1.0, False, ())

    monkeypatch.setattr(bench, "learn", learn)
    found = list(cells(SETTINGS, torch.device("cpu"), None))
    assert [cell.name for cell in found] == [
        "complex_angles mod2", "gru mod2", "complex_angles mod3", "gru mod3"
    ]  # fmt: skip
    for cell in found:
        tries, runs = ([job for job in made if (job.task, job.arm, job.is_try) == (cell.task, cell.arm, is_try)]
                       for is_try in (True, False))  # fmt: skip
        assert [(job.learning_rate, job.seed) for job in tries] == [(1e-3, 1004), (3e-3, 1004)]
        assert [(job.learning_rate, job.seed) for job in runs] == [(3e-3, 4), (3e-3, 2)]
        assert {job.lengths for job in tries + runs} == {(8, 32, 64)}
        assert cell.learning_rate == 3e-3


def changed(**settings):
    return SETTINGS.model_copy(update={f"counting_{name}": value for name, value in settings.items()})


def test_task_after_task_is_finished_slow_arms_first(monkeypatch):
    begun = []

    def learn(job, device, folder):
        begun.append((job.task, job.arm, job.is_try))
        return Outcome(job, 0.0, (), (), (0.1,), 9, 1.0, False, ())

    monkeypatch.setattr(bench, "learn", learn)
    settings = changed(moduli=[3, 2], arms=["complex_angles", "real_householder_2", "counts"])
    list(cells(settings, torch.device("cpu"), None))
    arms = "real_householder_2", "complex_angles", "counts"
    assert begun == [(task, arm, is_try) for task in ("mod3", "mod2") for arm in arms
                     for is_try in (True, True, False, False)]  # fmt: skip


def test_what_is_on_disk_is_found_again_elsewhere_and_what_is_missing_is_neither_good_nor_bad(tmp_path, monkeypatch):
    """Leases of a machine: each goes on where the folder of the one before stood, and a record is made of any part."""
    settings, trained, seconds = changed(moduli=[3], minutes=1.0), [], itertools.count(0, 25)
    really, cpu = learning._learned, torch.device("cpu")

    def learned(job, device):
        trained.append(job)
        return really(job, device)

    monkeypatch.setattr(learning, "_learned", learned)
    with monkeypatch.context() as clock:
        clock.setattr(bench, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
        first = list(cells(settings, cpu, tmp_path / "here"))
    assert [(one.arm, one.is_try) for one in trained] == [("gru", True), ("gru", True)]
    assert [(one.arm, one.left, one.wanted) for one in first] == [("complex_angles", 4, 4), ("gru", 2, 4)]
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    found = list(cells(changed(moduli=[3]), cpu, tmp_path / "there"))
    assert len(trained) == len(set(trained)) == 8
    assert [type(one) for one in found] == [Cell, Cell]
    again = list(cells(changed(moduli=[3], minutes=0.0), cpu, tmp_path / "there"))
    assert (again, len(trained)) == (found, 8)
    part = list(cells(changed(moduli=[3], minutes=0.0, seeds=[4, 2, 1]), cpu, tmp_path / "there"))
    told = [metric for one in part for metric in one.metrics()]
    assert [(one.name, one.model, one.value, one.n) for one in told] == [
        ("counting_missing", f"{arm} mod3", 1, 5) for arm in ("complex_angles", "gru")
    ]  # fmt: skip


def test_a_rate_is_chosen_at_the_training_length_then_by_the_loss():
    better = outcome(rate=3e-3, validation=0.9), outcome(rate=1e-2, validation=0.8)
    assert chosen(better) == 3e-3
    assert chosen([outcome(rate=1e-3, losses=(0.1, 0.2)), outcome(rate=3e-3, losses=(0.9, 0.1))]) == 3e-3
    assert chosen([outcome(rate=1e-3, scores=()), outcome(rate=3e-3, losses=(), validation=0.0)]) == 1e-3


def test_the_length_that_decides_is_four_times_the_trained_one_or_the_longest():
    assert beyond([60, 120, 240, 480], 60) == 240
    assert beyond([60, 250, 1000], 60) == 250
    assert beyond([8, 16], 8) == 16


def test_metrics_are_of_all_seeds():
    runs = outcome((1.0, 0.95, 0.2), seed=0), outcome((1.0, 0.5, 0.9), seed=1), outcome((0.3, 0.1, 0.0), seed=2)
    tries = outcome(rate=1e-3, validation=0.5), outcome(rate=3e-3, validation=0.75)
    cell = Cell("mod3", "complex_angles", tries, runs)
    found = {(one.name, one.model): one for one in cell.metrics()}
    assert len(found) == len(cell.metrics())
    score, longest, solved = (found[f"counting_{n}", "complex_angles mod3"] for n in ("score", "longest", "solved"))
    assert (score.value, score.samples, score.note) == (
        pytest.approx(1.55 / 3), [0.95, 0.5, 0.1], "mean of seeds at length 32"
    )  # fmt: skip
    assert (longest.value, longest.samples) == (32, [32, 64, 0])
    assert (solved.value, solved.n) == (1, 3)
    assert found["counting_learning_rate", "complex_angles mod3"].value == 3e-3
    tried = [found["counting_try", f"complex_angles mod3 {rate}"] for rate in ("0.001", "0.003")]
    assert [one.value for one in tried] == [0.5, 0.75]
    assert "counting_turn_error" not in {name for name, _ in found}
    assert found["counting_skewed", "complex_angles mod3"].samples == [0.475, 0.25, 0.05]
    series = cell.series()
    assert [one.y for one in series if one.name == "counting_score"] == [list(run.scores) for run in runs]
    assert [one.y for one in series if one.name == "counting_skewed"] == [list(run.skewed) for run in runs]


def test_the_drift_of_learned_angles_tells_where_they_break():
    third = 2 * math.pi / 3
    angles = tuple((third * k + 0.01, 0.3 * k) for k in range(3))
    cell = Cell("mod3", "complex_angles", (outcome(),), (outcome(angles=angles), outcome((0.0, 0.0, 0.0), seed=1)))
    found = {one.name: one for one in cell.metrics()}
    assert found["counting_turn_error"].value == pytest.approx(0.01, rel=1e-4)
    assert found["counting_breaks_at"].value == pytest.approx(math.pi / 3 / 0.01, rel=1e-3)
    (turned,) = [one for one in cell.series() if one.name == "counting_turns"]
    assert (turned.seed, turned.x) == (0, [0, 0, 1, 1, 2, 2])
    assert turned.y[2] == pytest.approx((third + 0.01) / (2 * math.pi), abs=1e-5)
    products = Cell("s3", "complex_angles", (outcome(),), (outcome(angles=angles, name="s3"),))
    assert "counting_turn_error" not in {one.name for one in products.metrics()}


@pytest.mark.scale
def test_two_processes_give_what_one_gives(tmp_path):
    alone = list(cells(SETTINGS, torch.device("cpu"), tmp_path / "a"))
    together = list(cells(SETTINGS.model_copy(update={"counting_processes": 2}), torch.device("cpu"), tmp_path / "b"))
    scores = [[[run.scores for run in cell.runs] for cell in found] for found in (alone, together)]
    assert scores[0] == scores[1]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
