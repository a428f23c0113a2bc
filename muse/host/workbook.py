"""Where the notebooks and params files lie: in a checkout beside the package, else where a wheel has put them."""

from __future__ import annotations

import re
import shlex
import shutil
import sysconfig
from importlib.metadata import requires
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


def to_install(extra: str) -> str:
    """Return the command that installs an extra: that of the checkout, or the packages that a wheel's metadata name.

    The workbook is on no index, so its own name installs nothing. Records quote it: it names no folder of this machine.
    """
    if (CHECKOUT / "pyproject.toml").is_file():
        return f"python -m pip install -e '.[{extra}]' in the checkout"
    marker = re.compile(rf"""\s*;\s*extra\s*==\s*["']{re.escape(extra)}["']""")
    needed = [marker.sub("", line) for line in requires("muse-workbook") or () if marker.search(line)]
    return f"python -m pip install {shlex.join(needed)}"


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
