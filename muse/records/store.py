"""Records on disk: strict JSON, written whole or not at all, and read with one clear error."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from muse.host.files import write_atomic

from . import earlier as earlier
from .schema import READING, Report

PLACES_SHOWN = 5  # of non-finite numbers, in an error
R = TypeVar("R", bound=BaseModel)


class RecordError(ValueError):
    """A record that is missing, malformed or holds a number that strict JSON cannot express."""


def to_json(record: BaseModel) -> str:
    """Return strict JSON; RecordError names the record when it holds NaN or infinity."""
    try:
        return json.dumps(_plain(record.model_dump(by_alias=True)), allow_nan=False, indent=1, ensure_ascii=False)
    except ValueError as error:
        found = _non_finite(record.model_dump(by_alias=True))
        more = f" and {len(found) - PLACES_SHOWN} more" if len(found) > PLACES_SHOWN else ""
        places = ", ".join(found[:PLACES_SHOWN])
        raise RecordError(
            f"{type(record).__name__} is not strict JSON: non-finite numbers at {places}{more}"
        ) from error


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _non_finite(value: object, path: str = "") -> list[str]:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return [f"{path or '/'} = {value}"]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [found for key, item in items for found in _non_finite(item, f"{path}/{key}")]


def write_record(record: BaseModel, path: str | Path) -> Path:
    """Write a record as strict JSON, atomically, and return its path."""
    path = Path(path)
    write_atomic(path, to_json(record) + "\n")
    return path


def read_record(kind: type[R], path: str | Path) -> R:
    """Read a record; RecordError names the file and what is wrong with it."""
    path = Path(path)
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"), context=READING)
    except FileNotFoundError as error:
        raise RecordError(f"{path}: no such record; expected a {kind.__name__}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a valid {kind.__name__}: {error}") from error


def schema() -> dict[str, object]:
    """Return the JSON schema of `report.json`."""
    return Report.model_json_schema(by_alias=True)
