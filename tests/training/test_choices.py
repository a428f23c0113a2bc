"""The grid that is tried on validation: its combinations, how they reach a process, and which one is common."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from muse.params import GRID, RENAMED, ParamsError, Settings, load_params
from muse.training.choices import Choice, Try, common_choice
from muse.training.parallel import Launcher
from muse.training.recipe import TRIED
from muse.training.tuning import Ended, Job, Plan, recipe_of

VALUES = {"train_tokens": 512, "n_seq": 32, "learning_rates": [2e-3, 1e-5], "dropouts": [0.3, 0.0],
          "batch_tokens": [128, 64], "weight_decays": [1.0, 0.0], "seeds": [7, 8]}  # fmt: skip
MUON = {"optimizer": "muon", "muon_weight_decays": [0.2, 0.1]}


def plan_of(**changes) -> Plan:
    return Plan(Settings(**VALUES | changes), ("stage1", "phase2"))


def test_every_model_gets_the_full_product_in_the_order_of_the_lists():
    plan = plan_of(**MUON)
    grid = itertools.product([2e-3, 1e-5], [0.3, 0.0], [128, 64], [1.0, 0.0], [0.2, 0.1])
    expected = [Choice(*values) for values in grid]
    assert [job.choice for job in plan.tries("stage1")] == expected
    assert [job.choice for job in plan.tries("phase2")] == expected
    assert [(job.model_name, job.seed) for job in plan.wanted({})] == [("stage1", 7)] * 32 + [("phase2", 7)] * 32
    assert [job.choice.muon_weight_decay for job in plan_of().tries("stage1")] == [None] * 16


def test_combinations_that_give_the_same_training_are_one():
    plan = plan_of(learning_rates=[1e-3], dropouts=[0.0], batch_tokens=[64, 70, 95, 96], weight_decays=[0.1])
    assert [choice.batch_tokens for choice in plan.choices] == [64, 96]  # in whole sequences of 32
    single = plan_of(learning_rates=[1e-3], dropouts=[0.1], batch_tokens=[64, 65], weight_decays=[0.1])
    assert single.tries("stage1") == []


def test_a_name_tells_what_varies_only():
    varies = plan_of(dropouts=[0.1], learning_rates=[1e-3], **MUON)
    first = varies.tries("stage1")[0]
    assert str(first) == "stage1 seed 7 batch 128 decay 1 muon-decay 0.2, 512 tokens"
    assert first.name == "stage1-s7-batch128-decay1.0-muon-decay0.2-512"
    assert len({job.name for job in plan_of(**MUON).wanted({})}) == 2 * 32
    single = {key: values[:1] for key, values in VALUES.items() if key in GRID.values()}
    (job, *_) = plan_of(**single).wanted({})
    assert (str(job), job.name) == ("stage1 seed 7, 512 tokens", "stage1-s7-512")


@pytest.mark.parametrize("changes", [{}, MUON], ids=["adamw", "muon"])
def test_the_launchers_command_line_gives_the_same_training_back(tmp_path, changes):
    path = tmp_path / "p.yaml"
    sizes = {"throughput_n_tokens": 32, "gradient_n_tokens": 32, "stability_n_tokens": 32}
    path.write_text(json.dumps(VALUES | sizes | changes | {"models": ["stage1", "phase2"], "tune_tokens": 256}))
    settings = load_params(path, ["weight_decays=[1.0, 0.3]"])
    plan, launcher = Plan(settings, ("stage1", "phase2")), Launcher([str(path), "-p", "seed=0"], tmp_path, 1)
    trainings = [Job("phase2", 8, plan.choices[-1], 512)]
    for job in (*plan.wanted({}), *trainings):
        command = launcher.command(job, Path("outcome"))
        overrides = [value for flag, value in itertools.pairwise(command) if flag == "-p"]
        again = load_params(command[4], overrides)
        (found,) = Plan(again, tuple(again.models)).wanted({})
        assert found == job
        assert recipe_of(again, found) == recipe_of(settings, job)


def test_what_is_tried_reaches_the_recipe():
    for choice in plan_of(**MUON).choices:
        settings = Settings(**VALUES | MUON)
        assert recipe_of(settings, Job("stage1", 7, choice, 512)).tried == vars(choice)
    adamw = plan_of().choices[0]
    assert recipe_of(Settings(**VALUES), Job("stage1", 7, adamw, 512)).tried == adamw.values()
    assert list(TRIED) == list(GRID) == list(vars(adamw))


# What is common to all models


A, B, C, D = (Choice(1e-3, dropout, 64, decay) for dropout in (0.1, 0.4) for decay in (0.1, 1.0))


def table(**losses) -> dict[str, list[Try]]:
    return {name: [Try(*pair) for pair in zip((A, B, C, D), row, strict=True)] for name, row in losses.items()}


def test_the_common_combination_has_the_smallest_mean_regret():
    found = common_choice(table(stage1=[3.0, 3.1, 3.5, 3.15], phase2=[5.9, 5.2, 5.0, 5.15], gpt2=[4.4, 4.1, 4.0, 4.15]))
    assert found.choice == B  # the best of no model, and D's largest regret is smaller
    assert found.regrets == pytest.approx({"stage1": 0.1, "phase2": 0.2, "gpt2": 0.1})
    assert found.mean == pytest.approx(0.4 / 3)
    assert str(found) == (
        "common to stage1, phase2, gpt2: dropout 0.1, weight decay 1; mean regret 0.1333 nat/token, 4 tries each"
    )
    metrics = {metric.name: metric for metric in found.metrics()}
    assert {name: metric.value for name, metric in metrics.items()} == {
        "common_learning_rate": 1e-3, "common_dropout": 0.1, "common_batch_tokens": 64, "common_weight_decay": 1.0,
        "common_regret": found.mean,
    }  # fmt: skip
    assert {metric.model for metric in metrics.values()} == {""}
    assert metrics["common_dropout"].n == 4
    regrets = metrics["common_regret"]
    assert dict(zip(regrets.labels, regrets.samples, strict=True)) == found.regrets


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({"stage1": [3.0, 3.5, 3.0, 3.5], "gpt2": [4.5, 4.0, 4.5, 4.0]}, A),  # the first of equal ones
        ({"stage1": [3.0, None, 3.2, 3.1], "gpt2": [None, 4.0, 4.1, 4.3]}, C),  # what diverged for one model loses
        ({"stage1": [3.0, None, 3.0, None], "gpt2": [None, 4.0, None, 4.0]}, None),
        ({"stage1": [None] * 4, "gpt2": [4.0] * 4}, None),
        ({"stage1": [3.0, 3.1, 3.2, 3.3]}, None),
    ],
    ids=["equal", "diverged", "nothing-left", "a-model-without", "single-model"],
)
def test_equal_and_diverged_combinations(losses, expected):
    found = common_choice(table(**losses))
    assert (found and found.choice) == expected


def test_nothing_tried_has_nothing_in_common():
    assert common_choice({"stage1": (), "gpt2": ()}) is None
    assert common_choice({}) is None


def test_a_model_whose_tries_are_not_all_known_leaves_nothing_in_common():
    plan = plan_of(tune_tokens=256)
    tries = [job for name in plan.models for job in plan.tries(name)]
    ended = {job: Ended(1.0, SimpleNamespace(best_validation_loss=job.choice.dropout)) for job in tries}
    assert plan.common(ended).choice == Choice(2e-3, 0.0, 128, 1.0)
    lost = Ended(1.0, error="diverged", diverged=True)
    assert plan.common(ended | {plan.tries("phase2")[4]: lost}).choice == Choice(2e-3, 0.0, 128, 0.0)
    for unknown in ({}, {tries[-1]: Ended(1.0, error="no memory")}):
        assert plan.common({job: ended[job] for job in tries[:-1]} | unknown) is None


# Keys of before


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_key_of_before_names_the_one_in_its_place(tmp_path, old, new):
    path = tmp_path / "p.yaml"
    path.write_text(f"{old}: 1\n")
    with pytest.raises(ParamsError) as error:
        load_params(path)
    assert str(error.value) == f"{path}: unknown key {old}: it is {new} now, a list of values to try"
    path.write_text("{}")
    with pytest.raises(ParamsError, match=f"-p {old}=1: unknown key {old}: it is {new} now"):
        load_params(path, [f"{old}=1"])


def test_every_key_of_before_has_one_of_today():
    assert set(RENAMED.values()) <= Settings.model_fields.keys()
    assert not RENAMED.keys() & Settings.model_fields.keys()
