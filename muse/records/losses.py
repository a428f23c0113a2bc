"""The loss of every target of the test split, one file a model, beside the index.html of the run.

<run>/losses/<model>.npz
    seed_<n>    float16 (targets,)  nat per target by the training of that seed, in the order of the split
    documents   int32 (targets,)    the document that each target belongs to, counted from 0
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muse.host.files import replaced, sha256_of

from .schema import Artifact
from .store import RecordError

FOLDER = "losses"
DOCUMENTS = "documents"
EXPECTED = "expected the losses that the perplexity stage writes; measure the model again"


@dataclass(frozen=True)
class Losses:
    """The losses of one model on the targets of one split."""

    by_seed: dict[int, np.ndarray]  # each float16 (targets,), nat per target
    documents: np.ndarray  # int32 (targets,)


def write_losses(
    run_dir: Path, model: str, by_seed: Mapping[int, np.ndarray], documents: np.ndarray
) -> Artifact:
    """Write the losses of a model's seeds, each (targets,) in nat, and return the file as a record names it.

    float16 rounds a loss by at most 2^-11 of it (below 6e-5 nat, by 3e-8 nat). RecordError for a loss above its
    65504, which no finite measurement has given.
    """
    with np.errstate(over="ignore"):
        arrays = {f"seed_{seed}": np.asarray(losses).astype(np.float16) for seed, losses in by_seed.items()}
    path = run_dir / FOLDER / f"{model}.npz"
    for name, losses in arrays.items():
        if not np.isfinite(losses).all():
            raise RecordError(f"{path}: {name}: got a loss beyond float16, expected at most 65504 nat per target")
    with replaced(path) as new:
        np.savez_compressed(new, **arrays, **{DOCUMENTS: np.asarray(documents, np.int32)})
    return Artifact(
        kind="losses",
        model=model,
        path=f"{FOLDER}/{path.name}",
        sha256=sha256_of(path),
        num_bytes=path.stat().st_size,
    )


def read_losses(path: str | Path) -> Losses:
    """Return what `write_losses` wrote; RecordError says what a missing, damaged or foreign file holds instead."""
    path = Path(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise RecordError(f"{path}: got no such file, {EXPECTED}") from error
    except Exception as error:  # zip, zlib and NumPy raise many types for a damaged file
        raise RecordError(f"{path}: got no readable npz file ({error}), {EXPECTED}") from error
    kinds = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
    documents = arrays.pop(DOCUMENTS, None)
    shape = documents.shape if documents is not None and documents.dtype == np.int32 and documents.ndim == 1 else None
    seeds = {int(name[5:]): losses for name, losses in arrays.items() if re.fullmatch(r"seed_\d+", name)}
    fits = all(losses.dtype == np.float16 and losses.shape == shape for losses in seeds.values())
    if shape is None or not seeds or len(seeds) < len(arrays) or not fits:
        raise RecordError(f"{path}: got {kinds}, expected float16 seed_<n> and int32 {DOCUMENTS} of one length")
    if not all(np.isfinite(losses).all() for losses in seeds.values()) or (np.diff(documents, prepend=0) < 0).any():
        raise RecordError(f"{path}: got losses that are not finite or documents out of order, {EXPECTED}")
    return Losses(seeds, documents)
