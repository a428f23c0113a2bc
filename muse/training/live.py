"""What a training shows while it runs: a plain bar in a terminal, curves that grow in a notebook."""

from __future__ import annotations

import contextlib
import html
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from muse.host.progress import PROGRESS_FILE_VARIABLE, duration, in_notebook, track

from .recipe import Bar, OnReport, Recipe, Report, Show

COLORS = ("#0072b2", "#d55e00", "#009473", "#b8659b", "#8a7a1f", "#5b6fc4")
DASHES = ("", "6 3", "2 3")
"""Of the curves in turn: a colour, and after the last one another dash."""

MOST_TOLD = 8
"""The last trainings of a drawing are told in words."""

LEFT, RIGHT, TOP, BOTTOM, ROW = 56, 16, 14, 46, 18
"""Pixels around the axes, and of a line of words below them."""


@contextlib.contextmanager
def training_bar(description: str, recipe: Recipe, start: int) -> Iterator[Show]:
    """Show tokens, tokens/s, remaining time, loss and skipped steps: a plain bar, or in a batch run a driver's file.

    In a notebook the curves say all that, so there is no bar.
    """
    if os.environ.get(PROGRESS_FILE_VARIABLE):
        ticks = track(range(start, recipe.steps), description)
        with contextlib.closing(ticks):
            next(ticks, None)
            yield lambda steps, loss, skipped: [next(ticks, None) for _ in range(steps)]
        return
    if in_notebook():
        yield lambda steps, loss, skipped: None
        return
    size = recipe.tokens_per_step
    with tqdm(
        desc=description, total=recipe.steps * size, initial=start * size, unit="tok", unit_scale=True, file=sys.stderr
    ) as bar:

        def show(steps: int, loss: float, skipped: int) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}" + (f", {skipped} skipped" if skipped else ""), refresh=False)
            bar.update(steps * size)

        yield show


class Followed:
    """A bar that remembers which training it shows, and how far that is."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.description, self.step, self.steps = bar, "", 0, 0

    @contextlib.contextmanager
    def __call__(self, description: str, recipe: Recipe, start: int) -> Iterator[Show]:
        """Show a training as the bar does."""
        self.description, self.step, self.steps = description, start, recipe.steps
        with self.bar(description, recipe, start) as shown:

            def show(steps: int, loss: float, skipped: int) -> None:
                self.step += steps
                shown(steps, loss, skipped)

            yield show

    @property
    def told(self) -> str:
        """What to say of a training that was interrupted, in a line."""
        if not self.steps:
            return "stopped before the first step; run this cell again to go on"
        return f"{self.description}: stopped at step {self.step} of {self.steps}; run this cell again to go on"


def live_curve(floor: float | None = None) -> OnReport:
    """Return an `on_report` that keeps one drawing of all trainings up to date in a notebook; elsewhere nothing.

    `floor` is the loss in nat/token that no model can go below, where that is known.
    """
    if not in_notebook():
        return lambda report: None
    from IPython.display import HTML, display

    handle = None
    drawn = -math.inf
    reports: dict[str, Report] = {}
    began: dict[str, tuple[float, int]] = {}

    def draw(report: Report) -> None:
        nonlocal handle, drawn
        now = time.monotonic()
        since, step = began.setdefault(report.description, (now, report.step))
        reports[report.description] = report
        if now - drawn < 1 and report.step < report.steps:
            return
        left = (now - since) / (report.step - step) * (report.steps - report.step) if report.step > step else None
        drawing = HTML(curves_svg(list(reports.values()), floor, left))
        handle = display(drawing, display_id=True) if handle is None else handle.update(drawing) or handle
        drawn = now

    return draw


def curves_svg(
    reports: Sequence[Report], floor: float | None = None, seconds_left: float | None = None, width: int = 720,
    height: int = 260,
) -> str:  # fmt: skip
    """Training (lines) and validation loss (dots) of trainings over tokens, with axes, and told in words below them.

    The last report is of the training that runs, of which `seconds_left` are left.
    """
    axes = _Axes(reports, floor, width, height)
    parts = [axes.drawn(), axes.floor(floor) if floor is not None else ""]
    told = [_told(report, seconds_left if report is reports[-1] else None) for report in reports]
    below = height + BOTTOM + ROW
    for at, (report, words) in enumerate(zip(reports, told, strict=True)):
        color, dash = COLORS[at % len(COLORS)], DASHES[at // len(COLORS) % len(DASHES)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(axes.at, report.training_curve))
        dots = "".join(f'<circle r="4" fill="{color}" cx="{x:.1f}" cy="{y:.1f}"/>'
                       for x, y in map(axes.at, report.validation_curve))  # fmt: skip
        look = f'fill="none" stroke="{color}" stroke-width="1.5" stroke-dasharray="{dash}"'
        parts.append(f'<polyline {look} points="{line}"/>{dots}')
        if at >= len(reports) - MOST_TOLD:
            parts.append(f'<circle r="4" fill="{color}" cx="{LEFT}" cy="{below - 4}"/>')
            parts.append(_text(LEFT + 10, below, words))
            below += ROW
    label = html.escape("; ".join(told[-MOST_TOLD:]) or "no training yet")
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {below}" width="{width}" fill="#808080" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


class _Axes:
    """Where tokens and losses lie in a drawing, and its axes with numbers."""

    def __init__(self, reports: Sequence[Report], floor: float | None, width: int, height: int) -> None:
        losses = [loss for report in reports for _, loss in (*report.training_curve, *report.validation_curve)]
        losses += [floor] if floor is not None else []
        low, high = min(losses, default=0.0), max(losses, default=1.0)
        space = 0.05 * (high - low) or 0.5
        self.low, self.high = low - space, high + space
        self.tokens = max((r.tokens * r.steps / r.step if r.step else 1 for r in reports), default=1) or 1
        self.right, self.bottom = width - RIGHT, TOP + height

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        share = (self.high - point[1]) / (self.high - self.low)
        return LEFT + point[0] / self.tokens * (self.right - LEFT), TOP + share * (self.bottom - TOP)

    def drawn(self) -> str:
        lines, words = [], [_text(LEFT, TOP - 3, "loss in nat/token: line training, dots validation")]
        for loss in marks(self.low, self.high):
            _, y = self.at((0, loss))
            lines.append(f"M{LEFT},{y:.1f}H{self.right}")
            words.append(_text(LEFT - 6, y + 4, f"{loss:g}", "end"))
        for tokens in marks(0, self.tokens):
            x, _ = self.at((tokens, self.low))
            lines.append(f"M{x:.1f},{self.bottom}v5")
            words.append(_text(x, self.bottom + 18, _counted(tokens), "middle"))
        words.append(_text(self.right, self.bottom + 34, "tokens seen", "end"))
        frame = f"M{LEFT},{TOP}V{self.bottom}H{self.right}"
        return (f'<path fill="none" stroke="#808080" stroke-opacity="0.3" d="{"".join(lines)}"/>'
                f'<path fill="none" stroke="#808080" d="{frame}"/>{"".join(words)}')  # fmt: skip

    def floor(self, loss: float) -> str:
        _, y = self.at((0, loss))
        line = f'<path fill="none" stroke="#808080" stroke-dasharray="8 4" d="M{LEFT},{y:.1f}H{self.right}"/>'
        return line + _text(self.right, y - 4, f"entropy of the text {loss:.3f}: no model can go below", "end")


def marks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two others, at most so many."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (factor * step) <= most), 10)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _counted(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _told(report: Report, seconds_left: float | None) -> str:
    text = f"{report.description}: step {report.step} of {report.steps}"
    if report.training_curve:
        text += f", training loss {report.training_curve[-1][1]:.3f}"
    if report.validation_curve:
        text += f", validation loss {report.validation_curve[-1][1]:.3f}"
    if seconds_left:
        text += f", about {duration(seconds_left)} left"
    return text
