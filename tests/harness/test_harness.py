"""The lm-evaluation-harness sees the numbers that the workbook's own measurement sees."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from muse import cli
from muse.data.corpora import load_corpus
from muse.host.workbook import to_install
from muse.measure import measure_perplexity
from muse.models.build import build_model
from muse.models.pretrained import save_pretrained
from muse.ops import planar

pytestmark = pytest.mark.filterwarnings("default")  # another project's warnings are not ours to refuse

MINE = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: perplexity}}]
"""
TEXT = (
    " \n = First Article = \n \n The café stood by the sea . It was <unk> , and it was old . \n \n"
    " = Second Article = \n \n One line\twith a tab .\n\n\n   three spaces, no end of line at the end"
)


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    from muse.harness import harness

    return harness


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer of a few merges, and a corpus folder whose test split is TEXT."""
    tokenizers = pytest.importorskip("tokenizers")
    root = tmp_path_factory.mktemp("harness")
    (root / "bpe").mkdir()
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT] * 5, vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(root / "bpe"))
    (root / "corpus").mkdir()
    (root / "corpus" / "test.txt").write_text(TEXT, encoding="utf-8", newline="")
    return root


def tiny(name="stage1_memory", n_seq=16, **choices):
    """A tiny model whose predictions are far from uniform."""
    model = build_model(name, vocab_size=300, d_model=16, n_layers=1, n_seq=n_seq, **choices)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) / 4).to(parameter.dtype))
    return model.eval()


@pytest.fixture
def adapter(harness, folders):
    return lambda **choices: harness.MuseLM(tiny(**choices), str(folders / "bpe"), device="cpu", batch_size=2)


def request(*arguments):
    return SimpleNamespace(args=arguments)


def naive_nats(model, ids, context=0):
    """Log likelihood of ids after the first `context` (at least one), token by token over the whole past."""
    total = 0.0
    for position in range(max(context, 1), len(ids)):
        logits = model(torch.tensor([ids[:position]]))[0, -1].double()
        total += logits.log_softmax(-1)[ids[position]].item()
    return total


@pytest.mark.parametrize(("name", "use_complex32"), [("stage1_memory", True), ("stage1", False), ("phase2", False)])
def test_the_wikitext_task_agrees_with_our_perplexity(harness, folders, tmp_path, name, use_complex32):
    saved = save_pretrained(tiny(name, use_complex32=use_complex32), tmp_path / "model")
    model = harness.MuseLM(str(saved), str(folders / "bpe"), device="cpu")
    found = harness.evaluate(model, ["muse_wikitext"], corpus=str(folders / "corpus"))["muse_wikitext"]
    corpus = load_corpus(str(folders / "corpus"), str(folders / "bpe"), splits=["test"], cache_dir=tmp_path)
    with planar.cpu_compute("float32"):
        ours = measure_perplexity(model.model, corpus.splits["test"], n_seq=16, batch_size=3)
    assert ours.num_targets > 3 * 16
    assert found["word_perplexity,none"] == pytest.approx(ours.word_perplexity, rel=1e-6)
    assert found["bits_per_byte,none"] == pytest.approx(ours.bits_per_byte, rel=1e-6)
    assert found["byte_perplexity,none"] == pytest.approx(2**ours.bits_per_byte, rel=1e-6)


def test_a_text_without_spaces_has_no_word_perplexity(harness, folders, tmp_path, caplog):
    text = "吾輩は猫である。名前はまだ無い。\nどこで生れたかとんと見当がつかぬ。\n"
    (tmp_path / "test.txt").write_text(text, encoding="utf-8")
    model = harness.MuseLM(tiny(), str(folders / "bpe"), device="cpu")
    found = harness.evaluate(model, ["muse_wikitext"], corpus=str(tmp_path))["muse_wikitext"]
    split = load_corpus(str(tmp_path), str(folders / "bpe"), splits=["test"], cache_dir=tmp_path).splits["test"]
    with planar.cpu_compute("float32"):
        ours = measure_perplexity(model.model, split, n_seq=16, batch_size=3)
    assert found["word_perplexity,none"] is ours.word_perplexity is None
    assert found["byte_perplexity,none"] == pytest.approx(ours.byte_perplexity, rel=1e-6)
    assert found["character_perplexity,none"] == pytest.approx(ours.character_perplexity, rel=1e-6)
    assert "word_perplexity: not given, no spaces part the words of this text" in caplog.text
    with_spaces = harness.evaluate(model, ["muse_wikitext"], corpus=str(folders / "corpus"))["muse_wikitext"]
    assert with_spaces["word_perplexity,none"] > 1
    assert "character_perplexity,none" not in with_spaces


def test_rolling_is_the_naive_sum_over_windows_and_charges_the_first_token_the_mean(adapter):
    lm = adapter(n_seq=7)
    (ids,) = lm.encode([TEXT])
    windows = [ids[start : start + 8] for start in range(0, len(ids) - 1, 7)]
    nats = sum(naive_nats(lm.model, window) for window in windows)
    with planar.cpu_compute("float32"):
        found = lm.loglikelihood_rolling([request(TEXT), request(""), request("é"), request(TEXT)], disable_tqdm=True)
    assert found[0] == found[3] == pytest.approx(nats * len(ids) / (len(ids) - 1), rel=1e-5)
    assert found[1] == 0
    one = len(lm.encode(["é"])[0])
    assert one > 1 or found[2] == -math.log(300)
    assert lm.loglikelihood_rolling([request("\n")]) == [-math.log(300)]


def test_text_becomes_the_tokens_of_the_corpus(adapter, folders, tmp_path):
    lm = adapter()
    corpus = load_corpus(str(folders / "corpus"), str(folders / "bpe"), splits=["test"], cache_dir=tmp_path)
    strings = ["", TEXT, "a\n\nb", ""]
    found = lm.encode(strings)
    assert found[1] == corpus.splits["test"].ids.tolist()
    assert [lm.tokenizer.decode(ids) for ids in found] == strings
    assert lm.encode(["", ""]) == [[], []]
    other = ["", "\ufeff" + TEXT.replace("\n", "\r\n"), "a\r\rb", ""]
    assert lm.encode(other) == found


def test_a_continuation_is_scored_after_its_context(adapter):
    lm = adapter(n_seq=64)
    pairs = [
        ("It was", " old"),
        ("The café stood by", " the sea . It was"),
        ("", "One line"),
        ("It was ", "old"),
        ("a", ""),
    ]
    found = lm.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (nats, _) in zip(pairs[:3], found[:3], strict=True):
        whole, before = lm.encode([(context or "\n") + continuation, context or "\n"])
        assert nats == pytest.approx(naive_nats(lm.model, whole, len(before)), rel=1e-4)
    assert found[3][0] == pytest.approx(found[0][0], rel=1e-4)  # a space moves to the continuation
    assert found[4] == (0.0, True)
    assert len({round(nats, 3) for nats, _ in found}) == 4


@pytest.mark.parametrize("space", [" ", "\n", "\n\n", " \t\n", "\u00a0"])
def test_white_space_at_the_end_of_a_context_goes_to_the_continuation(adapter, space):
    """As in the harness's own models, which have cut all of it off the context."""
    lm = adapter(n_seq=64)
    found = lm.loglikelihood([request("It was" + space, "old"), request("It was", space + "old")], disable_tqdm=True)
    assert found[0] == (pytest.approx(found[1][0], rel=1e-6), found[1][1])
    whole, before = lm.encode(["It was" + space + "old", "It was"])
    assert found[0][0] == pytest.approx(naive_nats(lm.model, whole, len(before)), rel=1e-4)
    (alone,) = lm.loglikelihood([request(space, "old")], disable_tqdm=True)
    whole, before = lm.encode([space + "old", space])
    assert alone[0] == pytest.approx(naive_nats(lm.model, whole, len(before)), rel=1e-4)


@pytest.mark.parametrize("name", ["stage1_memory", "phase2", "stage1", "gpt2"])
def test_the_harness_own_model_gives_the_numbers_of_the_adapter(harness, folders, tmp_path, name):
    """`--model hf` on the folder: contexts, continuations and answers, one text a line (see docs/clients.md)."""
    from lm_eval.models.huggingface import HFLM

    import muse.hub  # noqa: F401 - the Auto classes know the model from then on

    saved = save_pretrained(tiny(name, n_seq=32), tmp_path / "model", tokenizer=folders / "bpe")
    ours = harness.MuseLM(saved, device="cpu")
    theirs = HFLM(pretrained=str(saved), device="cpu", batch_size=2, max_length=32)
    pairs = [("It was", " old"), ("The café stood by", " the sea . It was"), ("It was ", "old"), ("It was\n", "old"),
             ("The sea " * 9, "old"), ("a", " tab")]  # fmt: skip
    requests = [request(*pair) for pair in pairs]
    found, expected = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (theirs, ours))
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    options = {"max_gen_toks": 12, "until": ["never there"], "do_sample": False}
    asked = [request(text, options) for text in ("The sea", "It was old", "One")]
    assert theirs.generate_until(asked, disable_tqdm=True) == ours.generate_until(asked, disable_tqdm=True)


def test_a_model_is_asked_with_its_own_tokenizer(harness, folders, tmp_path):
    saved = save_pretrained(tiny(), tmp_path / "model", tokenizer=folders / "bpe")
    lm, told = harness.MuseLM(saved, device="cpu"), harness.MuseLM(saved, str(folders / "bpe"), device="cpu")
    assert lm.encode([TEXT]) == told.encode([TEXT])
    corpus = load_corpus("synthetic", "corpus", splits=["test"], synthetic_tokens={"test": 300})
    saved = save_pretrained(tiny(), tmp_path / "symbols", tokenizer=corpus)
    lm, ids = harness.MuseLM(saved, device="cpu"), corpus.splits["test"].ids.tolist()
    assert lm.encode([corpus.decode(ids)]) == [ids]
    assert lm.tokenizer.decode(ids) == corpus.decode(ids)


@pytest.mark.parametrize("asked", [None, "cuda", "cuda:0", "cpu"])
def test_without_a_gpu_the_cpu_is_taken(harness, folders, monkeypatch, caplog, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lm = harness.MuseLM(tiny(), str(folders / "bpe"), device=asked)
    assert next(lm.model.parameters()).device.type == "cpu"
    assert len(caplog.messages) == (asked in ("cuda", "cuda:0"))


def test_the_harness_command_line_knows_the_adapter(harness, folders, tmp_path):
    saved = save_pretrained(tiny(), tmp_path / "model", tokenizer=folders / "bpe")
    given = {
        "model": "muse", "model_args": f"pretrained={saved}", "tasks": "muse_wikitext", "device": "cuda:0",
        "include_path": harness.TASKS, "metadata": json.dumps({"corpus": str(folders / "corpus")}),
        "output_path": tmp_path / "out",
    }  # fmt: skip
    arguments = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "muse.harness", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results*.json")
    found = json.loads(results.read_text())["results"]["muse_wikitext"]["bits_per_byte,none"]
    model = harness.MuseLM(saved, device="cpu")
    own = harness.evaluate(model, ["muse_wikitext"], corpus=str(folders / "corpus"))["muse_wikitext"]
    assert found == pytest.approx(own["bits_per_byte,none"], rel=1e-6)


def test_greedy_says_whether_the_likeliest_tokens_stand_there(adapter):
    lm = adapter(n_seq=64)
    words = [word for word in (" was", " the", " Article", " =", " .") if len(lm.encode([word])[0]) == 1][:2]
    assert len(words) == 2
    for likely in words:
        model = tiny(n_seq=64)
        with torch.no_grad():
            model.head_bias[lm.encode([likely])[0]] += 50
        lm.model = model
        found = lm.loglikelihood([request("It", word) for word in words], disable_tqdm=True)
        assert [greedy for _, greedy in found] == [word == likely for word in words]


def test_a_long_context_keeps_its_end_and_a_long_continuation_is_refused(adapter):
    lm = adapter(n_seq=8)
    (nats, _), (short, _) = lm.loglikelihood([request(TEXT, " sea"), request("sea" + TEXT, " sea")], disable_tqdm=True)
    whole, before = lm.encode([TEXT + " sea", TEXT])
    count = len(whole) - len(before)
    want = naive_nats(lm.model, whole[-9:], 9 - count)
    assert [nats, short] == pytest.approx([want, want], rel=1e-4)
    with pytest.raises(ValueError, match="tokens, expected at most n_seq = 8"):
        lm.loglikelihood([request("It", TEXT)])


def test_writing_stops_where_asked(adapter):
    lm = adapter(n_seq=32)
    free, again = lm.generate_until([request("The sea", {"max_gen_toks": 12})] * 2, disable_tqdm=True)
    assert free == again
    assert len(free) > 3
    stop = free[len(free) // 2 :][:2]
    options = {"max_gen_toks": 12, "until": ["never there", stop]}
    assert lm.generate_until([request("The sea", options)], disable_tqdm=True) == [free[: free.index(stop)]]
    assert lm.generate_until([request(TEXT, {"max_gen_toks": 5000, "until": "\n"})], disable_tqdm=True)
    sampled = {"max_gen_toks": 12, "do_sample": True, "temperature": 5.0}
    assert lm.generate_until([request("The sea", sampled)], disable_tqdm=True) != [free]


def test_what_does_not_fit_is_refused(harness, folders):
    with pytest.raises(ValueError, match="tokens, expected at most the model's 20"):
        harness.MuseLM(build_model("stage1", vocab_size=20, d_model=4, n_layers=1, n_seq=8), str(folders / "bpe"))
    with pytest.raises(ValueError, match="batch_size: got 'auto', expected a number"):
        harness.MuseLM(tiny(), str(folders / "bpe"), batch_size="auto")
    with pytest.raises(ValueError, match="corpus: got nothing, expected a folder"):
        harness.load_text()


def test_another_tokenizer_than_the_trainings_is_refused(harness, folders, tmp_path):
    """As many tokens, of other words."""
    own = harness.MuseLM(tiny(), str(folders / "bpe")).tokenizer.vocabulary_sha256
    for tokenizer, refused in ((own, False), ("0" * 64, True)):
        training = {"corpus": {"tokenizer": "theirs", "tokenizer_sha256": tokenizer}}
        saved = save_pretrained(tiny(), tmp_path / tokenizer, training)
        with pytest.raises(ValueError, match="with which the model was trained") if refused else nullcontext():
            harness.MuseLM(saved, str(folders / "bpe"), device="cpu")


def test_results_are_plain_values(harness):
    values = [np.float64(0.5), np.int64(3), math.nan, np.float32("inf"), "N/A", 2]
    assert json.dumps([harness._plain(value) for value in values]) == '[0.5, 3, null, null, "N/A", 2]'


def test_the_command_prints_strict_json(harness, folders, tmp_path, capsys):
    saved = save_pretrained(tiny(), tmp_path / "model")
    arguments = ["eval", str(saved), "--tokenizer", str(folders / "bpe"), "--corpus", str(folders / "corpus")]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["muse_wikitext"]["bits_per_byte,none"] > 0
    assert cli.main(["eval", str(tmp_path), "--corpus", str(folders / "corpus")]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_task_that_is_not_there_is_one_line(harness, folders, tmp_path, capsys):
    saved = save_pretrained(tiny(), tmp_path / "model", tokenizer=folders / "bpe")
    for more in (["--tasks", "nosuchtask"], ["--include-path", str(tmp_path / "none")]):
        assert cli.main(["eval", str(saved), "--device", "cpu", *more]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("muse:")]
        assert "nosuchtask" in line or "no such folder" in line


def test_tasks_of_ones_own(harness, folders, tmp_path, capsys):
    saved = save_pretrained(tiny(n_seq=64), tmp_path / "model", tokenizer=folders / "bpe")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.jsonl").write_text('{"question": "It was", "answer": "old"}\n')
    (tmp_path / "tasks" / "mine.yaml").write_text(MINE.format(file=tmp_path / "tasks" / "mine.jsonl"))
    given = ["--include-path", str(tmp_path / "tasks"), "--tasks", "mine", "--device", "cpu"]
    assert cli.main(["eval", str(saved), *given]) == 0
    assert json.loads(capsys.readouterr().out)["mine"]["perplexity,none"] > 1


def test_without_the_harness_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "muse.harness.harness", raising=False)
    assert cli.main(["eval", str(tmp_path)]) == 2
    assert to_install("eval") in capsys.readouterr().err
