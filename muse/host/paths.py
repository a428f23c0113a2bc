"""Paths as they are shown: relative to where one works, or shortened. Whose folders they were is nobody's business."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
"""The folder that holds the package: of a checkout its top."""

SHOWN = "..."
"""Stands for the folders above one that lies elsewhere."""


def from_checkout(path: str | Path) -> Path:
    """Return a path of a notebook: relative ones start at the checkout, wherever the notebook runs; `~` is a home.

    Where the package is installed without its notebooks beside it, they start at the working folder.
    """
    start = CHECKOUT if (CHECKOUT / "notebooks").is_dir() else Path.cwd()
    return (start / Path(path).expanduser()).resolve()


def shortened(text: str, folders: Iterable[str | Path | None] = ()) -> str:
    """Return a text whose absolute paths of known folders are relative to the working folder, or shortened.

    Known are the working folder, the checkout, Python's own folders, the user's, and `folders`, of which those that
    lie elsewhere keep their own name only: /data/x/wiki/train.txt becomes .../wiki/train.txt.
    """
    for root, shown in _roots(folders):
        inside = rf"{re.escape(root)}/(?=[^/\s])"
        text = re.sub(inside, f"{shown}/" if shown != "." else "", text)
        text = re.sub(rf"{re.escape(root)}(?!\w|[.-]\w)", shown, text)
    return text


def _roots(folders: Iterable[str | Path | None]) -> list[tuple[str, str]]:
    """(absolute path, what stands for it), longest first; never the root of the file system."""
    cwd, checkout = Path.cwd(), CHECKOUT
    roots = {str(cwd): ".", str(checkout): "."}
    for folder in folders:
        path = Path(folder).expanduser() if folder else None
        if path is not None and path.is_absolute():
            roots.setdefault(str(path), f"{SHOWN}/{path.name}")
            roots.setdefault(str(path.resolve()), f"{SHOWN}/{path.name}")
    for prefix in (sys.prefix, sys.base_prefix):
        roots.setdefault(prefix, f"{SHOWN}/{Path(prefix).name}")
    if _has_home():
        roots.setdefault(str(Path.home()), "~")
    inside = [root for root in roots if root not in (str(cwd), str(checkout)) and _is_inside(root, (cwd, checkout))]
    known = {root: shown for root, shown in roots.items() if len(Path(root).parts) > 1 and root not in inside}
    return sorted(known.items(), key=lambda pair: -len(pair[0]))


def _is_inside(path: str, folders: Iterable[Path]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def with_short_paths(values: Mapping[str, object], folders: Iterable[str | Path | None] = ()) -> dict[str, object]:
    """Return settings whose texts are shortened; the folders among them need not be named again."""
    known = [*folders, *(value for value in values.values() if isinstance(value, str) and value.startswith("/"))]
    return {key: shortened(value, known) if isinstance(value, str) else value for key, value in values.items()}


def shorten_file(path: Path, folders: Iterable[str | Path | None] = ()) -> None:
    """Shorten the paths in a text file of a run; one that is not there or not text stays as it is."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if (short := shortened(text, folders)) != text:
        path.write_text(short, encoding="utf-8")


@contextmanager
def some_home() -> Iterator[None]:
    """Within the block the user has a home: one without HOME and without a line in passwd gets an empty one until then.

    Libraries look there for settings and caches, and end in a traceback where they find no place to look at.
    """
    if _has_home():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="muse-home-") as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            del os.environ["HOME"]


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True
