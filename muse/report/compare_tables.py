"""A comparison of runs as tables, for the terminal, for papers and for its page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from .compare import Comparison, Pair, Row
from .figures.style import metric_label, style
from .frame import write_page
from .html import render
from .numbers import alike, number, signed
from .tables import Table
from .texts import join, say, span, texts, unit_label

HEADLINES = (
    *("perplexity", "word_perplexity", "byte_perplexity", "character_perplexity", "bits_per_byte", "validation_loss"),
    *("peak_memory", "throughput_training"),
)
"""What a terminal shows of the common numbers, where they differ, and all that is named after these."""


Shown = Literal["all", "changed", "headlines"]


def tables(comparison: Comparison, language: str = "en", *, shown: Shown = "all") -> list[Table]:
    """Return ties first, then for each pair what differs in settings and code, and the numbers that both have.

    `shown` leaves out identical numbers, or all but the headlines of the others.
    """
    found = [_standings(comparison, language)] if comparison.standings else []
    for pair in comparison.pairs:
        about = {"base": comparison.baseline, "run": pair.run}
        found += [_settings(pair, language, about), _code(pair, language, about)]
        found.append(_numbers(pair, language, about, shown))
    return found


def _standings(comparison: Comparison, language: str) -> Table:
    words = texts(language)
    rows = [
        (
            " ".join(standing.groups) or "–",
            standing.run,
            style(standing.model, language).label,
            number(standing.perplexity),
            _reasons(standing.reasons, language),
        )
        for standing in comparison.standings
    ]
    keys = ("compare.group", "compare.run", "numbers.model", "criterion.perplexity", "compare.apart")
    return Table(words["compare.ties"], [words[key] for key in keys], rows, {3}, words["compare.ties_note"])


def _reasons(reasons: Iterable[str], language: str) -> str:
    return join(language, (texts(language)[f"compare.reason.{key}"] for key in reasons))


def _settings(pair: Pair, language: str, about: dict[str, str]) -> Table:
    words = texts(language)
    rows = [
        (
            words.get(f"setting.{setting.key}", setting.key),
            *(_plain(value) for value in (setting.base, setting.value)),
            words[f"compare.decides.{setting.decides}"],
        )
        for setting in pair.settings
    ]
    head = [words["compare.setting"], about["base"], pair.run, words["compare.decides"]]
    note = "" if rows else words["compare.none"]
    return Table(say(language, "compare.settings", **about), head, rows, note=note)


def _plain(value: object) -> str:
    return "–" if value is None else str(value)


def _code(pair: Pair, language: str, about: dict[str, str]) -> Table:
    words = texts(language)
    names = {key: words.get(f"hardware.{key}", key.replace("_", " ")) for key in pair.code}
    rows = [(names[key], *map(_plain, values)) for key, values in pair.code.items()]
    note = "" if rows else words["compare.none"]
    return Table(say(language, "compare.code", **about), [words["compare.made_from"], about["base"], pair.run], rows,
                 note=note)  # fmt: skip


def _numbers(pair: Pair, language: str, about: dict[str, str], which: Shown) -> Table:
    words = texts(language)
    shown = [row for row in pair.rows if _is_shown(row, which)]
    is_told_above = all(row.method == "unknown" for row in pair.rows)
    rows = [_row(row, language, ("code",) if is_told_above else ()) for row in shown]
    keys = ("numbers.model", "numbers.name", "numbers.unit", "compare.reading")
    later = ("repeat.difference", "numbers.interval", "compare.detectable", "compare.paired")
    head = [*(words[key] for key in keys), about["base"], pair.run, *(words[key] for key in later)]
    return Table(
        say(language, "compare.numbers", **about), head, rows, {4, 5, 6, 7, 8},
        " ".join(_notes(pair, len(shown), language)), methods(pair, language),
    )  # fmt: skip


def methods(pair: Pair, language: str) -> str:
    """Return the line on whether the same code measured the numbers of both runs."""
    found = {method: sum(row.method == method for row in pair.rows) for method in ("same", "changed", "unknown")}
    if (whole := next((method for method, count in found.items() if count == len(pair.rows)), None)) and pair.rows:
        return texts(language)[f"compare.methods.{whole}"]
    return say(language, "compare.methods.mixed", total=len(pair.rows), **found) if pair.rows else ""


def _is_shown(row: Row, which: Shown) -> bool:
    if which == "all" or (row.difference is not None and row.difference.identical):
        return which == "all"
    return which == "changed" or any(row.metric == name or row.metric.startswith(f"{name}_") for name in HEADLINES)


def _row(row: Row, language: str, told: Collection[str]) -> list[str]:
    """The cells of a row; `told` are reasons that stand above the table."""
    words, found = texts(language), row.difference
    about = [style(row.model, language).label, metric_label(row.metric, language), unit_label(row.unit, language)]
    if found is None or found.identical:
        reading = words["compare.identical"] if found else words["compare.not_comparable"]
        values = [number(row.base), number(row.value), *("–",) * 4]
    else:
        values = _values(row, language)
        reading = words[f"compare.zero_possible.{found.is_zero_possible}"]
    reasons = [key for key in row.reasons if key not in told]
    why = f" ({_reasons(reasons, language)})" if reasons else ""
    return [*about, reading + why, *values]


def _values(row: Row, language: str) -> list[str]:
    """Both values, their difference with its interval, and the least that would be found: with the same decimals."""
    found = row.difference
    ends = found.interval or ()
    base, value = alike([row.base, row.value])
    difference, *interval = [signed(text) for text in alike([found.value, *ends])]
    paired = say(language, f"compare.paired.{found.paired_by}", n=found.seeds)
    least = "–" if found.detectable is None else number(found.detectable)
    return [base, value, difference, span(language, interval) or "–", least, paired]


def _notes(pair: Pair, shown: int, language: str) -> Iterator[str]:
    words = texts(language)
    if pair.identical:
        yield words["compare.all_identical"]
    same = sum(bool(row.difference and row.difference.identical) for row in pair.rows)
    yield say(language, "compare.counts", total=len(pair.rows), same=same, shown=shown)
    for key, models in (("compare.only_base", pair.only_base), ("compare.only_run", pair.only_run)):
        if models:
            yield say(language, key, models=join(language, (style(model, language).label for model in models)))


def page(comparison: Comparison, path: Path, language: str, links: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page of a comparison."""
    words = texts(language)
    title = say(language, "compare.title", runs=words["and"].join(comparison.runs))
    lines = [say(language, "compare.lead", base=comparison.baseline)]
    lines += [say(language, "compare.pair_identical", run=p.run, base=comparison.baseline)
              for p in comparison.pairs if p.identical]  # fmt: skip
    made = tables(comparison, language, shown="changed")
    main = render("tables", language, title=title, lines=lines, notice="", tables=made)
    write_page(path, main, title, links=links, language=language)
