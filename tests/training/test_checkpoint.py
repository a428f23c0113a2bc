"""State on disk: exact, whole, named when wrong, and never of another training."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from muse.catalog import MODEL_NAMES
from muse.models import tensor_file, weights
from muse.models.build import build_model
from muse.models.weights import CheckpointError
from muse.training import checkpoint

SIZES = {"vocab_size": 11, "d_model": 8, "n_layers": 1, "n_seq": 6}


def trained_pair(seed: int = 0, name: str = "stage1"):
    """A tiny model and its optimizers, AdamW alone, after one step."""
    model = build_model(name, **SIZES, seed=seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, fused=True)
    ids = torch.arange(12).reshape(2, 6) % 11
    model.loss(ids, ids).backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, [optimizer]


def about(model) -> dict:
    return {"model_name": "stage1", "model_config": asdict(model.config), "step": 7}


def test_keys_tell_any_difference_and_nothing_else():
    key = checkpoint.training_key({"a": 1, "b": {"c": [1, 2], "d": 0.1}})
    assert key == checkpoint.training_key({"b": {"d": 0.1, "c": (1, 2)}, "a": 1})
    others = [{"a": 2, "b": {"c": [1, 2], "d": 0.1}}, {"a": 1, "b": {"c": [2, 1], "d": 0.1}}, {"a": 1}]
    assert len({key, *map(checkpoint.training_key, others)}) == 4


def test_state_comes_back_bit_for_bit(tmp_path):
    model, optimizers = trained_pair()
    scalars = {"step": 7, "loss": 0.1 + 0.2, "curve": [[1, 1 / 3]]}
    torch.manual_seed(5)
    checkpoint.save_state(tmp_path, "key", model, optimizers, scalars)
    expected = torch.rand(3)
    other, other_optimizers = trained_pair(seed=1)
    torch.manual_seed(6)
    assert checkpoint.load_state(tmp_path, "key", other, other_optimizers) == scalars
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in weights.model_tensors(model).items():
        assert torch.equal(weights.model_tensors(other)[name], tensor)
    states = [list(o.state.values()) for (o,) in (optimizers, other_optimizers)]
    assert len(states[0]) > 5
    for first, second in zip(*states, strict=True):
        assert first.keys() == second.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(first[kind], second[kind]) for kind in first)


def test_a_missing_state_is_no_state(tmp_path):
    assert checkpoint.load_state(tmp_path, "key", *trained_pair()) is None


DAMAGES = [lambda b: b[: len(b) // 2], lambda b: b[:4], lambda b: b"", lambda b: b"\xff" * len(b)]


@pytest.mark.parametrize("damage", DAMAGES, ids=["half", "four bytes", "empty", "noise"])
def test_a_damaged_state_is_named(tmp_path, damage):
    checkpoint.save_state(tmp_path, "key", *trained_pair(), {})
    path = tmp_path / checkpoint.STATE_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{checkpoint.STATE_FILE}: not a readable"):
        checkpoint.load_state(tmp_path, "key", *trained_pair())


def test_foreign_states_are_named(tmp_path):
    model, optimizers = trained_pair()
    checkpoint.save_state(tmp_path, "key", model, optimizers, {})
    with pytest.raises(CheckpointError, match=r"state\.safetensors: holds the state of another training"):
        checkpoint.load_state(tmp_path, "other key", model, optimizers)
    with pytest.raises(CheckpointError, match=r"state\.safetensors: tensors differ"):
        checkpoint.load_state(tmp_path, "key", *trained_pair(name="gpt2"))
    weights.save_weights(tmp_path / checkpoint.STATE_FILE, model, about(model))
    with pytest.raises(CheckpointError, match="got format 'muse-weights-1', expected 'muse-training-state-1'"):
        checkpoint.load_state(tmp_path, "key", model, optimizers)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    weights.write_tensors(path, {"a": torch.ones(3)}, {"format": "f"})

    def full(tensor):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "_bytes_of", full)
        with pytest.raises(OSError, match="disk full"):
            weights.write_tensors(path, {"a": torch.zeros(3)}, {"format": "f"})
    assert torch.equal(weights.read_tensors(path, "f")[0]["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_equal_contents_make_equal_files_and_nothing_but_json_goes_in(tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(6)]
    for file in files:
        weights.write_tensors(file, {"b": torch.ones(3), "a": torch.zeros(2)}, {"format": "f", "x": 1, "y": [2]})
    assert len({file.read_bytes() for file in files}) == 1
    with pytest.raises(ValueError, match="JSON"):
        weights.write_tensors(files[0], {"a": torch.ones(1)}, {"loss": float("nan")})


LOCK = """
import sys
from pathlib import Path
from muse.training.checkpoint import training_folder
with training_folder(Path(sys.argv[1])):
    pass
"""


def test_a_folder_belongs_to_one_process_and_is_swept(tmp_path):
    pytest.importorskip("fcntl")
    folder = tmp_path / "new"
    with checkpoint.training_folder(folder):
        (folder / ".state.safetensors.123.tmp").write_text("left by a killed process")
        other = subprocess.run([sys.executable, "-c", LOCK, str(folder)], capture_output=True, text=True)
        assert "another process trains here" in other.stderr
    with checkpoint.training_folder(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_folder_with_other_settings_is_refused(tmp_path):
    checkpoint.open_folder(tmp_path, {"a": 1, "b": (1, 2)}, {"versions": {}})
    checkpoint.open_folder(tmp_path, {"a": 1, "b": [1, 2]}, {"versions": {"torch": "another"}})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.open_folder(tmp_path, {"a": 2, "b": [1, 2]}, {})
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.open_folder(tmp_path, {"a": 2}, {})


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_loaded_model_is_the_saved_one_bit_for_bit_and_draws_nothing(tmp_path, name):
    model, _ = trained_pair(seed=3, name=name)
    weights.save_weights(tmp_path / "model.safetensors", model, about(model) | {"model_name": name})
    drawn = []

    def build(*arguments, **sizes):
        torch.nn.Linear(2, 2)
        drawn.append(torch.full((2,), 7.0).normal_().uniform_().tolist())
        drawn.append(torch.equal(before, torch.get_rng_state()))
        return build_model(*arguments, **sizes)

    before = torch.get_rng_state()
    loaded = weights.load_trained(tmp_path, build)
    assert drawn == [[7.0, 7.0], True]
    everything = [dict([*m.named_parameters(), *m.named_buffers(), *m.state_dict().items()]) for m in (model, loaded)]
    assert everything[0].keys() == everything[1].keys()
    assert all(torch.equal(value, everything[1][key]) for key, value in everything[0].items())
    frozen = [[p.requires_grad for p in m.parameters()] for m in (model, loaded)]
    assert frozen[0] == frozen[1]
    assert not torch.equal(torch.nn.Linear(9, 9).weight, torch.nn.Linear(9, 9).weight), "later models draw again"


@pytest.mark.parametrize("name", ["stage1", "phase2", "gpt2"])
def test_weights_describe_their_model(tmp_path, name):
    model, _ = trained_pair(seed=3, name=name)
    weights.save_weights(tmp_path / "model.safetensors", model, about(model) | {"model_name": name})
    loaded = weights.load_trained(tmp_path, build_model)
    assert loaded.config == model.config
    assert not loaded.training
    ids = torch.arange(6)[None]
    assert torch.equal(loaded(ids), model.eval()(ids))


def test_weights_of_other_code_are_refused(tmp_path):
    model, _ = trained_pair()
    stored = about(model)
    stored["model_config"]["mixer"] = "unheard of"
    weights.save_weights(tmp_path / "model.safetensors", model, stored)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: holds a model with .*unheard of"):
        weights.load_trained(tmp_path, build_model)
    weights.save_weights(tmp_path / "model.safetensors", model, about(model))
    tensors, metadata = weights.read_tensors(tmp_path / "model.safetensors", weights.WEIGHTS_FORMAT)
    tensors["head_bias"] = tensors["head_bias"][:-1]
    weights.write_tensors(tmp_path / "model.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=r"head_bias: got torch.float32 \(10,\), expected torch.float32 \(11,\)"):
        weights.load_trained(tmp_path, build_model)


def test_config_json_is_readable_by_people(tmp_path):
    checkpoint.open_folder(tmp_path, {"recipe": {"learning_rate": 0.1}}, {"versions": {"torch": "2"}})
    assert json.loads((tmp_path / "config.json").read_text())["config"]["recipe"]["learning_rate"] == 0.1
