"""The list of trainings that a job array goes through, one index a job."""

from __future__ import annotations

import pytest
from builders import TINY_TRAINING, write_tiny_training

from muse import cli
from muse.params import ParamsError, Row, Settings
from muse.training.rows import entries, entry
from muse.training.tuning import Plan

PROFILE = TINY_TRAINING | {"models": ["gpt2", "stage1_memory"], "seeds": [3, 4]}


def rows(settings):
    return entries([Row({}, settings)])


def row(settings, index):
    own, only = entry([Row({}, settings)], index)
    return own.settings, only


def named(settings):
    return [(r.model_name, r.seed, r.job and r.job.tokens) for r in rows(settings)]


def test_the_list_is_that_of_the_plan():
    plain = Settings(**PROFILE)
    assert named(plain) == [("gpt2", 3, 512), ("stage1_memory", 3, 512), ("gpt2", 4, 512), ("stage1_memory", 4, 512)]
    assert [r.job for r in rows(plain)] == Plan(plain, tuple(plain.models)).wanted({})

    tuned = Settings(**PROFILE | {"learning_rates": [0.1, 0.2], "tune_tokens": 128})
    tries = [(name, 3, 128) for name in ("gpt2", "stage1_memory") for _ in range(2)]
    assert named(tuned) == tries + [(name, seed, None) for seed in (3, 4) for name in ("gpt2", "stage1_memory")]
    assert [r.job.choice.learning_rate for r in rows(tuned)[:4]] == [0.1, 0.2, 0.1, 0.2]
    for tokens in (0, 512):  # a full try is the first seed's training
        full = Settings(**PROFILE | {"learning_rates": [0.1, 0.2], "tune_tokens": tokens})
        assert named(full)[4:] == [("gpt2", 4, None), ("stage1_memory", 4, None)]


def test_a_row_keeps_the_grid_only_where_the_tries_decide():
    settings = Settings(**PROFILE | {"learning_rates": [0.1, 0.2], "tune_tokens": 128})
    own, only = row(settings, 1)
    assert (own.models, own.seeds, own.learning_rates, own.train_tokens, own.tune_tokens) == (
        ["gpt2"], [3], [0.2], 128, 0
    )  # fmt: skip
    assert only == ()
    own, only = row(settings, 7)
    assert (own.models, own.seeds, own.learning_rates, own.tune_tokens) == (["stage1_memory"], [3, 4], [0.1, 0.2], 128)
    assert only == (4,)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range_is_named_with_what_is_there(index):
    with pytest.raises(ParamsError, match=f"^--index: got {index}, expected 0 to 3: the trainings of the params file$"):
        row(Settings(**PROFILE), index)


def test_a_matrix_of_nothing_or_of_too_much_is_refused():
    with pytest.raises(ParamsError, match="got 0 trainings, expected 1 to 10,000"):
        rows(Settings(**PROFILE | {"models": ["phase2"], "skip_phase2": True}))
    values = [x / 1000 for x in range(1, 101)]
    many = Settings(**PROFILE | {"models": ["gpt2"], "learning_rates": values, "dropouts": values})
    with pytest.raises(ParamsError, match="got 10,002 trainings, expected 1 to 10,000"):
        rows(many)
    assert len(rows(many.model_copy(update={"dropouts": values[:99]}))) == 9901


@pytest.mark.parametrize("tune_tokens", [0, 256])
def test_an_array_of_indices_trains_what_one_command_does(tmp_path, monkeypatch, capsys, tune_tokens):
    grid = {"learning_rates": [1e-5, 0.0125], "tune_tokens": tune_tokens}
    params = write_tiny_training(tmp_path, seeds=[3, 4], models=["stage1_memory"], **grid)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", params, "-p", "checkpoint_dir=plain"]) == 0
    printed = capsys.readouterr().out.replace("/plain/", "/array/").splitlines()
    number = 4 if tune_tokens else 3
    lines = []
    for index in range(number):
        assert cli.main(["train", params, "-p", "checkpoint_dir=array", "--index", str(index)]) == 0
        lines += capsys.readouterr().out.splitlines()
    trained = {folder: sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("plain", "array")}
    assert trained["array"] == trained["plain"]
    assert len(trained["array"]) == number
    assert lines[-1] == printed[-1]
    assert cli.main(["train", params, "--index", str(number)]) == 2
    assert capsys.readouterr().err.startswith(f"muse: --index: got {number}, expected 0 to {number - 1}")


def test_an_index_of_a_training_that_diverges_gives_4_and_two_ways_at_once_give_2(tmp_path, monkeypatch, capsys):
    params = write_tiny_training(tmp_path, learning_rates=[1e30], models=["phase2"], seeds=[0])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", params, "--index", "0"]) == 4
    assert "muse: phase2 seed 0 lr 1e+30" in capsys.readouterr().err
    assert cli.main(["train", params, "--index", "0", "--processes", "2"]) == 2
    assert "--index: got it with --processes" in capsys.readouterr().err
