"""Saved models come back bit for bit, describe themselves, and a wrong folder is named with what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import muse
from muse import cli
from muse.catalog import MODEL_NAMES
from muse.models import pretrained, tensor_file, weights
from muse.models.build import build_model
from muse.models.memory_options import MemoryOptions
from muse.models.model_card import model_card
from muse.models.pretrained import (
    ARCHITECTURES,
    check_tokenizer,
    export_checkpoint,
    from_pretrained,
    read_pretrained,
    save_pretrained,
)
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
    names = ["README.md", "config.json", "model.safetensors", "modeling_muse.py"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == names


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


def resealed(damage):
    """The same damage by somebody who also knows what config.json says about itself and the weights."""

    def careful(folder):
        damage(folder)
        path = folder / "config.json"
        values = json.loads(path.read_text())
        values["weights_sha256"] = tensor_file.metadata_of(folder / "model.safetensors")["sha256"]
        values["sha256"] = tensor_file.sha256_of_json({key: values[key] for key in values if key != "sha256"})
        path.write_text(json.dumps(values))

    return careful


def of_before(folder):
    """Make a saved model one from before files carried a SHA-256."""
    tensors, about = weights.read_tensors(folder / "model.safetensors", weights.WEIGHTS_FORMAT)
    save_file(tensors, folder / "model.safetensors", {"muse": json.dumps(about)})
    values = json.loads((folder / "config.json").read_text())
    kept = {key: values[key] for key in values if key not in ("sha256", "weights_sha256")}
    (folder / "config.json").write_text(json.dumps(kept))


def flipped(name, at):
    """A damage: one bit of a file is another one, at a share of its length."""

    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[int(len(content) * at)] ^= 1
        (folder / name).write_bytes(content)

    return damage


def other_weights(folder):
    weights.save_weights(folder / "model.safetensors", tiny("phase2"), {})


def other_seed(folder):
    weights.save_weights(folder / "model.safetensors", tiny("stage1_memory", seed=4, use_complex32=True), {})


def other_shape(folder):
    tensors, _ = weights.read_tensors(folder / "model.safetensors", weights.WEIGHTS_FORMAT)
    tensors["head_bias"] = tensors["head_bias"][:-1]
    weights.write_tensors(folder / "model.safetensors", tensors, {"format": weights.WEIGHTS_FORMAT})


def halved(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def test_a_folder_from_before_a_field_computes_what_it_did(saved):
    """Its norm per head had a smaller epsilon and its table no rank; the logits are those of such a model."""
    of_before(saved)
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
        (resealed(changed("memory.rotation", "odd")), "config.json: rotation must be one of .* got 'odd'"),
        (changed("memory.taps", 4), "config.json: memory.taps: got 4, expected none but numbers"),
        (resealed(changed("d_model", 32)), r"model.safetensors: embedding.weight: got .*\(11, 32\), .*\(11, 64\)"),
        (resealed(changed("dtype", "float32")), "model.safetensors: head_bias: got torch.float16 .* torch.float32"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: not a readable safetensors file"),
        (halved, "model.safetensors: not a readable safetensors file .*save the model again"),
        (resealed(other_weights), "model.safetensors: tensors differ from the model's, first .*: got a tensor,"),
        (resealed(other_shape), r"model.safetensors: head_bias: got torch.float16 \(10,\), .* \(11,\)"),
        (changed("n_seq", 9), "config.json: changed since it was written: got SHA-256 .*expected"),
        (changed("memory.head_norm_eps", 1e-3), "config.json: changed since it was written"),
        (changed("sha256", None), "config.json: sha256: got nothing, expected a SHA-256"),
        (changed("weights_sha256", 7), "config.json: weights_sha256: got 7, expected a SHA-256"),
        (other_seed, "model.safetensors: carries SHA-256 .*, but config.json names .*files of two models"),
        (flipped("model.safetensors", 0.5), "model.safetensors: damaged: got SHA-256 .*; save the model again"),
        (flipped("model.safetensors", 0.999), "model.safetensors: damaged: got SHA-256"),
    ],
)
def test_a_wrong_folder_is_named_with_what_is_wrong(saved, damage, words):
    damage(saved)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(saved))}/{words}"):
        from_pretrained(saved)


def test_a_folder_from_before_the_hash_is_read_with_one_line_of_warning(saved, caplog):
    before = from_pretrained(saved)(IDS)
    of_before(saved)
    assert torch.equal(from_pretrained(saved)(IDS), before)
    (line,) = caplog.messages
    told = "carries no SHA-256, it is from before there was one: read unverified"
    assert line == f"{saved / 'model.safetensors'}: {told}"


def test_half_a_folder_from_before_is_refused(saved):
    """What carries a hash in one file only was not written so."""
    config = (saved / "config.json").read_text()
    model = (saved / "model.safetensors").read_bytes()
    of_before(saved)
    old = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(model)
    with pytest.raises(CheckpointError, match=r"carries SHA-256 .*, but config\.json names no SHA-256"):
        from_pretrained(saved)
    (saved / "model.safetensors").write_bytes(old)
    (saved / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"carries no SHA-256, but config\.json names SHA-256"):
        from_pretrained(saved)


def test_an_export_is_a_plain_safetensors_file(saved):
    model = from_pretrained(saved)
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    tensors = load_file(saved / "model.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in weights.model_tensors(model).items())
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_neither_saved_nor_read(tmp_path, saved, bad):
    model = tiny("stage1_memory", use_complex32=True)
    tensors, about = weights.read_tensors(saved / "model.safetensors", weights.WEIGHTS_FORMAT)
    name = "blocks.1.memory.qkv.weight_imag"
    tensors[name][3, 2] = bad
    model.blocks[1].memory.qkv.weight_imag.data[3, 2] = bad
    words = rf"{re.escape(name)} holds {bad} at \[3, 2\] \(1 of"
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'new'))}: not written: {words}"):
        save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    save_file(tensors, saved / "model.safetensors", {"muse": json.dumps(about)})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(saved / 'model.safetensors'))}: {words}"):
        from_pretrained(saved)


def by_others(folder, **added):
    """Make a saved model one that another tool wrote again: no SHA-256 in it, and keys of that tool."""
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    kept = {key: values[key] for key in values if key not in ("sha256", "weights_sha256", "files")}
    (folder / "config.json").write_text(json.dumps(kept | added))


def with_keys(folder, **added):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | added))


OF_OTHERS = {
    "both files": lambda folder: by_others(folder, transformers_version="5.0", torch_dtype="float16", use_cache=True),
    "the weights": lambda folder: save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors"),
    "the configuration": lambda folder: (folder / "config.json").write_text(
        json.dumps(
            {key: value for key, value in json.loads((folder / "config.json").read_text()).items() if "256" not in key}
            | {"transformers_version": "5.0"}
        )
    ),
}


@pytest.mark.parametrize("what", OF_OTHERS)
def test_what_other_tools_wrote_again_is_read_unverified_with_one_line(saved, what, caplog):
    model, about = read_pretrained(saved)
    assert about["verified"]
    OF_OTHERS[what](saved)
    again, about = read_pretrained(saved)
    assert torch.equal(again(IDS), model(IDS))
    assert not about["verified"]
    (line,) = caplog.messages
    assert "another tool has written it: read unverified" in line


@pytest.mark.parametrize("of_today", [True, False])
def test_keys_that_other_tools_add_do_not_break_the_seal(saved, of_today, caplog):
    if not of_today:  # an export from before there were keys for clients
        values = json.loads((saved / "config.json").read_text())
        values = {key: values[key] for key in values if key not in ("model_type", "auto_map", "files", "sha256")}
        values["sha256"] = tensor_file.sha256_of_json(values)
        (saved / "config.json").write_text(json.dumps(values))
        (saved / "modeling_muse.py").unlink()
        assert read_pretrained(saved)[1]["verified"]
    with_keys(saved, transformers_version="5.0", torch_dtype="float16", model_type="muse")
    assert read_pretrained(saved)[1]["verified"]
    assert caplog.messages == []
    with_keys(saved, n_seq=9)
    with pytest.raises(CheckpointError, match="changed since it was written"):
        from_pretrained(saved)


def test_weights_by_others_must_be_those_of_the_configuration(saved):
    by_others(saved, transformers_version="5.0")
    tensors = load_file(saved / "model.safetensors")
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="tensors differ from the model's"):
        from_pretrained(saved)
    save_file(tensors, saved / "model.safetensors", {"format": "pt", "muse": "{}"})  # ours, half of it
    with pytest.raises(CheckpointError, match="got format None"):
        from_pretrained(saved)


def test_the_weights_come_in_the_dtype_asked_for(saved):
    model = muse.from_pretrained(saved, dtype=torch.float32, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.head_bias, from_pretrained(saved).head_bias.float())


def test_a_repository_of_the_hub_is_a_folder_in_its_cache(saved, monkeypatch, tmp_path):
    asked = []
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(repository, **choices):
        asked.append((repository, choices["revision"], set(choices["allow_patterns"])))
        if repository == "user/none":
            raise OSError("no such repository\nand more")
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(muse.from_pretrained("user/repo", revision="v1")(IDS), from_pretrained(saved)(IDS))
    assert asked[0][:2] == ("user/repo", "v1")
    assert asked[0][2] >= {"config.json", "model.safetensors"}
    with pytest.raises(CheckpointError, match=r"^user/none: no such folder, and not to be had .*: no such repository$"):
        muse.from_pretrained("user/none")
    (tmp_path / "here").mkdir()
    for local in (tmp_path / "none", "none", "./none", "a/b/c", "here/none", "../none"):
        with pytest.raises(CheckpointError, match="expected the folder of a saved model"):
            muse.from_pretrained(local)
    assert len(asked) == 2


FOREIGN = {
    "another tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "another modeling file": lambda folder: (folder / "modeling_muse.py").write_text("mine"),
    "a file": lambda folder: (folder / "notes.txt").write_text("mine"),
    "a folder": lambda folder: (folder / ".git").mkdir(),
    "a readme": lambda folder: (folder / "README.md").write_text("mine"),
    "another model": lambda folder: (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
    "other weights": lambda folder: save_file({"a": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"}),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("beside_ours", [False, True])
def test_what_is_not_ours_is_not_written_over(tmp_path, saved, trained, what, beside_ours, capsys):
    if beside_ours and what == "a readme":
        return  # the card of a saved model
    folder = saved if beside_ours else tmp_path / "theirs"
    folder.mkdir(exist_ok=True)
    FOREIGN[what](folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        save_pretrained(tiny("phase2"), folder)
    assert cli.main(["export", str(trained[0]), str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_link_to_nothing_is_not_followed_and_what_was_killed_is_written_again(tmp_path, saved, trained, capsys):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    for out in (link, link / "deep"):
        assert cli.main(["export", str(trained[0]), str(out)]) == 2
        assert "a link to" in capsys.readouterr().err
        assert not target.exists()
    target.mkdir()
    assert cli.main(["export", str(trained[0]), str(link)]) == 0
    (saved / "config.json").unlink()
    (saved / ".0123456789abcdef.tmp").mkdir()
    save_pretrained(tiny("phase2"), saved)
    assert type(from_pretrained(saved)) is muse.Phase2Model


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


def test_the_card_has_what_the_hub_reads(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    about = {"model_name": "phase2", "corpus": {"name": "wikitext-2-v1"}, "validation_loss_nats": 2.0}
    data = hub.ModelCard.load(save_pretrained(tiny("phase2"), tmp_path / "model", about) / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "muse-workbook", "text-generation")
    assert (data.datasets, data.language, data.metrics) == (["Salesforce/wikitext"], ["en"], ["perplexity"])
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_config) == ("Salesforce/wikitext", "wikitext-2-v1")
    assert (result.metric_type, result.metric_value) == ("perplexity", pytest.approx(math.exp(2.0), abs=1e-4))
    about = {"corpus": {"name": "my-texts"}, "validation_loss_nats": 1.0}
    data = hub.ModelCard.load(save_pretrained(tiny("phase2"), tmp_path / "model", about) / "README.md").data
    assert (data.datasets, data.language, data.eval_results[0].dataset_name) == (None, None, "my-texts")
    data = hub.ModelCard.load(save_pretrained(tiny("phase2"), tmp_path / "model") / "README.md").data
    assert (data.datasets, data.metrics, data.eval_results) == (None, None, None)


def test_a_saved_model_tells_which_tokenizer_it_was_trained_with(tmp_path):
    known = {"corpus": {"tokenizer": "theirs", "tokenizer_sha256": "ab" * 32}}
    for training, refused in ((known, True), ({"corpus": {"tokenizer": "theirs"}}, False), ({}, False)):
        _, about = read_pretrained(save_pretrained(tiny(), tmp_path / "model", training))
        check_tokenizer(about, "ab" * 32, "mine")
        with pytest.raises(ValueError, match=r"tokenizer mine: got .*\(theirs\)") if refused else nullcontext():
            check_tokenizer(about, "cd" * 32, "mine")


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
        assert path.suffix in (".json", ".md", ".safetensors") or path.name == "modeling_muse.py"
    source = "".join(Path(module.__file__).read_text() for module in (pretrained, checkpoint))
    assert "torch.load" not in source
    assert "import pickle" not in source
