"""What the cells of a notebook share: parameters that are known, a record made with them, and errors in few lines.

In a kernel `In` holds the cells that ran, in turn; the dictionary of a script has none, and is looked at as a whole.
"""

from __future__ import annotations

import ast
import builtins
import copy
import sys
from collections.abc import Mapping

from muse.data.hub import CorpusUnavailable
from muse.data.tables import NoTextError
from muse.host.files import FolderInUseError
from muse.host.lines import cut, near, one_line, shown
from muse.host.paths import with_short_paths
from muse.host.plain_yaml import TextError
from muse.host.signals import Interrupted
from muse.models.tensor_file import CheckpointError
from muse.params import ParamsError, Settings, validate
from muse.records.schema import StageRecord
from muse.records.store import RecordError
from muse.training.trainer import DeadGradientError, NonFiniteLossError

ANCHOR = "record_dir"
"""The one parameter that is no setting: a cell that sets it is the cell of parameters."""

OF_NO_EFFECT = ("language", "device")
"""Settings that change no number: the language of what is shown, and `auto`, which a record has resolved."""

MOST_LINES = 3


class CellError(RuntimeError):
    """A cell that needs another one to run first; the message says which."""


def lines_of(error: BaseException) -> list[str]:
    """Return an error as a notebook shows it: its name and what it says, in three lines at most and no traceback."""
    first, *more = str(error).strip().split("\n") if str(error).strip() else [""]
    lines = [f"{type(error).__name__}: {first}" if first else type(error).__name__, *more]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"and {len(lines) - MOST_LINES + 1} more that are wrong"]
    return [cut(one_line(line), 600) for line in lines]


for kind in (CellError, CheckpointError, CorpusUnavailable, DeadGradientError, FolderInUseError, Interrupted,
             NoTextError, NonFiniteLossError, ParamsError, RecordError, TextError):  # fmt: skip
    kind._render_traceback_ = lines_of  # IPython's own hook; what a kernel says of name and message stays as it is


def _told_in_a_line(shell: object, kind: type, value: BaseException, trace: object, **options: object) -> None:
    """Show an interrupt that says nothing itself in one line: where it came is of no use to whoever pressed the key."""
    if not hasattr(value, "_render_traceback_"):
        value._render_traceback_ = lambda: [f"{kind.__name__}: stopped; run this cell again to start it anew"]
    shell.showtraceback((kind, value, trace))


def shorten_interrupts() -> None:
    """Let the kernel around this, where there is one, tell an interrupt in one line."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is not None:
        shell.set_custom_exc((KeyboardInterrupt,), _told_in_a_line)


shorten_interrupts()


def ready(namespace: Mapping[str, object]) -> None:
    """Raise CellError where the cell that asks reads names that no cell has set yet (pass `globals()`)."""
    cells = namespace.get("In")
    cell = cells[-1] if isinstance(cells, list) and cells else ""
    missing = [name for name in read_names(cell) if name not in namespace and not hasattr(builtins, name)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CellError(f"{missing[0]} is not set yet{more}: run the cell above that sets it, then this one")


def read_names(cell: str) -> list[str]:
    """Return the names that a cell reads and does not set itself, in turn; none where it is no Python."""
    try:
        nodes = [*ast.walk(ast.parse(cell))]
    except (SyntaxError, ValueError):
        return []
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            own |= {(name.asname or name.name).partition(".")[0] for name in node.names}
    read = sorted((node.lineno, node.col_offset, node.id) for node in nodes if isinstance(node, ast.Name))
    return [*dict.fromkeys(name for _, _, name in read if name not in own)]


def parameters_of(namespace: Mapping[str, object]) -> dict[str, object]:
    """Return the settings among the parameters of a notebook; ParamsError where one of them is unknown or none ran."""
    names = declared(namespace)
    if ANCHOR not in namespace:
        hint = near(ANCHOR, set(names) - Settings.model_fields.keys())
        raise ParamsError(f"{ANCHOR}: not set, {hint or 'expected a folder; run the cell of parameters first'}")
    params = settings_in(namespace)
    unknown = {name: namespace[name] for name in names if name not in params and name != ANCHOR}
    if unknown:
        validate(params | unknown)
    return params


def declared(namespace: Mapping[str, object]) -> list[str]:
    """Return the names that the parameters' cells set: the last one with `record_dir`, and plain ones run next to it.

    Next to it stands what papermill injects, or what a user adds before the cell that calls.
    """
    cells = namespace.get("In")
    if not isinstance(cells, list):
        return [name for name, value in namespace.items() if _is_plain(name, value)]
    earlier = [assigned(cell) for cell in cells[:-1]]  # the last one is the cell that asks
    anchors = [at for at, names in enumerate(earlier) if ANCHOR in names]
    since = earlier[anchors[-1] :] if anchors else earlier
    found = [*_run(since if anchors else []), *_run(since[::-1])]
    return [name for name in dict.fromkeys(found) if name in namespace and not name.startswith("_")]


def _run(cells: list[list[str]]) -> list[str]:
    """Return the names of the first cells, up to one that does more than setting names."""
    found = []
    for names in cells:
        if not names:
            break
        found += names
    return found


def _is_plain(name: str, value: object) -> bool:
    return not name.startswith("_") and isinstance(value, str | int | float | list | tuple | dict | None)


def assigned(cell: str) -> list[str]:
    """Return the names that a cell sets to plain values, in turn; none where it does anything else."""
    try:
        statements = ast.parse(cell).body
    except (SyntaxError, ValueError):
        return []
    names = []
    for statement in statements:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            return []
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if not all(isinstance(target, ast.Name) for target in targets):
            return []
        if any(map(_computes, ast.walk(statement.value))):
            return []
        names += [target.id for target in targets]
    return names


def _computes(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.Lambda | ast.comprehension)


def settings_in(namespace: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of the settings in a namespace, as they are now."""
    return copy.deepcopy({key: namespace[key] for key in Settings.model_fields if key in namespace})


def refuse_changes(stage: str, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise CellError where parameters are others now than when the stage took them."""
    keys = [key for key in now if key in before and key not in OF_NO_EFFECT and now[key] != before[key]]
    if keys:
        first = f"{keys[0]} was {shown(before[keys[0]])} and is {shown(now[keys[0]])}"
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        raise CellError(f'parameters changed, {first}{more}: run the cell with Stage("{stage}", globals()) again')


def record_of(stage: str, namespace: Mapping[str, object]) -> StageRecord:
    """Return the `record` that a stage has left in a notebook (pass `globals()`).

    CellError names the cell to run where there is none yet, or where the parameters are others by now.
    """
    record = namespace.get("record")
    if ANCHOR not in namespace or not isinstance(record, StageRecord) or record.stage != stage:
        first = "" if ANCHOR in namespace else "the cell of parameters and then "
        raise CellError(f'nothing measured yet: run {first}the cell with Stage("{stage}", globals()), then this one')
    refuse_changes(stage, record.params, with_short_paths(settings_in(namespace)))
    return record
