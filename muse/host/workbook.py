"""Where the notebooks and params files lie: in a checkout beside the package, else where a wheel has put them."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from .paths import CHECKOUT

INSTALLED = Path("share", "muse-workbook")
"""Where a wheel's files lie below the folder of an environment's data (pyproject.toml says the same)."""

NOTEBOOKS, PARAMS = "notebooks", "params"
KNOWN = Path(PARAMS, "quick.yaml")


def workbook_folder() -> Path:
    """Return the folder that holds notebooks/ and params/; FileNotFoundError where an installation has lost it."""
    user = sysconfig.get_preferred_scheme("user")
    places = [CHECKOUT, *(Path(sysconfig.get_path("data", *scheme)) / INSTALLED for scheme in ((), (user,)))]
    for place in places:
        if (place / KNOWN).is_file() and (place / NOTEBOOKS).is_dir():
            return place
    raise FileNotFoundError(f"{places[1]}: no notebooks and params files; expected those of muse-workbook")


def profiles() -> dict[str, Path]:
    """Return the params files that came with the workbook, by name: {"quick": .../params/quick.yaml, ...}."""
    return {path.stem: path for path in sorted((workbook_folder() / PARAMS).glob("*.yaml"))}


def copy_workbook(folder: Path) -> list[Path]:
    """Copy notebooks and params files into a folder and return the copies; FileExistsError where one is there."""
    source = workbook_folder()
    files = [*sorted((source / NOTEBOOKS).rglob("*")), *sorted((source / PARAMS).glob("*.yaml"))]
    copies = {path: folder / path.relative_to(source) for path in files if path.is_file()}
    for copy in copies.values():
        if copy.exists():
            raise FileExistsError(f"{copy} is there; expected a folder without notebooks and params files of ours")
    for path, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return list(copies.values())
