"""Parsl's interchange, which hands tasks to nodes, as a process that does not outlive its engine.

By itself it would, and its nodes would wait for it as long as their jobs last: without it they end.
"""

from __future__ import annotations

import os
import runpy
import threading
import time

CHECK_SECONDS = 0.5


def end_with(parent: int) -> None:
    """End this process once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")
