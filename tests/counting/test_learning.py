"""Trainings of the counting bench: what is learned, how it is scored, and that nothing is done twice."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from devices import needs_cuda
from torch import nn

from muse import catalog
from muse.counting import learning
from muse.counting.learning import Job, learn, score, turns
from muse.data.counting import sequences, task

JOB = Job("mod2", "real_signed", 1e-2, 0, 16, 16, 1, steps=150, batch=32, length=8, lengths=(8, 32), sequences=64)


class Adding(nn.Module):
    """Knows the sum modulo m, but is one off wherever the position is at least `until`."""

    def __init__(self, order, until=10**6):
        super().__init__()
        self.order, self.until, self.seen = order, until, []
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        assert (ids[:, 0] == self.order).all()
        self.seen.append(ids)
        answers = torch.where(ids == self.order, 0, ids).cumsum(1)
        answers[:, self.until + 1 :] += 1
        return nn.functional.one_hot(answers % self.order, self.order).float()


def test_a_score_is_of_the_last_twenty_positions_of_fresh_sequences():
    assert score(Adding(5), task("mod5"), 50, 64, 1) == 1
    assert score(Adding(5, until=30), task("mod5"), 50, 64, 1) == pytest.approx(-0.25)  # nothing right: below guessing
    assert score(Adding(5, until=40), task("mod5"), 50, 64, 1) == pytest.approx((0.5 - 0.2) / 0.8)
    assert score(Adding(5, until=5), task("mod5"), 10, 64, 1) == pytest.approx((0.5 - 0.2) / 0.8)
    first, other = Adding(3), Adding(3)
    score(first, task("mod3"), 9, 64, 1), score(other, task("mod3"), 9, 64, 2)
    assert not torch.equal(first.seen[0], other.seen[0])


def test_many_long_sequences_are_scored_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(learning, "TEST_TOKENS", 100)
    model = Adding(3)
    assert score(model, task("mod3"), 30, 10, 1) == 1
    assert [len(ids) for ids in model.seen] == [3, 3, 3, 1]


def test_parity_is_learned_by_signs_and_holds_beyond_the_training_length():
    found = learn(JOB)
    assert found.validation > 0.95
    assert found.scores[1] > 0.9
    assert (len(found.scores), found.diverged, found.angles) == (2, False, ())
    assert found.losses[0] > 0.6 > found.losses[-1]


def test_a_training_is_decided_by_its_job_and_kept(tmp_path, monkeypatch):
    job = dataclasses.replace(JOB, arm="complex_angles", task="mod3", steps=3)
    found, again = learn(job, folder=tmp_path), learn(job)
    assert dataclasses.replace(again, seconds=found.seconds) == found
    assert len(found.angles) == 3
    assert learn(dataclasses.replace(job, seed=1)).losses != found.losses
    monkeypatch.setattr(learning, "_learned", None)  # nothing is trained again
    assert learn(job, folder=tmp_path) == found
    with pytest.raises(TypeError):
        learn(dataclasses.replace(job, learning_rate=2e-2), folder=tmp_path)
    assert [path.name.split("-")[:2] for path in tmp_path.iterdir()] == [["mod3", "complex_angles"]]


def test_a_try_is_the_same_training_tested_at_its_own_length_only():
    """So that a learning rate is chosen for what is trained then, memories that know the longest length included."""
    job = dataclasses.replace(JOB, arm="memory_angles", task="mod3", steps=2)
    found, tried = learn(job), learn(dataclasses.replace(job, is_try=True))
    assert (tried.losses, tried.validation) == (found.losses, found.validation)
    assert (tried.scores, tried.skewed, tried.angles) == ((), (), ())
    assert len(found.skewed) == 2


def test_a_difference_of_counts_that_is_small_by_chance_is_no_counting():
    """Sums modulo 3 read off how much oftener 1 came than 2, up to a dozen: right on uniform tokens only."""

    class Difference(Adding):
        def forward(self, ids):
            moved = (ids == 1).long() - (ids == 2).long()
            return nn.functional.one_hot(moved.cumsum(1).clamp(-36, 36) % 3, 3).float()

    assert score(Difference(3), task("mod3"), 100, 64, 1) > 0.99
    assert score(Difference(3), task("mod3"), 100, 64, 1, skewed=True) < 0.2
    assert score(Adding(3), task("mod3"), 100, 64, 1, skewed=True) == 1


def test_what_diverges_scores_nothing_and_says_so(monkeypatch):
    monkeypatch.setattr(learning, "CLIP", math.inf)
    found = learn(dataclasses.replace(JOB, arm="counts", learning_rate=1e30, steps=100))
    assert found.diverged
    assert (found.validation, found.scores, found.skewed) == (0.0, (0.0, 0.0), (0.0, 0.0))


def test_sequences_grow_to_the_training_length_and_the_rate_falls_to_nothing():
    job = dataclasses.replace(JOB, steps=100, length=60)
    lengths = [job.length_at(step) for step in range(100)]
    assert (lengths[0], lengths[24], lengths[49:]) == (4, 30, [60] * 51)
    assert lengths == sorted(lengths)
    assert {dataclasses.replace(job, length=2).length_at(step) for step in range(100)} <= {1, 2}
    rates = [job.rate_at(step) for step in range(100)]
    assert max(rates) == rates[4] == 1e-2
    assert rates[0] == pytest.approx(2e-3)
    assert rates[-1] < 1e-5


def test_turns_are_those_of_each_token():
    job = dataclasses.replace(JOB, arm="real_rotations", task="mod5")
    model = learning.build_arm(job.arm, job.sizes, 0)
    found = turns(model, task("mod5"))
    u = model.blocks[0].mixer_norm(model.table(torch.arange(5)))
    assert torch.allclose(found, (math.pi * torch.tanh(model.blocks[0].mixer.turning(u))).double(), atol=1e-6)
    assert turns(learning.build_arm("gru", job.sizes, 0), task("mod5")) is None


@pytest.mark.parametrize("arm", catalog.ARMS)
def test_a_filled_up_step_is_the_plain_loop(arm):
    """As a CUDA graph has it: no arm looks ahead, so that what stands behind all that is asked counts nothing."""
    job = dataclasses.replace(JOB, arm=arm, task="mod3", steps=12, length=12, batch=8)
    found, want = losses_of(job, filled=True), plain_losses(job)
    assert losses_of(job) == pytest.approx(want, rel=1e-5)
    assert found == pytest.approx(want, rel=1e-4)
    assert max(abs(a - b) for a, b in itertools.pairwise(want)) > 1e-3


@needs_cuda
@pytest.mark.parametrize("arm", catalog.ARMS)
def test_on_cuda_a_step_as_one_graph_is_the_step_without_one(arm):
    job = dataclasses.replace(JOB, arm=arm, task="mod3", steps=50, length=20, learning_rate=1e-3, width=64, state=128)
    found, want = (losses_of(job, "cuda", captured=captured) for captured in (True, False))
    assert found == pytest.approx(want, rel=2e-3)
    assert found[0] == pytest.approx(want[0], rel=1e-5)
    assert min(found) < found[0]
    assert learn(dataclasses.replace(job, steps=8), "cuda").captured


def losses_of(job, device="cpu", **how):
    model = learning.build_arm(job.arm, job.sizes, job.seed).to(device)
    return learning.trained(learning.Update(model, job, **how), task(job.task), job)


def plain_losses(job):
    """The training, written out."""
    of, model = task(job.task), learning.build_arm(job.arm, job.sizes, job.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=learning.BETAS, weight_decay=learning.WEIGHT_DECAY)
    generator, losses = torch.Generator().manual_seed(job.seed), []
    for step in range(job.steps):
        tokens, answers = sequences(of, job.batch, job.length_at(step), generator)
        first = torch.full((job.batch, 1), of.order)
        optimizer.param_groups[0]["lr"] = job.rate_at(step)
        optimizer.zero_grad()
        logits = model(torch.cat([first, tokens], 1))[:, 1:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), learning.CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses
