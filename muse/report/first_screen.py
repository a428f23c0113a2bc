"""The first screen of the report: the answer in three sentences, the run in a line, its models in a table.

Which sentence is said is decided by verdicts and intervals of the record; what it says stands in the language files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from muse import catalog
from muse.catalog import BASELINE, COUNTING, can_track
from muse.records.schema import Criterion, Judged, Metric, Report, StageRecord, Verdict

from .arms import score_text, tasks_label
from .figures.style import style
from .html import render
from .numbers import alike, decimals, number, told
from .texts import join, say, texts

OVER = f"_ratio_to_{BASELINE}"
PROMISES = ("perplexity", "vram")
"""The two criteria that make the claim; the other three say that it holds together."""

MEMORY_COLUMNS = {
    "criterion": "peak_memory",
    "fair": "peak_memory_recomputed",
    "training_step": "peak_memory_training_step",
}
"""Columns of the table of models, each with the metric that is divided by the baseline's."""

GLOSSARY = ("perplexity", "complex32", "memory", "gpu_memory", "recompute", "twin", "low_rank", "seed", "interval",
            "estimate")  # fmt: skip
METHOD, THREATS = 8, 6
"""How many lines the language files have of them."""


def answer(report: Report, language: str = "en") -> list[str]:
    """Return the answer to the report's question in up to three sentences; empty where nothing was measured."""
    if not report.judged or not report.stages:
        return []
    if counts_only(report):
        return _counting(report, language)
    chosen = best_candidate(report)
    found = [_promise(report, chosen, language), _parts(report, chosen, language), _numbers(report, chosen, language)]
    return [sentence for sentence in found if sentence]


def counts_only(report: Report) -> bool:
    """Return whether counting is all that a run asked: no model is judged by criteria then."""
    return report.run.params.get("stages") == [COUNTING]


def _counting(report: Report, language: str) -> list[str]:
    """Which arms counted in most seeds, and how well those did that cannot; empty where no arm was through."""
    (record,) = report.stages
    names, counted, guessed = texts(language), {}, []
    for solved in (metric for metric in record.metrics if metric.name == "counting_solved"):
        arm, task = solved.model.split(" ")
        if 2 * solved.value > solved.n:
            counted.setdefault(arm, []).append(task)
        if not can_track(arm, task):
            guessed.append([record.find(f"counting_{name}", solved.model).value for name in ("score", "skewed")])
    by_arm = [say(language, "answer.lead.arm", arm=names[f"arm.{arm}"], tasks=tasks_label(tasks, language))
              for arm, tasks in counted.items()]  # fmt: skip
    found = [say(language, "answer.lead.counts", arms="; ".join(by_arm))] if by_arm else []
    if guessed:
        uniform, skewed = (score_text(max(scores)) for scores in zip(*guessed, strict=True))
        found.append(say(language, "answer.lead.guesses", uniform=uniform, skewed=skewed))
    return found


def best_candidate(report: Report) -> Judged:
    """Return the candidate that keeps most of the two promises, then of all five; the first of equal ones."""

    def passed(judged: Judged, names: Sequence[str] | None = None) -> int:
        return sum(c.verdict == "pass" for c in judged.criteria if names is None or c.name in names)

    return max(report.judged, key=lambda judged: (passed(judged, PROMISES), passed(judged)))


def _promise(report: Report, chosen: Judged, language: str) -> str:
    """Whether both promises are kept by one model, with the two numbers of each candidate that was asked."""
    verdicts = [_asked(chosen, name) for name in PROMISES]
    words = texts(language)
    if verdicts == ["pass", "pass"]:
        others = [c for c in chosen.criteria if c.verdict != "pass"]
        key = "answer.lead.keeps" if not others else "answer.lead.keeps_two"
        return say(language, key, model=_label(chosen.model, language), **_two(report, chosen, language),
                   others=join(language, [words[f"criterion.{c.name}"] for c in others]))  # fmt: skip
    said = [
        say(language, "answer.lead.of_model", model=_label(one.model, language), **_two(report, one, language))
        for one in report.judged
    ]
    is_open = any(_asked(one, name) == "not_measured" for one in report.judged for name in PROMISES)
    return say(language, "answer.lead.open" if is_open else "answer.lead.none", models=join(language, said))


def _two(report: Report, judged: Judged, language: str) -> dict[str, str]:
    """Perplexity and GPU memory over the baseline's, as the criteria have them: value, interval, estimate."""
    found = {}
    for name in PROMISES:
        criterion = _criterion(judged, name)
        if criterion is None or criterion.value is None:
            found[name] = texts(language)["verdict.not_measured"]
            continue
        value = _ratio_text(criterion.value)
        if criterion.basis == "estimate":
            value = say(language, "figure.with_unit", name=value, unit=texts(language)["basis.estimate"])
        metric = _metric(report, "perplexity", f"perplexity{OVER}", judged.model)
        if name == "perplexity" and metric and metric.interval:
            low, high = alike(metric.interval, 3)
            value = say(language, "answer.lead.interval", value=value, low=low, high=high)
        found[name] = value
    return found


def _parts(report: Report, chosen: Judged, language: str) -> str:
    """What makes it so, a part given to both sides or to neither: recomputed blocks, half precision, table, memory."""
    ratios = {
        key: _over_baseline(report, metric, chosen.model)
        for key, metric in (("fair", "peak_memory_recomputed"), ("plain", "peak_memory_plain"),
                            ("training_step", "peak_memory_training_step"),
                            ("with_optimizer", "peak_memory_with_optimizer"))
    }  # fmt: skip
    ratios["bfloat16"] = _value(report, "memory", f"peak_memory{OVER}_bfloat16", chosen.model)
    over_table = f"perplexity_ratio_to_{catalog.COMPACT_BASELINE}"
    ratios["low_rank"] = _value(report, "perplexity", over_table, chosen.model)
    if any(row.has_memory for row in catalog.MODELS if row.name == chosen.model):
        ratios["no_memory"] = _value(report, "perplexity", f"perplexity{OVER}", catalog.REFERENCE)
    said = [say(language, f"answer.lead.{key}", value=_ratio_text(value)) for key, value in ratios.items() if value]
    if not said:
        return ""
    lead = "parts" if all(_asked(chosen, name) == "pass" for name in PROMISES) else "harder"
    return say(language, f"answer.lead.{lead}", model=_label(chosen.model, language), rows=join(language, said))


def _numbers(report: Report, chosen: Judged, language: str) -> str:
    """Whether the numbers being complex matters: the real twin of the chosen model, or of the one that has one."""
    for judged in sorted(report.judged, key=lambda one: one is not chosen):
        for row in catalog.MODELS:
            if row.twin_of != judged.model:
                continue
            metric = _metric(report, "perplexity", f"perplexity_ratio_to_{judged.model}", row.name)
            if metric and metric.value is not None and metric.interval is not None:
                value, low, high = told(metric)
                low_end, high_end = metric.interval
                seen = "no_difference" if low_end <= 1 <= high_end else "helps" if low_end > 1 else "hurts"
                seen = seen if len(metric.samples) > 1 else "unknown"
                return say(language, f"answer.lead.twin_{seen}", model=_label(judged.model, language), value=value,
                           low=low, high=high, percent=number(round(abs(metric.value - 1) * 100, 2)))  # fmt: skip
    return texts(language)["answer.lead.no_twin"]


def run_line(report: Report, language: str = "en") -> str:
    """Return the run in one line: text, budget, seeds, machine, date, scale, commit; what is unknown says so."""
    run, words = report.run, texts(language)
    text = next((stage.text for stage in report.stages if stage.text), "") or str(run.params.get("corpus", "?"))
    tokens, counts = run.params.get("train_tokens"), counts_only(report)
    seeds = run.params.get("counting_seeds" if counts else "seeds", run.seeds)
    on_gpu = "gpu" in run.hardware and run.params.get("device") != "cpu"
    machine = run.hardware.get("gpu") if on_gpu else run.hardware.get("processor", run.hardware.get("cpu_capability"))
    reduced = any(stage.scale == "reduced" for stage in report.stages)
    commit = run.git_commit[:7] if run.git_commit else words["line.unknown_commit"]
    state = {None: "line.unknown_tree", True: "line.dirty", False: "line.clean"}[run.git_dirty]
    budget = "line.steps" if counts else "line.tokens" if tokens else "line.untrained"
    trained = say(language, budget, tokens=number(tokens or 0), steps=number(run.params.get("counting_steps", 0)))
    return say(
        language, "line.run", text=words["stage.counting"] if counts else text, trained=trained,
        seeds=len(seeds), machine=machine or words["line.unknown_machine"], date=f"{run.started_utc:%Y-%m-%d}",
        scale=words["scale.short" if reduced else "scale.published"],
        commit=say(language, "figure.with_unit", name=commit, unit=words[state]),
    )  # fmt: skip


def models_table(report: Report, language: str = "en") -> Markup:
    """Return the models of a run, one row each: quality, GPU memory, speed and verdicts; nothing that none has."""
    words, models = texts(language), _models(report)
    if not models or counts_only(report):
        return Markup()
    judged = {one.model: one for one in report.judged}
    perplexity = {name: _metric(report, "perplexity", f"perplexity{OVER}", name) for name in models}
    columns = [_perplexities(perplexity, models, language)]
    for metric in MEMORY_COLUMNS.values():
        columns.append(_ratios([_over_baseline(report, metric, name) for name in models], models, language))
    speeds = [_metric(report, "throughput", "throughput_logits", name) for name in models]
    columns.append([number(round(m.value)) if m and m.value else words["verdict.not_measured"] for m in speeds])
    columns.append([_verdict(judged.get(name), name, words) for name in models])
    head = [words[f"models.{key}"] for key in ("model", "perplexity", *MEMORY_COLUMNS, "speed", "verdicts")]
    missing = words["verdict.not_measured"]
    kept = [at for at, cells in enumerate(columns) if any(cell != missing for cell in cells)]
    head, columns = [head[0], *(head[at + 1] for at in kept)], [columns[at] for at in kept]
    rows = [[_label(name, language), *cells] for name, *cells in zip(models, *columns, strict=True)]
    memory = next((stage for stage in report.stages if stage.stage == "memory"), None)
    estimated = memory is not None and any(m.basis == "estimate" for m in memory.metrics)
    return render("models", language, head=head, rows=rows, numeric=len(head) - 1, estimated=estimated)


def _models(report: Report) -> list[str]:
    """The models of the run in the catalog's order, candidates first and the baseline behind them."""
    asked = report.run.params.get("models")
    names = [name for name in catalog.MODEL_NAMES if isinstance(asked, list) and name in asked]
    candidates = [one.model for one in report.judged if one.model in names]
    rest = [name for name in names if name not in candidates and name != BASELINE]
    return [*candidates, *(name for name in names if name == BASELINE), *rest]


def _perplexities(found: Mapping[str, Metric | None], models: Sequence[str], language: str) -> list[str]:
    """Ratios with intervals, in one number of decimals; 1 for the baseline."""
    words = texts(language)
    cells = []
    for name in models:
        metric = found[name]
        if name == BASELINE:
            cells.append("1")
        elif metric is None or metric.value is None:
            cells.append(words["verdict.not_measured"])
        else:
            value, *ends = alike([metric.value, *(metric.interval or ())], 3)
            low_high = dict(zip(("low", "high"), ends, strict=False))
            cells.append(say(language, "answer.lead.interval", value=value, **low_high) if ends else value)
    return cells


def _ratios(values: Sequence[float | None], models: Sequence[str], language: str) -> list[str]:
    missing = texts(language)["verdict.not_measured"]
    return [
        "1" if name == BASELINE and value is not None else missing if value is None else _ratio_text(value)
        for name, value in zip(models, values, strict=True)
    ]


def _verdict(judged: Judged | None, name: str, words: Mapping[str, str]) -> dict[str, object]:
    """What the cell of verdicts shows: counts, and the criteria that do not pass by name."""
    if judged is None:
        return {"kind": "", "text": words["models.baseline" if name == BASELINE else "models.not_asked"], "rest": []}
    open_ = [c for c in judged.criteria if c.verdict != "pass"]
    failed = any(c.verdict == "fail" for c in open_)
    kind = "fail" if failed else "not_measured" if open_ else "pass"
    text = words["models.passed"].format(n=len(judged.criteria) - len(open_), total=len(judged.criteria))
    rest = []
    for verdict in dict.fromkeys(c.verdict for c in open_):
        names = words["join"].join(words[f"criterion.{c.name}"] for c in open_ if c.verdict == verdict)
        rest.append(f"{names}{words['colon']} {words[f'verdict.{verdict}']}")
    return {"kind": kind, "text": text, "rest": rest}


def about(report: Report, language: str = "en") -> Markup:
    """Return what a reader may have to look up: the models, the words, the method, and what could be wrong with it."""
    words = texts(language)
    models = {_label(name, language): words[f"about.{name}"] for name in _models(report) if f"about.{name}" in words}
    terms = {words[f"glossary.{key}"]: words[f"glossary.{key}.is"] for key in GLOSSARY}
    method = [words[f"method.{at}"] for at in range(1, METHOD + 1)]
    threats = [words[f"threats.{at}"] for at in range(1, THREATS + 1)]
    return render("about", language, models=models, terms=terms, method=method, threats=threats)


def _label(model: str, language: str) -> str:
    return style(model, language).label


def _ratio_text(value: float) -> str:
    return alike([value], max(3, decimals([value])))[0]


def _criterion(judged: Judged, name: str) -> Criterion | None:
    return next((criterion for criterion in judged.criteria if criterion.name == name), None)


def _asked(judged: Judged, name: str) -> Verdict:
    criterion = _criterion(judged, name)
    return criterion.verdict if criterion else "not_measured"


def _stage(report: Report, name: str) -> StageRecord | None:
    return next((stage for stage in report.stages if stage.stage == name and stage.status == "ok"), None)


def _metric(report: Report, stage: str, name: str, model: str) -> Metric | None:
    record = _stage(report, stage)
    return record.find(name, model) if record else None


def _value(report: Report, stage: str, name: str, model: str) -> float | None:
    metric = _metric(report, stage, name, model)
    return metric.value if metric else None


def _over_baseline(report: Report, metric: str, model: str) -> float | None:
    ours, theirs = (_metric(report, "memory", metric, name) for name in (model, BASELINE))
    return ours.value / theirs.value if ours and theirs and ours.value is not None and theirs.value else None
