"""Progress of long steps: a plain bar for people, a small file for the driver, and the driver's one line per stage."""

from __future__ import annotations

import html
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO, TypeVar

from tqdm import TqdmWarning, tqdm

from .files import write_atomic

PROGRESS_FILE_VARIABLE = "MUSE_PROGRESS_FILE"
WRITE_INTERVAL_SECONDS = 0.2
T = TypeVar("T")

warnings.filterwarnings("ignore", "IProgress not found", TqdmWarning)  # libraries look for widgets that nobody needs


def in_notebook() -> bool:
    """Whether a person may watch a notebook's cell: in a kernel, and in no batch run, which has a driver's file."""
    if os.environ.get(PROGRESS_FILE_VARIABLE) or "IPython" not in sys.modules:
        return False
    return getattr(sys.modules["IPython"].get_ipython(), "kernel", None) is not None


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how far they are: a plain tqdm bar, or in a batch run the file the driver reads."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    path = os.environ.get(PROGRESS_FILE_VARIABLE)
    if path:
        return _write_progress(iterable, description, total, Path(path))
    if in_notebook():  # where messages are red, and a bar that is through tells nothing
        return iter(tqdm(iterable, desc=description, total=total, file=sys.stdout, leave=False, mininterval=0.5))
    return iter(tqdm(iterable, desc=description, total=total, file=sys.stderr))


def _write_progress(iterable: Iterable[T], description: str, total: int | None, path: Path) -> Iterator[T]:
    written = -WRITE_INTERVAL_SECONDS
    done = 0

    def write() -> None:
        with suppress(OSError):  # a full disk must not stop a measurement
            write_atomic(path, json.dumps({"step": description, "done": done, "total": total}), durable=False)

    try:
        for item in iterable:
            if time.monotonic() - written >= WRITE_INTERVAL_SECONDS:
                write()
                written = time.monotonic()
            yield item
            done += 1
    finally:
        write()


def read_progress(path: Path) -> tuple[str, int, int | None] | None:
    """Return (step, done, total) as last written, or None before the first time."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["step"]), int(found["done"]), None if found["total"] is None else int(found["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def duration(seconds: float) -> str:
    """Return seconds as people say them: `12.3 s`, `2 min 05 s`, `1 h 02 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class StageLines:
    """The driver's terminal: one live line in a terminal, otherwise a line when a stage starts and when it ends."""

    def __init__(
        self,
        stages: Iterable[str],
        previous_seconds: Mapping[str, float],
        progress_file: Path,
        stream: TextIO | None = None,
    ) -> None:
        """Take the stages in order and how long each took last time, where known."""
        self.stages = list(stages)
        self.previous_seconds = previous_seconds
        self.progress_file = progress_file
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.bar: tqdm | None = None
        self.index = -1

    @property
    def head(self) -> str:
        """Return `[3/8] perplexity ...`, whose widths stay the same through the run."""
        width = len(str(len(self.stages)))
        return f"[{self.index + 1:{width}}/{len(self.stages)}] {self.stages[self.index]} ..."

    def start(self, stage: str) -> None:
        """Begin a stage."""
        self.index = self.stages.index(stage)
        self.started = time.monotonic()
        self.progress_file.unlink(missing_ok=True)
        if self.live:
            self.bar = tqdm(desc=self.head, leave=False, file=self.stream, dynamic_ncols=True)
            self.tick()
        else:
            self.line(self.head)

    def tick(self) -> None:
        """Refresh the live line: the step that runs, what tqdm makes of its rate, and what the run still needs."""
        if self.bar is None:
            return
        step, done, total = read_progress(self.progress_file) or ("", 0, None)
        description = f"{self.head} {step}".rstrip()
        if description != self.bar.desc or done < self.bar.n or total != self.bar.total:  # another step: its own rate
            self.bar.reset()
            self.bar.total, self.bar.initial, self.bar.desc = total, done, description
        self.bar.n = done
        left = self.run_remaining_seconds(time.monotonic())
        self.bar.set_postfix_str("run: time left unknown" if left is None else f"run about {duration(left)} left")

    def end(self, outcome: str, reason: str = "") -> None:
        """End a stage with a word, and with the first line of the reason where there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        reason = ": " + reason.strip().splitlines()[0][:160] if reason.strip() else ""
        self.line(f"{self.head} {outcome} {duration(time.monotonic() - self.started)}{reason}")

    def line(self, text: str) -> None:
        """Print a line that stays."""
        print(text, file=self.stream, flush=True)

    def run_remaining_seconds(self, now: float) -> float | None:
        """Return what this and the later stages took last time, less what this one has had; None when unknown."""
        expected = [self.previous_seconds.get(stage) for stage in self.stages[self.index :]]
        if None in expected:
            return None
        return max(0.0, expected[0] - (now - self.started)) + sum(expected[1:])


def growing_text() -> Callable[[str], None]:
    """Return a function that shows a text whenever it has grown: one output in a notebook, printing elsewhere."""
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        return _printer()
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    page = '<div class="muse"><p class="muse-excerpt" style="white-space: pre-wrap">{}</p></div>'
    return lambda text: handle.update(HTML(page.format(html.escape(text))))


def _printer() -> Callable[[str], None]:
    """Print what was added since the last call."""
    shown = 0

    def show(text: str) -> None:
        nonlocal shown
        print(text[shown:], end="", flush=True)
        shown = len(text)

    return show
