"""The runs of a matrix, one after the other: each has its own folder and report, below the folder of all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from muse.host.exit_codes import CRITERION_FAILED, FAILED, INTERRUPTED, NOT_MEASURED, OK
from muse.params import ParamsError, Row

from .notebooks import find_notebooks
from .run import check, default_out, run

WORST_FIRST = (FAILED, CRITERION_FAILED, NOT_MEASURED, OK)


def run_rows(
    rows: Sequence[Row],
    *,
    out: str | Path | None = None,
    notebooks: Path | None = None,
    command: str = "muse run",
    gate: bool = False,
) -> int:
    """Run every row into a folder of its name below `out` and return the worst exit code; one without a name into it.

    ParamsError, before anything is started or moved, for what is wrong with any of them. A run that fails keeps the
    others from nothing; an interruption ends all.
    """
    given = {"notebooks": notebooks, "gate": gate, "command": command}
    if not rows[0].values:
        return run(rows[0].settings, out=out, **given)
    home, codes = Path(out or default_out(rows[0].settings)), []
    find_notebooks(rows[0].settings.stages, notebooks)
    check(rows, out)
    for number, row in enumerate(rows, 1):
        print(f"{row.name}, {number} of {len(rows)}", flush=True)
        try:
            codes.append(run(row.settings, out=home / row.name, **given))
        except ParamsError as error:  # it was good at the start, when all were looked at
            print(f"muse: {row.name}: {error}", file=sys.stderr)
            codes.append(FAILED)
        if codes[-1] == INTERRUPTED:
            return INTERRUPTED
    return next(code for code in WORST_FIRST if code in codes)
