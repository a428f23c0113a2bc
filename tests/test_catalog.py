"""The catalog: one row for each name, and everything that a row needs is there."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest

from muse import catalog
from muse.data.corpora import load_corpus
from muse.data.hub import CorpusUnavailable
from muse.params import ParamsError, Settings, load_params
from muse.records.scale import PUBLISHED_CORPUS
from muse.report.figures.style import MODELS as LOOKS
from muse.report.texts import texts

ROOT = Path(__file__).resolve().parent.parent


def test_names_and_numbers_are_given_once():
    assert len(set(catalog.MODEL_NAMES)) == len(catalog.MODELS)
    rows = [*catalog.STAGES, catalog.stage(catalog.REPORT), catalog.stage(catalog.EXPLORER)]
    assert len({row.name for row in rows}) == len({row.number for row in rows}) == len(rows)


def test_each_stage_has_its_notebook_and_each_notebook_its_stage():
    names = (*catalog.STAGE_NAMES, catalog.REPORT, catalog.EXPLORER)
    assert {catalog.stem(name) for name in names} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert catalog.page("perplexity") == "pages/03_perplexity.html"
    assert catalog.page(catalog.REPORT) == "index.html"


def test_a_model_is_compared_with_every_baseline_of_its_row():
    pairs = catalog.comparisons(catalog.MODEL_NAMES)
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == {(row.name, base) for row in catalog.MODELS for base in row.baselines}
    assert not [pair for pair in pairs if pair[0] == pair[1] or pair[1] not in catalog.MODEL_NAMES]
    bases = ["phase2", "gpt2", "stage1_memory", "phase2_compact", "stage1_compact"]
    assert list(dict.fromkeys(base for _, base in pairs)) == bases
    assert catalog.comparisons(["stage1_memory_untied", "stage1_memory", "gpt2"]) == [
        ("stage1_memory_untied", "gpt2"), ("stage1_memory", "gpt2"), ("stage1_memory_untied", "stage1_memory")
    ]  # fmt: skip


def test_a_memory_is_watched_in_the_whole_model_before_its_changes():
    changed = [name for name in catalog.MODEL_NAMES if name in catalog.ABLATIONS]
    assert catalog.memory_models([*changed, "real_twin", "stage1_memory"]) == ["stage1_memory", *changed]
    assert catalog.memory_models(["stage1", "phase2", "gpt2", "real_twin"]) == []


@pytest.mark.parametrize("name", [row.name for row in catalog.STAGES if row.needs_memory])
def test_a_stage_that_looks_into_a_memory_is_refused_without_one(name):
    with pytest.raises(ParamsError, match=f"stages names {name}, but none of models has a complex memory"):
        load_params(None, [f"stages=[{name}]", "models=[stage1, real_twin]"])
    assert load_params(None, [f"stages=[{name}]", "models=[stage1_memory_untied]"]).stages == [name]


def test_corpora_and_tokenizers_by_name_are_read_and_described(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("one two three\n")
    given = [(corpus, "corpus") for corpus in catalog.CORPORA]
    given += [(str(tmp_path), tokenizer) for tokenizer in catalog.TOKENIZERS]
    for corpus, tokenizer in given:
        with contextlib.suppress(CorpusUnavailable):  # known, but not on this machine
            found = load_corpus(corpus, tokenizer, splits=("validation",), cache_dir=tmp_path / "cache")
            assert (found.name, found.tokenizer_name) == (corpus, tokenizer)
    assert PUBLISHED_CORPUS in catalog.CORPORA
    for key, names in (("corpus", catalog.CORPORA), ("tokenizer", catalog.TOKENIZERS)):
        assert not [name for name in names if name not in Settings.model_fields[key].description]
        assert Settings.model_fields[key].default in names


def test_what_a_stage_needs_runs_before_it():
    for position, row in enumerate(catalog.STAGES):
        assert set(row.needs) <= set(catalog.STAGE_NAMES[:position])


def test_every_model_can_be_drawn_and_named_in_every_language():
    assert set(LOOKS) == set(catalog.MODEL_NAMES)
    for language in catalog.LANGUAGES:
        words = texts(language)
        assert not [name for name in catalog.MODEL_NAMES if f"model.{name}" not in words]
        assert not [name for name in catalog.STAGE_NAMES if f"stage.{name}" not in words]


def test_every_name_is_a_setting_that_params_accept():
    settings = Settings(
        models=list(catalog.MODEL_NAMES), candidates=list(catalog.CANDIDATES), stages=list(catalog.STAGE_NAMES),
        bench_groups=list(catalog.BENCH_GROUPS), language=catalog.LANGUAGES[-1],
    )  # fmt: skip
    usual = catalog.usual_stages(settings.models)
    assert [name for name in settings.stages if name not in usual] == [catalog.COUNTING]
    assert {"en", "ja"} <= set(catalog.LANGUAGES)


@pytest.mark.parametrize(("models", "expected"), [
    (["phase2", "stage1_memory", "stage1"], ["stage1"]), (["gpt2", "stage1_memory"], ["stage1_memory"]),
    ([], ["stage1"]),
])  # fmt: skip
def test_the_criteria_are_asked_of_the_reference_where_a_run_has_it(models, expected):
    assert catalog.usual_candidates(models) == expected


def test_names_of_models_stand_in_the_catalog_only():
    """Elsewhere they are asked for by their meaning; figures give each of the ablations its own look."""
    names = set(catalog.MODEL_NAMES)
    for path in sorted((ROOT / "muse").rglob("*.py")):
        if path.name in ("catalog.py", "__init__.py"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & names
        assert found <= MEANT_OTHERWISE.get(path.name, set()), path


MEANT_OTHERWISE = {
    "pretrained.py": {"stage1", "real_twin", "phase2", "gpt2"},  # modules, by their names
    "style.py": set(catalog.ABLATIONS),
    "cli.py": {"gpt2"},  # a tokenizer
    "harness.py": {"gpt2"},
    "tokenizers.py": {"gpt2"},
}


def test_the_page_about_plans_has_every_card_as_the_catalog_has_it():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for card in catalog.CARDS.values():
        numbers = card.bfloat16_flops / 1e12, card.float32_flops / 1e12, card.bandwidth / 1e12
        told = " | ".join(f"{number:g}" for number in (*numbers, card.link_bandwidth / 1e9))
        assert f"| `{card.name}` | {card.title} | {told} | {card.memory_bytes / 2**30:.1f} |\n" in page
