"""Numbers of finished trainings without their weights: what one machine tried, another one knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from muse import cli
from muse.catalog import SYNTHETIC
from muse.data.corpora import load_corpus
from muse.models.build import build_model
from muse.models.weights import CheckpointError
from muse.params import Settings
from muse.records.environment import git_state
from muse.training import kept, parallel, trainer, tuning

from .test_parallel import Here, folders, write_params

SETTINGS = {
    "models": ["gpt2"], "train_tokens": 256, "batch_tokens": [128], "d_model": 8, "n_layers": 1, "n_seq": 16,
    "dropouts": [0.0, 0.5], "seeds": [3, 4], "evaluations": 1, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(SYNTHETIC, "corpus", synthetic_tokens={"train": 2000, "validation": 200, "test": 200})


def trained(folder: Path, corpus, **changes) -> tuning.Trained:
    folders = {"checkpoint_dir": str(folder), "results_dir": str(folder.parent / "results")}
    return tuning.choose_and_train(Settings(**SETTINGS | folders | changes), "gpt2", corpus, build_model)


@pytest.fixture
def counted(monkeypatch):
    """How often a training was asked for."""
    calls, real = [], trainer.train

    def train(name, build, recipe, *rest):
        calls.append((recipe.seed, recipe.dropout))
        return real(name, build, recipe, *rest)

    monkeypatch.setattr(tuning, "train", train)
    return calls


def test_a_try_of_another_machine_is_not_repeated_but_the_chosen_one_is_trained(tmp_path, corpus, counted):
    first = trained(tmp_path / "first", corpus)
    assert sorted(counted) == [(3, 0.0), (3, 0.5), (4, first.choice.dropout)]
    files = sorted((tmp_path / "results").iterdir())
    assert len(files) == 3, "one for each training"
    assert not any(run.commit for run in first.runs)

    commit, dirty = git_state(Path(kept.__file__).resolve().parents[2])
    told = {json.loads(path.read_text())["commit"] for path in files}
    assert told == {f"{commit} with changes" if dirty else commit or ""}

    counted.clear()
    second = trained(tmp_path / "second", corpus)
    assert counted == [(3, first.choice.dropout), (4, first.choice.dropout)], "weights are needed of these alone"
    assert second.tries == first.tries
    assert second.choice == first.choice
    assert all(result.weights.exists() for result in second.results)
    assert [run.reused for run in second.runs] == [True, True, False, False]
    assert {run.commit for run in second.runs[:2]} == told, "whose code it was"
    assert {run.hardware for run in second.runs} == {run.hardware for run in first.runs}

    counted.clear()
    trained(tmp_path / "third", corpus, evaluations=2)
    assert sorted(counted)[:2] == [(3, 0.0), (3, 0.5)], "another recipe is another try"
    counted.clear()
    trained(tmp_path / "third", corpus, results_dir=None)
    assert len(counted) == 3


def test_whatever_code_trained_it_is_named_and_anything_else_must_be_equal(tmp_path, corpus):
    settings = Settings(**SETTINGS | {"checkpoint_dir": str(tmp_path / "c"), "results_dir": str(tmp_path / "results")})
    known = tuning.choose_and_train(settings, "gpt2", corpus, build_model).results[0]
    job = tuning.Plan(settings, ("gpt2",)).tries("gpt2")[0]
    build = tuning.build_for(settings, "gpt2", corpus, build_model)
    recipe = replace(tuning.recipe_of(settings, job), dropout=known.dropout)

    def config(recipe=recipe, build=build, corpus=corpus):
        return trainer.config_of("gpt2", build, recipe, corpus, torch.device("cpu"))

    folder = tmp_path / "results"
    found = kept.find(folder, config())
    without = {"weights": None, "training_curve": (), "tokens_per_second_samples": ()}
    assert found.result == replace(known, reused=True, **without)
    assert kept.find(folder, config() | {kept.CODE: "of other code"}) == found
    other_tokenizer = config()["corpus"] | {"tokenizer_sha256": "another with the same ids"}
    assert kept.find(folder, config() | {"corpus": other_tokenizer}) == found
    for other in (
        config(recipe=replace(recipe, gradient_clip=0.5)),
        config(build=tuning.build_for(settings.model_copy(update={"d_model": 4}), "gpt2", corpus, build_model)),
        config() | {"device": "cuda"},
        config() | {"corpus": {"sha256": {}}},
    ):
        assert kept.find(folder, other) is None

    (path,) = [path for path in folder.iterdir() if json.loads(path.read_text())["config"] == config()]
    whole = json.loads(path.read_text())
    for damage in ({"result": {}}, {"config": config() | {"device": "cuda"}}, {"result": None}):
        path.write_text(json.dumps(whole | damage))
        with pytest.raises(CheckpointError, match=path.name):
            kept.find(folder, config())
    path.write_text(json.dumps(whole)[:-9])
    with pytest.raises(CheckpointError, match=path.name):
        kept.find(folder, config())


def test_side_by_side_takes_what_is_known_too(tmp_path, monkeypatch, capsys):
    arguments = ["train", write_params(tmp_path, models=["gpt2"], dropouts=[0.0, 0.5], seeds=[3, 4],
                                       results_dir=str(tmp_path / "results"))]  # fmt: skip
    printed = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with monkeypatch.context() as patched:
            patched.setattr(parallel.subprocess, "Popen", Here)
            assert cli.main([*arguments, "--processes", "2"]) == 0
        printed.append(capsys.readouterr().out)
        assert len(folders()) == (3 if name == "one" else 2)
    assert printed[0].count("known from before") == 0
    assert printed[1].count("known from before") == 2
    assert printed[1].count(" starts on ") == 2
