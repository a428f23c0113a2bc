"""The static part of the explorer: what was kept is shown, in both languages, on the stage's page and in a notebook."""

from __future__ import annotations

import json

import pytest
from builders import metric, record, soup
from japanese import english_in

from muse.records.reading import Place, Reading, ReadShares, read_reading, reading_path, write_reading
from muse.records.store import RecordError, write_record
from muse.report import reading_block, stage_page
from muse.report.figures.style import PLOTLY_MIME
from muse.report.texts import LANGUAGES, texts

PIECES = ["\n", "sea", " <b>", " red", " ."]
READ = ReadShares(layer=1, head=2, rotated=[0.5, -0.25, 0.75], plain=[0.0, 0.5, 0.5])
BOTH = {"stage1_memory": [(" red", 0.625), (" <i>", 0.125)], "phase2": [("\n", 0.5), (" .", 0.375)]}
READING = Reading(
    seeds={"stage1_memory": 4, "phase2": 5}, pieces=PIECES, floor=[1.0, 0.0, 0.0, 0.0], read=READ,
    losses={"stage1_memory": [0.1, 0.6, 1.2, 4.5], "phase2": [0.2, 2.0, 2.5, 0.0]},
    places=[Place(position=2, candidates=BOTH)],
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    write_record(record("dynamics", metrics=[metric("phase_spread", "stage1_memory")]),
                 tmp_path / "records" / "dynamics.json")  # fmt: skip
    write_reading(tmp_path, READING)
    return tmp_path


def page_of(run, language):
    stage_page.write(run, "dynamics", [], language)
    return (run / "pages" / "08_dynamics.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_the_stage_shows_what_was_kept(run, language):
    page = soup(page_of(run, language))
    assert texts(language)["reading.title"] in [heading.get_text() for heading in page.select("h2")]
    tokens = page.select(".mx-text > li:not(.line)")
    assert [token.b.get_text() for token in tokens] == ["↵", "sea", "<b>", "red", "."]
    assert [[i.get_text() for i in token.select("i")] for token in tokens[3:]] == [["1.2", "2.5", "0.0"],
                                                                                   ["4.5", "0.0", "0.0"]]  # fmt: skip
    assert "here" in tokens[READ.position]["class"]
    rows = [[cell.get_text() for cell in row.select("td")] for row in page.select(".mx tbody tr")]
    assert rows == [["1", "red ✓", "62.5%", "↵", "50.0%"], ["2", "<i>", "12.5%", ".", "37.5%"]]
    assert page.select_one("meta[name=muse-figures]")["content"] == "1"
    (drawn,) = page.select("figure .muse-figure")
    bars, marks = json.loads(page.select_one("figure script").string)["data"]
    assert (bars["y"], marks["y"]) == (READ.rotated, READ.plain)
    assert "“<b>” (2)" in page.figcaption.get_text()
    lead = page.get_text()
    assert all(seed in lead for seed in ("4)" if language == "en" else "4）", "5)" if language == "en" else "5）"))
    assert drawn


def test_a_japanese_page_is_japanese_around_the_text(run):
    foreign = {name: [("赤", 0.5), ("海", 0.25)] for name in READING.seeds}
    place = Place(position=2, candidates=foreign)
    write_reading(run, READING.model_copy(update={"pieces": ["海", "の", "赤", "い", "。"], "places": [place]}))
    assert english_in(page_of(run, "ja"), "09_explore") == []


def test_one_model_without_a_known_language_is_shown_alone(run):
    alone = {key: {"stage1_memory": getattr(READING, key)["stage1_memory"]} for key in ("seeds", "losses")}
    place = Place(position=0, candidates={"stage1_memory": BOTH["stage1_memory"]})
    write_reading(run, READING.model_copy(update={**alone, "floor": None, "places": [place]}))
    page = soup(page_of(run, "en"))
    assert {len(token.select("i")) for token in page.select(".mx-text > li:not(.line)")} == {1}
    assert "surprise it most" in page.main.get_text()
    assert "Phase 2" not in page.main.get_text()


def test_without_a_reading_there_is_no_block_and_a_notebook_says_why(run, capsys, monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw, metadata=None: bundles.append(bundle))
    reading_block.show(run / "records")
    assert [PLOTLY_MIME in bundle for bundle in bundles] == [False] * 5 + [True, False]
    assert "sea 0.1 <b> 0.6" in bundles[1]["text/plain"]
    write_reading(run, None)
    assert reading_block.show(run / "records", "ja") is None
    assert capsys.readouterr().out.strip() == texts("ja")["reading.none"]
    assert not soup(page_of(run, "en")).select(".mx-text")


def test_a_reading_takes_little_of_a_page():
    words = [f" word{at}" for at in range(48)]
    losses = {name: [1.23456] * 47 for name in READING.seeds}
    shares = [0.12345] * 47
    place = Place(position=40, candidates={name: [(" candidate", 0.12345)] * 5 for name in READING.seeds})
    whole = Reading(seeds=READING.seeds, pieces=words, losses=losses, floor=[1.0] * 47, places=[place] * 3,
                    read=ReadShares(layer=0, head=0, rotated=shares, plain=shares))  # fmt: skip
    parts, figures = reading_block.html(whole, "ja")
    assert figures == 1
    assert sum(len(part.encode()) for part in parts) < 40_000


@pytest.mark.parametrize("wrong", [
    {"pieces": PIECES[:4]}, {"losses": {"phase2": [1.0] * 4}}, {"floor": [1.0]},
    {"places": [{"position": 4, "candidates": BOTH}]}, {"places": [{"position": 1, "candidates": {}}]},
    {"read": {"layer": 0, "head": 0, "rotated": [1.0], "plain": []}},
    {"read": {"layer": 0, "head": 0, "rotated": [0.1] * 6, "plain": [0.1] * 6}},
])  # fmt: skip
def test_what_does_not_fit_together_is_no_reading(run, wrong):
    values = READING.model_dump() | wrong
    reading_path(run).write_text(json.dumps(values))
    with pytest.raises(RecordError, match=r"reading\.json: not a valid Reading"):
        read_reading(run)


def test_what_was_written_is_read_again(run):
    assert read_reading(run) == READING
