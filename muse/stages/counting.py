"""Stage 10: where does a diagonal linear recurrence need complex numbers? Counting, with the prediction first."""

from __future__ import annotations

from pathlib import Path

from muse.catalog import can_track
from muse.counting import bench, learning
from muse.records.schema import StageRecord

from .method import by
from .stage import Stage, use_threads

MEASURING = (bench.Cell.metrics, learning.score, learning.turns)
"""What makes numbers of a training."""


def run(stage: Stage) -> StageRecord:
    """Let every arm learn every task, tuned by itself, and return the record; what is on disk is not repeated.

    Where `counting_minutes` ends it, the record says which trainings are missing.
    """
    settings, metrics, series = stage.settings, [], []
    if stage.device.type == "cpu":
        use_threads(toy=True)
    folder = Path(settings.checkpoint_dir) / "counting"
    for cell in bench.cells(settings, stage.device, folder):
        if isinstance(cell, bench.Missing):
            print(f"{cell.task:5} {cell.arm:18} {cell.left} of {cell.wanted} trainings have not been run")
            metrics += by(cell.metrics(), *MEASURING)
            continue
        found = cell.metrics()
        score, skewed, longest, solved = (one.value for one in found[:4])
        expected = "counts" if can_track(cell.arm, cell.task) else "does not"
        print(f"{cell.task:5} {cell.arm:18} theory: {expected:8}  found: {score:6.3f} far beyond the training length, "
              f"{skewed:6.3f} with a frequent token, longest {longest:.0f}, "
              f"{solved:.0f} of {len(cell.runs)} seeds")  # fmt: skip
        metrics += by(found, *MEASURING)
        series += cell.series()
    return stage.write(metrics, series=series)
