"""Exported folders in the hands of transformers and what builds on it: the numbers and tokens are those of muse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import muse
from muse.catalog import MODEL_NAMES
from muse.models import hub_files, stepper
from muse.models.build import build_model
from muse.models.generate import generate
from muse.models.pretrained import from_pretrained, read_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # another project's warnings are not ours to refuse

VOCAB, N_SEQ = 77, 12
IDS = torch.arange(16).reshape(2, 8) * 5 % VOCAB
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "clients.md"
NAMES = ("stage1", "stage1_memory", "phase2", "gpt2", "real_twin_compact", "phase2_compact")


def tiny(name, **choices):
    """A tiny model whose predictions are far from uniform, and change with what was read."""
    model = build_model(name, vocab_size=VOCAB, d_model=16, n_layers=2, n_seq=N_SEQ, seed=3, **choices)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) / 4).to(parameter.dtype))
    return model.eval()


@pytest.fixture(scope="module")
def hub():
    from muse import hub

    return hub


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, hub):
    """The folder of a tiny model by name, written once."""
    root, folders = tmp_path_factory.mktemp("models"), {}

    def of(name, **choices):
        key = f"{name}{'-half' if choices else ''}"
        if key not in folders:
            folders[key] = save_pretrained(tiny(name, **choices), root / key)
        return folders[key]

    return of


@pytest.fixture(scope="module")
def opened(folder_of):
    """A tiny model as transformers opens it, with the one that muse opens."""

    def of(name, **choices):
        kwargs = {"use_complex32": True} if choices.pop("half", False) else {}
        folder = folder_of(name, **kwargs)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **choices), from_pretrained(folder)

    return of


def written(model, prompt, count, **choices):
    return torch.stack(list(generate(model, prompt, count, **{"temperature": 0} | choices)), dim=1)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_logits_are_those_of_muse_bit_for_bit(opened, hub, name, half):
    model, own = opened(name, half=half)
    assert isinstance(model, hub.MuseForCausalLM)
    assert (model.training, model.device, model.dtype) == (False, torch.device("cpu"), next(own.parameters()).dtype)
    assert torch.equal(model(IDS).logits, own(IDS))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in own.named_parameters()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_that_of_muse(folder_of, hub, name):
    config, own = transformers.AutoConfig.from_pretrained(folder_of(name)), from_pretrained(folder_of(name)).config
    assert isinstance(config, hub.MuseConfig)
    assert json.loads(json.dumps({key: getattr(config, key) for key in asdict(own)})) == asdict(own)
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (16, 2, N_SEQ)


REMOTE = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
import torch
from safetensors.torch import save_file
{before}
folder = sys.argv[1]
choices = {choices}
config = AutoConfig.from_pretrained(folder, **choices)
assert config.model_type == "muse" and config.n_seq == 12
model = AutoModelForCausalLM.from_pretrained(folder, **choices)
save_file({{"logits": model(torch.arange(16).reshape(2, 8) * 5 % 77).logits}}, sys.argv[2])
model.save_pretrained(sys.argv[3])
"""


def in_a_process(code, *arguments, **environment):
    """A Python of its own, with a cache for remote code of its own."""
    root = str(Path(muse.__file__).parent.parent)
    variables = {"PYTHONPATH": root, "PATH": "", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=variables, timeout=250
    )


@pytest.mark.parametrize("remote", [True, False])
def test_a_fresh_process_opens_a_folder_with_remote_code_or_with_the_import(folder_of, tmp_path, remote):
    before, choices = ("", {"trust_remote_code": True}) if remote else ("import muse.hub", {})
    code = REMOTE.format(before=before, choices=choices)
    again, logits = tmp_path / "again", tmp_path / "logits.safetensors"
    done = in_a_process(code, folder_of("stage1_memory"), logits, again, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    own = from_pretrained(folder_of("stage1_memory"))
    assert torch.equal(load_file(logits)["logits"], own(IDS))
    assert torch.equal(from_pretrained(again)(IDS), own(IDS))
    assert json.loads((again / "config.json").read_text())["auto_map"] == hub_files.AUTO_MAP
    assert (again / "modeling_muse.py").read_text() == hub_files.modeling_source()


def test_without_muse_one_line_says_how_to_get_it(folder_of, tmp_path):
    code = "import sys\nsys.modules['muse'] = None\n" + REMOTE.format(before="", choices={"trust_remote_code": True})
    done = in_a_process(code, folder_of("stage1_memory"), "", "", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: this model needs the package `muse`")
    assert "pip install ." in last


def test_the_package_alone_loads_neither_torch_nor_transformers():
    done = in_a_process("import sys, muse\nassert not {'torch', 'transformers'} & sys.modules.keys()")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [4, 3 * N_SEQ])
def test_greedy_writing_is_that_of_muse_within_and_beyond_n_seq(opened, name, count):
    model, own = opened(name)
    found = model.generate(IDS, max_new_tokens=count, do_sample=False)
    assert torch.equal(found[:, :8], IDS)
    assert torch.equal(found[:, 8:], written(own, IDS, count))


@pytest.mark.parametrize("name", ["stage1_memory", "phase2"])
def test_sampled_writing_draws_from_the_same_probabilities(opened, name):
    """One seed, one distribution: what the library draws is what muse draws."""
    model, own = opened(name)
    torch.manual_seed(7)
    found = model.generate(IDS, max_new_tokens=20, do_sample=True, temperature=0.8, top_k=20)[:, 8:]
    assert torch.equal(found, written(own, IDS, 20, temperature=0.8, top_k=20, seed=7))
    assert not torch.equal(found, written(own, IDS, 20))


def test_a_position_table_ends(opened):
    model, _ = opened("stage1_memory_positions")
    assert model.generate(IDS, max_new_tokens=N_SEQ - 7, do_sample=False).shape == (2, N_SEQ + 1)
    with pytest.raises(ValueError, match=f"the position table ends at n_seq={N_SEQ}"):
        model.generate(IDS, max_new_tokens=N_SEQ, do_sample=False)


def test_the_state_stays_as_large_as_it_is(opened, hub):
    model, _ = opened("stage1_memory")
    sizes, cache, ids = [], hub.MuseCache(), IDS
    with torch.no_grad():
        for _ in range(20):
            ids = model(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
            blocks = cache.reader.reached().blocks
            sizes.append([tuple(value.shape) for state in blocks for value in vars(state).values()])
    assert all(size == sizes[0] for size in sizes)
    assert cache.get_seq_length() == 8 + 19


@pytest.mark.parametrize("choices", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_every_token_after_the_prompt_is_one_fast_step(opened, monkeypatch, choices):
    """With beams too: the laid out weights stay, only the rows change their order."""
    steps, made = [], []
    step, init = stepper.Stepper.__call__, stepper.Stepper.__init__
    monkeypatch.setattr(stepper.Stepper, "__call__", lambda own, new: (steps.append(len(new)), step(own, new))[1])
    monkeypatch.setattr(stepper.Stepper, "__init__", lambda own, *given: (made.append(own), init(own, *given))[1])
    model, _ = opened("stage1_memory")
    want = model.generate(IDS, use_cache=False, do_sample=False, max_new_tokens=4, **choices)
    assert not steps
    found = model.generate(IDS, do_sample=False, max_new_tokens=4, **choices)
    assert torch.equal(found, want)
    assert (len(made), steps) == (1, [2 * choices.get("num_beams", 1)] * 3)


def test_gradients_and_dropout_do_not_go_by_the_fast_steps(opened, hub):
    model, _ = opened("stage1_memory")
    cache = hub.MuseCache()
    model(IDS, past_key_values=cache)
    model(IDS[:, :1], past_key_values=cache, logits_to_keep=1).logits.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith("blocks"))


@pytest.mark.parametrize("name", NAMES)
def test_a_text_read_in_pieces_gives_the_logits_of_the_whole(opened, hub, name):
    model, own = opened(name)
    cache = hub.MuseCache()
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in (IDS[:, :3], IDS[:, 3:4], IDS[:, 4:])]
        last = model(IDS, use_cache=True, logits_to_keep=2).logits
    torch.testing.assert_close(torch.cat(parts, 1), own(IDS), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, own(IDS)[:, -2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*NAMES, "stage1_memory_positions"])
def test_padding_on_the_left_is_as_if_it_were_not_there(opened, name):
    """A padding token need not be one of the vocabulary either."""
    model, own = opened(name)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8])
    padded = IDS.masked_fill(mask == 0, VOCAB + 5)
    found = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)[:, 8:]
    assert torch.equal(found, torch.cat([written(own, IDS[:1, 3:], 5), written(own, IDS[1:], 5)]))
    logits = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, 3:], own(IDS[:1, 3:])[0], rtol=1e-4, atol=1e-5)
    right = model(IDS.flip(1).masked_fill(mask.flip(1) == 0, VOCAB), attention_mask=mask.flip(1)).logits
    torch.testing.assert_close(right[0, :5], own(IDS.flip(1)[:1, :5])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["stage1_memory", "gpt2"])
def test_beams_are_searched_with_a_cache_as_without(opened, name):
    model, _ = opened(name)
    choices = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    assert torch.equal(model.generate(IDS, **choices), model.generate(IDS, use_cache=False, **choices))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_labels_is_that_of_muse(opened, name):
    model, own = opened(name)
    found = model(IDS, labels=IDS)
    torch.testing.assert_close(found.loss, own.loss(IDS[:, :-1], IDS[:, 1:]).float(), rtol=1e-5, atol=1e-5)
    hidden = IDS.masked_fill(torch.arange(8) < 4, -100)
    expected = own.loss(IDS[:, :-1], IDS[:, 1:], reduction="none")[:, 3:].mean()
    torch.testing.assert_close(model(IDS, labels=hidden).loss, expected, rtol=1e-5, atol=1e-5)
    assert model(IDS, labels=IDS, return_dict=False)[0] == found.loss


def test_what_is_no_input_is_refused(opened):
    model, _ = opened("stage1_memory")
    with pytest.raises(ValueError, match="input_ids: got nothing"):
        model(inputs_embeds=torch.zeros(1, 2, 16))
    with pytest.raises(ValueError, match="past_key_values: got DynamicCache, expected a MuseCache"):
        model(IDS, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match="a row without any token"):
        model(IDS, attention_mask=torch.zeros_like(IDS))
    with pytest.raises(ValueError, match="token ids must lie in"):
        model(IDS + VOCAB)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_the_trainer_trains_and_what_it_saves_is_a_model(opened, tmp_path, name):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, own = opened(name)
    choices = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True}
    arguments = transformers.TrainingArguments(str(tmp_path / "run"), save_strategy="no", report_to=[], **choices)
    data = [{"input_ids": row, "labels": row} for row in IDS]
    before = model(IDS, labels=IDS).loss.item()
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    assert trainer.train().training_loss == pytest.approx(before, rel=1e-5)
    changed = [n for n, p in model.named_parameters() if not torch.equal(p.cpu(), own.get_parameter(n))]
    assert changed == [n for n, p in own.named_parameters() if p.requires_grad]
    trainer.save_model(str(tmp_path / "saved"))
    model.eval()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert torch.equal(from_pretrained(tmp_path / "saved")(IDS), model(IDS).logits)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_again_is_the_same_model_for_both(opened, tmp_path, name, half):
    model, own = opened(name, half=half)
    model.save_pretrained(tmp_path / "again")
    loaded, about = read_pretrained(tmp_path / "again")
    assert loaded.config == own.config
    assert not about["verified"]
    assert torch.equal(loaded(IDS), own(IDS))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(IDS).logits, own(IDS))


def test_dtypes_and_devices(opened):
    wide, own = opened("stage1_memory", half=True, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert torch.equal(wide(IDS).logits, own.float()(IDS))
    assert opened("phase2", dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert wide.to("meta").device.type == "meta"


def test_a_model_of_a_configuration_alone_is_drawn_as_muse_draws_it(folder_of):
    for name in ("stage1_memory", "phase2", "gpt2"):
        config = transformers.AutoConfig.from_pretrained(folder_of(name))
        model, own = transformers.AutoModelForCausalLM.from_config(config), from_pretrained(folder_of(name))
        drawn = type(own)(own.config).eval()
        assert torch.equal(model.eval()(IDS).logits, drawn(IDS))


def test_less_memory_for_the_backward_pass_changes_no_gradient(opened):
    gradients = []
    for again in (False, True):
        model, _ = opened("stage1_memory")
        if again:
            model.gradient_checkpointing_enable()  # its name until transformers 6
        assert (model.muse.recompute, model.muse.training) == (again, False)
        model.train()
        assert model.muse.training
        model(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", ["stage1_memory", "phase2", "gpt2"])
def test_accelerate_loads_and_dispatches_the_file(folder_of, name):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    folder, own = folder_of(name), from_pretrained(folder_of(name))
    config = transformers.AutoConfig.from_pretrained(folder)
    with accelerate.init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    file = str(folder / "model.safetensors")
    model = accelerate.load_checkpoint_and_dispatch(model, file, device_map={"": "cpu"})
    assert torch.equal(model.eval()(IDS).logits, own(IDS))
    if name == "gpt2":  # accelerate ties its head to a table that no file holds; behind transformers it knows better
        return
    bare = accelerate.load_checkpoint_and_dispatch(type(own)(own.config, seed=9), file, device_map={"": "cpu"})
    assert torch.equal(bare.eval()(IDS), own(IDS))


ADAPTED = {
    "stage1_memory": {"target_parameters": ["qkv.weight_real", "qkv.weight_imag", "gate.weight", "decay.weight"]},
    "stage1": {"target_parameters": ["linear.weight_real", "linear.weight_imag"]},
    "phase2": {"target_modules": ["qkv", "head", "potential_rate", "feed_in"]},
    "phase2_compact": {"target_modules": ["lift", "head_projection", "head"]},
}


@pytest.mark.parametrize("name", ADAPTED)
def test_every_adapter_learns_is_kept_and_merges(opened, tmp_path, name):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, own = opened(name)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **ADAPTED[name]))
    torch.testing.assert_close(adapted(input_ids=IDS).logits, own(IDS))
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    places = ADAPTED[name].get("target_parameters") or ADAPTED[name]["target_modules"]
    assert all(any(place.split(".")[0] in n for n in trained) for place in places)
    with torch.no_grad():
        for n, p in trained.items():
            if "lora_B" in n:
                p.normal_(std=0.1)
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum()] == []
    adapted.eval()
    changed = adapted(input_ids=IDS).logits
    assert not torch.allclose(changed, own(IDS), atol=1e-3)
    tokens = adapted.generate(input_ids=IDS, max_new_tokens=6, do_sample=False)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(opened(name)[0], tmp_path / "adapter")
    assert torch.equal(again(input_ids=IDS).logits, changed)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, changed, rtol=1e-3, atol=1e-3)
    assert torch.equal(merged.generate(IDS, max_new_tokens=6, do_sample=False), tokens)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(from_pretrained(tmp_path / "merged")(IDS), merged(IDS).logits)


def test_the_mixin_of_the_hub_keeps_a_configuration(tmp_path):
    """As docs/clients.md writes it."""
    pytest.importorskip("huggingface_hub")
    code = DOCUMENT.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, "clients.md", "exec", dont_inherit=True), names := {"__name__": "mine"})
    model = names["Mine"](tiny("phase2").config, seed=4).eval()
    model.save_pretrained(tmp_path)
    again = names["Mine"].from_pretrained(str(tmp_path)).eval()
    assert again.config == model.config
    assert torch.equal(again(IDS), model(IDS))


def test_every_test_that_the_document_names_is_there():
    tests = "".join(path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text()))
    assert len(named) > 15
    assert {name for name in named if f"def {name}" not in tests} == set()


def test_the_client_of_the_hub_loads_the_weights(folder_of):
    hub_client = pytest.importorskip("huggingface_hub")
    own = from_pretrained(folder_of("phase2"))
    model = type(own)(own.config, seed=9).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub_client.load_torch_model(model, folder_of("phase2") / "model.safetensors")
    assert torch.equal(model(IDS), own(IDS))
