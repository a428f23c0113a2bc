"""One call in a process of its own that can be stopped together with everything it started, and the notebook calls."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from pathlib import Path

from muse.host.processes import error_text
from muse.host.quick_imports import without_grammars
from muse.records.schema import Reduction

PRELOADED, COMPUTING = ("muse.runner.warm",), ("muse.runner.warm_torch",)
"""Imported once for all calls: papermill and nbconvert, and where notebooks compute what they do it with."""


def execute_notebook(notebook: Path, output: Path, parameters: dict[str, object]) -> str | None:
    """Execute the notebook with these parameters into `output`; return how it failed, or None."""
    with without_grammars():
        import papermill
        from papermill.exceptions import PapermillExecutionError

        from .kernels import Kernel, can_fork, manager

    own = {"kernel_manager_class": manager(Kernel())} if can_fork() else {}
    try:
        papermill.execute_notebook(
            notebook, output, kernel_name="python3", parameters=parameters, progress_bar=False, log_output=True, **own
        )
    except PapermillExecutionError as error:
        return error_text(error.ename, error.evalue, f"cell In [{error.exec_count}]")
    except Exception as error:
        traceback.print_exc()
        return error_text(type(error).__name__, str(error), last_cell(output))
    return None


def last_cell(notebook: Path) -> str:
    """Return which cell of a half executed notebook was started last, or '' when that cannot be told."""
    try:
        cells = [
            cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
        ]
        started = [i for i, cell in enumerate(cells, 1) if cell["metadata"]["papermill"]["start_time"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not started:
        return "before the first cell"
    lines = "".join(cells[started[-1] - 1]["source"]).strip().splitlines()
    return f"cell In [{started[-1]}]" + (f": {lines[0][:80]}" if lines else "")


def export_page(
    notebook: Path, page: Path, *, inline_assets: bool, language: str, reductions: Sequence[Reduction], **about: object
) -> str | None:
    """Export an executed notebook as a page; pages that do not hold their assets share the run's `assets` folder.

    A run that is smaller than published in any way (`reductions`) says so on each of its pages.
    """
    from muse.report import export, frame

    assets = page.parent / export.assets_folder(page)
    if not inline_assets and not assets.is_dir():
        export.write_assets(assets)
    notice = frame.scale_label(reductions, language)
    export.export_html(notebook, page, inline_assets=inline_assets, language=language, notice=notice, **about)
    return None


def stage_page(
    folder: Path, stage: str, links: Sequence[tuple[str, str]], language: str, reductions: Sequence[Reduction]
) -> str | None:
    """Write the page of a stage from its record; return why it cannot be made, or None."""
    from muse.records.store import RecordError
    from muse.report import export
    from muse.report import stage_page as made

    if not (folder / "assets").is_dir():
        export.write_assets(folder / "assets")
    try:
        made.write(folder, stage, links, language, reductions)
    except RecordError as error:
        return f"no valid record: {error}"
    return None
