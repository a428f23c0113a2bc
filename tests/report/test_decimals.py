"""Numbers that stand together have the same decimals, and so many that an interval keeps its side of 1."""

from __future__ import annotations

import random

import pytest
from builders import metric, ratio, record, soup
from companion_builders import beside, make_report

from muse.report import companion_tables, figures
from muse.report import page as report
from muse.report.numbers import MOST_DECIMALS, alike, decimals, with_interval


def parsed(text):
    """The numbers of a cell, and how many decimals each has."""
    words = text.replace("(", "").replace(")", "").replace(" – ", " ").replace(",", "").split()
    return [float(word) for word in words], [len(word.partition(".")[2]) for word in words]


@pytest.mark.parametrize(
    ("value", "interval", "words"),
    [
        (0.99284, (0.98561, 1.00033), "0.9928 (0.9856 – 1.0003)"),
        (0.9931, (0.9862, 1.004), "0.993 (0.986 – 1.004)"),
        (0.99, (0.98, 1.0), "0.990 (0.980 – 1.000)"),
        (1.09, (1.08, 1.11), "1.090 (1.080 – 1.110)"),
        (112.37, (100.8, 125.04), "112.4 (100.8 – 125.0)"),
        (55.02, (48.0, 69.8), "55.02 (48.00 – 69.80)"),
        (1234567.8, (1230000.2, 1240000.4), "1,234,568 (1,230,000 – 1,240,000)"),
        (20.0, (18.0, 23.0), "20 (18 – 23)"),
        (2e-8, (1e-8, 3e-8), "2×10⁻⁸ (10⁻⁸ – 3×10⁻⁸)"),
        (0.375303, None, "0.3753"),
        (None, None, "–"),
    ],
)
def test_a_value_and_its_interval_read_alike(value, interval, words):
    assert with_interval(metric("x", value=value, interval=interval)) == words


def around_one():
    """Random values with an interval each: wide and narrow, far from 1, near it, and with an end next to it."""
    draw = random.Random(0)
    for _ in range(5000):
        middle = draw.choice((1.0, 1.0, 10 ** draw.uniform(-2, 5)))
        width = middle * 10 ** draw.uniform(-5, -0.1)
        low = max(0.0, middle - draw.random() * width)
        if draw.random() < 0.3:
            low = 1 + draw.choice((-1, 1)) * 10 ** draw.uniform(-9, -2)
        high = low + width
        yield draw.uniform(low, high), (low, high)


def test_no_shown_interval_changes_its_side_of_one_and_all_decimals_agree():
    for value, interval in around_one():
        text = with_interval(metric("x", value=value, interval=interval))
        shown, places = parsed(text)
        assert len(set(places)) == 1, text
        for exact, read in zip((value, *interval), shown, strict=True):
            assert abs(exact - read) <= 0.5000001 * 10 ** -places[0], text
        for end, read in zip(interval, shown[1:], strict=True):
            sides = (end > 1) - (end < 1), (read > 1) - (read < 1)
            assert sides[0] == sides[1] or (read == 1 and abs(end - 1) <= 0.5 * 10**-MOST_DECIMALS), (text, interval)
        assert shown[1] < shown[2] or interval[1] - interval[0] < 2 * 10**-MOST_DECIMALS, f"{text} has no width"


def test_marks_are_kept_apart_from_what_lies_beside_them():
    assert decimals([0.52004], marks=(0.52,)) == 5
    assert decimals([0.52], marks=(0.52,)) == 3
    assert decimals([1.0, None, float("inf")]) == 0
    assert alike([4.7157, 4.72, 4.7]) == ["4.716", "4.720", "4.700"]
    assert alike([None, 0.25]) == ["–", "0.250"]


NEAR_ONE = [
    ratio("real_twin", 1.0973, (1.08, 1.11)),
    ratio("stage1_memory", 0.99284, (0.98561, 1.00033)),
    ratio("gpt2", 1.2),
]


def test_ratios_of_one_column_have_the_same_decimals():
    (figure,) = figures.of_stage(record(metrics=NEAR_ONE))
    told = [note.text.partition("<b>")[2] for note in figure.layout.annotations if "<b>" in note.text]
    assert told == ["1.2000</b>", "1.0973</b><br>1.0800 – 1.1100", "0.9928</b><br>0.9856 – 1.0003"]
    others = [metric("perplexity", value=48.39), metric("peak_memory_ratio_to_phase2", value=0.5)]
    rows = soup(report.numbers_table(record(metrics=[*NEAR_ONE, *others]))).select("tbody tr")
    assert [[row.select("td")[column].text for column in (2, 5)] for row in rows] == [
        ["1.0973", "1.0800 – 1.1100"], ["0.9928", "0.9856 – 1.0003"], ["1.2000", ""], ["48.39", ""], ["0.500", ""]
    ]  # fmt: skip


def test_companions_headlines_keep_their_decimals():
    found = [metric("perplexity", "gpt2", 112.37, interval=(100.8, 125.04)), *NEAR_ONE[2:]]
    (row,) = soup(companion_tables.tables(make_report([]), beside(make_report(found)))).select("details tbody tr")
    assert [row.select("td")[column].text for column in (3, 4, 6)] == ["112.4", "100.8 – 125.0", "Phase 2 1.200"]
