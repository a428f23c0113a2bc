"""The notebooks of the workbook: where they are, what they declare, and the parameters that each one is given."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from muse.catalog import NAMED, REPORT, STAGE_NAMES, WRITTEN, stem
from muse.host.lines import cut, near, shown
from muse.host.workbook import CHECKOUT, NOTEBOOKS, workbook_folder
from muse.params import ParamsError, Settings

REPOSITORY = CHECKOUT


@dataclass(frozen=True)
class Notebook:
    """One notebook of the workbook: its stage, its title and the names its parameters cell declares."""

    stage: str
    path: Path
    title: str
    declared: tuple[str, ...]
    computes: bool = False  # whether it imports a stage, and torch with it


def read_notebook(stage: str, path: Path) -> Notebook:
    """Read a notebook's title and parameter names; ParamsError when its parameters are not settings."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
        trees = [ast.parse("".join(cell["source"])) for cell in tagged]
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise ParamsError(f"{path}: not a notebook that can run: {type(error).__name__}: {error}") from error
    if len(trees) != 1:
        raise ParamsError(f"{path}: got {len(trees)} cells tagged parameters, expected one")
    declared = []
    for statement in trees[0].body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        declared += [target.id for target in targets if isinstance(target, ast.Name)]
    if unknown := [name for name in declared if name not in Settings.model_fields and name != "record_dir"]:
        raise ParamsError(
            f"{path}: the parameters cell declares {', '.join(unknown)}, expected settings and record_dir"
        )
    if "record_dir" not in declared:
        raise ParamsError(f"{path}: the parameters cell does not declare record_dir")
    markdown = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    heading = re.search(r"^# +(.+?)\s*$", markdown, re.MULTILINE)
    computes = any("muse.stages" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return Notebook(stage, path, heading[1] if heading else stage, tuple(declared), computes)


def find_notebooks(stages: list[str], folder: Path | None = None) -> list[Notebook]:
    """Return the notebooks of these stages in the order in which stages run, the report's last."""
    try:
        folder = folder or workbook_folder() / NOTEBOOKS
    except FileNotFoundError as error:
        raise ParamsError(str(error)) from error
    if not folder.is_dir():
        raise ParamsError(f"{folder}: no such folder of notebooks")
    found = []
    for stage in (*(name for name in STAGE_NAMES if name in stages), REPORT):
        path = folder / f"{stem(stage)}.ipynb"
        if not path.is_file():
            raise ParamsError(f"{folder}: got no notebook for the stage {stage}, expected {path.name}")
        found.append(read_notebook(stage, path))
    return found


def resolve_folders(settings: Settings, base: Path) -> Settings:
    """Return settings whose folders are absolute; ParamsError for an unknown corpus or tokenizer that is no folder."""
    settings, problems = folders_and_problems(settings, base)
    if problems:
        raise ParamsError("\n".join(problems))
    return settings


def folders_and_problems(
    settings: Settings, base: Path, to_come: Collection[str] = ()
) -> tuple[Settings, list[str]]:
    """Return settings whose folders are absolute where they can be, and a line for each that cannot be one.

    What `to_come` names may be a path at which nothing lies yet; a single word is a name that has to be known.
    """
    changes, problems = {}, []
    for name, known in NAMED.items():
        value = getattr(settings, name)
        if value is None or value in known:
            continue
        try:
            folder = base / Path(value).expanduser()
            later = name in to_come and Path(value).name != value and not folder.exists()
            there = value and (later or folder.is_dir())
            problem = "" if there else f"there is no folder {cut(str(folder), 120)}"
            changes[name] = str(folder.resolve())
        except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, ~ of nobody
            problem = getattr(error, "strerror", None) or str(error)
        if problem:
            hint = near(value, known)
            expected = f"{', '.join(known)} or a folder" + (f"; {hint}" if hint else "")
            problems.append(f"{name}: got {shown(value)}, expected {expected}; {problem}")
    for name in WRITTEN:
        value = getattr(settings, name)
        try:
            changes |= {name: str((base / Path(value).expanduser()).resolve())} if value is not None else {}
        except (OSError, RuntimeError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            problems.append(f"{name}: got {shown(value)}, expected a folder; {why}")
    return settings.model_copy(update=changes), problems


def stage_parameters(settings: Settings, notebook: Notebook, record_dir: Path) -> dict[str, object]:
    """Return the parameters a notebook asks for: the settings it declares, and where its record goes."""
    values = settings.model_dump()
    chosen = {name: values[name] for name in notebook.declared if name in values}
    return chosen | {"record_dir": str(record_dir.resolve())}
