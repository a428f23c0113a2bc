"""Numbers for reading: how many digits they have, and that those which stand together have the same decimals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from muse.records.schema import Metric

from .texts import say

RATIO = "_ratio_to_"  # in the name of a metric, between what is divided and the model it is divided by


def number(value: float | None) -> str:
    """Return a number for reading: four digits, thousands apart, powers of ten where it is very large or small."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 9999.5:
        return f"{value:.4g}"
    if 9999.5 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}×{power}"


MOST_DECIMALS = 6


def decimals(values: Iterable[float | None], marks: Sequence[float] = ()) -> int:
    """Return with how many decimals numbers that stand together are shown, all of them with the same.

    The largest has four digits (ratios three decimals), the distance between the farthest two. There are more where a
    number would else read like one of the marks without being it, and none where all numbers are whole.
    """
    values = [float(value) for value in values if value is not None and math.isfinite(value)]
    if all(value.is_integer() for value in values):
        return 0
    largest, distance = max(map(abs, values)), max(values) - min(values)
    found = max(3 - _power(max(1, largest)), 1 - _power(largest), 1 - _power(distance) if distance else 0, 0)
    found = min(found, MOST_DECIMALS)
    beside = [(value, mark) for value in values for mark in marks if value != mark]
    while found < MOST_DECIMALS and any(round(value, found) == mark for value, mark in beside):
        found += 1
    return found


def _power(value: float) -> int:
    return math.floor(math.log10(value))


def alike(values: Iterable[float | None], places: int | None = None) -> list[str]:
    """Return numbers of one kind for reading, all with the same decimals; very small or large ones as `number` does."""
    values = list(values)
    places = decimals(values) if places is None else places
    finite = [abs(value) for value in values if value is not None and math.isfinite(value)]
    plain = any(size >= 1e-3 for size in finite) and all(size < 1e15 for size in finite)
    return [
        f"{value:,.{places}f}" if plain and value is not None and math.isfinite(value) else number(value)
        for value in values
    ]


def signed(text: str) -> str:
    """Return a number's text with its sign in front, a minus as long as a plus; none where it reads as zero."""
    digits = text.removeprefix("-")
    return digits if set(digits) <= set("0.–") else f"−{digits}" if digits != text else f"+{digits}"


def rounded(values: Iterable[float]) -> list[float | int | None]:
    """Return the values with five significant digits: what a picture can show, at a fraction of the bytes.

    Whole numbers stay as they are, and none is written with a decimal point.
    """
    return [_short(float(value)) if math.isfinite(value) else None for value in values]


def _short(value: float) -> float | int:
    found = value if value.is_integer() else float(f"{value:.5g}")
    return int(found) if found.is_integer() and abs(found) < 1e15 else found


def metric_decimals(metrics: Iterable[Metric]) -> int:
    """Return the decimals that the values and intervals of these metrics share in one column.

    An end of an interval never reads like 1 unless it is 1: there a ratio changes sides.
    """
    return max((decimals((m.value, *(m.interval or ())), (1,) if m.interval else ()) for m in metrics), default=0)


def column_decimals(metrics: Sequence[Metric]) -> list[int | None]:
    """Return for each metric of a table the decimals of its column: those of all ratios of its name, else None."""
    ratios: dict[str, list[Metric]] = {}
    for metric in metrics:
        if RATIO in metric.name:
            ratios.setdefault(metric.name, []).append(metric)
    places = {name: metric_decimals(found) for name, found in ratios.items()}
    return [places.get(metric.name) for metric in metrics]


def told(metric: Metric, places: int | None = None) -> list[str]:
    """Return a metric's value for reading and then the ends of its interval, if it has one: with the same decimals.

    Their number is `places`, in a column, else the metric's own.
    """
    if metric.interval is None and places is None:
        return [number(metric.value)]
    places = metric_decimals([metric]) if places is None else places
    return alike([metric.value, *(metric.interval or ())], places)


def with_interval(metric: Metric, places: int | None = None, *, language: str = "en") -> str:
    """Return a metric's value for reading, with its interval in brackets where it has one."""
    value, *ends = told(metric, places)
    low_high = dict(zip(("low", "high"), ends, strict=False))
    return say(language, "answer.lead.interval", value=value, **low_high) if ends else value


def ratio_cell(metric: Metric | None) -> str:
    """Return a ratio with three decimals and its interval, as tables of text have it; nothing where there is none."""
    if metric is None or metric.value is None:
        return ""
    return f"{metric.value:.3f}" + (" ({:.3f} to {:.3f})".format(*metric.interval) if metric.interval else "")
