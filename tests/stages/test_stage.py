"""The glue of a stage notebook: parameters in, models and corpus, a record out."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from muse.catalog import ABLATIONS, MODEL_NAMES, comparisons
from muse.data.grammar import Grammar
from muse.measure import measure_memory
from muse.measure.reads import read_at
from muse.measure.switches import next_tokens, token_losses
from muse.models.build import build_model
from muse.params import ModelName, ParamsError
from muse.records.criteria import judge, summarise
from muse.records.losses import read_losses
from muse.records.reading import read_reading
from muse.records.reasons import why
from muse.records.schema import Metric, Series, StageRecord
from muse.records.store import read_record
from muse.records.text_sample import read_sample
from muse.report.figures.style import MODELS, metric_label
from muse.report.notes import note
from muse.report.texts import texts, unit_label
from muse.runner.notebooks import REPOSITORY
from muse.stages import dynamics, memory, perplexity, throughput, train
from muse.stages.stage import Stage
from muse.training import trainer
from muse.training.muon import Muon

TINY = {"d_model": 16, "n_layers": 1, "n_seq": 32, "vocab_size": 77, "device": "cpu", "seed": 3}
SIZES = {key: TINY[key] for key in ("d_model", "n_layers", "n_seq", "vocab_size")}
TRAIN = {
    "models": ["stage1", "phase2"],
    "train_tokens": 512,
    "batch_tokens": [128],
    "train_d_model": 8,
    "train_n_layers": 1,
    "train_n_seq": 16,
    "evaluations": 1,
    "learning_rates": [0.01],
    "ppl_batch_size": 2,
    "max_ppl_batches": 2,
}


def run_cells(name, settings, monkeypatch):
    """Execute the code of a committed notebook with these settings in place of its own."""
    path = REPOSITORY / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        pytest.skip("not a checkout")
    monkeypatch.setattr("muse.report.figures.show", lambda figure: None)
    first, *cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    space: dict[str, object] = {}
    exec(first, space)
    space |= settings
    for cell in cells:
        exec(cell, space)


@pytest.fixture
def namespace(tmp_path):
    return {**TINY, "record_dir": str(tmp_path / "records"), "unrelated": object(), "cache_dir": str(tmp_path)}


def test_bad_parameters_are_named(namespace):
    with pytest.raises(ParamsError, match="d_model: got 7"):
        Stage("memory", namespace | {"d_model": 7})


def test_only_declared_parameters_are_checked_against_each_other(namespace):
    Stage("memory", namespace | {"n_seq": 16})  # gradient_n_tokens and others are not this stage's business


def test_toy_models_are_trained_on_one_thread_and_others_on_all(namespace):
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Stage("train", namespace | TRAIN)
        assert torch.get_num_threads() == 1
        Stage("train", namespace | TRAIN)
        Stage("train", namespace | TRAIN | {"train_d_model": 66})
        assert torch.get_num_threads() == 2
        Stage("memory", namespace | TRAIN)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)


def test_cuda_is_refused_where_there_is_none(namespace):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="device: got cuda"):
        Stage("memory", namespace | {"device": "cuda"})


def test_the_record_says_how_it_was_made(namespace, tmp_path):
    stage = Stage("memory", namespace)
    stage.write([Metric(name="loss", value=1.5, unit="nat/token")])
    record = read_record(StageRecord, tmp_path / "records" / "memory.json")
    assert record.stage == "memory"
    assert record.params["d_model"] == 16
    assert "unrelated" not in record.params
    assert record.scale == "reduced"
    assert "d_model 16 (published: 512)" in record.scale_note
    assert record.find("loss").value == 1.5


def test_phase2_is_left_out_on_request(namespace):
    assert Stage("memory", namespace | {"models": ["stage1", "phase2"]}).compared == ["stage1", "phase2"]
    assert Stage("memory", namespace | {"models": ["stage1", "phase2"], "skip_phase2": True}).compared == ["stage1"]


def test_untrained_stage1_scores_near_uniform_guessing_and_says_what_it_is(namespace):
    results, metrics = perplexity.evaluate(Stage("perplexity", namespace | {"max_ppl_batches": 4}), "stage1")
    assert results[3].loss_nats == pytest.approx(math.log(77), rel=0.15)
    found = {metric.name: metric for metric in metrics}
    assert [found[name].value for name in ("causality_violations", "mixing", "state_violations")] == [0, 0, 0]
    assert found["perplexity"].value == results[3].perplexity
    assert found["perplexity"].note.startswith("untrained; test split")


def test_a_record_names_the_text_that_was_read(namespace):
    stage = Stage("perplexity", namespace)
    assert stage.record([]).text == ""
    assert stage.corpus.text == stage.record([]).text == "synthetic"


def test_an_untrained_perplexity_needs_the_test_split_alone(namespace, tmp_path):
    """Its record says what was read, what was normalized in it, and that it is not the published text."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a line \n"] * 5, vocab_size=262, show_progress=False, special_tokens=["<|endoftext|>"])
    (tmp_path / "bpe").mkdir()
    bpe.save_model(str(tmp_path / "bpe"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "test.txt").write_bytes(b"\xef\xbb\xbfa line \r\n" * 9)
    read = {"corpus": str(tmp_path / "text"), "tokenizer": str(tmp_path / "bpe"), "vocab_size": 262, "train_tokens": 0}
    record = perplexity.run(Stage("perplexity", namespace | read))
    assert record.find("perplexity", "stage1").value > 1
    assert record.text == "another text"
    assert ("corpus", "another text") in [(smaller.setting, smaller.value) for smaller in record.reductions]
    assert [file.normalized for file in record.inputs][:2] == [["crlf", "byte_order_mark"], []]
    with pytest.raises(ValueError, match=r"must hold either train.txt"):
        _ = Stage("train", namespace | TRAIN | read | {"train_tokens": 512}).corpus


def test_trained_models_are_tested_on_a_text_that_they_were_not_trained_on(namespace, tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["one line \n", "x = 1\n"] * 5, vocab_size=262, show_progress=False)
    (tmp_path / "bpe").mkdir()
    bpe.save_model(str(tmp_path / "bpe"))
    texts = {"prose": {"train": 90, "validation": 9, "test": 9}, "code": {"test": 30}}
    for name, splits in texts.items():
        (tmp_path / name).mkdir()
        for split, lines in splits.items():
            (tmp_path / name / f"{split}.txt").write_text(("one line \n" if name == "prose" else "x = 1\n") * lines)
    read = {"corpus": str(tmp_path / "prose"), "tokenizer": str(tmp_path / "bpe"), "max_ppl_batches": None}
    given = namespace | TRAIN | read | {"models": ["stage1"], "checkpoint_dir": str(tmp_path / "checkpoints")}
    at_home = perplexity.run(Stage("perplexity", given))
    elsewhere = perplexity.run(Stage("perplexity", given | {"test_corpus": str(tmp_path / "code")}))
    assert len(list((tmp_path / "checkpoints").glob("stage1-*"))) == 1, "what was trained is found, not trained again"
    home, away = (record.find("perplexity", "stage1") for record in (at_home, elsewhere))
    code = Stage("perplexity", given | {"test_corpus": str(tmp_path / "code")}).tested.splits["test"]
    assert away.n == len(code.ids) - 1 != home.n
    assert away.value > home.value
    read = {file.path.rpartition("/")[0][-5:]: file.path for file in elsewhere.inputs}
    assert {"prose", "/code"} <= read.keys()
    assert len(elsewhere.inputs) == len(at_home.inputs) + 1, "the tokenizer is one"


JAPANESE = """　吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。
　何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。
　しかもあとで聞くとそれは書生という人間中で一番獰悪な種族であったそうだ。

　この書生というのは時々我々を捕えて煮て食うという話である。しかしその当時は何という考もなかったから別段恐しいとも思わなかった。
"""


def corpus_of(folder, text=JAPANESE):
    """Settings that read a corpus of this text with a byte-level BPE of its own, every target of its test split."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"])
    (folder / "bpe").mkdir(parents=True)
    bpe.save_model(str(folder / "bpe"))
    for split, times in {"train": 4, "validation": 1, "test": 1}.items():
        (folder / f"{split}.txt").write_text(text * times, encoding="utf-8")
    return {"corpus": str(folder), "tokenizer": str(folder / "bpe"), "max_ppl_batches": None}


def test_a_text_without_spaces_has_perplexities_per_byte_and_character_and_none_per_word(namespace, tmp_path):
    given = namespace | TRAIN | {"models": ["stage1"], "seeds": [0, 1]}
    record = perplexity.run(Stage("perplexity", given | corpus_of(tmp_path / "japanese")))
    found = {name: record.find(f"{name}_perplexity", "stage1") for name in ("word", "byte", "character")}
    assert found["word"].value is None
    loss, bits = record.find("loss", "stage1").samples, record.find("bits_per_byte", "stage1").samples
    counts = {"byte": len(JAPANESE.encode()), "character": len(JAPANESE)}
    for name, count in counts.items():
        metric = found[name]
        expected = [math.exp(one * (metric.n + 1) / count) for one in loss]
        assert metric.samples == pytest.approx(expected)
        assert metric.value == pytest.approx(sum(expected) / 2)
        assert metric.interval[0] < metric.value < metric.interval[1]
        assert metric.unit == f"per {name}"
        assert record.find(f"ensemble_{name}_perplexity", "stage1").value > 1
    assert found["byte"].samples == pytest.approx([2**one for one in bits])
    for name in ("word_perplexity", "ensemble_word_perplexity"):
        missing = record.find(name, "stage1")
        assert why(missing, texts("en")) == "no spaces part the words of this text"
        assert why(missing, texts("ja")) == "単語が空白で区切られていない文章"
        assert "not given: no spaces part the words" in missing.note
    shown = {name: note(metric, record, "ja") for name, metric in found.items()}
    assert shown["word"] == "単語が空白で区切られていない文章"
    assert all("2 シードの平均" in shown[name] and "テスト分割" in shown[name] for name in ("byte", "character"))
    for metric in found.values():
        assert all(metric_label(metric.name, language) != metric.name for language in ("en", "ja"))
        assert unit_label(metric.unit, "ja") != metric.unit


def test_a_text_with_spaces_has_a_perplexity_per_word_and_no_other(namespace, tmp_path):
    spaced = "".join(f"{sign} " if sign.isalpha() else sign for sign in JAPANESE)
    for text in (spaced, "one line of words , and another \n \n" * 9):
        folder = tmp_path / str(len(text))
        given = namespace | TRAIN | {"models": ["stage1"]} | corpus_of(folder, text)
        record = perplexity.run(Stage("perplexity", given))
        words, metric = len(text.split()) + text.count("\n"), record.find("word_perplexity", "stage1")
        assert metric.value == pytest.approx(math.exp(record.find("loss", "stage1").value * (metric.n + 1) / words))
        assert not any(record.find(f"{name}_perplexity", "stage1") for name in ("byte", "character"))


def test_trained_models_are_found_again_and_stage1_is_served_in_half_precision(namespace, tmp_path):
    stage = Stage("perplexity", {**namespace, **TRAIN, "checkpoint_dir": str(tmp_path / "checkpoints")})
    (result,) = stage.train("stage1").results
    models = stage.models_by_seed("stage1")
    assert models.keys() == {0}
    assert models[0].head_weight.dtype == torch.float16
    assert models[0].config.d_model == 8
    assert stage.train("stage1").results[0].reused
    assert result.weights.exists()
    results, metrics = perplexity.evaluate(stage, "phase2")
    assert results[0].num_targets == 2 * 2 * 16
    found = {metric.name: metric for metric in metrics}
    assert found["mixing"].value == 1
    assert found["perplexity"].samples == [results[0].perplexity]
    assert not found["perplexity"].note.startswith("untrained")


def test_a_complex_model_is_measured_in_further_formats_with_the_same_weights(namespace, tmp_path):
    formats = {"formats": ["float32", "bfloat16"], "checkpoint_dir": str(tmp_path / "checkpoints")}
    stage = Stage("perplexity", {**namespace, **TRAIN, **formats})
    results, _ = perplexity.evaluate(stage, "stage1")
    found = {metric.name: metric for metric in perplexity.evaluate_formats(stage, "stage1")}
    assert list(found) == ["loss_float32", "perplexity_float32", "loss_bfloat16", "perplexity_bfloat16"]
    losses = results[0].loss_nats, found["loss_float32"].value, found["loss_bfloat16"].value
    assert len(set(losses)) == 3
    assert losses == pytest.approx([losses[1]] * 3, rel=5e-3)
    assert abs(losses[0] - losses[1]) < abs(losses[2] - losses[1])  # float16 has three bits more than bfloat16
    assert found["loss_float32"].note.startswith("seed 0, weights and activations in float32; test split")
    assert perplexity.evaluate_formats(stage, "phase2") == []
    none = Stage("perplexity", {**namespace, **TRAIN, **formats, "formats": []})
    assert perplexity.evaluate_formats(none, "stage1") == []


def test_every_model_name_can_be_asked_for_and_built():
    assert set(ModelName.__args__) == set(MODEL_NAMES) == set(MODELS)
    sizes = {"vocab_size": 11, "d_model": 16, "n_layers": 1, "n_seq": 8}
    for name in MODEL_NAMES:
        model = build_model(name, **sizes, seed=1)
        assert model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 11)
        assert sum(model.parameter_groups().values()) == sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match="got 'gpt3', expected one of stage1"):
        build_model("gpt3", **sizes)


@pytest.mark.parametrize("name", ["stage1", "stage1_memory", "phase2", "gpt2", "real_twin"])
def test_the_setting_recompute_reaches_every_model_but_those_of_a_race(namespace, monkeypatch, name):
    stage = Stage("memory", namespace | {"recompute": True})
    assert stage.model(name).recompute
    assert stage.model(name, use_complex32=False).recompute
    assert not stage.model(name, recompute=False).recompute
    usual = Stage("memory", namespace)
    assert not usual.model(name).recompute
    assert usual.model(name, recompute=True).recompute
    assert not usual.model(name).recompute, "each call returns a model of its own"
    monkeypatch.setattr("muse.bench.bench.measure_bench", lambda build, *_, **__: build(name, use_complex32=False))
    assert not throughput.run_bench(stage).recompute


def test_the_setting_recompute_reaches_the_training(namespace, tmp_path):
    settings = namespace | TRAIN | {"recompute": True, "checkpoint_dir": str(tmp_path / "checkpoints")}
    (result,) = Stage("train", settings).train("stage1").results
    recipe = json.loads((result.weights.parent / "config.json").read_text())["config"]["recipe"]
    assert recipe["recompute"]


@pytest.mark.parametrize("recompute", [False, True])
def test_the_notebook_of_peaks_shows_every_model_with_and_without_recomputing(
    namespace, tmp_path, monkeypatch, recompute
):
    sizes = {"models": ["stage1", "phase2"], "n_layers": 4, "n_seq": 64, "recompute": recompute}
    run_cells("04_memory", namespace | sizes, monkeypatch)
    record = read_record(StageRecord, tmp_path / "records" / "memory.json")
    for model in ("stage1", "phase2"):
        own, again = (record.find(f"peak_memory{variant}", model) for variant in ("", "_recomputed"))
        assert (again.value < own.value) is not recompute
        assert (again.value == own.value) is recompute
        assert ("recomputes" in own.note) is recompute
        assert "recomputes" in again.note
    assert record.find("peak_memory_recomputed_ratio_to_phase2", "stage1").value > 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_row_of_the_memory_is_measured_in_its_own_precision_and_with_its_own_step(
    namespace, tmp_path, monkeypatch, optimizer
):
    names = ["stage1", "phase2", "gpt2", "real_twin"]
    sizes = {"models": names, "n_seq": 64, "optimizer": optimizer, "batch_tokens": [100], "train_n_seq": 32}
    run_cells("04_memory", namespace | sizes | {"dropouts": [0.0, 0.5]}, monkeypatch)
    record = read_record(StageRecord, tmp_path / "records" / "memory.json")

    def noted(variant, model):
        found = record.find(f"peak_memory_{variant}", model)
        return found and found.note

    for name in ("phase2", "gpt2"):
        assert "forward + loss + backward, parameters bfloat16;" in noted("bfloat16", name)
        assert record.find("peak_memory_bfloat16", name).value < record.find("peak_memory", name).value
    for name in ("stage1", "real_twin"):
        assert noted("bfloat16", name) is None, "stored in half precision already"
        ratio = record.find("peak_memory_ratio_to_phase2_bfloat16", name).value
        peaks = record.find("peak_memory", name).value, record.find("peak_memory_bfloat16", "phase2").value
        assert ratio == pytest.approx(peaks[0] / peaks[1])
    assert record.find("peak_memory_ratio_to_phase2_bfloat16", "gpt2") is None
    for name in names:
        step = f"training step with {optimizer} and bfloat16 autocast that recomputes the blocks"
        assert f"batch 2 x 64, {step}, the second of two, parameters float32" in noted("training_step", name)
        assert (noted("training_step_adamw", name) is None) == (optimizer == "adamw")
        recipe = f"batch 3 x 32, training step with {optimizer} and bfloat16 autocast and dropout 0.5, the second"
        assert recipe in noted("recipe_step", name)
        assert record.find("peak_memory_recipe_step", name).basis == "estimate"
        assert record.find("trains_within_8_gib", name) is None, "nothing was capped"
        assert record.find(f"peak_memory_recomputed{'_ratio_to_phase2' * (name != 'phase2')}", name).value > 0


def test_dropout_of_the_recipe_is_in_its_step(namespace):
    many = namespace | {"n_seq": 32, "batch_tokens": [8192], "n_layers": 3}  # masks live on where products go back
    stage = Stage("memory", many | {"dropouts": [0.0, 0.5]})
    kept, dropped = (memory._recipe_step(other, "stage1")[0].value for other in (Stage("memory", many), stage))
    assert dropped > kept
    assert stage.shaped("phase2", dropout=0.5).config.dropout == 0.5
    assert stage.model("phase2", dropout=0.5).config.dropout == 0.5
    assert stage.model("phase2").config.dropout == 0


def test_the_step_whose_memory_is_measured_is_the_trainers_own(namespace):
    stage, model = Stage("memory", namespace), build_model("stage1", **SIZES)
    for optimizer, kinds in (("adamw", [torch.optim.AdamW]), ("muon", [torch.optim.AdamW, Muon])):
        step = memory.training(stage, optimizer, 2, 8).step_of(model)
        assert type(step) is trainer.OptimizerStep
        assert [type(one) for one in step.optimizers] == kinds
        assert (step.recipe.precision, step.recipe.compile) == ("bfloat16", False)
    assert "OptimizerStep(model, recipe" in inspect.getsource(trainer._Training), "which trains with it"


def test_a_model_of_another_dtype_is_that_on_every_device(namespace):
    stage = Stage("memory", namespace)
    for make in (stage.model, stage.shaped):
        assert {p.dtype for p in make("phase2", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
        assert {p.dtype for p in make("phase2").parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["stage1", "stage1_memory", "phase2", "gpt2", "real_twin"])
@pytest.mark.parametrize("use_complex32", [True, False])
def test_a_model_whose_memory_is_estimated_is_the_same_model_with_nothing_drawn(namespace, name, use_complex32):
    stage = Stage("memory", namespace)
    state = torch.get_rng_state()
    shaped = stage.shaped(name, use_complex32=use_complex32, recompute=True)
    assert torch.equal(torch.get_rng_state(), state)
    model = stage.model(name, use_complex32=use_complex32, recompute=True)
    assert shaped.recompute
    assert shaped.config == model.config
    kinds = [[(n, p.shape, p.dtype, p.device) for n, p in one.named_parameters()] for one in (shaped, model)]
    assert kinds[0] == kinds[1]
    protocol = {"batch_size": 1, "n_seq": 32, "device": "cpu"}
    assert measure_memory(lambda: shaped, **protocol) == measure_memory(lambda: model, **protocol)


def test_a_new_model_does_not_wait_for_the_import_of_torchs_compiler():
    code = f"import sys; from muse.models.build import build_model; build_model('stage1', **{SIZES!r}); "
    code += f"build_model('stage1_memory', **{SIZES!r}); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_the_memory_with_one_option_changed_and_fits_its_budget(name):
    """Counted with a short vocabulary; the missing rows of the table (or table and head) and of the bias are added."""
    sizes = {"vocab_size": 3, "d_model": 512, "n_layers": 6, "n_seq": 1024}
    memory, whole = build_model(name, **sizes), build_model(ABLATIONS[name], **sizes)
    options, usual = dataclasses.asdict(memory.config.memory), dataclasses.asdict(whole.config.memory)
    assert len([key for key in options if options[key] != usual[key]]) == 1
    if ABLATIONS[name] == "stage1_memory":
        num = sum(p.numel() for p in memory.parameters()) + (50257 - 3) * (2 * 512 + 1)
        assert 0.97 * 80_937_553 < num <= 80_937_553


def test_an_ablation_is_trained_and_served_under_its_own_name(namespace, tmp_path):
    name = "stage1_memory_no_rotation"
    trained = {**namespace, **TRAIN, "models": [name], "checkpoint_dir": str(tmp_path / "checkpoints")}
    stage = Stage("perplexity", trained)
    assert stage.compared == [name]
    (model,) = stage.models_by_seed(name).values()
    assert model.config.memory.rotation == "none"
    assert model.config.use_complex32


def test_a_trained_memory_is_watched_and_writes(namespace, tmp_path, capsys):
    models = ["phase2", "stage1_memory_modrelu", "stage1_memory"]
    settings = {"models": models, "dynamics_windows": 3, "excerpt_tokens": 7, "checkpoint_dir": str(tmp_path / "ck")}
    stage = Stage("dynamics", {**namespace, **TRAIN, **settings})
    assert dynamics.memory_model(stage) == "stage1_memory"
    model = stage.models_by_seed("stage1_memory")[0]
    capsys.readouterr()
    prompt, written = dynamics.write_text(stage, model, "stage1_memory")
    decode, ids = stage.corpus.decode, stage.corpus.splits["test"].ids
    assert prompt.text == decode(ids[:8].tolist())
    assert len(written.text.split(" ")) == 7
    assert capsys.readouterr().out == f"{prompt.text} ...\n{written.text}"
    assert written == dynamics.write_text(stage, model, "stage1_memory")[1]
    assert "seed 3" in written.name
    watched = dynamics.watch(stage, model)
    assert watched.num_tokens == 3 * 16
    record = stage.write(watched.metrics("stage1_memory"), excerpts=[prompt, written])
    assert len(record.find("imaginary_energy_share", "stage1_memory").samples) == 1
    assert [excerpt.model for excerpt in record.excerpts] == ["stage1_memory"] * 2


def test_without_a_memory_there_is_nothing_to_watch(namespace):
    for models, watched in ((["phase2", "real_twin"], None), (["stage1_memory_untied"], "stage1_memory_untied")):
        assert dynamics.memory_model(Stage("dynamics", namespace | {"models": models})) == watched


def test_a_memory_with_a_position_table_writes_no_further_than_it(namespace):
    stage = Stage("dynamics", namespace | {"models": ["stage1_memory_positions"], "excerpt_tokens": 500})
    (model,) = stage.models_by_seed("stage1_memory_positions").values()
    assert "written: 16 tokens" in dynamics.write_text(stage, model, "x")[1].name
    assert dynamics.watch(stage, model).num_tokens == 4 * 32


@pytest.mark.parametrize("models", [["stage1_memory"], ["phase2"]])
def test_the_notebook_of_the_memory_does_nothing_without_one(namespace, tmp_path, monkeypatch, models):
    path = REPOSITORY / "notebooks" / "08_dynamics.ipynb"
    if not path.exists():
        pytest.skip("not a checkout")
    shown = []
    monkeypatch.setattr("muse.report.figures.show", shown.append)
    first, *cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    space: dict[str, object] = {}
    exec(first, space)
    small = {"models": models, "checkpoint_dir": str(tmp_path / "checkpoints"), "excerpt_tokens": 5}
    space |= namespace | TRAIN | small
    for cell in cells:
        exec(cell, space)
    record = read_record(StageRecord, tmp_path / "records" / "dynamics.json")
    if models == ["phase2"]:
        assert [record.metrics, record.series, record.excerpts, record.inputs, shown] == [[]] * 5
        assert not (tmp_path / "checkpoints").exists()
    else:
        assert len(record.metrics) == 12
        assert [figure.layout.meta["caption"] != "" for figure in shown] == [True] * 3
        assert len(record.excerpts) == 2


def test_a_memory_is_watched_before_its_training_too_under_names_of_its_own(namespace, tmp_path):
    small = {"models": ["stage1_memory"], "seeds": [5, 6], "excerpt_tokens": 5, "checkpoint_dir": str(tmp_path / "ck")}
    stage = Stage("dynamics", {**namespace, **TRAIN, **small})
    record = dynamics.run(stage)
    sizes = {"vocab_size": stage.corpus.vocab_size, "d_model": 8, "n_layers": 1, "n_seq": 16}
    drawn = dynamics.watch(stage, build_model("stage1_memory", **sizes, seed=5).to_complex32())
    before = [metric for metric in record.metrics if not metric.trained]
    assert [metric.name for metric in before] == [f"{metric.name}_untrained" for metric in drawn.metrics("x")]
    assert [metric.samples for metric in before] == [metric.samples for metric in drawn.metrics("x")]
    assert all(metric.note.startswith("untrained; ") for metric in before)
    after = [metric for metric in record.metrics if metric.trained]
    assert [metric.name for metric in after] == [metric.name for metric in drawn.metrics("x")]
    assert all(one.n == other.n and one.samples != other.samples for one, other in zip(after, before, strict=True))
    names = ["layer 0 half-life", "layer 0 period"]
    assert [series.name for series in record.series] == [*names, *(f"untrained {name}" for name in names)]
    assert [series.y for series in record.series[2:]] == [series.y for series in drawn.series("x")]
    assert record.series[1].y != record.series[3].y


@pytest.mark.parametrize(("models", "read_by"), [
    (["stage1_memory", "real_twin", "phase2"], ["stage1_memory", "phase2"]),
    (["stage1_memory", "real_twin", "gpt2"], ["stage1_memory", "real_twin"]),
    (["stage1_memory"], ["stage1_memory"]),
])  # fmt: skip
def test_a_trained_memory_and_one_model_beside_it_read_the_first_words_of_the_test_text(
    namespace, tmp_path, models, read_by
):
    small = {"models": models, "seeds": [5], "excerpt_tokens": 5, "checkpoint_dir": str(tmp_path / "ck")}
    stage = Stage("dynamics", {**namespace, **TRAIN, **small})
    dynamics.run(stage)
    found, ids = read_reading(tmp_path), stage.corpus.splits["test"].ids[:16].long()  # no more than their sequences
    assert found.seeds == dict.fromkeys(read_by, 5)
    assert "".join(found.pieces) == stage.corpus.decode(ids.tolist())
    loaded = {name: stage.models_by_seed(name)[5].float() for name in read_by}
    for name, model in loaded.items():
        assert found.losses[name] == pytest.approx(token_losses(model, ids).tolist(), abs=1e-4)
    assert found.floor == pytest.approx(Grammar().nll_nats(ids.tolist())[1:].tolist(), abs=1e-4)
    ours, *theirs = map(np.array, found.losses.values())
    size = abs(ours - theirs[0]) if theirs else ours
    assert [place.position for place in found.places] == np.argsort(-size, kind="stable")[:3].tolist()
    for place in found.places:
        for name, model in loaded.items():
            ranked = next_tokens(model, ids[: place.position + 1], 5)
            assert [word for word, _ in place.candidates[name]] == [stage.corpus.decode([at]) for at, _ in ranked]
            assert [share for _, share in place.candidates[name]] == pytest.approx([p for _, p in ranked], abs=1e-4)
    read, asked = found.read, [place.position for place in found.places]
    assert read.position == next((at for at in asked if at >= 8), max(asked))
    again = read_at(loaded["stage1_memory"], ids, read.layer, read.head, read.position)
    assert read.rotated == pytest.approx(again.signed.tolist(), abs=1e-4)
    assert read.rotated != read.plain


def test_where_nothing_was_trained_a_memory_is_watched_once_and_what_an_earlier_one_read_goes(namespace, tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "reading.json").write_text("{}")
    small = {"models": ["stage1_memory"], "excerpt_tokens": 5, "train_tokens": 0}
    record = dynamics.run(Stage("dynamics", namespace | small))
    assert read_reading(tmp_path) is None
    assert len({metric.name for metric in record.metrics}) == len(record.metrics) == 6
    assert {metric.trained for metric in record.metrics} == {False}
    assert [series.name for series in record.series] == ["layer 0 half-life", "layer 0 period"]


def test_averaged_seeds_stand_beside_the_models_and_decide_nothing(namespace, tmp_path):
    """Both means follow from the file that is kept, to float16; what is averaged is compared with nothing."""
    small = {"seeds": [4, 9], "max_ppl_batches": 20, "checkpoint_dir": str(tmp_path / "ck")}
    record = perplexity.run(Stage("perplexity", namespace | TRAIN | small))
    for name in TRAIN["models"]:
        (artifact,) = (one for one in record.artifacts if one.kind == "losses" and one.model == name)
        assert artifact.path == f"losses/{name}.npz"
        kept = read_losses(tmp_path / artifact.path)
        assert list(kept.by_seed) == [4, 9]
        single, averaged = record.find("loss", name), record.find("ensemble_loss", name)
        losses = np.stack([losses.astype(float) for losses in kept.by_seed.values()])
        assert losses.mean(1) == pytest.approx(single.samples, rel=2**-11)
        assert -np.log(np.exp(-losses).mean(0)).mean() == pytest.approx(averaged.value, rel=2**-11)
        assert averaged.value < single.value
        assert (averaged.n, averaged.trained, averaged.labels) == (losses.shape[1], True, ["seed 4", "seed 9"])
    assert not [m.name for m in record.metrics if m.name.startswith("ensemble_") and "_ratio_to_" in m.name]
    alone = record.model_copy(update={"metrics": [m for m in record.metrics if not m.name.startswith("ensemble_")]})
    assert judge([record], texts("en")) == judge([alone], texts("en"))
    assert summarise([record], judge([record], texts("en"))) == summarise([alone], judge([alone], texts("en")))


def test_kept_losses_belong_to_the_documents_of_the_split(namespace, tmp_path):
    stage = Stage("perplexity", namespace | {"models": ["stage1"], "max_ppl_batches": None, "train_tokens": 0})
    record = perplexity.run(stage)
    (artifact,) = record.artifacts
    kept, test = read_losses(stage.run_dir / artifact.path), stage.corpus.splits["test"]
    assert list(kept.by_seed) == [TINY["seed"]]
    ends = [*test.document_starts.tolist()[1:], len(test.ids)]
    expected = [next(i for i, end in enumerate(ends) if target < end) for target in range(1, len(test.ids))]
    assert kept.documents.tolist() == expected
    assert record.find("ensemble_loss", "stage1") is None
    assert not (stage.run_dir / "losses" / "text.json").exists(), "one model differs from none"


def test_the_text_where_two_models_differ_most_is_kept(namespace, tmp_path, monkeypatch):
    monkeypatch.setattr("muse.measure.windows.WINDOW", 5)
    stage = Stage("perplexity", namespace | TRAIN | {"max_ppl_batches": 20, "checkpoint_dir": str(tmp_path / "ck")})
    perplexity.run(stage)
    sample, test = read_sample(stage.run_dir), stage.corpus.splits["test"]
    assert (sample.candidate, sample.baseline) == ("stage1", "phase2")
    assert len(sample.titles) == len(test.document_starts)
    kept = {name: read_losses(tmp_path / "losses" / f"{name}.npz") for name in (sample.candidate, sample.baseline)}
    ours, theirs = (next(iter(losses.by_seed.values())).astype(float) for losses in kept.values())
    assert sample.gains
    for window in sample.gains:
        span = slice(window.first, window.first + 5)
        assert (ours - theirs)[span].mean() < 0
        assert set(kept["stage1"].documents[span]) == {window.document}
        assert "".join(window.pieces) == stage.corpus.decode(test.ids[window.first + 1 :][:5].tolist())


def test_every_training_of_a_comparison_is_recorded_tries_included(namespace, tmp_path):
    small = {"seeds": [4, 9], "learning_rates": [0.01, 1e30], "tune_tokens": 256}
    settings = namespace | TRAIN | small | {"checkpoint_dir": str(tmp_path / "ck")}
    record = train.run(Stage("train", settings))
    told = [(run.model, run.seed, run.learning_rate, run.tokens, run.diverged) for run in record.trainings]
    each = [(4, 0.01, 256, False), (4, 1e30, 256, True), (4, 0.01, 512, False), (9, 0.01, 512, False)]
    assert told == [(name, *values) for name in TRAIN["models"] for values in each]
    assert all(run.started_utc <= run.finished_utc and run.hardware for run in record.trainings)
    assert read_record(StageRecord, tmp_path / "records" / "train.json") == record
    again = train.run(Stage("train", settings)).trainings
    assert [run.reused for run in again] == [not run.diverged for run in again]
    assert perplexity.run(Stage("perplexity", settings)).trainings == [], "the stage that trains records them"


def test_changes_of_the_memory_are_compared_with_it_and_all_with_the_baselines():
    names = ["stage1", "stage1_memory", "phase2", "gpt2", "real_twin", "stage1_memory_untied"]
    to_memory = [("real_twin", "stage1_memory"), ("stage1_memory_untied", "stage1_memory")]
    to_phase2 = [(name, "phase2") for name in names if name != "phase2"]
    assert comparisons(names) == [*to_phase2, *((name, "gpt2") for name in names if name != "gpt2"), *to_memory]
    assert comparisons(["stage1", "real_twin"]) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles; this test is about numbers
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["stage1", "stage1_memory", "phase2", "gpt2", "real_twin"])
def test_the_compiled_loss_has_the_gradients_of_the_eager_one_on_cuda(name, recompute):
    """One that had none at all in the body once went unnoticed: the head alone still learned a little."""
    torch.compiler.reset()
    sizes = {"vocab_size": 1003, "d_model": 64, "n_layers": 2, "n_seq": 128}
    ids = torch.randint(1003, (4, 129), generator=torch.Generator().manual_seed(0)).cuda()
    gradients = []
    for compiled in (False, True):
        model = build_model(name, **sizes).cuda()
        model.recompute = compiled and recompute
        (torch.compile(model.loss) if compiled else model.loss)(ids[:, :-1], ids[:, 1:]).backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    for key, eager in gradients[0].items():
        error = (gradients[1][key] - eager).norm() / eager.norm()
        assert error < 1e-3, f"{key}: {error}"


def test_a_model_without_a_finite_perplexity_takes_nothing_from_the_others(namespace, tmp_path, monkeypatch):
    """The cells of the notebook themselves, with a memory model whose weights are not finite."""
    models = {name: build_model(name, vocab_size=77, d_model=16, n_layers=1, n_seq=16) for name in TRAIN["models"]}
    with torch.no_grad():
        next(iter(models["stage1"].parameters())).fill_(math.nan)
    monkeypatch.setattr(Stage, "models_by_seed", lambda self, name: {0: models[name].eval(), 1: models[name]})
    run_cells("03_perplexity", namespace | TRAIN, monkeypatch)
    record = read_record(StageRecord, tmp_path / "records" / "perplexity.json")
    assert record.find("perplexity", "phase2").value > 1
    broken = record.find("perplexity", "stage1")
    assert broken.value is None
    assert broken.note.startswith("seed 0: loss of nan in test split, batch 0")
    verdict = judge([record], texts("en"))[0]
    assert verdict.verdict == "fail"
    assert "loss of nan" in verdict.reason
    assert judge([record], texts("en"), candidate="phase2", baseline="stage1")[0].verdict == "not_measured"


def test_what_a_loop_has_measured_is_kept_until_the_record_is_written(namespace, tmp_path):
    stage, path, metrics, series, seen = Stage("memory", namespace), tmp_path / "records" / "memory.json", [], [], []
    for name in stage.keeping(["stage1", "phase2"], metrics, "models weighed", series=series):
        seen.append(read_record(StageRecord, path) if path.exists() else None)
        metrics.append(Metric(name="peak_memory", model=name, value=1.0, unit="GiB"))
        series.append(Series(name="x", model=name, x_name="x", y_name="y", x=[0], y=[1]))
    seen.append(read_record(StageRecord, path))
    assert seen.pop(0) is None
    assert [(r.status, r.error) for r in seen] == [("failed", f"unfinished: {n} of 2 models weighed") for n in (1, 2)]
    assert [r.models("peak_memory") for r in seen] == [["stage1"], ["stage1", "phase2"]]
    assert [len(r.series) for r in seen] == [1, 2]
    assert seen[0].params["d_model"] == 16
    stage.write(metrics)
    record = read_record(StageRecord, path)
    assert (record.status, record.error, record.metrics) == ("ok", None, metrics)


STEPS = {
    "03_perplexity": "muse.stages.perplexity._on_test_split",
    "04_memory": "muse.measure.measure_memory",
    "05_throughput": "muse.measure.measure_throughput",
    "06_gradients_stability": "muse.measure.measure_stability",
}
"""What measures one model in a notebook."""


def fail_from_call(monkeypatch, place, number):
    """Make the function at this place raise from its call of that number on."""
    measured, calls = pkgutil.resolve_name(place), []

    def measure(*arguments, **options):
        calls.append(1)
        if len(calls) >= number:
            raise MemoryError("too large")
        return measured(*arguments, **options)

    monkeypatch.setattr(place, measure)


@pytest.mark.parametrize(
    ("notebook", "number", "error", "kept"),
    [
        ("03_perplexity", 3, "1 of 2 models measured", {"perplexity": ["stage1"], "mixing": ["stage1"]}),
        ("03_perplexity", 5, "2 of 2 models measured", {"perplexity": ["stage1", "phase2"], "perplexity_bfloat16": []}),
        ("04_memory", 5, "1 of 2 models measured", {"peak_memory_recipe_step": ["stage1"]}),
        ("05_throughput", 2, "1 of 2 models measured", {"throughput_loss": ["stage1"]}),
        ("06_gradients_stability", 2, "1 of 2 models in trials", {"gradient_norm": ["stage1"]}),
    ],
)
def test_a_model_that_fails_takes_nothing_from_those_before_it(
    namespace, tmp_path, monkeypatch, notebook, number, error, kept
):
    small = {"seeds": [0, 1], "formats": ["bfloat16"], "checkpoint_dir": str(tmp_path / "ck"), "memory_batch_size": 1}
    small |= {"throughput_n_tokens": 8, "throughput_samples": 2, "stability_trials": 1, "stability_n_tokens": 8}
    small |= {"gradient_n_tokens": 8}
    if notebook == "06_gradients_stability":
        small |= {"candidates": ["stage1", "stage1_memory"], "models": ["stage1", "stage1_memory"]}
    fail_from_call(monkeypatch, STEPS[notebook], number)
    with pytest.raises(MemoryError):
        run_cells(notebook, namespace | TRAIN | small, monkeypatch)
    record = read_record(StageRecord, tmp_path / "records" / f"{notebook[3:]}.json")
    assert (record.status, record.error) == ("failed", f"unfinished: {error}")
    losses = {artifact.path for artifact in record.artifacts if artifact.kind == "losses"}
    assert losses == {f"losses/{name}.npz" for name in record.models("perplexity")}
    assert all(read_losses(tmp_path / path).by_seed.keys() == {0, 1} for path in losses)
    assert {name: record.models(name) for name in kept} == kept
    assert {criterion.verdict for criterion in judge([record], texts("en"))} == {"not_measured"}
    if notebook == "03_perplexity":
        assert len(record.find("perplexity", "stage1").samples) == 2
        assert record.series[0].model == "stage1"
    if number == 5 and notebook == "03_perplexity":
        as_if_done = record.model_copy(update={"status": "ok", "error": None})
        found = judge([as_if_done], texts("en"))[0]
        assert found.verdict != "not_measured", "only the failure keeps it from being judged"


def test_races_are_kept_group_by_group_beside_the_models(namespace, tmp_path, monkeypatch):
    def races(stage, on_result):
        on_result(SimpleNamespace(metrics=lambda: [Metric(name="bench_head_speed", value=1.0, unit="token/s")]))
        raise MemoryError("too large")

    monkeypatch.setattr("muse.stages.throughput.run_bench", races)
    small = {"models": ["stage1"], "throughput_n_tokens": 8, "throughput_samples": 2, "bench": True}
    with pytest.raises(MemoryError):
        run_cells("05_throughput", namespace | small, monkeypatch)
    record = read_record(StageRecord, tmp_path / "records" / "throughput.json")
    assert (record.status, record.error) == ("failed", "unfinished: races not finished")
    assert record.find("bench_head_speed").value == 1
    assert record.find("throughput_loss", "stage1").value > 0


def test_the_notebook_of_planar_numbers_gives_the_same_numbers_again(tmp_path, monkeypatch):
    found = []
    for name in ("first", "again"):
        run_cells("00_planar_complex", {"record_dir": str(tmp_path / name)}, monkeypatch)
        found.append(read_record(StageRecord, tmp_path / name / "planar_complex.json").metrics)
    assert len(found[0]) > 5
    assert found[0] == found[1]
