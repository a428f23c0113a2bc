"""Trainings beside the comparison, kept without weights: their validation losses as tables."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from muse.catalog import BASELINE, COMPACT, COMPARED, MODEL_NAMES
from muse.records.schema import StageRecord
from muse.records.store import read_record

from .figures.style import style
from .tables import markdown

FOLDER = "gpu-trainings"
ADAMW_TEST = f"{FOLDER}/adamw"
"""Stages that read the test split, some models each; those of a stage that ended early are whole."""


@dataclass(frozen=True)
class Setting:
    """What the trainings of one table have in common."""

    optimizer: str
    n_seq: int
    batch_tokens: int
    dropout: float


OF_COMPACT = Setting("muon", 1024, 8192, 0.3)
"""What validation chose for the compact model, where one thing of it is changed at a time."""


@dataclass(frozen=True)
class Training:
    """One finished training: its model, seed and setting, its validation loss (nat/token), where and when it ran."""

    model: str
    seed: int
    setting: Setting
    loss: float
    hardware: str
    day: str


def read(reports: Path) -> list[Training]:
    """Return the trainings of FOLDER, those of a model in the order of their seeds; none where there is no folder."""
    found = []
    for path in sorted((reports / FOLDER).glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        recipe, result = values["config"]["recipe"], values["result"]
        setting = Setting(*(recipe[key] for key in Setting.__dataclass_fields__))
        ended = result["best_validation_loss"], result["hardware"], result["finished_utc"][:10]
        found.append(Training(result["model_name"], result["seed"], setting, *ended))
    return sorted(found, key=lambda training: (MODEL_NAMES.index(training.model), training.seed))


def _losses(trainings: Iterable[Training], model: str, setting: Setting) -> dict[int, float]:
    return {one.seed: one.loss for one in trainings if (one.model, one.setting) == (model, setting)}


def ratio(losses: dict[int, float], base: dict[int, float]) -> str:
    """Return a perplexity over another one's, of the seeds that both have, with the smallest and largest of one."""
    apart = [losses[seed] - base[seed] for seed in losses if seed in base]
    if not apart:
        return ""
    ends = f" ({math.exp(min(apart)):.3f} to {math.exp(max(apart)):.3f})" if len(apart) > 1 else ""
    return f"{math.exp(statistics.fmean(apart)):.3f}{ends}"


def _made(trainings: Sequence[Training]) -> str:
    cards, days = (sorted({getattr(one, key) for one in trainings}) for key in ("hardware", "day"))
    return f"`wikitext-2-v1`, validation split; {', '.join(cards)}, {', '.join(days)}"


def changed(reports: Path) -> str:
    """Return what one thing changed in the compact model does to its validation loss; nothing without trainings."""
    found = [one for one in read(reports) if one.setting == OF_COMPACT]
    if not found:
        return ""
    base = _losses(found, COMPACT, OF_COMPACT)
    rows = []
    for model in dict.fromkeys(one.model for one in found):
        losses = _losses(found, model, OF_COMPACT)
        over = "1" if model == COMPACT else ratio(losses, base)
        seeds = ", ".join(f"{loss:.4f}" for loss in losses.values())
        rows.append([style(model).label, seeds, f"{statistics.fmean(losses.values()):.4f}", over])
    told = "each seed's loss, and its perplexity over the whole model's, with the smallest and largest of one seed."
    head = ["", "nat per token, seed by seed", "mean", "perplexity over the whole's"]
    return f"{_made(found)}; {told}\n\n{markdown(head, rows)}"


def _by_adamw(reports: Path) -> dict[str, dict[int, float]]:
    """Each model's losses on test, seed by seed."""
    records = [read_record(StageRecord, path) for path in sorted((reports / ADAMW_TEST).glob("*.json"))]
    found = [metric for record in records for metric in record.metrics if metric.name == "loss"]
    return {metric.model: dict(enumerate(metric.samples)) for metric in found}


def by_adamw(reports: Path) -> str:
    """Return the compact model's perplexity on test over Phase 2's, both by AdamW; nothing without that record."""
    whole = _by_adamw(reports)
    return ratio(whole[COMPACT], whole[BASELINE]) if {COMPACT, BASELINE} <= whole.keys() else ""


def recipes(reports: Path) -> str:
    """Return what AdamW on both sides makes of the comparison; nothing without trainings by it."""
    found = [one for one in read(reports) if one.setting.optimizer == "adamw"]
    if not found:
        return ""
    best: dict[str, dict[int, float]] = {}
    for model in dict.fromkeys(one.model for one in found):
        tried = {one.setting: one.loss for one in found if one.model == model and one.seed == 0}
        best[model] = _losses(found, model, min(tried, key=tried.__getitem__))
    whole = _by_adamw(reports)
    rows = [
        [
            *(style(name).label, f"{statistics.fmean(best[name].values()):.4f}"),
            "1" if name == BASELINE else ratio(best[name], best[BASELINE]),
            f"{math.exp(statistics.fmean(whole[name].values())):.2f}" if name in whole else "",
            *(("1" if name == BASELINE else ratio(whole[name], whole[BASELINE])) if name in whole else "",),
        ]
        for name in COMPARED
        if name in best
    ]
    head = ["", "validation, nat per token", f"perplexity over {style(BASELINE).label}'s"]
    head += ["test, per token", f"over {style(BASELINE).label}'s"]
    seeds = len(best[BASELINE])
    told = f"{seeds} seeds, each model at the better of two dropouts; the smallest and largest ratio of one seed beside"
    return f"{_made(found)}; {told}.\n\n{markdown(head, rows)}"


def lengths(reports: Path) -> str:
    """Return validation losses of longer windows at one setting for both sides; nothing without trainings of them."""
    found = [one for one in read(reports) if one.setting.optimizer == "muon" and one.setting != OF_COMPACT]
    longer = sorted({one.setting.n_seq for one in found})
    if len(longer) < 2:
        return ""
    rows = []
    for setting in sorted({one.setting for one in found}, key=lambda setting: setting.n_seq):
        sides = [_losses(found, name, setting) for name in (COMPACT, BASELINE)]
        sides = [{0: losses[0]} for losses in sides]
        rows.append([f"{setting.n_seq:,}", *(f"{losses[0]:.4f}" for losses in sides), ratio(*sides)])
    told = "one seed, one setting for both sides, the same tokens a step; nat per token."
    return f"{_made(found)}; {told}\n\n" + markdown(
        ["context", style(COMPACT).label, style(BASELINE).label, "perplexity over it"], rows
    )
