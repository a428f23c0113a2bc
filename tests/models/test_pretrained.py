"""Saved models come back bit for bit, describe themselves, and a wrong folder is named with what is wrong."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

import muse
from muse import cli
from muse.catalog import MODEL_NAMES
from muse.models import pretrained, weights
from muse.models.build import build_model
from muse.models.memory_options import MemoryOptions
from muse.models.model_card import model_card
from muse.models.pretrained import ARCHITECTURES, export_checkpoint, from_pretrained, save_pretrained
from muse.models.weights import CheckpointError
from muse.training import checkpoint

SIZES = {"vocab_size": 11, "d_model": 16, "n_layers": 2, "n_seq": 8}
IDS = torch.arange(16).reshape(2, 8) % 11


def tiny(name="stage1", seed=3, **choices):
    """A tiny model none of whose parameters has its initial value."""
    model = build_model(name, **SIZES | {"seed": seed} | choices)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) / 10).to(parameter.dtype))
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    return save_pretrained(tiny("stage1_memory", use_complex32=True), tmp_path / "model")


@pytest.fixture
def trained(tmp_path):
    """A finished training's folder as far as an export reads it, and its float32 model."""
    model, folder = tiny("stage1_memory"), tmp_path / "checkpoints" / "stage1_memory-s0-0123456789ab"
    about = {"model_name": "stage1_memory", "model_config": dataclasses.asdict(model.config), "step": 70,
             "recipe": {"learning_rate": 1e-3, "seed": 0}, "validation_loss_nats": 2.0,
             "corpus": {"name": "/secret/place/my-texts", "tokenizer": "gpt2", "sha256": {"train": "ab"}}}  # fmt: skip
    folder.mkdir(parents=True)
    weights.save_weights(folder / "model.safetensors", model, about)
    (folder / "config.json").write_text('{"config": {}, "about": {}}')
    return folder, model


@pytest.mark.parametrize("use_complex32", [False, True])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_model_comes_back_bit_for_bit(tmp_path, name, use_complex32):
    model = tiny(name, use_complex32=use_complex32)
    loaded = muse.from_pretrained(muse.save_pretrained(model, tmp_path / "model"))
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert [p.dtype for p in loaded.parameters()] == [p.dtype for p in model.parameters()]
    assert torch.equal(loaded(IDS), model(IDS))
    assert not torch.equal(loaded(IDS), build_model(name, **SIZES, use_complex32=use_complex32).eval()(IDS))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_every_architecture_is_that_of_a_model():
    assert {type(build_model(name, **SIZES)).__name__ for name in MODEL_NAMES} == ARCHITECTURES.keys()


def test_options_without_a_name_and_other_dtypes_come_back_too(tmp_path):
    config = dataclasses.replace(tiny("stage1_memory").config, memory=MemoryOptions(n_heads=2, d_ff=5))
    for model in (muse.Phase3Stage1Model(config), tiny("phase2").double(), tiny("gpt2").bfloat16()):
        loaded = from_pretrained(save_pretrained(model.eval(), tmp_path / "model"))
        assert loaded.config == model.config
        assert torch.equal(loaded(IDS), model(IDS))


def test_planes_stay_float16_on_disk(saved):
    tensors, _ = weights.read_tensors(saved / "model.safetensors", weights.WEIGHTS_FORMAT)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert {"blocks.0.memory.qkv.weight_real", "blocks.0.memory.qkv.weight_imag"} <= tensors.keys()
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["Phase3Stage1Model"]
    assert (config["dtype"], config["use_complex32"], config["memory"]["rotation"]) == ("float16", True, "fixed")


def changed(key, value):
    """A damage: one value of config.json is another one, or gone."""

    def damage(folder):
        path = folder / "config.json"
        values = json.loads(path.read_text())
        inner = values["memory"] if key.startswith("memory.") else values
        inner[key.removeprefix("memory.")] = value
        if value is None:
            del inner[key.removeprefix("memory.")]
        path.write_text(json.dumps(values))

    return damage


def other_weights(folder):
    weights.save_weights(folder / "model.safetensors", tiny("phase2"), {})


def other_shape(folder):
    tensors, _ = weights.read_tensors(folder / "model.safetensors", weights.WEIGHTS_FORMAT)
    tensors["head_bias"] = tensors["head_bias"][:-1]
    weights.write_tensors(folder / "model.safetensors", tensors, {"format": weights.WEIGHTS_FORMAT})


def halved(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def test_a_folder_from_before_a_field_computes_what_it_did(saved):
    """Its norm per head had a smaller epsilon and its table no rank; the logits are those of such a model."""
    changed("memory.head_norm_eps", None)(saved)
    changed("memory.table_rank", None)(saved)
    model = from_pretrained(saved)
    assert (model.config.memory.head_norm_eps, model.config.memory.table_rank) == (1e-6, 0)
    assert model.blocks[0].memory.eps == 1e-6 / model.blocks[0].memory.head_width ** 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: not readable JSON .*No such file.*expected the folder"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: got list, expected a JSON object"),
        (
            changed("architectures", ["LlamaForCausalLM"]),
            r"config.json: architectures: got \['Llama.*expected a list of",
        ),
        (changed("architectures", None), "config.json: architectures: got nothing, expected"),
        (changed("dtype", "int8"), "config.json: dtype: got 'int8', expected one of float16"),
        (changed("d_model", None), "config.json: d_model: got nothing, expected a value such as 512"),
        (changed("d_model", "16"), "config.json: d_model: got '16', expected int, such as 512"),
        (changed("use_complex32", 1), "config.json: use_complex32: got 1, expected bool"),
        (changed("width", 3), "config.json: width: got 3, expected none but vocab_size, d_model"),
        (changed("memory.rotation", "odd"), "config.json: rotation must be one of .* got 'odd'"),
        (changed("memory.taps", 4), "config.json: memory.taps: got 4, expected none but numbers"),
        (changed("d_model", 32), r"model.safetensors: embedding.weight: got .*\(11, 32\), expected .*\(11, 64\)"),
        (changed("dtype", "float32"), "model.safetensors: head_bias: got torch.float16 .* torch.float32"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: not a readable safetensors file"),
        (halved, "model.safetensors: not a readable safetensors file .*save the model again"),
        (other_weights, "model.safetensors: tensors differ from the model's, first .*: got a tensor, expected none"),
        (other_shape, r"model.safetensors: head_bias: got torch.float16 \(10,\), expected torch.float16 \(11,\)"),
    ],
)
def test_a_wrong_folder_is_named_with_what_is_wrong(saved, damage, words):
    damage(saved)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(saved))}/{words}"):
        from_pretrained(saved)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="model: got Linear, expected one of Phase3Stage1Model"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path / "model")
    model = tiny()
    model.head_bias.data = model.head_bias.data.half()
    with pytest.raises(ValueError, match="dtype of the parameters: got float16, float32"):
        save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_saving_again_replaces_and_a_foreign_folder_is_left_alone(saved, trained):
    save_pretrained(tiny("phase2"), saved)
    assert type(from_pretrained(saved)) is muse.Phase2Model
    folder, _ = trained
    with pytest.raises(CheckpointError, match=r"config\.json: belongs to something else"):
        save_pretrained(tiny(), folder)
    assert "about" in (folder / "config.json").read_text()


def test_the_card_tells_sizes_limits_and_licence():
    card, other = model_card(tiny("stage1", use_complex32=True)), model_card(tiny("stage1_memory"))
    assert card.startswith("---\nlicense: mit\n")
    number = sum(p.numel() for p in tiny("stage1").parameters())
    assert f"| parameters | {number:,} |" in card
    assert "| storage | float16, " in card
    assert "may be untrained" in card
    assert "at most 8 tokens" in card
    assert "does not mix positions" in card
    assert "does not mix positions" not in other


def test_an_export_is_the_served_form_and_its_card_tells_the_training(trained, tmp_path):
    folder, model = trained
    returned = export_checkpoint(folder, tmp_path / "out")
    loaded = from_pretrained(tmp_path / "out")
    expected = model.to_complex32().eval()(IDS)
    assert expected.dtype == torch.float16
    assert torch.equal(loaded(IDS), expected)
    assert torch.equal(returned(IDS), expected)
    assert torch.equal(from_pretrained(save_pretrained(model, tmp_path / "m"))(IDS), model(IDS))
    export_checkpoint(folder, tmp_path / "wide", float32=True)
    assert torch.equal(from_pretrained(tmp_path / "wide")(IDS), model(IDS))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# stage1_memory\n" in card
    assert "| validation loss | 2.0000 nat per token (perplexity 7.39)" in card
    assert "| recipe: learning rate | 0.001 |" in card
    assert "| corpus: name | my-texts |" in card
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_an_export_of_weights_beyond_float16_is_refused(trained, tmp_path):
    folder, _ = trained
    tensors, about = weights.read_tensors(folder / "model.safetensors", weights.WEIGHTS_FORMAT)
    tensors["head_bias"][0] = 1e6
    weights.write_tensors(folder / "model.safetensors", tensors, about)
    with pytest.raises(ValueError, match="head_bias is not finite in float16; try float32"):
        export_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_says_what_is_wrong(trained, tmp_path, capsys):
    folder, model = trained
    assert cli.main(["export", str(folder), str(tmp_path / "out")]) == 0
    number = sum(p.numel() for p in model.parameters())
    assert f"Phase3Stage1Model, {number:,} parameters in float16" in capsys.readouterr().out
    none, saved = "no model.safetensors, expected a finished training's", "got the weights of a saved model, expected"
    for wrong, words in ((tmp_path, none), (tmp_path / "out", saved)):
        assert cli.main(["export", str(wrong), str(tmp_path / "again")]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["export", str(folder), str(folder)]) == 2
    assert "belongs to something else" in capsys.readouterr().err


def test_no_file_holds_a_pickle(saved):
    for path in saved.iterdir():
        assert path.suffix in (".json", ".md", ".safetensors")
    source = "".join(Path(module.__file__).read_text() for module in (pretrained, checkpoint))
    assert "torch.load" not in source
    assert "import pickle" not in source
