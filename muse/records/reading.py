"""A few tokens of the test text as two trained models read them, beside a run's losses: <run>/losses/reading.json."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .losses import FOLDER
from .store import read_record, write_record


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Part):
    """What comes after a token: the likeliest tokens of each model with their probabilities, the likeliest first."""

    position: int = Field(ge=0, description="of the last token that the models have seen")
    candidates: dict[str, list[tuple[str, float]]]


class ReadShares(_Part):
    """One read of the memory: the signed share of each token up to its position, with rotation and without."""

    layer: int = Field(ge=0)
    head: int = Field(ge=0)
    rotated: list[float] = Field(min_length=1)
    plain: list[float] = Field(min_length=1)

    @property
    def position(self) -> int:
        """The token at which the memory is read: the last one that contributes."""
        return len(self.rotated) - 1


class Reading(_Part):
    """A text token by token; models by name, the one with the complex memory first."""

    seeds: dict[str, int]
    pieces: list[str] = Field(min_length=2, description="what each token adds to the text")
    losses: dict[str, list[float]] = Field(description="nat of each token but the first, by model")
    floor: list[float] | None = Field(None, description="the same of the language itself, where it is known")
    places: list[Place] = Field(min_length=1)
    read: ReadShares

    @model_validator(mode="after")
    def _fits(self) -> Reading:
        rows = [*self.losses.values(), *([self.floor] if self.floor else [])]
        if any(len(row) != len(self.pieces) - 1 for row in rows) or list(self.losses) != list(self.seeds):
            raise ValueError("losses are not those of the text and its models")
        if any(place.position > len(self.pieces) - 2 or list(place.candidates) != list(self.seeds)
               for place in self.places):  # fmt: skip
            raise ValueError("a place is not of the text, or not of its models")
        if self.read.position >= len(self.pieces) or len(self.read.plain) != len(self.read.rotated):
            raise ValueError("the read is not of the text")
        return self


def reading_path(run_dir: Path) -> Path:
    """Return where the reading of a run lies."""
    return run_dir / FOLDER / "reading.json"


def write_reading(run_dir: Path, reading: Reading | None) -> None:
    """Write the reading of a run; None takes away what an earlier one left."""
    if reading is None:
        reading_path(run_dir).unlink(missing_ok=True)
    else:
        write_record(reading, reading_path(run_dir))


def read_reading(run_dir: Path) -> Reading | None:
    """Return the reading of a run, None where it has none; RecordError where it is damaged."""
    return read_record(Reading, reading_path(run_dir)) if reading_path(run_dir).is_file() else None
