"""The page of losses by document and by token: its numbers, its links, and text that stays text."""

from __future__ import annotations

import numpy as np
import pytest
from builders import metric, record, run_info, soup

from muse.params import ParamsError
from muse.records.losses import write_losses
from muse.records.store import RecordError, write_record
from muse.records.text_sample import TextSample, Window, write_sample
from muse.report import browser, check, text_page
from muse.report.check import check_page, check_run
from muse.report.page import text_link
from muse.report.texts import LANGUAGES, texts

DOCUMENTS = np.repeat(np.arange(3, dtype=np.int32), [2, 1, 3])
BASE = np.array([1, 1, 4, 2, 2, 2.0])
OURS = {0: BASE + np.array([0, 1, -2, 0, 0, 0.5]), 3: BASE + np.array([0, 1, -4, 0, 0, 0.5])}
WINDOW = Window(document=2, first=3, pieces=[" <script>alert(1)</script>", "\n", "&amp;"])
SAMPLE = TextSample(
    candidate="stage1_memory", baseline="phase2", titles=["<b>", "two", "three"], gains=[],
    losses=[WINDOW],
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    artifacts = [
        write_losses(folder, name, by_seed, DOCUMENTS)
        for name, by_seed in (("stage1_memory", OURS), ("phase2", {0: BASE, 3: BASE}))
    ]
    stage = record("perplexity", metrics=[metric("perplexity")], artifacts=artifacts)
    write_record(run_info(params={"stages": ["perplexity"]}), folder / "run.json")
    write_record(stage, folder / "records" / "perplexity.json")
    write_sample(folder, SAMPLE)
    return folder


def page_of(run, language="en"):
    assert text_page.write(run, language)
    return soup((run / "text.html").read_text(encoding="utf-8"))


def test_documents_are_sorted_by_their_difference(run):
    """Document 1 by -3, 2 by 1/6, 0 by 1/2: means over its targets and both seeds."""
    rows = page_of(run).select("tbody tr")
    assert [row["id"] for row in rows] == ["document-1", "document-2", "document-0"]
    assert [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows] == [
        ["1 two", "1", "1.000", "4.000", "−3.000"],
        ["2 three", "3", "2.167", "2.000", "+0.167"],
        ["0 <b>", "2", "1.500", "1.000", "+0.500"],
    ]


def test_every_dot_leads_to_its_document(run):
    page = page_of(run)
    dots = page.select(".text-plane a")
    assert [dot["href"] for dot in dots] == ["#document-1", "#document-2", "#document-0"]
    assert [dot["class"] for dot in dots] == [["b"], ["w"], ["w"]]
    assert all(page.find(id=dot["href"][1:]) for dot in dots)
    assert dots[0]["style"].endswith("top:100.0%")
    assert dots[2]["style"].endswith("top:0.0%")
    assert dots[0]["aria-label"] == "two: −3.000"


def test_tokens_have_a_colour_and_the_number_it_stands_for(run):
    tokens = page_of(run).select("ruby")
    numbers = [[part.string for part in token.select("i")] for token in tokens]
    assert numbers == [["0.0", "2.00"], ["0.0", "2.00"], ["+0.5", "2.50"]]
    assert [token["class"] for token in tokens] == [["s1"], ["s1"], ["w1", "s1"]]
    assert [text_page._step(value) for value in (-3, -1, -0.25, -0.2, 0, 0.2, 0.25, 1.5, 2)] == [
        "b3", "b2", "b1", "", "", "", "w1", "w2", "w3",
    ]  # fmt: skip


def test_text_is_inert(run):
    page = page_of(run)
    assert page.main.script is None
    assert page.main.select("b") == []
    first, newline, sign = (token.contents[0] for token in page.select("ruby"))
    assert (first, newline, sign) == (" <script>alert(1)</script>", "↵", "&amp;")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_passes_the_check_and_is_linked(run, language):
    stage = record("perplexity")
    assert text_link(stage, run, language) == ""
    (run / "index.html").write_text("x")
    page = page_of(run, language)
    assert check_page(run / "text.html") == []
    assert page.html["lang"] == language
    here = page.select_one("header [aria-current=page]")
    assert here["href"] == "text.html"
    assert soup(text_link(stage, run, language)).a["href"] == "text.html"
    assert text_link(record("memory"), run, language) == ""
    assert not [problem for problem in check_run(run) if "text.html" in problem]
    (run / "text.html").write_text((run / "text.html").read_text().replace('href="#document-2"', 'href="#lost"'))
    assert "text.html: broken link #lost" in check_run(run)
    assert texts(language)["text_page.short"] == here.get_text()


@pytest.mark.skipif(check.find_browser() is None, reason="no Chromium installed")
def test_a_phone_shows_every_number_of_a_document(run):
    pytest.importorskip("playwright")
    page_of(run, "en")
    with browser.window(check.find_browser(), width=375) as context:
        tab = browser.open_page(context, run / "text.html")
        assert tab.evaluate(check.HIDDEN) == []
        assert tab.locator(".text-table td").last.is_visible()


def test_many_documents_are_cut_in_the_middle(run, monkeypatch):
    """A document that a window leads to stays."""
    monkeypatch.setattr(text_page, "MOST_DOCUMENTS", 2)
    assert len(page_of(run).select("tbody tr")) == 3
    write_sample(run, SAMPLE.model_copy(update={"losses": []}))
    page = page_of(run)
    assert [row["id"] for row in page.select("tbody tr")] == ["document-1", "document-0"]
    assert [a["href"] for a in page.select(".text-plane a")] == ["#document-1", "#document-0"]
    assert "The 2 of 3 documents" in page.main.get_text()


def test_without_losses_or_text_there_is_no_page_and_of_other_text_an_error(run):
    write_sample(run, SAMPLE.model_copy(update={"titles": ["only one"], "losses": []}))
    with pytest.raises(RecordError, match="got text of other targets"):
        text_page.write(run, "en")
    write_sample(run, SAMPLE.model_copy(update={"losses": [WINDOW.model_copy(update={"first": 4})]}))
    with pytest.raises(RecordError, match="got text of other targets"):
        text_page.write(run, "en")
    write_sample(run, SAMPLE)
    path = run / "losses" / "phase2.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ParamsError, match="no readable npz"):
        text_page.write(run, "en")
    path.unlink()
    assert text_page.write(run, "en") is False
    path.write_bytes(whole)
    (run / "losses" / "text.json").unlink()
    assert text_page.write(run, "en") is False
    assert not (run / "text.html").exists()


def test_a_window_of_no_document_is_no_sample():
    with pytest.raises(ValueError, match="a window is of no document"):
        TextSample(candidate="a", baseline="b", titles=["one"], gains=[], losses=[WINDOW])
