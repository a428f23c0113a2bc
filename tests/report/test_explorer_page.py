"""The explorer's figures and texts from plain arrays: drawn is what was given, and words name the right tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest
from builders import soup

from muse.report import explorer_page
from muse.report.figures import explore
from muse.report.html import render
from muse.report.texts import LANGUAGES, texts

WORDS = ["↵", "sea", "<b>", "red", "."]


def states():
    z = np.array([[1, 2j, -1], [1, 2, 1], [1, -2, 1j], [1, 2, 1], [0.5, 0, 1]], complex)  # (T D)
    return np.stack([z, 3 * z])


@pytest.mark.parametrize("language", LANGUAGES)
def test_phases_are_angles_covered_where_numbers_are_small(language):
    figure = explore.phases(states(), WORDS, "A", language)
    angle, cover = figure.data[0], figure.data[1]
    assert np.array(angle.z).shape == (3, 5)  # channels, tokens
    assert np.array(angle.z)[:, 0] == pytest.approx([0, 90, 180])
    assert np.array(angle.z)[2, 2] == pytest.approx(90)
    size = np.abs(states()[0]).T
    assert np.array(cover.z)[1, 0] == 0  # the largest number is not covered
    assert np.array(cover.z)[1, 4] == pytest.approx(0.9)  # zero is
    assert (np.argsort(np.array(cover.z), axis=None)[-1]) == np.argmin(size)
    assert np.array(figure.data[3].z) == pytest.approx(np.array(cover.z))  # beside the others of the layer
    assert list(figure.layout.xaxis2.ticktext) == ["↵", "sea", "&lt;b&gt;", "red", "."]  # or plotly takes it as bold
    first, second = (figure.layout.meta[part] for part in ("caption", "alt"))
    spread = 1 - (np.abs(states()[0].sum(0)) / np.abs(states()[0]).sum(0)).mean()
    assert f"{spread:.4g}" in first
    assert f"{spread:.4g}" in second
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_contributions_are_bars_with_a_sign_and_the_strongest_are_named(language):
    rotated, plain = np.array([0.1, -0.4, 1.2, 0.1]), np.array([0.0, 0.0, 0.25, 0.75])
    figure = explore.contributions(rotated, plain, WORDS, 1, 3, language)
    bars, marks = figure.data
    assert list(bars.y) == rotated.tolist()
    assert list(marks.y) == plain.tolist()
    assert len({*bars.marker.color}) == 2
    assert bars.marker.color[1] != bars.marker.color[0]
    caption = figure.layout.meta["caption"]
    assert "“<b>” (2) +120%" in caption
    assert caption.index("(2) +120%") < caption.index("(1) −40%") < caption.index("(3) +75%")
    assert "“red” (3)" in caption  # where it is read
    said = explore.read_in_words(rotated, plain, WORDS, 1, 3, language)
    assert "(2) +120%" in said[0]
    assert "40%" in said[1]
    assert [*map(int, re.findall(r"\d+", said[1]))] in ([1, 4, 40], [4, 1, 40])


@pytest.mark.parametrize("language", LANGUAGES)
def test_writes_and_losses_stand_by_head_and_the_first_token_counts_for_nothing(language):
    new, forgotten = np.zeros((2, 2, 5)), np.zeros((2, 2, 5))
    new[..., 0], new[1, 0, 3], forgotten[0, 1, 2] = 1, 0.8, 0.4
    figure = explore.traffic(new, forgotten, WORDS, "A", language)
    written, lost = figure.data
    assert written.z[2][3] == 0.8
    assert lost.z[1][2] == 0.4
    assert list(written.y) == list(lost.y)
    assert len({*written.y}) == 4
    assert "“red” (3) 20%" in figure.layout.meta["caption"]
    said = explore.traffic_in_words(new, forgotten, WORDS, language)
    assert said.index("“red” (3) 20%") < said.index("“<b>” (2) 10%")
    assert "↵" not in said


@pytest.mark.parametrize("language", LANGUAGES)
def test_switches_are_differences_from_the_model_as_it_is(language):
    plain = np.array([1.0, 2.0, 3.0, 0.0], np.float32)
    losses = {"float32": plain, "no_decay": plain + np.array([0, 0, 8, 0]), "bfloat16": plain - 0.5}
    figure = explore.switch_losses(losses, WORDS[1:], "A", language)
    assert np.array(figure.data[0].z) == pytest.approx(np.array([[0, 0, 8, 0], [-0.5] * 4]))
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-3, 3)
    table = explorer_page.switch_table({"A": losses, "B": {"float32": plain}}, language)
    assert [row[1:] for row in table.rows] == [
        ["1.5000", "", "1.5000", ""], ["3.5000", "+2.0000", "–", ""], ["1.0000", "−0.5000", "–", ""]
    ]  # fmt: skip
    said = explorer_page.switches_in_words(losses, "A", language)
    words = texts(language)
    assert said.index(words["explore.switch.no_decay"]) < said.index(words["explore.switch.bfloat16"])
    assert "+2.0000" in said


def test_a_long_text_keeps_the_ticks_apart():
    axis = explore.tokens_axis([f"w{at}" for at in range(128)])
    assert len(axis["tickvals"]) == len(axis["ticktext"]) <= 48
    assert axis["ticktext"][1] == f"w{axis['tickvals'][1]}"


def test_on_a_phone_fewer_words_stand_below_the_contributions():
    words = [f"w{at}" for at in range(41)]
    figure = explore.contributions(np.full(40, 0.025), np.full(40, 0.025), words, 1, 3)
    assert len(figure.layout.xaxis.tickvals) == 40
    few = figure.layout.meta["narrow"]["xaxis"]
    assert 10 < len(few["tickvals"]) == len(few["ticktext"]) <= 16


def test_what_a_token_holds_is_text_and_its_number_is_there_without_colours():
    losses = {"A": [0.1, 0.6, 4.5, 2.0], explorer_page.FLOOR: [0.0, 1.0, 1.0, 1.0]}
    shown = explorer_page.surprise(WORDS, losses, 2, "en")
    page = soup(shown["text/html"])
    tokens = page.select(".mx-text > li:not(.line)")
    assert [token.b.get_text() for token in tokens] == WORDS
    assert [i.get_text() for i in tokens[3].find_all("i")] == ["4.5", "1.0"]
    assert [i["class"] for i in page.select(".mx-text i")][::2] == [["s0"], ["s0"], ["s1"], ["s4"], ["s3"]]
    assert "here" in tokens[2]["class"]
    assert "A: 1.800 nat per token on average" in page.ol.get_text()
    assert "the language itself" in shown["text/plain"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_where_two_models_differ_most_is_said_of_the_better_and_the_worse(language):
    losses = {"A": [1.0, 1.0, 5.0, 1.0], "B": [1.0, 1.5, 0.25, 1.0], explorer_page.FLOOR: [9.0, 0.0, 0.0, 0.0]}
    *each, differ = explorer_page.losses_in_words(losses, WORDS, language)
    assert len(each) == 3
    assert "2.000" in each[0]
    assert "7.389" in each[0]
    assert "“red” (3)" in differ
    assert differ.index("B") < differ.index("0.25") < differ.rindex("A") < differ.index("5.00")


def test_templates_escape_what_they_are_given():
    table = explorer_page.Table("<t>", ["<h>"], [["<c>"]], (), "<n>")
    for page in (render("explore_table", table=table), render("explore_writing", written={"<l>": "<w>"}, note="<n>")):
        body = str(page).split("</style>")[1]
        assert not any(f"<{letter}>" in body for letter in "thclwn")
    assert "&lt;a&gt;" in render("explore_answer", lines=["<a>"])
