"""Features to logits: a real head on planar features, padded where an odd vocabulary is slow, by blocks on a CPU."""

from __future__ import annotations

import contextlib
import mmap

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cross_entropy_blocks, planar
from .operator import transformed

LOGIT_TOKENS, LOGIT_ROWS = 4096, 1024  # tokens and rows of W whose logits a CPU multiplies and rounds at a time


MAPPED_BYTES = 2**25  # glibc's malloc gives larger pieces back to the system, whatever was freed before
CACHED_NUMEL = 2**21  # logits in float32 that a CPU works on at a time, 8 MiB: they stay in its caches
VOCAB_MULTIPLE = {"cuda": 64}  # an odd number of columns makes the CUDA fp16 product several times slower


def _missing_rows(weight: Tensor) -> int:
    """How many rows V lacks to the device's multiple."""
    return -weight.shape[0] % VOCAB_MULTIPLE.get(weight.device.type, 1)


def cut(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """W and b in `dtype` with V rounded up to the device's multiple by zeros; W in one piece if it is copied anyway.

    Else in two: the rows that fill the multiple, uncopied, and the rest, padded.
    """
    vocab, missing = weight.shape[0], _missing_rows(weight)
    if bias is not None:
        bias = F.pad(bias.to(dtype), (0, missing)) if missing else bias.to(dtype)
    if not missing:
        return (weight.to(dtype),), bias
    if weight.dtype != dtype:
        whole = weight.new_empty(vocab + missing, weight.shape[1], dtype=dtype)
        whole[:vocab] = weight
        whole[vocab:] = 0
        return (whole,), bias
    full = vocab + missing - VOCAB_MULTIPLE[weight.device.type]
    pieces = weight[:full], F.pad(weight[full:], (0, 0, 0, missing))
    return tuple(part for part in pieces if len(part)), bias


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for; torch.func does not say."""
    return transformed() or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def padded(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """W and b in `dtype` with V rounded up to the device's multiple."""
    extra = _missing_rows(weight)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if extra:
        weight = torch.cat([weight, weight.new_zeros(extra, weight.shape[1])])  # twice as fast as F.pad
        bias = None if bias is None else F.pad(bias, (0, extra))
    return weight, bias


def products(
    x: Tensor, pieces: tuple[Tensor, ...], bias: Tensor | None = None, room: Tensor | None = None
) -> Tensor:
    """W x + b, r(n V) with V as padded; the padded logits are 0. They take the first rows of `room`, if it is given."""
    logits = x.new_empty(x.shape[0], sum(map(len, pieces))) if room is None else room[: x.shape[0]]
    start = 0
    for w in pieces:
        b = None if bias is None else bias[start : start + len(w)]
        cross_entropy_blocks.product_(logits[:, start : start + len(w)], x, w, b)
        start += len(w)
    return logits


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, storage: torch.dtype) -> Tensor:
    """W x + b in the storage dtype, r(... V) with V rounded up to the device's multiple; x is in the compute dtype."""
    rows = x.reshape(-1, x.shape[-1])  # with more dimensions, a strided x gets its bias in a second pass
    kept = x.device.type != "cpu" or x.is_cuda or wants_grad(x, weight, bias)
    if not kept and x.dtype != storage:
        return _logits_by_blocks(x, weight, bias, storage)
    w, b = padded(weight, bias, x.dtype)
    if kept:
        out = planar.rounded(F.linear(rows, w, b), storage)
    else:
        out = cross_entropy_blocks.product_(room_for(rows, len(rows), len(w), storage), rows, w, b)
    return out.view(*x.shape[:-1], len(w))


def room_for(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised r(rows columns) beside a tensor; on a CPU a large one in pages of 2 MiB where Linux gives them.

    What malloc maps anew at each call is filled in by the kernel page by page: of 4 KiB, 100,000 for a batch of logits.
    """
    num_bytes = rows * columns * dtype.itemsize
    on_cpu = type(like) is Tensor and like.device.type == "cpu"
    if num_bytes < MAPPED_BYTES or not on_cpu or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(rows, columns, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without such pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(rows, columns)  # which keeps the memory alive


def _logits_by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None, storage: torch.dtype) -> Tensor:
    """The same on a CPU that multiplies in another dtype than it stores: a block is rounded while caches hold it."""
    rows = x.reshape(-1, x.shape[-1])
    out = room_for(rows, len(rows), len(weight), storage)
    size = min(len(rows), LOGIT_TOKENS) * min(len(weight), LOGIT_ROWS)
    products, floats = x.new_empty(size), None if x.dtype == torch.float32 else x.new_empty(size, dtype=torch.float32)
    for start in range(0, len(weight), LOGIT_ROWS):
        block = slice(start, start + LOGIT_ROWS)
        w, b = planar.rounded(weight[block], x.dtype), None if bias is None else bias[block].to(x.dtype)
        for some, target in zip(rows.split(LOGIT_TOKENS), out[:, block].split(LOGIT_TOKENS), strict=True):
            z = cross_entropy_blocks.product_(products[: target.numel()].view(target.shape), some, w, b)
            if floats is not None:  # by way of float32, as planar.rounded does, but into memory that is there
                z = floats[: target.numel()].view(target.shape).copy_(z)
            target.copy_(z)
    return out.view(*x.shape[:-1], len(weight))


_logits_op = torch.library.custom_op(
    "muse::logits", _logits, mutates_args=()
)  # one step for a compiler, which would add the bias and round in further passes over the logits


@_logits_op.register_fake
def _(x, weight, bias, storage):
    return x.new_empty(*x.shape[:-1], weight.shape[0] + _missing_rows(weight), dtype=storage)


def head_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b: features r(... D), weight r(V D), bias r(V) to logits r(... V) in the storage (autocast: compute) dtype.

    On CUDA the result is a view of a buffer whose rows are padded to a multiple of 64 columns.
    """
    compute, storage = planar.product_dtypes(features)
    for_compiler = torch.compiler.is_compiling() and not wants_grad(features, weight, bias)
    call = _logits_op if for_compiler else _logits
    return call(features.to(compute), weight, bias, storage)[..., : weight.shape[0]]
