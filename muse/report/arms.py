"""What the counting bench's models are called: an arm, its task, and the learning rate of a try."""

from __future__ import annotations

from collections.abc import Sequence

from muse.catalog import ARMS, COUNTING_GROUPS

from .texts import join, say, texts


def arm_label(model: str, language: str) -> str | None:
    """Return the words for `<arm> <task>` or `<arm> <task> <learning rate>`; None for any other model."""
    arm, *rest = model.split(" ")
    if arm not in ARMS or not 1 <= len(rest) <= 2:
        return None
    fields = {"arm": texts(language)[f"arm.{arm}"], "task": task_label(rest[0], language), "rate": rest[-1]}
    return say(language, "arm.on" if len(rest) == 1 else "arm.try", **fields)


def task_label(task: str, language: str) -> str:
    """Return the words for a task such as mod3 or s3."""
    if task in COUNTING_GROUPS:
        return texts(language)[f"task.{task}"]
    return say(language, "task.sum", modulus=task.removeprefix("mod"))


def score_text(value: float) -> str:
    """Return a score with two decimals; below guessing with a minus, but no minus in front of zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def tasks_label(tasks: Sequence[str], language: str) -> str:
    """Return the words for several tasks: sums in one go, then products."""
    sums = ", ".join(task.removeprefix("mod") for task in tasks if task not in COUNTING_GROUPS)
    products = [task_label(task, language) for task in tasks if task in COUNTING_GROUPS]
    return join(language, [*([say(language, "task.sum", modulus=sums)] if sums else []), *products])
