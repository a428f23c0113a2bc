"""Tables of one model on several cards, reports/cards/cards.json as Markdown: speed, curves, and what the plan said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import plan_errors
from .runs import machine
from .tables import markdown

FILE = "cards/cards.json"
CURVES = {
    "c16x2": "two cards",
    "c128x2": "two cards, 131,072 tokens a step",
    "m128x2": "two cards, `compact-350m`",
    "resumed": "begun on two cards, ended on one",
    "again": "one card, once more",
    "plain": "one card, not compiled",
}
"""Trainings whose curves are held against that of one card, and how the table calls them."""

Run = Mapping[str, object]


def tables(reports: Path) -> str:
    """Return the tables; nothing where there is no such record."""
    if not (reports / FILE).exists():
        return ""
    record = json.loads((reports / FILE).read_text(encoding="utf-8"))
    torch = record["versions"]["torch"].partition("+")[0]
    lead = f"`reports/{FILE}`: {machine(record['hardware'])}, torch {torch}, {record['date'][:10]}. "
    lead += "Tokens a second of steady steps: start, "
    lead += "compilation, validation and checkpoints are not counted. Efficiency is speed over that of as many cards "
    lead += "alone, at the same step or at the same part of a step for each card."
    found = [_speed(record["runs"]), _curves(record), _planned(record)]
    return "\n\n".join([lead, *filter(None, found)])


def _speed(runs: Sequence[Run]) -> str:
    timed = {(run["params"], run["cards"], run["batch_tokens"]): run for run in runs if run["timed"]}
    rows = []
    for (params, cards, tokens), run in timed.items():
        if cards == 1:
            continue
        alone = [timed.get((params, 1, size)) for size in (tokens, tokens // cards)]
        told = [f"{one['tokens_per_second']:,}" if one else "" for one in alone]
        shares = [f"{run['tokens_per_second'] / cards / one['tokens_per_second']:.3f}" if one else "" for one in alone]
        rows.append([f"`{params}`, {tokens:,} tokens a step, {cards} cards", f"{run['tokens_per_second']:,}",
                     told[0], shares[0], told[1], shares[1]])  # fmt: skip
    head = ["", "tokens/s", "one card, same step", "efficiency", "one card, same part", "efficiency"]
    return markdown(head, rows)


def _curves(record: Mapping[str, object]) -> str:
    runs = {run["name"]: run for run in record["runs"]}
    rows = []
    for one in record["differences"]:
        steps = runs[one["run"]]["resumed_from_steps"]
        told = f", stopped after step {', '.join(map(str, steps))}" if steps else ""
        told += f" (code of {one['commit']})" if "commit" in one else ""
        rows.append([CURVES[one["run"]] + told, f"{one['training']:.2g}", f"{one['validation']:.2g}",
                     f"{runs[one['run']]['validation'][-1][1]:.4f}"])  # fmt: skip
    head = ["largest difference from one card's curve, nat/token", "training", "validation", "validation at the end"]
    return markdown(head, rows)


def _planned(record: Mapping[str, object]) -> str:
    peaks, speeds, rows = [], [], []
    for run, peak, speed in _held(record):
        peaks.append(peak)
        speeds += [speed] if speed else []
        rate = f"{speed['estimate']:,}, {speed['measured']:,}: {plan_errors.percent(speed)}" if speed else ""
        rows.append([f"`{run['params']}`, {run['batch_tokens']:,} tokens a step, {run['cards']} x {run['card']}",
                     plan_errors.cell(peak), rate])  # fmt: skip
    if not rows:
        return ""
    told = f"Peaks: {plan_errors.worst(peaks)} Speeds: {plan_errors.worst(speeds)}" if speeds else ""
    lead = f"`muse plan`, of several cards with `--gpus-per-model`, beside it. {told}"
    return lead + "\n\n" + markdown(["planned, measured, and the error", "peak of a card, GiB", "tokens/s"], rows)


def _held(record: Mapping[str, object]) -> Iterator[tuple[Run, Run, Run | None]]:
    """Yield each run with a plan: planned and measured peak, and speed where that was timed."""
    plans = {(plan["params"], plan["cards"], plan["batch_tokens"]): plan for plan in record["plans"]}
    for run in record["runs"]:
        plan = plans.get((run["params"], run["cards"], run.get("batch_tokens")))
        if plan is None or not run["peak_gib"] or (run["name"] in CURVES and not run["timed"]):
            continue
        peak = {"estimate": plan["peak_gib"], "measured": max(run["peak_gib"])}
        speed = {"estimate": plan["tokens_per_second"], "measured": run["tokens_per_second"]}
        yield {**run, "card": plan["card"]}, peak, speed if run["timed"] else None
