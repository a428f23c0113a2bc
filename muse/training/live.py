"""What a training shows while it runs: a plain bar in a terminal, a curve that grows in JupyterLab."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from muse.host.progress import PROGRESS_FILE_VARIABLE, track

from .recipe import OnReport, Recipe, Report, Show


@contextlib.contextmanager
def training_bar(description: str, recipe: Recipe, start: int) -> Iterator[Show]:
    """Show tokens, tokens/s, remaining time, loss and skipped steps: a plain bar, or in a batch run a driver's file."""
    if os.environ.get(PROGRESS_FILE_VARIABLE):
        ticks = track(range(start, recipe.steps), description)
        with contextlib.closing(ticks):
            next(ticks, None)
            yield lambda steps, loss, skipped: [next(ticks, None) for _ in range(steps)]
        return
    size = recipe.tokens_per_step
    with tqdm(
        desc=description, total=recipe.steps * size, initial=start * size, unit="tok", unit_scale=True, file=sys.stderr
    ) as bar:

        def show(steps: int, loss: float, skipped: int) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}" + (f", {skipped} skipped" if skipped else ""), refresh=False)
            bar.update(steps * size)

        yield show


def live_curve() -> OnReport:
    """Return an `on_report` that keeps a drawing of the loss up to date in a notebook; elsewhere it does nothing."""
    try:
        from IPython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        return lambda report: None
    if get_ipython() is None or os.environ.get(PROGRESS_FILE_VARIABLE):
        return lambda report: None
    handle = display(HTML(""), display_id=True)
    drawn = -math.inf

    def draw(report: Report) -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= 1 or report.step == report.steps:
            handle.update(HTML(curve_svg(report)))
            drawn = time.monotonic()

    return draw


def curve_svg(report: Report, width: int = 640, height: int = 240) -> str:
    """A drawing of training (line) and validation (dots) loss over tokens, with its meaning as text."""
    points = [*report.training_curve, *report.validation_curve]
    low, high = min((y for _, y in points), default=0.0), max((y for _, y in points), default=1.0)
    total = report.steps / max(report.step, 1) * report.tokens or 1

    def at(point: tuple[int, float]) -> str:
        share = (high - point[1]) / (high - low or 1)
        return f"{10 + point[0] / total * (width - 20):.1f},{10 + share * (height - 50):.1f}"

    line = " ".join(map(at, report.training_curve))
    circle = '<circle r="4" fill="#d9822b" cx="{}" cy="{}"/>'
    dots = "".join(circle.format(*at(point).split(",")) for point in report.validation_curve)
    text = f"{report.description}: step {report.step} of {report.steps}"
    if report.training_curve:
        text += f", training loss {report.training_curve[-1][1]:.3f} (line)"
    if report.validation_curve:
        text += f", validation loss {report.validation_curve[-1][1]:.3f} (dots)"
    return (
        f'<svg role="img" aria-label="{text}" viewBox="0 0 {width} {height}" width="{width}">'
        f'<polyline fill="none" stroke="#4c8bd6" stroke-width="1.5" points="{line}"/>{dots}'
        f'<text x="10" y="{height - 12}" font-family="sans-serif" font-size="13" fill="#808080">{text}</text></svg>'
    )
