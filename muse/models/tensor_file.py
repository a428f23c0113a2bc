"""A safetensors file that tells when it is no longer what was written: it carries the SHA-256 of all its bytes.

    8 bytes      length of the header, little-endian
    header       JSON: name, dtype, shape and place of each tensor; metadata: format "pt", muse (JSON), sha256
    data         the tensors, in the header's order

`sha256` is that of the whole file with 64 zeros in its own place. Written in one pass over the tensors, checked against
what was loaded, both without a second copy of the data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from muse.host.files import replaced

METADATA_KEY = "muse"
SEAL_KEY = "sha256"
ZEROS = "0" * 64
OF_BEFORE = {METADATA_KEY}
"""The metadata of files from before they carried a SHA-256."""

OURS = {METADATA_KEY, SEAL_KEY, "format"}
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}
logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A file of a training that is missing, damaged or belongs to another training; the message names it."""


class NonFiniteError(CheckpointError):
    """A tensor that holds NaN or infinity where a file is written or read; the message names file and tensor."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> str:
    """Write a safetensors file so that a kill or a power cut leaves the old file or the new one, never half of it.

    `about` is kept as one JSON metadata entry; equal contents make equal files. Returns the SHA-256 that the file
    carries. NonFiniteError, with the old file left as it is, where a tensor holds NaN or infinity.
    """
    if found := first_non_finite(tensors):
        raise NonFiniteError(f"{path}: not written: {found}")
    text = json.dumps(about, allow_nan=False)
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # wide ones first: all stay aligned
    header = _header({name: tensors[name] for name in order}, text)
    place = header.index(ZEROS.encode())
    digest = hashlib.sha256(header)
    with replaced(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name in order:
            content = _bytes_of(tensors[name])
            file.write(content)
            digest.update(content)
        file.seek(place)
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def _header(tensors: Mapping[str, Tensor], about: str) -> bytes:
    """The header with its length before it, padded to whole 8 bytes; the seal's place holds zeros."""
    entries: dict[str, object] = {"__metadata__": {SEAL_KEY: ZEROS, "format": "pt", METADATA_KEY: about}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor as the file holds it, without a copy where it lies on the CPU in one piece."""
    if sys.byteorder != "little":
        raise NotImplementedError("tensor files are little-endian, and this machine is not")
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(plain.numpy())


def read_tensors(
    path: Path, expected_format: str, advice: str = "remove it to start again", others: bool = False
) -> tuple[dict[str, Tensor], dict]:
    """Read what write_tensors wrote; CheckpointError names the file and what is wrong with it.

    The SHA-256 is checked against what was loaded. A file from before it had one is read with a line of warning, and
    with `others` one that another tool wrote, which says nothing about itself.
    """
    with _readable(path, advice), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        about = json.loads(metadata.get(METADATA_KEY, "{}"), parse_constant=refuse_constant)
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    foreign = others and is_of_others(metadata)
    if not foreign and (not isinstance(about, dict) or about.get("format") != expected_format):
        found = about.get("format") if isinstance(about, dict) else about
        raise CheckpointError(f"{path}: got format {found!r}, expected {expected_format!r}")
    if foreign:
        logger.warning("%s: carries no SHA-256, another tool has written it: read unverified", path)
    elif is_sealed(path, metadata):
        with _readable(path, advice):
            found = _seal_of(path, metadata[SEAL_KEY], tensors)
        if found != metadata[SEAL_KEY]:
            expected = metadata[SEAL_KEY][:12]
            raise CheckpointError(f"{path}: damaged: got SHA-256 {found[:12]}, expected {expected}; {advice}")
    else:
        logger.warning("%s: carries no SHA-256, it is from before there was one: read unverified", path)
    if found := first_non_finite(tensors):
        raise NonFiniteError(f"{path}: {found}; {advice}")
    return tensors, about


def refuse_constant(constant: str) -> None:
    """For `json.loads`: NaN and infinities are no strict JSON."""
    raise ValueError(f"{constant} is no JSON")


class _readable:  # noqa: N801 - used like a function
    """Inside a with block, what cannot be read becomes a CheckpointError that names the file."""

    def __init__(self, path: Path, advice: str) -> None:
        self.path, self.advice = path, advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | SafetensorError | RecursionError):
            raise CheckpointError(f"{self.path}: not a readable safetensors file ({error}); {self.advice}") from error


def metadata_of(path: Path, advice: str = "remove it to start again") -> dict[str, str]:
    """Return the metadata of a safetensors file, unverified; CheckpointError where it cannot be read."""
    with _readable(path, advice), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def is_of_others(metadata: Mapping[str, str]) -> bool:
    """Whether metadata are those of a file that another tool wrote: at most its format."""
    return metadata.keys() <= {"format"}


def is_sealed(path: Path, metadata: Mapping[str, str] | None = None) -> bool:
    """Whether a file carries a SHA-256; CheckpointError for metadata that neither today's files have nor earlier ones.

    So a damage that hides the SHA-256 does not make a file look like one from before.
    """
    keys = (metadata_of(path) if metadata is None else metadata).keys()
    if keys not in (OURS, OF_BEFORE):
        raise CheckpointError(f"{path}: got metadata {', '.join(sorted(keys))}, expected {', '.join(sorted(OURS))}")
    return keys == OURS


def _seal_of(path: Path, seal: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a file's header, with zeros in the seal's place, and of the tensors that were read from it."""
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    sealed = f'"{SEAL_KEY}":"{seal}"'.encode()
    digest = hashlib.sha256(length + header.replace(sealed, f'"{SEAL_KEY}":"{ZEROS}"'.encode(), 1))
    places = {name: entry["data_offsets"] for name, entry in json.loads(header).items() if name in tensors}
    for name in sorted(places, key=lambda name: places[name]):
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return, in words, the first of these tensors that holds NaN or infinity, and where; None where none does.

    One pass over each, and one wait for a device.
    """
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    if not names:
        return None
    with torch.no_grad():
        bounds = [torch.stack(tensors[name].aminmax()).double() for name in names]  # NaN where a tensor holds one
        together = {bound.device for bound in bounds}
        finite = torch.stack(bounds if len(together) == 1 else [bound.cpu() for bound in bounds]).isfinite().all(1)
    bad = (~finite).nonzero().flatten().tolist()
    return described(names[bad[0]], tensors[names[bad[0]]]) if bad else None


def described(name: str, tensor: Tensor) -> str:
    """Say in words what is not finite in a tensor: its name, the value, the first place and how many there are."""
    with torch.no_grad():
        bad = (~tensor.detach().isfinite()).nonzero()
    first = bad[0].tolist()
    value = tensor.detach()[tuple(first)].item()
    return f"{name} holds {value} at {first} ({len(bad):,} of {tensor.numel():,} numbers are not finite)"


def first_non_finite_number(values: object, name: str = "") -> str | None:
    """Return, in words, the first NaN or infinity among JSON values, by its keys; None where there is none."""
    if isinstance(values, float):
        return None if math.isfinite(values) else f"{name} is {values}"
    items = values.items() if isinstance(values, Mapping) else ()
    items = enumerate(values) if isinstance(values, list | tuple) else items
    return next(filter(None, (first_non_finite_number(value, f"{name} {key}".strip()) for key, value in items)), None)


def sha256_of_json(values: Mapping[str, object]) -> str:
    """Return the SHA-256 of JSON values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
