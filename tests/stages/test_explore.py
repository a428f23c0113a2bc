"""The explorer: parameters to what it shows, mistakes in one line each, and its notebook in a kernel, far from home."""

from __future__ import annotations

import json
import re

import nbformat
import numpy as np
import pytest
import torch
from builders import corpus, soup
from nbclient import NotebookClient

from muse.catalog import EXPLORER, stem
from muse.models.build import build_model
from muse.models.pretrained import from_pretrained, save_pretrained
from muse.params import ParamsError
from muse.report.figures.style import PLOTLY_MIME
from muse.report.texts import texts
from muse.stages.explore import BOOKS, Explorer

NOTEBOOK = BOOKS / f"{stem(EXPLORER)}.ipynb"
SIZES = {"vocab_size": 77, "d_model": 16, "n_layers": 2, "n_seq": 32}
TEXT = "\nsea ann red bob blue eve green the fish sleeps . bob is blue ."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two exported models of one vocabulary and one of a smaller one."""
    folder = tmp_path_factory.mktemp("models")
    about = {
        "corpus": {"tokenizer": "corpus", "tokenizer_sha256": corpus().tokenizer_sha256},
        "validation_loss_nats": 2.5,
    }
    for name in ("stage1_memory", "phase2"):
        model = build_model(name, **SIZES, seed=1)
        save_pretrained(model, folder / name, about | {"model_name": name, "recipe": {"seed": 1, "train_tokens": 9000}})
    save_pretrained(build_model("stage1", **SIZES | {"vocab_size": 30}), folder / "small")
    other = {"corpus": {"tokenizer": "gpt2", "tokenizer_sha256": "0" * 64}}
    save_pretrained(build_model("stage1", **SIZES), folder / "other", other)
    return folder


@pytest.fixture(autouse=True)
def threads():
    """As many threads as before: the explorer takes one for narrow models."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def given(folder, **different):
    values = {"checkpoint_a": str(folder / "stage1_memory"), "checkpoint_b": str(folder / "phase2"), "text": TEXT}
    values |= {"layer": 1, "head": 2, "position": 14, "n_new_tokens": 6, "folders": [str(folder)]}
    return values | different


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as mime bundles."""
    found = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw, metadata=None: found.append(bundle))
    return found


def plain(bundles):
    return "\n".join(bundle["text/plain"] for bundle in bundles)


@pytest.mark.parametrize(("different", "line"), [
    ({"text": "the sailer"}, r"text: got 'sailer', expected words of the synthetic language; did you mean sailor\?"),
    ({"text": "the"}, "text: got 'the', expected 2 to 32 tokens, not 1"),
    ({"text": "the fish " * 20}, "text: got .*, expected 2 to 32 tokens, not 40"),
    ({"text": 7}, r"text: got 7, expected string"),
    ({"position": 16}, "position: got 16, expected 0 to 15 of the text"),
    ({"position": -1}, "position: got -1, expected greater than or equal to 0"),
    ({"layer": 2}, "layer: got 2, expected 0 to 1 of Stage 1 with memory"),
    ({"head": 4}, "head: got 4, expected 0 to 3 of Stage 1 with memory"),
    ({"checkpoint_a": "no/such"}, "checkpoint_a: got 'no/such', expected a folder, .*no/such is none"),
    ({"checkpoint_b": "."}, "checkpoint_b: got '.', expected the folder of an exported model or of a finished tr"),
    ({"checkpoint_b": "small"}, "checkpoint_b: got '.*small', expected a vocabulary of at least 77, not 30"),
    ({"checkpoint_b": "other"}, "checkpoint_b: got '.*other', expected a model of corpus and tokenizer: .*gpt2"),
    ({"corpus": "nowhere"}, "corpus: got 'nowhere', expected a folder, "),
    ({"tokenizer": "gpt2"}, "corpus: got 'synthetic', expected text that can be read: .*tokenizer must be 'corpus'"),
    ({"top_p": 0.0}, "top_p: got 0.0, expected greater than 0"),
    ({"temperature": "hot"}, "temperature: got 'hot', expected number"),
    ({"n_new_tokens": 0}, "n_new_tokens: got 0, expected greater than or equal to 1"),
    ({"language": "jp"}, "language: got 'jp', expected 'en' or 'ja'"),
    ({"checkpoint_a": None}, "checkpoint_a: got None, expected string"),
])  # fmt: skip
def test_a_mistake_is_one_line_with_key_got_and_expected(folder, tmp_path, monkeypatch, different, line):
    monkeypatch.chdir(tmp_path)
    key, value = next(iter(different.items()))
    different = {key: str(folder / value)} if value in ("small", "other") else different
    with pytest.raises(ParamsError) as raised:
        Explorer(given(folder, **different))
    assert re.match(f"parameters: {line}", str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_folders_are_found_from_anywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(folder / "phase2")
    assert [type(one.model).__name__ for one in Explorer(given(folder, checkpoint_b="mine")).seen] == [
        "Phase3Stage1Model", "Phase2Model"
    ]  # fmt: skip
    assert {p.dtype for p in Explorer(given(folder, checkpoint_b=None)).seen[0].model.parameters()} == {torch.float32}


def test_everything_is_shown_and_the_answer_is_of_what_was_shown(folder, shown, capsys):
    explorer = Explorer(given(folder))
    explorer.show_surprise()
    exact = explorer.surprises["language"]
    assert exact[0] == pytest.approx(np.log(8))  # one of eight topics
    assert exact[-1] == 0
    text = soup(shown[0]["text/html"])
    words = [li.b.get_text() for li in text.select(".mx-text li:not(.line)")]
    assert words == explorer.words == ["↵", *TEXT.split()]
    framed = [f"{abs(losses[13]):.1f}" for losses in explorer.surprises.values()]
    assert [number.get_text() for number in text.select(".here i")] == framed
    for number in text.select(".mx-text i"):  # never by colour alone
        loss = number.get_text()
        steps = {sum(float(loss) + d >= at for at in (0.5, 1, 2, 4)) for d in (-0.05, 0.05)} if loss != "–" else {0}
        assert int(number["class"][0][1]) in steps
    for show in ("next", "phases", "read", "traffic", "switches", "writing", "models", "answer"):
        getattr(explorer, f"show_{show}")()
    names = [bundle[PLOTLY_MIME]["layout"]["meta"]["name"] for bundle in shown if len(bundle) == 3]
    assert names == ["explore_phases", "explore_read", "explore_traffic", "explore_switches"]
    assert all(bundle["text/plain"] for bundle in shown)
    answer = plain(shown[-1:])
    assert f"Phase 2: {np.mean(explorer.surprises['Phase 2']):.3f} nat per token" in answer
    rotated, without = explorer.reads
    assert rotated.sum() == pytest.approx(1) == without.sum()
    at = int(np.abs(rotated).argmax())
    assert f"At “blue” (14), head 2 of layer 1 reads most of “{explorer.words[at]}” ({at}) " in answer
    losses = explorer.switched["Stage 1 with memory"]
    most = max(losses, key=lambda name: abs((losses[name] - losses["float32"]).mean()))
    assert f"Of the changes to Stage 1 with memory, {texts('en')[f'explore.switch.{most}']} (" in answer
    assert "9,000" in plain(shown[-2:-1])
    assert capsys.readouterr().out == ""


def test_next_tokens_stand_side_by_side_and_the_one_that_came_is_marked(folder, shown):
    Explorer(given(folder, position=8)).show_next()
    title, head, *rows, came = shown[0]["text/plain"].splitlines()
    assert title.endswith("ann red bob blue eve green the”")
    assert head.split() == ["rank", "Stage", "1", "with", "memory", "probability", "Phase", "2", "probability"]
    assert [row.split()[0] for row in rows] == [str(rank) for rank in range(1, 9)]
    assert came == "✓: the token that came, “fish”."
    model, explorer = from_pretrained(folder / "phase2"), Explorer(given(folder, position=8))
    with torch.no_grad():
        share, index = model(explorer.ids[None, :9])[0, -1].softmax(-1).max(-1)
    assert explorer.corpus.decode([index.item()]) in rows[0]
    assert f"{share:.1%}" in rows[0]


def test_without_a_memory_what_needs_one_says_so(folder, shown, capsys):
    explorer = Explorer(given(folder, checkpoint_a=str(folder / "phase2"), checkpoint_b=None, layer=99, head=99))
    for show in ("phases", "read", "traffic"):
        getattr(explorer, f"show_{show}")()
    assert capsys.readouterr().out == "no complex memory in Phase 2: nothing to show\n" * 3
    assert shown == []
    explorer.show_switches()
    explorer.show_answer()
    assert "bfloat16" in shown[0]["text/plain"]
    assert "rotation" not in plain(shown)


def test_two_models_of_one_name_are_told_apart_by_their_folders(folder):
    explorer = Explorer(given(folder, checkpoint_a=str(folder / "phase2"), checkpoint_b=str(folder / "phase2")))
    assert {one.label for one in explorer.seen} == {"Phase 2 (phase2)"}


def test_a_text_that_is_no_sentence_has_no_exact_surprise(folder):
    explorer = Explorer(given(folder, text="the the the ann", position=1))
    assert list(explorer.surprises) == ["Stage 1 with memory", "Phase 2"]


def test_models_write_what_generate_draws(folder, shown):
    explorer = Explorer(given(folder, temperature=0.0))
    explorer.show_writing()
    ids = torch.tensor(explorer.corpus.encode(TEXT))[None]
    model = from_pretrained(folder / "phase2")
    for _ in range(6):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1)[None]], 1)
    assert explorer.corpus.decode(ids[0, -6:].tolist()) in plain(shown)


def test_the_committed_models_are_small_and_of_the_synthetic_language():
    sizes = [path.stat().st_size for path in (BOOKS / "toy").rglob("*") if path.is_file()]
    assert sum(sizes) <= 0.4e6
    weights = sorted((BOOKS / "toy").glob("*/model.safetensors"))
    assert [path.parent.name for path in weights] == ["phase2", "stage1_memory"]
    for path in weights:
        about = json.loads((path.parent / "config.json").read_text())
        assert (about["vocab_size"], about["n_seq"]) == (corpus().vocab_size, 128)
    assert "toy-scale" in (BOOKS / "toy" / "README.md").read_text()


def test_the_notebook_runs_in_any_folder_and_draws_everything(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert {name for name, found in outputs.items() if not found} == {"parameters", "read"}
    assert not [one for found in outputs.values() for one in found if one.output_type in ("error", "stream")]
    drawn = [name for name, found in outputs.items() if any(PLOTLY_MIME in one.data for one in found)]
    assert drawn == ["phases", "contributions", "traffic", "switches"]
    answer = outputs["answer"][0].data["text/plain"]
    assert answer.count("\n") >= 6
    assert "Phase 2" in answer
    assert [*tmp_path.iterdir()] == []  # it writes nothing
