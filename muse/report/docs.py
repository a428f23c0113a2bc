"""Committed records to the tables of docs/ and the README: each number from a record that is named beside it.

`make docs` renews them; a test compares them with what it would write.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from muse import catalog
from muse.host.files import write_atomic
from muse.records.schema import BenchRecord, Metric, Report, RunInfo, StageRecord
from muse.records.store import read_record

from .companions import repeats, stage_of
from .figures.style import style

NOTE = "<!-- made by `make docs` from the records that are named; changes here are lost -->"
COMPARED = (catalog.REFERENCE, catalog.WITH_MEMORY, catalog.TWIN, catalog.BASELINE, catalog.YARDSTICK)
ROWS = (
    ("perplexity per token", "perplexity", "perplexity", ".4g"),
    ("perplexity per word", "perplexity", "word_perplexity", ".4g"),
    ("bits per byte", "perplexity", "bits_per_byte", ".3f"),
    ("dropout, chosen on validation", "train", "dropout", "g"),
    ("peak memory, own precision (GiB)", "memory", "peak_memory", ".3f"),
    ("the same, blocks recomputed (GiB)", "memory", "peak_memory_recomputed", ".3f"),
    ("peak memory, all float32 (GiB)", "memory", "peak_memory_matched", ".3f"),
    ("peak memory with AdamW, all float32 (GiB)", "memory", "peak_memory_with_optimizer", ".3f"),
    ("forward with logits, eager (tokens/s)", "throughput", "throughput_logits", ",.0f"),
)
"""Rows of the comparison: label, stage, metric and format."""

LENGTHS = (1024, 2048, 4096, 8192)
CPU_BENCHES = ("bench-cpu", "bench-cpu-amx")
CPU_ROWS = (
    ("forward with logits, 4 x 1024", "forward_4x1024"),
    ("head + loss, forward + backward, 2,048 tokens", "head_2048"),
    ("six complex layers, forward + backward, 2 x 1024", "stack_2x1024"),
)
CPU_PATHS = ("muse compiled", "muse eager", "naive", "naive float32", "complex64", "complextorch", "complexPyTorch")
GPU_BENCHES = ("bench-h100", "bench-h200")
GPU_ROWS = (
    ("forward with logits, 4 x 1024", "forward_4x1024"),
    ("forward with logits, 64 x 1024", "forward_64x1024"),
    ("forward + backward + AdamW, 16 x 1024", "training_16x1024"),
    ("forward + backward + AdamW, 64 x 1024", "training_64x1024"),
    ("head + loss, forward + backward, 2,048 tokens", "head_2048"),
    ("six complex layers, forward + backward, 2 x 1024", "stack_2x1024"),
)
GPU_PATHS = ("muse graph", "muse compiled", "muse eager", "naive", "complex64", "complextorch", "complexPyTorch")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def label(model: str) -> str:
    """Return a model's name as readers know it."""
    return style(model).label


def shown(metric: Metric | None, form: str) -> str:
    """Return a metric's value, an empty cell where there is none."""
    return "" if metric is None or metric.value is None else format(metric.value, form)


def ratio(metric: Metric | None) -> str:
    """Return a ratio with its interval; 1 for what is divided by itself."""
    return "1" if metric is None else "{:.3f} ({:.3f} to {:.3f})".format(metric.value, *metric.interval)


def made(run: RunInfo) -> str:
    """Return on what and when a run was made."""
    on_gpu = "gpu" in run.hardware and run.params.get("device") != "cpu"
    machine = run.hardware["gpu"] if on_gpu else f"{run.hardware['cores']} CPU cores ({run.hardware['cpu_capability']})"
    return f"{machine}, torch {run.versions['torch'].partition('+')[0]}, {run.started_utc:%Y-%m-%d}"


def results(reports: Path) -> str:
    """Return docs/results.md: the comparison, its companions, and untrained models."""
    report = read_record(Report, reports / "gpu" / "report.json")
    stages = {stage.stage: stage for stage in report.stages}
    parts = [
        "# Results",
        NOTE,
        f"## The comparison\n\n[reports/gpu](../reports/gpu/index.html), {made(report.run)}, "
        f"{len(report.run.seeds)} seeds, `params/gpu.yaml`. The text is `wikitext-2-v1` (with `<unk>`), test split, "
        "GPT-2 tokens. Memory: forward + backward, 2 x 1024; speed: 4 x 1024. The complex models and the twin are "
        "stored and measured in half precision, Phase 2 and GPT-2 in float32.",
        comparison(stages),
        verdicts(report),
        "## What it stands on",
        facts(report, stages),
        "## One thing changed in the memory",
        ablations(reports),
        "## Longer contexts",
        lengths(reports),
        "## The same training again",
        again(report, reports),
        "## Untrained, by the published quick test",
        untrained(reports),
    ]
    return "\n\n".join(parts) + "\n"


def comparison(stages: dict[str, StageRecord]) -> str:
    """Return the table of all models."""
    rows = [
        [text, *(shown(stages[stage].find(name, model), form) for model in COMPARED)]
        for text, stage, name, form in ROWS
    ]
    found = [stages["perplexity"].find("perplexity", model) for model in COMPARED]
    rows.insert(1, ["95 % over documents and seeds", *("{:.4g} to {:.4g}".format(*m.interval) for m in found)])
    over = f"perplexity_ratio_to_{catalog.BASELINE}"
    pairs = [ratio(stages["perplexity"].find(over, model)) for model in COMPARED]
    rows.insert(4, [f"perplexity over {label(catalog.BASELINE)}'s, paired", *pairs])
    return table(["", *map(label, COMPARED)], rows)


def verdicts(report: Report) -> str:
    """Return the verdicts of every candidate with their values."""
    rows = [
        [label(one.model), c.name, c.verdict.replace("_", " "), "" if c.value is None else f"{c.value:.4g}", c.target]
        for one in report.judged
        for c in one.criteria
    ]
    return table(["asked of", "criterion", "verdict", "value", "target"], rows)


def facts(report: Report, stages: dict[str, StageRecord]) -> str:
    """Return what a reader of the ratios should know, one line each."""
    perplexity, memory = stages["perplexity"], stages["memory"]
    twin = perplexity.find(f"perplexity_ratio_to_{catalog.WITH_MEMORY}", catalog.TWIN)
    over = f"perplexity_ratio_to_{catalog.BASELINE}"
    gains = [math.log(perplexity.find(over, model).value) for model in (catalog.TWIN, catalog.WITH_MEMORY)]
    best = min(perplexity.find("perplexity", catalog.WITH_MEMORY).samples)
    formats = [perplexity.find("perplexity", catalog.WITH_MEMORY).samples[0]]
    formats += [perplexity.find(f"perplexity_{kind}", catalog.WITH_MEMORY).value for kind in ("bfloat16", "float32")]
    last = {model: statistics.fmean(_last_gains(stages["train"], model)) for model in COMPARED}
    kinds = (("own precision", ""), ("all float32", "_matched"), ("AdamW, all float32", "_with_optimizer"))
    harder = {
        text: [memory.find(f"peak_memory{kind}_ratio_to_{catalog.BASELINE}", m).value for m in COMPARED[:2]]
        for text, kind in kinds
    }
    lines = [
        "GPU memory over Phase 2's: "
        + "; ".join(f"{text} {ours:.3f} ({label(COMPARED[0])}), {theirs:.3f} (with memory)"
                    for text, (ours, theirs) in harder.items()) + ".",
        f"The real twin has {ratio(twin)} times the perplexity of the complex memory; "
        f"{100 * gains[0] / gains[1]:.0f} % of the gain over Phase 2, in nat per token, needs no complex numbers.",
        f"The best seed of Stage 1 with memory reaches {best:.2f} per token. Stored as complex32, bfloat16 or float32 "
        "its first seed gives " + ", ".join(f"{value:.2f}" for value in formats) + ".",
        "Between the last two validations, nat gained: "
        + ", ".join(f"{label(model)} {gain:.3f}" for model, gain in last.items()) + ".",
    ]  # fmt: skip
    return "\n".join(f"- {line}" for line in lines)


def _last_gains(train: StageRecord, model: str) -> list[float]:
    curves = [series.y for series in train.series if series.name == "validation_loss" and series.model == model]
    return [losses[-2] - losses[-1] for losses in curves]


def ablations(reports: Path) -> str:
    """Return the ablations of the memory: perplexity, and its ratio to the whole one's."""
    report = read_record(Report, reports / "gpu" / "companions" / "gpu-ablations.json")
    found, over = stage_of(report, "perplexity"), f"perplexity_ratio_to_{catalog.WITH_MEMORY}"
    rows = [
        [label(model), shown(found.find("perplexity", model), ".4g"), ratio(found.find(over, model))]
        for model in (catalog.WITH_MEMORY, *catalog.ABLATIONS)
    ]
    told = f"{made(report.run)}, {len(report.run.seeds)} seeds, half the budget, dropout 0.1."
    return told + "\n\n" + table(["", "perplexity per token", "over the whole memory's"], rows)


def lengths(reports: Path) -> str:
    """Return perplexity and peak memory of models trained and tested at longer contexts."""
    models, rows = (catalog.WITH_MEMORY, catalog.BASELINE, catalog.YARDSTICK), []
    for length in LENGTHS:
        report = read_record(Report, reports / "gpu" / "companions" / f"gpu-length-{length}.json")
        perplexity, memory = stage_of(report, "perplexity"), stage_of(report, "memory")
        found = [(perplexity.find("perplexity", m).value, memory.find("peak_memory", m).value) for m in models]
        rows.append([f"{length:,}", *(f"{value:.4g}; {peak:.3f} GiB" for value, peak in found)])
    told = "One seed each, by the recipe of the ablations; perplexity per token and peak memory of two sequences."
    return told + "\n\n" + table(["context", *map(label, models)], rows)


def again(report: Report, reports: Path) -> str:
    """Return a training done again, beside the spread of the seeds."""
    (found,) = repeats(report, read_record(Report, reports / "gpu" / "companions" / "gpu-again.json"))
    return (
        f"{label(found.model)}, seed {found.seed}: {found.again:.2f} instead of {found.first:.2f} per token; the "
        f"standard deviation of the seeds is {found.sd:.2f}."
    )


def untrained(reports: Path) -> str:
    """Return the perplexities of the untrained reference."""
    rows = []
    for name, text in (("full", "all {:,.0f} targets"), ("ten", "first 10 batches of 4 x 1024")):
        report = read_record(Report, reports / f"wikitext2-cpu-{name}" / "report.json")
        found = stage_of(report, "perplexity")
        targets, value = (found.find(name, catalog.REFERENCE) for name in ("num_targets", "perplexity"))
        rows.append([text.format(targets.value), shown(value, ",.0f"), made(report.run)])
    return table(["untrained Stage 1, `wikitext-2-v1`, test", "perplexity per token", "on"], rows)


def speed(reports: Path) -> str:
    """Return docs/speed.md: the committed benches."""
    told = "Every path was found equal to float64, forward and gradients, before it was timed (`muse bench`)."
    parts = ["# Speed", NOTE, told]
    for folder in CPU_BENCHES:
        bench = read_record(BenchRecord, reports / folder / "bench.json")
        rows = bench_rows(bench.stage, CPU_ROWS, CPU_PATHS, "milliseconds")
        parts += [f"## {folder}\n\n{made(bench.run)}; milliseconds, medians", table(["", *CPU_PATHS], rows)]
    for folder in GPU_BENCHES:
        bench = read_record(BenchRecord, reports / folder / "bench.json")
        rows = bench_rows(bench.stage, GPU_ROWS, GPU_PATHS, "speed")
        models = (catalog.WITH_MEMORY, catalog.BASELINE, catalog.YARDSTICK)
        groups = [(f"{mode}, 16 x 1024", f"models_{mode}_16x1024") for mode in ("compiled", "eager")]
        parts += [f"## {folder}\n\n{made(bench.run)}; tokens/s, medians", table(["", *GPU_PATHS], rows)]
        parts.append(table(["forward + backward + AdamW", *map(label, models)],
                           bench_rows(bench.stage, groups, models, "speed")))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def bench_rows(
    stage: StageRecord, rows: Sequence[tuple[str, str]], paths: Sequence[str], what: str
) -> list[list[str]]:
    """Return a row for each group that the bench has, a cell for each path."""
    found = [
        [text, *(shown(stage.find(f"bench_{group}_{what}", path), ",.0f") for path in paths)] for text, group in rows
    ]
    return [row for row in found if any(row[1:])]


def headline(reports: Path) -> str:
    """Return the README's small table: the two candidates beside Phase 2."""
    stages = {stage.stage: stage for stage in read_record(Report, reports / "gpu" / "report.json").stages}
    asked = (
        ("perplexity", stages["perplexity"], "perplexity"),
        ("GPU memory, each in its own precision", stages["memory"], "peak_memory"),
        ("GPU memory with AdamW, all float32", stages["memory"], "peak_memory_with_optimizer"),
    )
    rows = []
    for text, stage, name in asked:
        found = [stage.find(f"{name}_ratio_to_{catalog.BASELINE}", model) for model in catalog.CANDIDATES]
        rows.append([text, *(shown(metric, ".3f") for metric in found)])
    return table([f"over {label(catalog.BASELINE)}'s", *map(label, catalog.CANDIDATES)], rows)


PAGES: dict[str, Callable[[Path], str]] = {"docs/results.md": results, "docs/speed.md": speed}
BEGIN, END = "<!-- begin: made by `make docs` -->\n", "\n<!-- end -->"


def pages(root: Path) -> dict[str, str]:
    """Return the text of every page by its path: those of docs/, and the README with its table renewed."""
    made_anew = {name: make(root / "reports") for name, make in PAGES.items()}
    readme = (root / "README.md").read_text(encoding="utf-8")
    start, stop = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    made_anew["README.md"] = readme[:start] + headline(root / "reports") + readme[stop:]
    return made_anew


def main(root: Path = Path()) -> None:
    """Write docs/ and the README's table from the reports of a checkout."""
    for name, text in pages(root).items():
        write_atomic(root / name, text)


if __name__ == "__main__":
    main()
