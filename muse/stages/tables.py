"""How objects of the workbook look as the last line of a notebook's cell: small tables, in which every text is escaped.

The classes know nothing of it (a training's key covers the code of some): importing this module gives IPython's hook
`_repr_html_` to them, and their `repr` stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from markupsafe import Markup, escape

from muse.data.corpus import Corpus
from muse.host.lines import shown
from muse.models.gpt2 import Gpt2Config
from muse.models.phase2 import Phase2Config
from muse.models.stage1 import Phase3Stage1Config
from muse.params import Settings
from muse.records.schema import Criterion, Judged, Metric, StageRecord
from muse.training.recipe import Recipe, TrainingResult

MOST_ROWS = 40
Rows = Iterable[Sequence[object]]


def table(title: str, head: Sequence[str], rows: Rows) -> Markup:
    """Return a table of values with its title; where it is long, with the number of rows that were left out."""
    rows = list(rows)
    left_out = len(rows) - MOST_ROWS
    line = Markup("<tr>{}</tr>").format
    cells = [Markup("").join(Markup("<td>{}</td>").format(_cell(value)) for value in row) for row in rows[:MOST_ROWS]]
    heads = Markup("").join(Markup("<th>{}</th>").format(name) for name in head)
    more = Markup("<p>and {} more</p>").format(left_out) if left_out > 0 else ""
    return Markup("<table><caption>{}</caption>{}{}</table>{}").format(
        title, line(heads), Markup("").join(map(line, cells)), more
    )


def _cell(value: object) -> Markup:
    if isinstance(value, float):
        return escape(f"{value:.6g}")
    return escape(value if isinstance(value, str) else shown(value))


def of_settings(settings: Settings) -> Markup:
    """Settings with their meaning; those that differ from the default first."""
    usual = Settings()
    rows = [(name, getattr(settings, name), field.description or "") for name, field in Settings.model_fields.items()]
    rows.sort(key=lambda row: row[1] == getattr(usual, row[0]))
    return table("Settings", ("setting", "value", "meaning"), rows)


def of_fields(values: object) -> Markup:
    """The fields of a dataclass; a curve is told by its number of points."""
    rows = []
    for field in fields(values):
        value = getattr(values, field.name)
        is_long = isinstance(value, tuple) and len(value) > 6
        rows.append((field.name, f"{len(value)} values" if is_long else _plain(value)))
    return table(type(values).__name__, ("field", "value"), rows)


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str | tuple | None) else str(value)


def of_corpus(corpus: Corpus) -> Markup:
    """A corpus, split by split."""
    rows = [(split.name, len(split.ids), len(split.document_starts), split.num_words, split.num_bytes)
            for split in corpus.splits.values()]  # fmt: skip
    title = f"Corpus {corpus.name}, tokenizer {corpus.tokenizer_name}, vocabulary {corpus.vocab_size:,}"
    return table(title, ("split", "tokens", "documents", "words", "bytes"), rows)


def of_record(record: StageRecord) -> Markup:
    """What a stage has measured."""
    title = ", ".join(filter(None, (f"Stage {record.stage}: {record.status}", record.error, record.scale_note)))
    return table(title, ("metric", "model", "value", "unit", "n", "interval"), map(_row, record.metrics))


def _row(metric: Metric) -> tuple[object, ...]:
    ends = " to ".join(f"{end:.6g}" for end in metric.interval or ())
    return metric.name, metric.model, metric.value, metric.unit, metric.n, ends


def of_criteria(title: str, criteria: Iterable[Criterion]) -> Markup:
    """Verdicts with their reasons."""
    rows = [(found.name, found.verdict, found.value, found.reason) for found in criteria]
    return table(title, ("criterion", "verdict", "value", "reason"), rows)


TABLES = {
    Settings: of_settings,
    Corpus: of_corpus,
    StageRecord: of_record,
    Criterion: lambda found: of_criteria("Criterion", [found]),
    Judged: lambda judged: of_criteria(judged.model, judged.criteria),
    **dict.fromkeys((Gpt2Config, Phase2Config, Phase3Stage1Config, Recipe, TrainingResult), of_fields),
}

for kind, made in TABLES.items():
    kind._repr_html_ = made
