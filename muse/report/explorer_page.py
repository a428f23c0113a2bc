"""What the explorer's notebook shows beside figures: tables, text whose colours tell its surprise, answers in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from muse.host.paths import shortened

from .figures.style import show_bundle, style
from .html import render
from .numbers import number, signed
from .runs import Checkpoint
from .tables import Table, written
from .texts import say, texts

FLOOR = "language"
"""Stands among the models for what the language itself leaves open."""

LIMITS = (0.5, 1.0, 2.0, 4.0)
"""Surprises in nat from which a token has the next stronger colour."""


Bundle = dict[str, str]
"""What is shown, as HTML for a notebook or a page, and as plain text."""


def bundle(template: str, plain: str, language: str, **values: object) -> Bundle:
    """Return a template as HTML, and `plain` for where there is none."""
    return {"text/html": str(render(template, language, **values)), "text/plain": plain}


def table_bundle(table: Table, language: str = "en") -> Bundle:
    """Return a table to be shown."""
    return bundle("explore_table", written([table], "terminal"), language, table=table)


def show_table(table: Table, language: str = "en") -> None:
    """Display a table."""
    show_bundle(table_bundle(table, language))


def models_table(checkpoints: Sequence[Checkpoint], language: str = "en") -> Table:
    """Return a row for each training and exported model: its name, tokens, best validation loss, size, date, folder."""
    words = texts(language)
    rows = [
        [
            style(one.model, language).label,
            words["models.export" if one.exported else "models.training"],
            number(one.planned_tokens if one.tokens is None else one.tokens) if one.planned_tokens else "–",
            words["runs.unfinished"] if one.loss is None and not one.exported else number(one.loss),
            f"{one.weights.stat().st_size / 1000:,.0f}" if one.weights.is_file() else "–",
            f"{datetime.fromtimestamp(one.weights.stat().st_mtime, UTC):%Y-%m-%d}" if one.weights.is_file() else "–",
            shortened(str(one.folder.resolve())),
        ]
        for one in checkpoints
    ]
    keys = ("model", "kind", "tokens", "loss", "size", "date", "folder")
    note = "" if rows else words["models.none"]
    return Table(words["models.title"], [words[f"models.{key}"] for key in keys], rows, {2, 3, 4}, note)


def surprise_rows(words: Sequence[str], losses: Mapping[str, Sequence[float]]) -> list[tuple[str, list[tuple]]]:
    """Return each token with its surprise in every row: (word, [(number, class)]); the first token has none."""
    columns = [[None, *values] for values in losses.values()]
    return [(word, [_cell(column[at]) for column in columns]) for at, word in enumerate(words)]


def _cell(loss: float | None) -> tuple[str, str]:
    return ("–", "s0") if loss is None else (f"{abs(loss):.1f}", f"s{sum(loss >= limit for limit in LIMITS)}")


def surprise(words: Sequence[str], losses: Mapping[str, Sequence[float]], position: int, language: str) -> Bundle:
    """Return a text with the surprise (nat) of each token by each model below it, as number and colour."""
    names = [row_name(name, language) for name in losses]
    means = [f"{np.mean(values):.3f}" for values in losses.values()]
    plain = "\n".join(
        f"{name}: {' '.join(f'{word} {abs(loss):.1f}' for word, loss in zip(words[1:], values, strict=True))}"
        for name, values in zip(names, losses.values(), strict=True)
    )
    return bundle(
        "explore_surprise", plain, language, tokens=surprise_rows(words, losses), names=names, means=means,
        position=position, limits=LIMITS,
    )  # fmt: skip


def row_name(name: str, language: str) -> str:
    """Return the name of a row of surprises: the model's, or that of the language itself."""
    return texts(language)["explore.floor"] if name == FLOOR else name


def next_table(
    columns: Mapping[str, Sequence[tuple[str, float]]], before: Sequence[str], came: str, language: str
) -> Table:
    """Return the likeliest next tokens of each model side by side; ✓ marks the one that came."""
    words = texts(language)
    head = [words["explore.rank"]]
    for label in columns:
        head += [label, words["explore.probability"]]
    rows = [
        [str(rank), *(cell for word, share in ranked for cell in (word + " ✓" * (word == came), f"{share:.1%}"))]
        for rank, ranked in enumerate(zip(*columns.values(), strict=True), 1)
    ]
    note = say(language, "explore.next.came", word=came) if came else words["explore.next.end"]
    title = say(language, "explore.next.title", text=" ".join(before[-8:]))
    return Table(title, head, rows, {0, *range(2, len(head), 2)}, note)


def show_writing(written_by: Mapping[str, str], temperature: float, top_p: float, seed: int, language: str) -> None:
    """Display what each model wrote."""
    note = say(language, "explore.writing.note", temperature=number(temperature), top_p=number(top_p), seed=seed)
    plain = "\n".join([note, *(f"{label}: {text}" for label, text in written_by.items())])
    show_bundle(bundle("explore_writing", plain, language, written=written_by, note=note))


def switch_table(losses: Mapping[str, Mapping[str, np.ndarray]], language: str = "en") -> Table:
    """Return mean losses (nat/token) by switch and model, with their distance from the model as it is."""
    words = texts(language)
    names = list(dict.fromkeys(name for found in losses.values() for name in found))
    head = [words["explore.switch"]]
    for label in losses:
        head += [label, words["explore.change"]]
    rows = []
    for name in names:
        row = [words[f"explore.switch.{name}"]]
        for found in losses.values():
            mean, plain = (float(found[key].mean()) if key in found else None for key in (name, names[0]))
            change = "" if mean is None or name == names[0] else signed(f"{mean - plain:.4f}")
            row += ["–" if mean is None else f"{mean:.4f}", change]
        rows.append(row)
    return Table(words["explore.switches.title"], head, rows, {*range(1, len(head))}, words["explore.switches.note"])


def losses_in_words(losses: Mapping[str, Sequence[float]], words: Sequence[str], language: str) -> list[str]:
    """Return how hard the text is for each model, and at which token two models differ most."""
    found = [
        say(language, "explore.answer.loss", name=row_name(name, language), loss=f"{np.mean(values):.3f}",
            perplexity=number(float(np.exp(np.mean(values)))))
        for name, values in losses.items()
    ]  # fmt: skip
    models = [name for name in losses if name != FLOOR]
    if len(models) == 2:
        ours, theirs = (np.asarray(losses[name]) for name in models)
        at = int(np.abs(ours - theirs).argmax())
        better, worse = models if ours[at] < theirs[at] else models[::-1]
        fields = {"better": better, "worse": worse, "word": f"“{words[at + 1]}” ({at + 1})"}
        low, high = sorted((ours[at], theirs[at]))
        found.append(say(language, "explore.answer.differ", low=f"{low:.2f}", high=f"{high:.2f}", **fields))
    return found


def switches_in_words(losses: Mapping[str, np.ndarray], label: str, language: str) -> str:
    """Return which change costs most and which least."""
    words, (first, *names) = texts(language), losses
    changes = {name: float((losses[name] - losses[first]).mean()) for name in names}
    most, least = (choose(changes, key=lambda name: abs(changes[name])) for choose in (max, min))
    fields = {
        key: f"{words[f'explore.switch.{name}']} ({signed(f'{changes[name]:.4f}')})"
        for key, name in (("most", most), ("least", least))
    }
    return say(language, "explore.answer.switches", model=label, **fields)


def show_answer(lines: Iterable[str], language: str) -> None:
    """Display the answer, a line for each sentence."""
    lines = list(lines)
    show_bundle(bundle("explore_answer", "\n".join(lines), language, lines=lines))
