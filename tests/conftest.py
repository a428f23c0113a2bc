"""What holds for every test."""

from __future__ import annotations

import gc
import signal

from muse.host.quick_imports import without_grammars
from muse.host.signals import ENDING

with without_grammars():
    import nbformat  # noqa: F401  (many tests do, and then it is there)


def pytest_configure() -> None:
    """Hear the signals that end a program, also in a run that was started by nohup or in the background of a script.

    Children of tests inherit what is ignored, and tests of signals would then test nothing.
    """
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage looks at it again, and a benchmark asks for many."""
    gc.collect()
    gc.freeze()
