"""Records to verdicts: the five Stage 1 criteria and what stands beside them, the only place that knows thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean, stdev

from muse.catalog import BASELINE, REFERENCE

from .reasons import why
from .scale import PUBLISHED, in_words
from .schema import Basis, Criterion, Metric, StageRecord, Summary, Verdict

PERPLEXITY_RATIO = 1.03
VRAM_RATIO = 0.52
LIMITS = {"perplexity": PERPLEXITY_RATIO, "vram": VRAM_RATIO, "vram_recomputed": VRAM_RATIO}
"""Of the verdicts that ask for a ratio, by name."""

STABILITY_TRIALS = 100
GRADIENT_NORM = (1e-6, 1e3)
BYTES_PER_COMPLEX = 4
PARAMETERS = 80_937_553
SMALL_GPU_GIB = 8
SIZES = ("vocab_size", "d_model", "n_layers", "n_seq")
ROUNDING = 1e-12
"""A ratio of decimal numbers that is exactly on its limit may come out this much above it."""

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom."""

PREFIX = "criteria."
"""Of the keys of its sentence templates among the texts of a language."""

NAMES_SHOWN = 5

@dataclass(frozen=True)
class Question:
    """What is to be judged: the records by stage name, the two models, and the language of the reasons."""

    records: dict[str, StageRecord]
    candidate: str
    baseline: str
    skipped_baseline: bool
    words: Mapping[str, str]

    @cached_property
    def text(self) -> dict[str, str]:
        """The sentence templates of the criteria by code."""
        return {key.removeprefix(PREFIX): text for key, text in self.words.items() if key.startswith(PREFIX)}

    def model(self, name: str) -> str:
        """Return the name of a model as readers know it."""
        return self.text.get(f"model.{name}", name)

    def stage(self, name: str) -> str:
        """Return the name of a stage as readers know it, marked as a name."""
        return self.text["stage"].format(title=self.words.get(f"stage.{name}", name))


@dataclass(frozen=True)
class Finding:
    """A verdict with its reason, before it becomes a Criterion."""

    verdict: Verdict
    reason: str
    value: float | None = None
    basis: Basis = "none"


def judge(
    stages: Sequence[StageRecord],
    words: Mapping[str, str],
    *,
    candidate: str = REFERENCE,
    baseline: str = BASELINE,
    skipped_baseline: bool = False,
    rules: Mapping[str, Rule] | None = None,
) -> list[Criterion]:
    """Return the five criteria, always all and always in order, judged from the stages' records.

    `words` are a language's texts: verdicts come from numbers, targets and reasons are said in them. Other `rules` may
    take the place of the five.
    """
    rules = RULES if rules is None else rules
    question = Question({record.stage: record for record in stages}, candidate, baseline, skipped_baseline, words)
    named = {"baseline": question.model(baseline)}
    found = {name: _ask(question, rule) for name, rule in rules.items()}
    return [
        Criterion(
            name=name,
            target=question.text[f"target.{name}"].format(**rules[name].limits, **named),
            value=finding.value,
            verdict=finding.verdict,
            basis=finding.basis,
            reason=" ".join(finding.reason.split()),
        )
        for name, finding in found.items()
    ]


def judge_beside(stages: Sequence[StageRecord], words: Mapping[str, str], **asked: object) -> list[Criterion]:
    """Return the verdicts that stand beside the five criteria and decide no exit code: the memory on equal terms.

    `asked` is what else `judge` takes.
    """
    return judge(stages, words, rules=BESIDE, **asked)


def judge_basic_test(stages: Sequence[StageRecord], words: Mapping[str, str]) -> list[Criterion]:
    """Return the verdicts of the published basic test, which are no criteria; none of a run without its stage."""
    asked = any(record.stage == BASIC_TEST_STAGE for record in stages)
    return judge(stages, words, rules=BASIC_TEST) if asked else []


def summarise(
    stages: Sequence[StageRecord],
    criteria: Sequence[Criterion],
    *,
    candidate: str = REFERENCE,
    baseline: str = BASELINE,
) -> Summary:
    """Return the handful of numbers a script asks for: measured and finite ones, null for everything else."""
    records = {record.stage: record for record in stages if record.status == "ok"}
    by_name = {criterion.name: criterion for criterion in criteria}
    verdicts = {criterion.verdict for criterion in criteria}

    def value(stage: str, metric: str, model: str) -> float | None:
        found = records[stage].find(metric, model) if stage in records else None
        if found is None or found.basis != "measured" or not _finite(found.value):
            return None
        return found.value

    def ratio(name: str) -> float | None:
        return by_name[name].value if name in by_name and by_name[name].basis == "measured" else None

    return Summary(
        ppl=value("perplexity", "perplexity", candidate),
        ppl_phase2=value("perplexity", "perplexity", baseline),
        ppl_ratio=ratio("perplexity"),
        vram_gb=value("memory", "peak_memory", candidate),
        vram_phase2_gb=value("memory", "peak_memory", baseline),
        vram_ratio=ratio("vram"),
        pass_=False if "fail" in verdicts else True if verdicts == {"pass"} else None,
    )


def _ask(question: Question, rule: Rule) -> Finding:
    record, text = question.records.get(rule.stage), question.text
    instead = question.records.get(rule.instead)
    if record is None and instead and any(metric.model == question.candidate for metric in instead.metrics):
        record = instead
    if record is None:
        return Finding("not_measured", text["stage_missing"].format(stage=question.stage(rule.stage)))
    if record.status != "ok":
        words = {"stage": question.stage(rule.stage), "error": quoted(record.error or "?")}
        return Finding("not_measured", text["stage_failed"].format(**words))
    finding = rule.judge(question, record)
    own = [reduction for reduction in record.reductions if not reduction.setting.startswith(rule.foreign)]
    if record.scale == "reduced" and (own or not record.reductions):
        template = text["reduced" if own else "reduced_without_note"]
        reason = template.format(scale_note=in_words(own, question.words), reason=finding.reason)
        return Finding(finding.verdict, reason, finding.value, finding.basis)
    return finding


def quoted(error: str) -> str:
    """Return an error as a reason quotes it: in one line that is not too long."""
    return " ".join(error.split())[:200].strip()


def _perplexity(question: Question, record: StageRecord) -> Finding:
    problem = _perplexity_problem(question, record, question.candidate)
    problem = problem or _skipped(question) or _perplexity_problem(question, record, question.baseline)
    if problem:
        return problem
    ours, theirs = (record.find("perplexity", name) for name in (question.candidate, question.baseline))
    pairs = _pairs(ours, theirs)
    if len(pairs) < 2:
        return _ratio(
            question, "perplexity", PERPLEXITY_RATIO, ours, theirs, spread=question.text["perplexity.no_pairs"]
        )
    low, high = _ratio_interval(pairs)
    spread = question.text["perplexity.seeds"].format(n=len(pairs), low=low, high=high)
    ours = ours.model_copy(update={"value": fmean(a for a, _ in pairs)})
    theirs = theirs.model_copy(update={"value": fmean(b for _, b in pairs)})
    return _ratio(question, "perplexity", PERPLEXITY_RATIO, ours, theirs, spread=spread)


def _perplexity_problem(question: Question, record: StageRecord, model: str) -> Finding | None:
    metric = record.find("perplexity", model)
    if metric is not None and metric.trained is False:
        return Finding("not_measured", question.text["untrained"].format(model=question.model(model)))
    # a perplexity is at least 1
    problem = _problem(question, record, "perplexity", model, lowest=1.0)
    return problem or _causality_problem(question, record, model)


def _causality_problem(question: Question, record: StageRecord, model: str) -> Finding | None:
    check, name = record.find("causality_violations", model), question.model(model)
    if check is None or check.basis != "measured" or not _finite(check.value) or check.value < 0 or check.n == 0:
        return Finding("not_measured", question.text["causality_missing"].format(model=name))
    if check.value == 0:
        return None
    side, verdict = ("candidate", "fail") if model == question.candidate else ("baseline", "not_measured")
    return Finding(verdict, question.text[f"causality_{side}"].format(model=name, count=f"{check.value:g}"))


def _vram(question: Question, record: StageRecord, name: str = "vram", metric: str = "peak_memory") -> Finding:
    smallest = math.ulp(0.0)  # no measurement of a model's memory comes out as zero
    problem = _problem(question, record, metric, question.candidate, smallest, estimates=True)
    problem = problem or _skipped(question)
    problem = problem or _problem(question, record, metric, question.baseline, smallest, estimates=True)
    if problem:
        return problem
    ours, theirs = (record.find(metric, model) for model in (question.candidate, question.baseline))
    return _ratio(question, name, VRAM_RATIO, ours, theirs)


_vram_recomputed = partial(_vram, name="vram_recomputed", metric="peak_memory_recomputed")


def _stability(question: Question, record: StageRecord) -> Finding:
    problem = _problem(question, record, "non_finite_trials", question.candidate)
    if problem:
        return problem
    metric, text = record.find("non_finite_trials", question.candidate), question.text
    if metric.value > 0:
        return Finding(
            "fail", text["stability.fail"].format(count=metric.value, trials=metric.n), metric.value, "measured"
        )
    if metric.n < STABILITY_TRIALS:
        reason = text["stability.too_few"].format(trials=metric.n, needed=STABILITY_TRIALS)
        return Finding("not_measured", reason, metric.value, "measured")
    return Finding("pass", text["stability.pass"].format(trials=metric.n), metric.value, "measured")


def _bound(norm: float) -> str:
    """A limit of the norms for reading: a small one, which is a power of ten, as such."""
    exponent = f"{math.log10(norm):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{norm:,g}" if norm >= 1e-3 else f"10{exponent}"


def _gradients(question: Question, record: StageRecord) -> Finding:
    text, (low, high) = question.text, GRADIENT_NORM
    norms = record.find("gradient_norm", question.candidate)
    named = list(zip(_labels(norms), norms.samples, strict=True)) if norms else []
    broken = [name for name, norm in named if not math.isfinite(norm)]
    outside = [f"{name} ({norm:.3g})" for name, norm in named if math.isfinite(norm) and not low <= norm <= high]
    problem = _problem(question, record, "parameters_without_gradient", question.candidate)
    if not broken:  # broken ones are named below
        problem = problem or _problem(question, record, "gradient_norm", question.candidate)
    if problem:
        return problem
    if not named:
        words = {"metric": text["metric.gradient_norm"], "model": question.model(question.candidate)}
        return Finding("not_measured", text["metric_missing"].format(stage=question.stage(record.stage), **words))
    missing = record.find("parameters_without_gradient", question.candidate)
    reasons = []
    if missing.value > 0:
        reasons.append(text["gradients.missing"].format(names=_names(question, missing.labels, round(missing.value))))
    if broken:
        reasons.append(text["gradients.non_finite"].format(names=_names(question, broken, len(broken))))
    if outside:
        names = _names(question, outside, len(outside))
        reasons.append(text["gradients.outside"].format(names=names, low=_bound(low), high=_bound(high)))
    if reasons:
        return Finding("fail", " ".join(reasons), missing.value + len(broken) + len(outside), "measured")
    reason = text["gradients.pass"].format(
        count=len(norms.samples), smallest=min(norms.samples), largest=max(norms.samples)
    )
    return Finding("pass", reason, 0.0, "measured")


def _layout(question: Question, record: StageRecord) -> Finding:
    problem = _problem(question, record, "layout_violations", question.candidate)
    problem = problem or _problem(question, record, "bytes_per_complex", question.candidate, lowest=1.0)
    if problem:
        return problem
    text = question.text
    violations = record.find("layout_violations", question.candidate)
    size = record.find("bytes_per_complex", question.candidate).value
    reasons = []
    if violations.value > 0:
        names = _names(question, violations.labels, round(violations.value))
        reasons.append(text["layout.violations"].format(names=names))
    if size != BYTES_PER_COMPLEX:
        reasons.append(text["layout.bytes"].format(bytes=size, needed=BYTES_PER_COMPLEX))
    if reasons:
        return Finding("fail", " ".join(reasons), size, "measured")
    return Finding("pass", text["layout.pass"].format(bytes=size), size, "measured")


def _creation(question: Question, record: StageRecord) -> Finding:
    problem = _problem(question, record, "parameters", question.candidate, lowest=1.0)
    if problem:
        return problem
    count, text = record.find("parameters", question.candidate).value, question.text
    if any(record.params.get(name, PUBLISHED[name]) != PUBLISHED[name] for name in SIZES):
        return Finding("not_measured", text["model_creation.other_size"].format(count=count), count, "measured")
    verdict = "pass" if count == PARAMETERS else "fail"
    return Finding(verdict, text[f"model_creation.{verdict}"].format(count=count), count, "measured")


def _forward(question: Question, record: StageRecord) -> Finding:
    names = ("nan_logits", "infinite_logits")
    if problem := next(filter(None, (_problem(question, record, name, question.candidate) for name in names)), None):
        return problem
    nan, infinite = (record.find(name, question.candidate) for name in names)
    verdict = "fail" if nan.value or infinite.value else "pass"
    words = {"nan": nan.value, "infinite": infinite.value, "logits": nan.n}
    reason = question.text[f"forward_pass.{verdict}"].format(**words)
    return Finding(verdict, reason, nan.value + infinite.value, "measured")


def _small_memory(question: Question, record: StageRecord) -> Finding:
    problem = _problem(question, record, "peak_memory", question.candidate, math.ulp(0.0), estimates=True)
    if problem:
        return problem
    metric = record.find("peak_memory", question.candidate)
    estimate = metric.basis == "estimate"
    verdict = "not_measured" if estimate else "pass" if metric.value < SMALL_GPU_GIB else "fail"
    reason = question.text[f"memory_usage.{'estimate' if estimate else verdict}"].format(value=metric.value)
    return Finding(verdict, reason, metric.value, metric.basis)


def _problem(
    question: Question,
    record: StageRecord,
    name: str,
    model: str,
    lowest: float = 0.0,
    *,
    estimates: bool = False,
) -> Finding | None:
    """Return what keeps a metric from being compared: absent, an estimate, not finite, or below its `lowest` value."""
    text, metric = question.text, record.find(name, model)
    words = {"metric": text[f"metric.{name}"], "model": question.model(model), "stage": question.stage(record.stage)}
    if metric is None:
        return Finding("not_measured", text["metric_missing"].format(**words))
    words["note"] = why(metric, question.words)
    if metric.n == 0:
        return Finding("not_measured", text["not_observed"].format(**words))
    if metric.basis == "estimate" and not estimates:
        return Finding("not_measured", text["metric_estimated"].format(**words))
    if not _finite(metric.value) or not all(map(math.isfinite, metric.samples)):
        if model == question.baseline:
            return Finding("not_measured", text["baseline_non_finite"].format(**words))
        verdict, basis = ("not_measured", "none") if metric.basis == "estimate" else ("fail", "measured")
        return Finding(verdict, text["non_finite"].format(**words), None, basis)
    if any(value < lowest for value in (metric.value, *metric.samples)):
        value = min([metric.value, *metric.samples])
        return Finding("not_measured", text["metric_impossible"].format(value=f"{value:g}", **words))
    return None


def _skipped(question: Question) -> Finding | None:
    if not question.skipped_baseline:
        return None
    reason = question.text["baseline_skipped"].format(baseline=question.model(question.baseline))
    return Finding("not_measured", reason)


def _ratio(question: Question, name: str, limit: float, ours: Metric, theirs: Metric, spread: str = "") -> Finding:
    """Compare two values that `_problem` has let through."""
    ratio = ours.value / theirs.value
    numbers = {"ratio": ratio, "value": ours.value, "baseline_value": theirs.value}
    if not math.isfinite(ratio):
        words = {"metric": question.text[f"metric.{ours.name}"], "model": question.model(question.candidate)}
        return Finding("not_measured", question.text["metric_impossible"].format(value=f"{ours.value:g}", **words))
    if "estimate" in (ours.basis, theirs.basis):
        return Finding("not_measured", question.text["ratio.estimate"].format(**numbers), ratio, "estimate")
    verdict = "pass" if ratio <= limit + ROUNDING else "fail"
    models = {"candidate": question.model(question.candidate), "baseline": question.model(question.baseline)}
    reason = question.text[f"{name}.{verdict}"].format(limit=limit, spread=spread, **numbers, **models)
    return Finding(verdict, reason, ratio, "measured")


def _pairs(ours: Metric, theirs: Metric) -> list[tuple[float, float]]:
    """Return the samples that carry the same label on both sides, such as `seed 0`."""
    other = dict(zip(theirs.labels, theirs.samples, strict=False))
    return [(sample, other[label]) for label, sample in zip(ours.labels, ours.samples, strict=False) if label in other]


def _ratio_interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the 95 % t interval of the ratio from the paired differences of logarithms."""
    logs = [math.log(a) - math.log(b) for a, b in pairs]
    degrees = len(logs) - 1
    t = T_95[degrees - 1] if degrees <= len(T_95) else T_95[-1]  # from 16 on, a little too wide
    half = t * stdev(logs) / math.sqrt(len(logs))
    return math.exp(fmean(logs) - half), math.exp(fmean(logs) + half)


def _labels(metric: Metric) -> list[str]:
    named = [*metric.labels, *(f"#{i}" for i in range(len(metric.labels), len(metric.samples)))]
    return named[: len(metric.samples)]


def _names(question: Question, names: Sequence[str], count: int) -> str:
    """Return the first few names and how many more there are."""
    shown = question.text["list.separator"].join(names[:NAMES_SHOWN])
    more = count - min(len(names), NAMES_SHOWN)
    if not names:
        return str(count)
    return question.text["list.more"].format(names=shown, more=more) if more > 0 else shown


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Rule:
    """How a criterion is judged: from which stage's record, by which function, with which limits in its target.

    Settings that begin with one of `foreign` say nothing about the scale at which this criterion was measured. The
    stage `instead` measures the same; it answers in a run without the first.
    """

    stage: str
    judge: Callable[[Question, StageRecord], Finding]
    limits: Mapping[str, object]
    foreign: tuple[str, ...] = ()
    instead: str = ""


BASIC_TEST_STAGE = "basic_test"
NORMS = dict(zip(("low", "high"), map(_bound, GRADIENT_NORM), strict=True))
NO_LAYOUT = ("gradient_", "stability_", "memory_")

RULES = {
    "perplexity": Rule("perplexity", _perplexity, {"limit": PERPLEXITY_RATIO}),
    "vram": Rule("memory", _vram, {"limit": VRAM_RATIO}),
    "stability": Rule("gradients_stability", _stability, {"trials": STABILITY_TRIALS}, ("gradient_",)),
    "gradients": Rule("gradients_stability", _gradients, NORMS, ("stability_", "memory_"), BASIC_TEST_STAGE),
    "layout": Rule("gradients_stability", _layout, {"bytes": BYTES_PER_COMPLEX}, NO_LAYOUT, BASIC_TEST_STAGE),
}
CRITERIA = tuple(RULES)
"""The criteria, in the order in which they are shown."""

BASIC_TEST = {
    "model_creation": Rule(BASIC_TEST_STAGE, _creation, {"count": PARAMETERS}, ("gradient_", "memory_")),
    "forward_pass": Rule(BASIC_TEST_STAGE, _forward, {}, ("memory_",)),
    "backward_pass": Rule(BASIC_TEST_STAGE, _gradients, NORMS, ("memory_",)),
    "memory_usage": Rule(BASIC_TEST_STAGE, _small_memory, {"limit": SMALL_GPU_GIB}, ("gradient_",)),
}
"""The lines of the published basic test, by their names there."""

BESIDE = {"vram_recomputed": Rule("memory", _vram_recomputed, {"limit": VRAM_RATIO})}
"""The same question where both sides keep equally little; each is named after the criterion it stands beside."""
