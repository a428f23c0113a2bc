"""What holds for every test."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from pathlib import Path

import pytest

from muse.host.quick_imports import without_grammars
from muse.host.signals import ENDING

with without_grammars():
    import nbformat  # noqa: F401  (many tests do, and then it is there)


WAITING = (
    "bench/test_gradient_gate.py",
    "counting/test_bench.py",
    "data/test_hub.py",
    "force/test_damage.py",
    "force/test_lifecycle.py",
    "host/test_parents.py",
    "runner/test_installed.py",
    "runner/test_surroundings.py",
    "training/test_together.py",
)
"""Files with few tests that take long."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have several workers begin with the files that take long, then with those of many tests, and end with short ones.

    By the number of tests alone a worker would come to the longest of them last, with the other one already through.
    """
    if hasattr(config, "workerinput"):
        first, counts = {Path(__file__).parent / name for name in WAITING}, Counter(item.path for item in items)
        items.sort(key=lambda item: (item.path not in first, -counts[item.path]))


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
