"""Which files of a folder are a split: one text, one table, or all the shards that their names promise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from muse.catalog import CORPORA

SHARD = r"-([0-9]+)-of-([0-9]+)(-[0-9a-f]{16})?\.(parquet|txt)"
SHOWN = 5  # names in a message, of however many


def split_files(folder: Path, name: str) -> list[Path]:
    """The files of a split in their order: <name>.txt or .parquet, or <name>-00000-of-0000N.txt or .parquet for all N.

    Whatever else has the split's name for its first word is refused: it may be part of the text, and nobody can say.
    """
    try:
        entries = sorted(folder.iterdir())
    except (OSError, ValueError):
        got = str(folder)[:200]
        raise ValueError(f"corpus must be {', '.join(CORPORA)} or an existing folder, got {got!r}") from None
    beside = [path for path in entries if re.match(rf"{name}(?![a-z])", path.name, re.IGNORECASE)]
    whole = [path for path in beside if path.name in (f"{name}.txt", f"{name}.parquet")]
    shards = [path for path in beside if re.fullmatch(name + SHARD, path.name)]
    expected = f"{folder} must hold either {name}.txt or {name}.parquet ({name}-*-of-*.parquet)"
    if (kinds := len(whole) + len({path.suffix for path in shards})) != 1:
        listed = f": {_names(whole + shards)}" if kinds else ""
        raise ValueError(f"{expected}, got {'both' if kinds else 'neither'}{listed}")
    if others := [path for path in beside if path not in whole + shards]:
        raise ValueError(f"{expected} and nothing else by that name, got beside it {_names(others)}")
    files = _in_order(folder, name, shards) if shards else whole
    if odd := [path for path in files if not path.is_file()]:
        raise ValueError(f"{odd[0]} must be a file, got a {'folder' if odd[0].is_dir() else 'link or device'}")
    return files


def _in_order(folder: Path, name: str, shards: Sequence[Path]) -> list[Path]:
    """The shards by their number; ValueError unless they are 0 to N - 1 of one N, each of them once."""
    named = [(path, *re.fullmatch(name + SHARD, path.name).groups()[:2]) for path in shards]
    counts = sorted({int(count) for _, _, count in named})
    if len(counts) > 1:
        of = ", ".join(str(count) for count in counts[:SHOWN])
        raise ValueError(f"{folder}: shards of {name} must be of one number, got of {of}: {_names(shards)}")
    (count,), by_index = counts, {int(index): path for path, index, _ in named}
    seen = Counter(int(index) for _, index, _ in named)
    problems = {
        "missing": (f"{index:05d}" for index in _missing(seen, count)),
        "doubled": (path.name for path, index, _ in named if seen[int(index)] > 1),
        "surplus": (path.name for path, index, _ in named if int(index) >= count),
    }
    shown = [f"{kind}: {', '.join(first)}" for kind, names in problems.items() if (first := _first(names))]
    if shown:
        raise ValueError(f"{folder}: {name} must have shards 0 to {count - 1}, each once; {'; '.join(shown)}")
    return [by_index[index] for index in sorted(by_index)]


def _missing(seen: Counter, count: int) -> Iterator[int]:
    """Numbers below count that nobody has, ascending; a name may promise more shards than a list can hold."""
    index = 0
    while index < count:
        if index not in seen:
            yield index
        index += 1


def _first(names: Iterator[str]) -> list[str]:
    shown = list(islice(names, SHOWN + 1))
    return [*shown[:SHOWN], "..."] if len(shown) > SHOWN else shown


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(_first(path.name for path in paths))
