"""Wrong numbers do not get in, and none that is not finite gets out: damaged files, foreign files, NaN and infinity."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import corpus as synthetic
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from muse import cli
from muse.catalog import ABLATIONS, MODEL_NAMES
from muse.models import tensor_file
from muse.models.build import build_model
from muse.models.weights import CheckpointError, load_trained
from muse.training import trainer
from muse.training.parallel import read_outcome, write_outcome
from muse.training.recipe import Recipe, read_result
from muse.training.runs import finished_run
from muse.training.trainer import NonFiniteLossError, train
from muse.training.tuning import result_line

SIZES = {"d_model": 16, "n_layers": 1, "n_seq": 8}
RECIPE = Recipe(train_tokens=12 * 32, batch_tokens=32, n_seq=8, learning_rate=0.01, evaluations=2,
                checkpoint_every_steps=4)  # fmt: skip
WEIGHTS, STATE = "model.safetensors", "state.safetensors"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(name="gpt2", change=lambda model: None, **choices):
    model = build_model(name, vocab_size=synthetic().vocab_size, **SIZES, **choices)
    change(model)
    return model


def run(folder, name="gpt2", recipe=RECIPE, change=lambda model: None, **options):
    return train(name, partial(built, name, change), recipe, synthetic(), folder, **options)


def stopped(folder, seed=0, step=7):
    """The folder of a training that was interrupted after a step."""
    recipe, done = replace(RECIPE, seed=seed), []

    def stop(report):
        if report.step == step and not done:
            done.append(signal.raise_signal(signal.SIGINT))

    with pytest.raises(KeyboardInterrupt):
        run(folder, recipe=recipe, on_report=stop)
    (state,) = folder.glob(f"*-s{seed}-*/{STATE}")
    return state.parent


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Files


def test_a_file_is_plain_safetensors_with_its_hash(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(4), "s": torch.tensor(2.5), "h": torch.ones(3).half(),
               "r": torch.arange(7, dtype=torch.uint8), "e": torch.empty(0, 2), "t": torch.randn(4, 3).mT,
               "w": torch.ones(2, dtype=torch.bfloat16)}  # fmt: skip
    path = tmp_path / "x.safetensors"
    tensor_file.write_tensors(path, tensors, {"format": "f", "text": 'a "sha256":"' + "0" * 64})
    other, (read, about) = load_file(path), tensor_file.read_tensors(path, "f")
    for found in (other, read):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in tensors.items())
    assert about == {"format": "f", "text": 'a "sha256":"' + "0" * 64}
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
    zeroed = path.read_bytes().replace(tensor_file.metadata_of(path)["sha256"].encode(), b"0" * 64)
    assert tensor_file.hashlib.sha256(zeroed).hexdigest() == tensor_file.metadata_of(path)["sha256"]


def test_every_bit_of_a_file_counts(tmp_path):
    path = tmp_path / "x.safetensors"
    tensor_file.write_tensors(path, {"a": torch.randn(3), "b": torch.arange(2)}, {"format": "f", "step": 3})
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        flip(path, bit)
        with pytest.raises(CheckpointError, match=re.escape(str(path))) as refused:
            tensor_file.read_tensors(path, "f")
        assert "\n" not in str(refused.value)
        path.write_bytes(content)
    tensor_file.read_tensors(path, "f")


def test_a_file_from_before_the_hash_is_read_with_a_warning_and_checked_for_what_is_not_finite(tmp_path, caplog):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path, {"muse": '{"format": "f"}'})
    assert torch.equal(tensor_file.read_tensors(path, "f")[0]["a"], torch.ones(2))
    assert caplog.messages == [f"{path}: carries no SHA-256, it is from before there was one: read unverified"]
    save_file({"a": torch.tensor([1.0, math.nan])}, path, {"muse": '{"format": "f"}'})
    with pytest.raises(CheckpointError, match=r"a holds nan at \[1\] \(1 of 2 numbers"):
        tensor_file.read_tensors(path, "f")
    save_file({"a": torch.ones(2)}, path, {"muse": '{"format": "f"}', "format": "pt"})
    with pytest.raises(CheckpointError, match="got metadata format, muse, expected"):
        tensor_file.read_tensors(path, "f")


def test_a_damaged_state_or_its_weights_are_refused_before_a_step(tmp_path):
    folder = stopped(tmp_path)
    for path in (folder / STATE, *folder.glob("weights-*")):
        content = path.read_bytes()
        flip(path, 8 * len(content) - 3)
        with pytest.raises(CheckpointError, match=f"{path.name}: damaged"):
            run(tmp_path)
        path.write_bytes(content)
    assert run(tmp_path).resumed_from_steps == (7,)


def test_files_of_another_training_are_refused(tmp_path):
    folder, other = stopped(tmp_path, seed=0), stopped(tmp_path, seed=1)
    for name in (STATE, "weights-0000006.safetensors"):
        content = (folder / name).read_bytes()
        shutil.copy(other / name, folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: (holds the state|the weights) of another training"):
            run(tmp_path)
        (folder / name).write_bytes(content)


def refused(folder, words):
    """Both ways in which a finished training is read refuse it, in one line that names the file."""
    for read in (lambda: run(folder.parent), lambda: read_result(folder)):
        with pytest.raises(CheckpointError, match=words) as error:
            read()
        assert "\n" not in str(error.value)


def test_a_finished_training_is_found_only_as_it_was_left(tmp_path):
    first, second = run(tmp_path), run(tmp_path, recipe=replace(RECIPE, seed=1))
    assert run(tmp_path).verified
    folder, other, kept = first.weights.parent, second.weights.parent, tmp_path / "kept"
    shutil.copytree(folder, kept)

    def again():
        for path in kept.iterdir():
            shutil.copy(path, folder / path.name)

    shutil.copy(other / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights of another training"):
        load_trained(folder, build_model)
    assert cli.main(["export", str(folder), str(tmp_path / "out")]) == 2
    refused(folder, r"model\.safetensors: got SHA-256 .*, expected")
    shutil.copy(other / "result.json", folder / "result.json")
    refused(folder, r"result\.json: the result of another training")
    again()
    values = json.loads((folder / "result.json").read_text())
    for name, value in (("best_validation_loss", 1.0), ("best_step", 1), ("weights_sha256", "0" * 64), ("seed", 3)):
        edit(folder / "result.json", **{name: value})
        refused(folder, r"result\.json: damaged: got SHA-256")
        again()
    for name in (str(other / WEIGHTS), f"../{other.name}/{WEIGHTS}", "..", "", 3, None):
        said = values | {"weights": name}
        del said["sha256"]
        edit(folder / "result.json", weights=name, sha256=tensor_file.sha256_of_json(said))
        refused(folder, r"result\.json: weights: got")
        again()
    flip(folder / WEIGHTS, 8 * (folder / WEIGHTS).stat().st_size - 3)
    refused(folder, r"model\.safetensors: got SHA-256")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_trained(folder, build_model)
    outcome, log = tmp_path / "outcome.json", tmp_path / "log"
    log.write_text("done\n")
    write_outcome(outcome, [first], diverged=False)
    assert "no result: " in read_outcome(outcome, log, 0, 1.0).error
    again()
    assert run(tmp_path).weights_sha256 == first.weights_sha256


def test_a_finished_training_from_before_the_hash_is_found_unverified(tmp_path, caplog):
    folder = run(tmp_path).weights.parent
    tensors, about = tensor_file.read_tensors(folder / WEIGHTS, "muse-weights-1")
    save_file(tensors, folder / WEIGHTS, {"muse": json.dumps(about)})
    values = json.loads((folder / "result.json").read_text())
    values["weights_sha256"] = trainer.sha256_of(folder / WEIGHTS)
    kept = {name: value for name, value in values.items() if name not in ("key", "sha256", "skipped_steps")}
    (folder / "result.json").write_text(json.dumps(kept))
    found = run(tmp_path)
    assert (found.reused, found.verified) == (True, False)
    assert found.artifact(tmp_path).verified is False
    assert caplog.messages == [
        f"{folder / 'result.json'}: carries no SHA-256, it is from before there was one: read unverified"
    ]
    flip(folder / WEIGHTS, 8 * (folder / WEIGHTS).stat().st_size - 3)
    with pytest.raises(CheckpointError, match="got SHA-256"):
        run(tmp_path)


# Numbers that are not finite


def before_step(step, act):
    """Patch a training so that `act(training)` comes before a step counted from 1."""
    once, before = [], trainer._Training.train_step

    def train_step(self):
        if self.state.step == step - 1 and not once:
            once.append(act(self))
        before(self)

    return train_step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq", "momentum", "weight", "buffer", "scaler"])
def test_a_checkpoint_that_is_not_finite_is_not_written_and_the_one_before_goes_on(
    tmp_path, monkeypatch, kind, optimizer
):
    """After its last step before the checkpoint, so that no loss could tell; then without the fault."""
    if (kind == "momentum") != (optimizer == "muon") and kind != "weight":
        pytest.skip("a kind of the other optimizer")
    recipe = replace(RECIPE, optimizer=optimizer)
    whole = run(tmp_path / "whole", "phase2", recipe)

    def spoil(training):
        model, optimizers = training.model, training.update.optimizers
        if kind in ("exp_avg", "exp_avg_sq", "momentum"):
            state = optimizers[-1].state
            next(iter(state.values()))[kind][1, 1] = math.nan
        elif kind == "weight":
            model.embedding.weight.data[-1, 2] = math.inf
        elif kind == "buffer":
            model.register_buffer("extra", torch.tensor([1.0, math.nan]))
        else:
            monkeypatch.setattr(training.update.scaler, "state_dict", lambda: {"scale": math.inf})

    save, saves = trainer._Training.save, []

    def save_spoiled(self):
        saves.append(self.state.step)
        if len(saves) == 2:
            spoil(self)
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Training, "save", save_spoiled)
        named = {
            "weight": r"weight:embedding\.weight holds inf at \[\d+, 2\]",
            "buffer": r"buffer:extra holds nan at \[1\]",
            "scaler": "scaler scale is inf",
        }.get(kind, rf"{kind}:\S+ holds nan at \[1, 1\]")
        words = rf"state\.safetensors: not written: {named}.* at step 8 of 12.*the last checkpoint is in"
        with pytest.raises(NonFiniteLossError, match=words) as error:
            run(tmp_path, "phase2", recipe)
    assert "\n" not in str(error.value)
    (folder,) = tmp_path.glob("phase2-*")
    assert tensor_file.read_tensors(folder / STATE, "muse-training-state-1")[1]["scalars"]["step"] == 4
    resumed = run(tmp_path, "phase2", recipe)
    assert resumed.resumed_from_steps == (4,)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()


def test_weights_of_a_row_that_never_occurs_do_not_become_a_finished_model(tmp_path, monkeypatch):
    """A moment of it is NaN, so its weight is; no loss and no gradient shows it."""

    def spoil(training):
        table = training.model.embedding.weight
        training.update.optimizers[0].state[table]["exp_avg"][-1, 0] = math.nan

    monkeypatch.setattr(trainer._Training, "train_step", before_step(11, spoil))
    wide = partial(build_model, "phase2", vocab_size=synthetic().vocab_size + 5, **SIZES)
    words = r"weights-0000012\.safetensors: not written: embedding\.weight holds nan at \[\d+, 0\].* step 12 of 12"
    with pytest.raises(NonFiniteLossError, match=words):
        train("phase2", wide, RECIPE, synthetic(), tmp_path)
    assert not list(tmp_path.glob("*/result.json"))


def last_matrix(model):
    """Name and parameter of the last matrix of the first block."""
    inside = {id(p) for p in model.blocks[0].parameters() if p.ndim == 2 and p.requires_grad}
    return [(name, p) for name, p in model.named_parameters() if id(p) in inside][-1]


def inject(kind, bad):
    """What spoils a training before a step, and the words that name the place."""

    def weight(training):
        last_matrix(training.model)[1].data[0, 1] = bad

    def gradient(training):
        last_matrix(training.model)[1].register_hook(lambda g: g.index_fill(0, torch.tensor([0]), bad))

    def moment(training):
        parameter = last_matrix(training.model)[1]
        (state,) = [o.state[parameter] for o in training.update.optimizers if parameter in o.state]
        state["momentum" if "momentum" in state else "exp_avg"][0, 1] = bad

    def block_input(training):
        training.model.blocks[0].register_forward_pre_hook(lambda block, values: (values[0] * bad, *values[1:]))

    def output(training):
        norm = next(m for m in training.model.blocks[0].modules() if "norm" in type(m).__name__.lower())
        norm.register_forward_hook(lambda module, values, out: out * bad)

    return {"weight": weight, "gradient": gradient, "moment": moment, "input": block_input, "output": output}[kind]


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name not in ABLATIONS])
@pytest.mark.parametrize("kind", ["weight", "gradient", "moment", "input"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_where_a_number_first_is_not_finite_is_named(tmp_path, monkeypatch, name, kind, precision):
    if kind == "gradient" and precision == "float16":
        pytest.skip("the loss scaler skips that step")
    recipe = replace(RECIPE, precision=precision, checkpoint_every_steps=100)
    monkeypatch.setattr(trainer._Training, "train_step", before_step(3, inject(kind, math.nan)))
    place = last_matrix(built(name))[0]
    at = 4 if kind == "moment" else 3
    first = {"moment": f"exp_avg:{place}", "input": r"(in|out)put:\S*(blocks|h)\.0\S*"}.get(kind, f"{kind}:{place}")
    words = rf"{name} seed 0.* at step {at} of 12.*first found: {first} holds nan at"
    with pytest.raises(NonFiniteLossError, match=words) as error:
        run(tmp_path, name, recipe)
    assert "\n" not in str(error.value)


def test_the_command_says_it_in_one_line_and_fails(tmp_path, monkeypatch, capsys):
    values = {"models": ["phase2"], "train_tokens": 12 * 32, "batch_tokens": [32], "train_n_seq": 8,
              "train_d_model": 16, "train_n_layers": 1, "corpus": "synthetic", "tokenizer": "corpus",
              "stages": ["train"], "learning_rates": [0.01], "dropouts": [0.0],
              "checkpoint_dir": str(tmp_path)}  # fmt: skip
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    monkeypatch.setattr(trainer._Training, "train_step", before_step(3, inject("weight", math.inf)))
    assert cli.main(["train", str(tmp_path / "params.yaml")]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("muse: ")]
    assert re.search(r"at step 3 of 12.*first found: weight:blocks\.0\S* holds inf at \[0, 1\]", line)


def test_steps_that_the_loss_scaler_skips_are_counted_and_shown(tmp_path, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def bar(description, recipe, start):
        yield lambda steps, loss, skipped: shown.append(skipped)

    def overflow(training):
        parameter, once = last_matrix(training.model)[1], iter([math.inf])
        parameter.register_hook(lambda gradient: gradient * next(once, 1.0))

    recipe = replace(RECIPE, precision="float16")
    monkeypatch.setattr(trainer._Training, "train_step", before_step(3, overflow))
    result = run(tmp_path, recipe=recipe, bar=bar)
    assert result.skipped_steps == 1
    assert shown == [0, 0, *[1] * 10]
    assert "1 steps skipped" in result_line(result)
    assert all("1 steps skipped by the loss scaler" in metric.note for metric in result.metrics("x"))
    assert finished_run(recipe, result).skipped_steps == 1
    assert read_result(result.weights.parent).skipped_steps == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gradient_that_is_finite_at_no_scale_ends_a_training(tmp_path, monkeypatch, optimizer):
    """Where one optimizer's gradients are finite it must not step with the other's."""
    recipe = replace(RECIPE, precision="float16", optimizer=optimizer)
    monkeypatch.setattr(trainer._Training, "train_step", before_step(1, inject("gradient", math.nan)))
    words = "gradient norm is nan at every loss scale, 12 steps in turn, at step 12"
    with pytest.raises(NonFiniteLossError, match=words):
        run(tmp_path, "phase2", recipe)


def test_an_overflow_in_one_optimizers_gradients_skips_both(tmp_path, monkeypatch):
    def once(training):
        parameter, bad = training.model.embedding.weight, iter([math.nan])
        parameter.register_hook(lambda gradient: gradient * next(bad, 1.0))

    recipe = replace(RECIPE, precision="float16", optimizer="muon")
    monkeypatch.setattr(trainer._Training, "train_step", before_step(3, once))
    result = run(tmp_path, "phase2", recipe)
    assert result.skipped_steps == 1
    assert math.isfinite(result.best_validation_loss)
