"""Committed records to the tables of docs/ and the README: each number from a record that is named beside it.

`make docs` renews them; a test compares them with what it would write.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from muse import catalog
from muse.host.files import write_atomic
from muse.params import GRID
from muse.records.schema import BenchRecord, Metric, Report, StageRecord
from muse.records.store import read_record

from . import counting_tables, plan_errors, predictions, several_cards, shares, trainings
from .companions import RATIO, WHOLE_MEMORY, repeats, settings_of, stage_of
from .figures.style import style
from .numbers import ratio_cell
from .runs import made
from .tables import markdown as table

NOTE = "<!-- made by `make docs` from the records that are named; changes here are lost -->"
MAIN = "gpu"
MEMORY_AGAIN = "gpu-memory"
"""The folder of the main comparison's stage `memory`, run once more by later code."""

RUNS = {MAIN: "The comparison", "gpu-adamw": "By the second recipe, without the compact model"}
"""Folders of committed comparisons, as far as they are there, each with its title."""

OPTIMIZERS = {"muon": "Muon for matrices of blocks and AdamW for the rest", "adamw": "AdamW"}
JUDGED = (catalog.COMPACT, catalog.WITH_MEMORY, catalog.REFERENCE)
"""Candidates of the committed comparison, as its table in the README has them."""

COMPARED = (
    *(catalog.COMPACT, catalog.COMPACT_TWIN, catalog.WITH_MEMORY, catalog.TWIN),
    *(catalog.REFERENCE, catalog.BASELINE, catalog.COMPACT_BASELINE, catalog.YARDSTICK),
)
ROWS = (
    ("perplexity per token", "perplexity", "perplexity", ".4g"),
    ("the same without later pieces of `<unk>`", "perplexity", "perplexity_without_unk", ".4g"),
    ("perplexity per word", "perplexity", "word_perplexity", ".4g"),
    ("bits per byte", "perplexity", "bits_per_byte", ".3f"),
    ("the seeds averaged: mean of their probabilities, per token", "perplexity", "ensemble_perplexity", ".4g"),
    ("loss on validation, nat per token", "train", "validation_loss", ".4f"),
    ("learning rate, chosen on validation", "train", "learning_rate", "g"),
    ("dropout, chosen on validation", "train", "dropout", "g"),
    ("tokens per step, chosen on validation", "train", "batch_tokens", ",.0f"),
    ("weight decay, chosen on validation", "train", "weight_decay", "g"),
    ("Muon's weight decay, chosen on validation", "train", "muon_weight_decay", "g"),
    ("peak memory, own precision (GiB)", "memory", "peak_memory", ".3f"),
    ("the same, blocks recomputed (GiB)", "memory", "peak_memory_recomputed", ".3f"),
    ("the same, nothing recomputed (GiB)", "memory", "peak_memory_plain", ".3f"),
    ("peak memory, all float32 (GiB)", "memory", "peak_memory_matched", ".3f"),
    ("peak memory with AdamW, all float32 (GiB)", "memory", "peak_memory_with_optimizer", ".3f"),
    ("peak memory, bfloat16 (GiB)", "memory", "peak_memory_bfloat16", ".3f"),
    ("peak memory of a training step, blocks recomputed (GiB)", "memory", "peak_memory_training_step", ".3f"),
    ("the same with AdamW (GiB)", "memory", "peak_memory_training_step_adamw", ".3f"),
    ("peak memory of a step of the recipe (GiB)", "memory", "peak_memory_recipe_step", ".3f"),
    ("it runs within 8 GiB (1: yes)", "memory", "trains_within_8_gib", ".0f"),
    ("forward with logits, eager (tokens/s)", "throughput", "throughput_logits", ",.0f"),
)
"""Rows of the comparison: label, stage, metric and format; those that no model has, or no choice made, are left out."""

OVER = f"_ratio_to_{catalog.BASELINE}"
MEMORY_RATIOS = (
    ("own precision, as each runs", f"peak_memory{OVER}"),
    ("both recomputed", f"peak_memory_recomputed{OVER}"),
    ("neither recomputed", f"peak_memory_plain{OVER}"),
    ("own precision over Phase 2 in bfloat16", f"peak_memory{OVER}_bfloat16"),
    ("all float32", f"peak_memory_matched{OVER}"),
    ("AdamW, all float32", f"peak_memory_with_optimizer{OVER}"),
    ("a training step", f"peak_memory_training_step{OVER}"),
    ("a training step with AdamW", f"peak_memory_training_step_adamw{OVER}"),
)
"""What is told of the memory, as far as a record has it."""

TEXT = (
    "`wikitext-2-v1` has `<unk>` for rare words: 30,436 of the 295,876 targets of its test split are second and third "
    "pieces of one, and nearly free. What `corpus: wikitext-2` reads from the hub is the text without, "
    "`wikitext-2-raw-v1`: its perplexities are others. In the local folder that was read the articles of the training "
    "split stand in another order than on the hub. A seed draws windows by their place, so there the same seed gives "
    "another training: seeds are compared one by one within one copy only."
)
MEASURED = (
    "GPT-2 tokens. Memory: forward + backward, 2 x 1024, in each model's own precision (half for the complex models "
    "and their twins, float32 for the others) and as it runs by default: the compact model recomputes halves of its "
    "blocks. Speed: 4 x 1024."
)
LENGTHS = (2048, 4096, 8192)
BENCHES = (
    ("bench-cpu", "milliseconds"),
    ("bench-cpu-amx", "milliseconds"),
    ("bench-h200", "speed"),
    ("bench-h100", "speed"),
)
"""Folders of committed benches, and what is shown of each."""
PARTS = (
    *("bench", "generation", "generation-64", "generation-64-long"),
    *("training", "training-8k", "training-32k", "training-eager", "angles", "parts"),
)
"""Records that such a folder may hold, in their order: the whole of a bench, or some of its groups and sizes."""
PROFILE = "bench-h200/profile.json"
"""What `tests/training_profile.py` wrote of some models, in one file."""

BENCH_ROWS = (
    ("forward with logits, 4 x 1024", "forward_4x1024"),
    ("forward with logits, 64 x 1024", "forward_64x1024"),
    ("forward + backward + AdamW, 16 x 1024", "training_16x1024"),
    ("forward + backward + AdamW, 64 x 1024", "training_64x1024"),
    ("head + loss, forward + backward, 2,048 tokens", "head_2048"),
    ("six complex layers, forward + backward, 2 x 1024", "stack_2x1024"),
)
PATHS = (
    *("muse graph", "muse compiled", "muse eager", "naive", "naive float32"),
    *("complex64", "complextorch", "complexPyTorch"),
)
MODEL_ROWS = (
    *(("compiled, 16 x 1024", "models_compiled_16x1024"), ("eager, 16 x 1024", "models_eager_16x1024")),
    *(("compiled, 4 x 8,192", "models_compiled_4x8192"), ("compiled, 1 x 32,768", "models_compiled_1x32768")),
)
ANGLE_ROWS = (("compiled, 16 x 1024", "angles_compiled_16x1024"), ("eager, 16 x 1024", "angles_eager_16x1024"))
ANGLED = (catalog.COMPACT_ANGLES, catalog.COMPACT)
MODELS = (catalog.WITH_MEMORY, catalog.BASELINE, catalog.YARDSTICK)
"""What was trained at longer contexts."""

WRITTEN = tuple(
    (f"{batch} x {length:,}", f"generation_{length}" if batch == 1 else f"generation_{batch}x{length}")
    for batch in (1, 64)
    for length in (128, 960, 1024, 4096, 8192, 32768)
)
WRITERS = {
    f"{model}{path}": (model, shown)
    for model in (catalog.COMPACT, catalog.WITH_MEMORY)
    for path, shown in {" one graph": ", graph", "": "", " by its blocks": ", by its blocks"}.items()
} | {
    catalog.YARDSTICK: (catalog.YARDSTICK, ""),
    f"{catalog.YARDSTICK} static cache, one graph": (catalog.YARDSTICK, ", static cache, graph"),
}  # fmt: skip
"""Ways to write: the model of each, and how it is called behind its name."""


def label(model: str) -> str:
    """Return a model's name as readers know it."""
    return style(model).label


def shown(metric: Metric | None, form: str) -> str:
    """Return a metric's value, an empty cell where there is none."""
    return "" if metric is None or metric.value is None else format(metric.value, form)


def ratio(metric: Metric | None) -> str:
    """Return a ratio with its interval; 1 for what is divided by itself."""
    return "1" if metric is None else ratio_cell(metric)


def read(report: Report) -> str:
    """Return which text a report's perplexities are of, on what and when it was made."""
    return f"`{stage_of(report, 'perplexity').text}`, test split; {made(report.run)}"


def companion(reports: Path, run: str, name: str) -> Report | None:
    """Return the report of a companion of a committed run; None where it has none of that name."""
    path = reports / run / "companions" / f"{name}.json"
    return read_record(Report, path) if path.exists() else None


def results(reports: Path) -> str:
    """Return docs/results.md: the committed comparisons, the main one first, and untrained models."""
    parts = ["# Results", NOTE]
    for run, title in RUNS.items():
        if (reports / run / "report.json").exists():
            parts += [f"## {title}", *of_run(reports, run)]
    parts += ["## Untrained, by the published quick test", untrained(reports)]
    return "\n\n".join(parts) + "\n"


def of_run(reports: Path, run: str) -> list[str]:
    """Return what is told of a comparison: its table, verdicts, what makes it so, what was expected, its companions."""
    report = read_record(Report, reports / run / "report.json")
    profile = settings_of(report, "train")
    sections = {
        "What it stands on": facts(report),
        "What makes it so": shares.of_both_sides(report, trainings.by_adamw(reports) if run == MAIN else ""),
        "Expected and found": predictions.beside_results(reports / run / "predictions.md", report),
        **(beside_main(reports) if run == MAIN else {}),
        "One thing changed in the memory": ablations(reports, run),
        "Longer contexts": lengths(reports, run),
        "On other texts": elsewhere(reports, run),
        "The same training again": again(report, reports, run),
    }
    told = [f"### {title}\n\n{text}" for title, text in sections.items() if text]
    optimizer = OPTIMIZERS[profile.get("optimizer", "adamw")]
    about = f"{len(report.run.seeds)} seeds, {optimizer}, {tried(report)} tries for each model"
    page = "index.html" if (reports / run / "index.html").exists() else "report.json"
    lead = f"[reports/{run}](../reports/{run}/{page}), {read(report)}; {about}. {MEASURED}"
    return [lead, comparison(report), *([TEXT] if run == MAIN else []), verdicts(report), *told]


def beside_main(reports: Path) -> dict[str, str]:
    """Return the sections on what was measured and trained beside the main comparison."""
    return {
        "Memory, by later code": memory_again(reports),
        "At the setting that serves all models best": common(reports),
        "One thing changed in the compact model": trainings.changed(reports),
        "AdamW on both sides": trainings.recipes(reports),
        "Longer contexts, by this recipe": trainings.lengths(reports),
    }


def later_memory(reports: Path) -> Report | None:
    """Return the report of the main comparison's stage `memory` by later code; None without such a run."""
    path = reports / MEMORY_AGAIN / "report.json"
    return read_record(Report, path) if path.exists() else None


def memory_again(reports: Path) -> str:
    """Return the peaks by later code, and what part of the baseline's each is; nothing without such a run."""
    report = later_memory(reports)
    if report is None:
        return ""
    found = stage_of(report, "memory")
    rows = [
        [text, *(_with_part(found, name, model) for model in COMPARED)]
        for text, stage, name, _ in ROWS
        if stage == "memory" and found.find(name, catalog.BASELINE)
    ]
    told = f"`reports/{MEMORY_AGAIN}`, {made(report.run)}; in brackets over {label(catalog.BASELINE)}'s."
    return f"{told}\n\n{table(['', *map(label, COMPARED)], rows)}"


def _with_part(found: StageRecord, name: str, model: str) -> str:
    part = over_baseline(found, name, model)
    return shown(found.find(name, model), ".3f") + (f" ({part:.3f})" if part else "")


def over_baseline(found: StageRecord, name: str, model: str) -> float | None:
    """Return a model's number over the baseline's, None where one of them is missing."""
    ours, theirs = (metric and metric.value for metric in (found.find(name, m) for m in (model, catalog.BASELINE)))
    return ours / theirs if ours and theirs else None


def common(reports: Path) -> str:
    """Return the compact model and Phase 2 at the setting that serves all models best; nothing without such a run."""
    report = companion(reports, MAIN, "gpu-common")
    if report is None:
        return ""
    found, settings = stage_of(report, "perplexity"), settings_of(report, "train")
    setting = "{batch_tokens[0]:,} tokens a step, dropout {dropouts[0]:g}, weight decay {weight_decays[0]:g}"
    both = catalog.COMPACT, catalog.BASELINE
    told = ", ".join(f"{label(model)} {shown(found.find('perplexity', model), '.4g')}" for model in both)
    over = ratio(found.find(f"{RATIO}{catalog.BASELINE}", catalog.COMPACT))
    made_with = f"{len(report.run.seeds)} seeds, {setting.format(**settings)}"
    return f"{read(report)}; {made_with}. {told} per token: {over}."


def tried(report: Report) -> int:
    """Return how many combinations were tried of each model."""
    grid = settings_of(report, "train")
    return math.prod(len(grid.get(values, [0])) for values in GRID.values())


def comparison(report: Report) -> str:
    """Return the table of a run's models, those of COMPARED that it has."""
    found = settings_of(report, "train").get("models", COMPARED)
    return table(*main_table(report, [model for model in COMPARED if model in found]))


def main_table(report: Report, models: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of models, a column each; a row without any value is left out."""
    settings = settings_of(report, "train")

    def cells(stage: str, name: str, form: Callable[[Metric | None], str]) -> list[str]:
        record = stage_of(report, stage)
        return [form(record.find(name, model)) if record else "" for model in models]

    rows = [
        [text, *cells(stage, name, partial(shown, form=form))]
        for text, stage, name, form in ROWS
        if name not in GRID or len(settings.get(GRID[name], ())) > 1
    ]
    interval = ["95 % over documents and seeds", *cells("perplexity", "perplexity", _ends)]
    over = f"{RATIO}{catalog.BASELINE}"
    found = dict(zip(models, cells("perplexity", over, lambda metric: ratio(metric) if metric else ""), strict=True))
    if any(found.values()):
        found |= {model: "1" for model in models if model == catalog.BASELINE}  # divided by itself
    paired = [f"perplexity over {label(catalog.BASELINE)}'s, paired", *found.values()]
    rows = [rows[0], interval, *rows[1:4], paired, *rows[4:]]
    return ["", *map(label, models)], [row for row in rows if any(row[1:])]


def _ends(metric: Metric | None) -> str:
    return "" if metric is None or metric.interval is None else "{:.4g} to {:.4g}".format(*metric.interval)


def verdicts(report: Report) -> str:
    """Return the verdicts of every candidate with their values, and those beside them."""
    rows = [
        [label(one.model), c.name, c.verdict.replace("_", " "), "" if c.value is None else f"{c.value:.4g}", c.target]
        for one in report.judged
        for c in one.in_order()
    ]
    return table(["asked of", "criterion", "verdict", "value", "target"], rows)


def facts(report: Report) -> str:
    """Return what a reader of the ratios should know, one line each."""
    perplexity, memory = stage_of(report, "perplexity"), stage_of(report, "memory")
    lines = []
    for text, name in MEMORY_RATIOS:
        found = [(model, memory.find(name, model)) for model in catalog.COMPARED]
        told = [f"{label(model)} {metric.value:.3f}" for model, metric in found if metric and metric.value is not None]
        lines += [f"GPU memory over {label(catalog.BASELINE)}'s, {text}: {', '.join(told)}."] if told else []
    for twin, whole in ((catalog.COMPACT_TWIN, catalog.COMPACT), (catalog.TWIN, catalog.WITH_MEMORY)):
        if found := perplexity.find(f"{RATIO}{whole}", twin):
            lines.append(f"{label(twin)}: {ratio(found)} times the perplexity of {label(whole)}.")
    for model in JUDGED:
        formats = [perplexity.find(f"perplexity_{kind}", model) for kind in ("bfloat16", "float32")]
        if None in formats:
            continue
        stored = [perplexity.find("perplexity", model).samples[0], *(metric.value for metric in formats)]
        lines.append(f"{label(model)}, first seed, stored as complex32, bfloat16 or float32: "
                     f"{', '.join(f'{value:.2f}' for value in stored)} per token.")  # fmt: skip
    train = stage_of(report, "train")
    gains = [f"{label(model)} {_last_gain(train, model):.3f}" for model in train.models("validation_loss")]
    lines.append(f"Between the last two validations, nat gained: {', '.join(gains)}.")
    return "\n".join(f"- {line}" for line in lines)


def elsewhere(reports: Path, run: str) -> str:
    """Return the perplexity of a comparison's models on texts that none of them was trained on; nothing without."""
    told, columns = [], []
    for path in sorted((reports / run / "companions").glob("*.json")):
        report = read_record(Report, path)
        other = report.run.params.get("test_corpus")
        if not other:
            continue
        found, text = stage_of(report, "perplexity"), str(other).rpartition("/")[2]
        columns.append((text, found))
        told.append(f"{text}: {found.find('num_targets', catalog.BASELINE).value:,.0f} targets, {made(report.run)}")
    head = ["", *(cell for text, _ in columns for cell in (f"{text}, per token", f"over {label(catalog.BASELINE)}'s"))]
    rows = [[label(model), *(cell for _, found in columns for cell in _both(found, model))] for model in COMPARED]
    if not columns:
        return ""
    return f"{'; '.join(told)}. Each model as it was trained for the comparison.\n\n{table(head, rows)}"


def _both(found: StageRecord, model: str) -> tuple[str, str]:
    return shown(found.find("perplexity", model), ".4g"), ratio(found.find(f"{RATIO}{catalog.BASELINE}", model))


def _last_gain(train: StageRecord, model: str) -> float:
    curves = [series.y for series in train.series if series.name == "validation_loss" and series.model == model]
    return statistics.fmean(losses[-2] - losses[-1] for losses in curves)


def ablations(reports: Path, run: str) -> str:
    """Return the ablations of the memory: perplexity, and its ratio to the whole one's; nothing without them."""
    report = companion(reports, run, "gpu-ablations")
    if report is None:
        return ""
    found = stage_of(report, "perplexity")
    rows = [
        [label(model), shown(found.find("perplexity", model), ".4g"), ratio(found.find(WHOLE_MEMORY, model))]
        for model in catalog.MODEL_NAMES
        if found.find("perplexity", model)
    ]
    told = f"{read(report)}; {len(report.run.seeds)} seeds, half the budget, dropout 0.1."
    return told + "\n\n" + table(["", "perplexity per token", "over the whole memory's"], rows)


def lengths(reports: Path, run: str) -> str:
    """Return perplexity and peak memory of models trained and tested at longer contexts; nothing without such runs."""
    rows = []
    for length in LENGTHS:
        report = companion(reports, run, f"gpu-length-{length}")
        if report is None:
            return ""
        perplexity, memory = stage_of(report, "perplexity"), stage_of(report, "memory")
        found = [(perplexity.find("perplexity", m).value, memory.find("peak_memory", m).value) for m in MODELS]
        rows.append([f"{length:,}", *(f"{value:.4g}; {peak:.3f} GiB" for value, peak in found)])
    told = "one seed each, by the recipe of the ablations; perplexity per token and peak memory of two sequences."
    return f"{read(report)}; {told}" + "\n\n" + table(["context", *map(label, MODELS)], rows)


def again(report: Report, reports: Path, run: str) -> str:
    """Return a training done again, beside the spread of the seeds; nothing where none was."""
    other = companion(reports, run, "gpu-again")
    if other is None:
        return ""
    (found,) = repeats(report, other)
    return (
        f"{read(other)}. {label(found.model)}, seed {found.seed}: {found.again:.2f} instead of {found.first:.2f} per "
        f"token; the standard deviation of the seeds is {found.sd:.2f}."
    )


def untrained(reports: Path) -> str:
    """Return the perplexities of the untrained reference."""
    rows = []
    for name, told in (("full", "all {:,.0f} targets"), ("ten", "first 10 batches of 4 x 1024")):
        report = read_record(Report, reports / f"wikitext2-cpu-{name}" / "report.json")
        found = stage_of(report, "perplexity")
        targets, value = (found.find(name, catalog.REFERENCE) for name in ("num_targets", "perplexity"))
        rows.append([told.format(targets.value), shown(value, ",.0f"), read(report)])
    return table(["untrained Stage 1", "perplexity per token", "on"], rows)


def speed(reports: Path) -> str:
    """Return docs/speed.md: the committed benches."""
    told = "Every path was found equal to float64, forward and gradients, before it was timed (`muse bench`)."
    parts = ["# Speed", NOTE, f"{told} Tokens are random ones."]
    for folder, what in BENCHES:
        parts.append(f"## {folder}")
        for name in PARTS:
            if (path := reports / folder / f"{name}.json").exists():
                parts += _bench(read_record(BenchRecord, path), f"`reports/{folder}/{name}.json`", what)
    return "\n\n".join(filter(None, [*parts, _training_profile(reports / PROFILE)])) + "\n"


def _bench(bench: BenchRecord, name: str, what: str) -> Iterator[str]:
    """What was measured where, then a table of each kind that the record has."""
    yield f"{name}: {made(bench.run, bench.stage)}; {'tokens/s' if what == 'speed' else what}, medians"
    writers = [label(model) + way for model, way in WRITERS.values()]
    tables = (
        ("", "", BENCH_ROWS, PATHS, PATHS),
        ("forward + backward + AdamW", catalog.YARDSTICK, MODEL_ROWS, COMPARED, map(label, COMPARED)),
        ("forward + backward + AdamW", catalog.COMPACT, ANGLE_ROWS, ANGLED, map(label, ANGLED)),
        (f"texts x tokens of the prompt, then {catalog.WRITTEN_TOKENS} more", "", WRITTEN, WRITERS, writers),
    )
    for head, over, groups, columns, labels in tables:
        head += f" (over {label(over)}'s)" if over else ""
        told = partial(_speed_cell, bench.stage, what, bool(over))
        yield table([head, *labels], [[text, *(told(group, column) for column in columns)] for text, group in groups])
    rows = [[text, *(_token_cell(bench.stage, group, path) for path in WRITERS)] for text, group in WRITTEN]
    yield table(["launches of a token, and what it must read at least", *writers], rows)


def _speed_cell(stage: StageRecord, what: str, over: bool, group: str, path: str) -> str:
    """What was measured of a path, and with `over` what that is of the group's baseline."""
    found = shown(stage.find(f"bench_{group}_{what}", path), ",.0f")
    ratio = stage.find(f"bench_{group}_ratio", path)
    return f"{found} ({ratio.value:.2f})" if over and found and ratio and ratio.value else found


def _token_cell(stage: StageRecord, group: str, path: str) -> str:
    """Launches and megabytes of one token by a way to write, nothing where they were not counted."""
    launches, least = (stage.find(f"bench_{group}_{what}", path) for what in ("launches", "least_bytes"))
    if launches is None or least is None:
        return ""
    return f"{launches.value:.0f}, {least.value / catalog.WRITTEN_TOKENS / 1e6:,.0f} MB"


def _training_profile(path: Path) -> str:
    """Where a training step's time goes, by kinds of kernels, and what each optimizer takes by itself."""
    if not path.exists():
        return ""
    record = json.loads(path.read_text(encoding="utf-8"))
    steps = record["steps"]
    told = f"`reports/{PROFILE}`: {record['hardware']['gpu']}, torch {steps[0]['torch'].partition('+')[0]}, "
    told += f"{record['date']}, {steps[0]['tokens']:,} tokens a step in bfloat16, compiled, as one graph, by AdamW; "
    told += "milliseconds of kernels by kind."
    by = [step["by"]["adamw"] for step in steps]
    kinds = sorted({kind for one in by for kind in one["kinds"]}, key=lambda kind: -_kind_us(by, kind))
    rows = [["the whole step", *(f"{one['step_us'] / 1e3:.2f}" for one in by)]]
    rows += [[kind, *(_ms(one["kinds"].get(kind)) for one in by)] for kind in kinds]
    rows.append(["launches", *(f"{one['launches']:,.0f}" for one in by)])
    muon = [step["by"]["muon"] for step in steps]
    rows.append(["the whole step, by Muon and AdamW", *(f"{one['step_us'] / 1e3:.2f}" for one in muon)])
    rows.append(["Muon by itself", *(_alone(one, "Muon") for one in muon)])
    return f"## Where a training step's time goes\n\n{told}\n\n{table(['', *(label(s['model']) for s in steps)], rows)}"


def _kind_us(by: Sequence[dict], kind: str) -> float:
    return sum(one["kinds"].get(kind, {"us": 0.0})["us"] for one in by)


def _ms(entry: dict[str, float] | None) -> str:
    return f"{entry['us'] / 1e3:.2f}" if entry else ""


def _alone(one: dict, optimizer: str) -> str:
    """What an optimizer takes by itself, and its share of the step."""
    us = one["optimizers"][optimizer]["step_us"]
    return f"{us / 1e3:.2f} ({us / one['step_us']:.1%})"


def headline(reports: Path) -> str:
    """Return the README's small table: the candidates over Phase 2, in memory by the latest code that measured it."""
    report = read_record(Report, reports / MAIN / "report.json")
    memory = stage_of(later_memory(reports) or report, "memory")
    judged = [model for model in JUDGED if model in [one.model for one in report.judged]]
    quality = [stage_of(report, "perplexity").find(f"{RATIO}{catalog.BASELINE}", model) for model in judged]
    rows = [["perplexity", *(shown(metric, ".3f") for metric in quality)]]
    for text, name in (
        ("GPU memory, each as it runs", "peak_memory"),
        ("GPU memory, blocks recomputed on both sides", "peak_memory_recomputed"),
        ("GPU memory, recomputed on neither side", "peak_memory_plain"),
        ("GPU memory of a training step, blocks recomputed", "peak_memory_training_step"),
    ):
        parts = [over_baseline(memory, name, model) for model in judged]
        rows.append([text, *("" if part is None else f"{part:.3f}" for part in parts)])
    return table([f"over {label(catalog.BASELINE)}'s", *map(label, judged)], rows)


def counting(reports: Path) -> str:
    """Return docs/counting.md: the committed counting bench."""
    score = "A score is normalised accuracy on the last 20 positions: 0 is guessing, 1 is all right; a mean of seeds."
    star = "A star marks what one layer of an arm can track for ever, by theory."
    more = "[The stage's page](../reports/counting/index.html) has every length, every try and a sceptic's questions"
    lead = f"{score} {star}\n\n{more}, [predictions.md](../reports/counting/predictions.md) what was expected."
    return "\n\n".join(["# Counting", NOTE, lead, *counting_tables.tables(reports)]) + "\n"


PAGES: dict[str, Callable[[Path], str]] = {
    "docs/results.md": results,
    "docs/speed.md": speed,
    "docs/counting.md": counting,
}
BEGIN, END = "<!-- begin: made by `make docs` -->\n", "\n<!-- end -->"


WITH_TABLES: dict[str, tuple[Callable[[Path], str], ...]] = {
    "README.md": (headline,),
    "docs/scale.md": (plan_errors.tables, several_cards.tables),
}
"""Pages that are written by hand but for some places, in their order."""


def pages(root: Path) -> dict[str, str]:
    """Return the text of every page by its path: those of docs/, and others with their tables renewed."""
    made_anew = {name: make(root / "reports") for name, make in PAGES.items()}
    for name, makers in WITH_TABLES.items():
        text, *places = (root / name).read_text(encoding="utf-8").split(BEGIN)
        for make, place in zip(makers, places, strict=True):
            text += BEGIN + make(root / "reports") + place[place.index(END) :]
        made_anew[name] = text
    return made_anew


def main(root: Path = Path()) -> None:
    """Write docs/ and the tables of other pages from the reports of a checkout."""
    for name, text in pages(root).items():
        write_atomic(root / name, text)


if __name__ == "__main__":
    main()
