"""A little of the test text, kept beside its losses so that a run's pages need no corpus: <run>/losses/text.json."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .losses import FOLDER
from .store import read_record, write_record


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Window(_Part):
    """A run of targets within a document, with the text that each of them stands for."""

    document: int = Field(ge=0)
    first: int = Field(ge=0, description="place of its first target in the file of losses")
    pieces: list[str] = Field(min_length=1)


class TextSample(_Part):
    """What the two models that differ in it most are shown on: first words of all documents, some whole windows."""

    candidate: str
    baseline: str
    titles: list[str] = Field(description="first words of every document, in order")
    gains: list[Window] = Field(description="in which the candidate predicts better than the baseline, the best first")
    losses: list[Window] = Field(description="in which it predicts worse, the worst first")

    @model_validator(mode="after")
    def _windows_are_of_documents(self) -> TextSample:
        if any(window.document >= len(self.titles) for window in (*self.gains, *self.losses)):
            raise ValueError("a window is of no document")
        return self


def sample_path(run_dir: Path) -> Path:
    """Return where the sample of a run lies."""
    return run_dir / FOLDER / "text.json"


def write_sample(run_dir: Path, sample: TextSample) -> Path:
    """Write the sample of a run."""
    return write_record(sample, sample_path(run_dir))


def read_sample(run_dir: Path) -> TextSample:
    """Read the sample of a run; RecordError where it is missing or damaged."""
    return read_record(TextSample, sample_path(run_dir))
