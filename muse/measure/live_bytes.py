"""Counts the bytes of live tensors while a step runs: with its kernels, or with the shapes of their results alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

BLOCK_BYTES = 512  # the CUDA allocator hands out multiples of this, so the count does too


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, for as long as something refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing is compiled here, and the guard against it costs at every call
        return False

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of these tensors, each once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._alive:
                continue
            num_bytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES

            def release(_: weakref.ref, key: int = storage._cdata, num_bytes: int = num_bytes) -> None:
                if self._alive.pop(key, None) is not None:
                    self.current -= num_bytes

            self._alive[storage._cdata] = weakref.ref(storage, release)
            self.current += num_bytes
        self.peak = max(self.peak, self.current)

    def call(self, func, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Return what an operation gives."""
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = self.call(func, args, kwargs or {})
        if isinstance(out, Tensor):
            self.track((out,))
        elif isinstance(out, tuple | list):
            self.track(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


class Result(NamedTuple):
    """One tensor of an operation's result: an argument itself, a view of one, or a tensor of its own."""

    argument: int | None  # number of the argument whose storage it has; None: its own storage
    shape: torch.Size | None  # None: the argument itself
    stride: tuple[int, ...] = ()
    offset: int = 0  # within the argument
    dtype: torch.dtype | None = None


class WithoutData(LiveBytes):
    """The same without any kernel: results are CPU memory that nothing reads or writes, so it is never made resident.

    What an operation gives for arguments of some shapes is asked of its implementation for the meta device, once. A
    value read from a tensor is 1 for floats, 0 for integers and False for booleans.
    """

    plans: dict[object, object] = {}  # noqa: RUF012  by operation and shapes, shared by all counts

    def call(self, func, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else args[0].dtype != torch.bool and 0
        if func.is_view or func.namespace == "profiler":
            return func(*args, **kwargs)
        tensors: list[Tensor] = []
        key = func, _described(args, tensors), _described(kwargs, tensors)
        if not func._schema.returns:  # it only writes
            return self.done(func, tensors, None)
        if key not in self.plans:
            self.plans[key] = _plan(func, args, kwargs)
        plan = self.plans[key]
        if isinstance(plan, Result):
            return self.done(func, tensors, _made(plan, tensors))
        made = tree_map_only(Result, lambda result: _made(result, tensors), plan, is_leaf=_is_result)
        return self.done(func, tensors, made)

    def done(self, func, tensors: Sequence[Tensor], result: object) -> object:
        """Return the result of an operation on these tensors; whoever wants to know what is done overrides it."""
        return result


def _is_result(value: object) -> bool:
    return isinstance(value, Result)


def _described(value: object, tensors: list[Tensor]) -> object:
    """What decides the shapes of a result, as a key; tensors are appended in the order in which they are met."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple([_described(item, tensors) for item in value])
    if isinstance(value, dict):
        return tuple([(name, _described(item, tensors)) for name, item in value.items()])
    return type(value), value  # 1, 1.0 and True are equal


def _plan(func, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """The results of an operation on tensors like these, each tensor as a Result."""
    metas: list[Tensor] = []

    def meta(tensor: Tensor) -> Tensor:
        metas.append(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"))
        return metas[-1]

    args, kwargs = tree_map_only(Tensor, meta, (tuple(args), dict(kwargs)))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("meta")
    storages = {tensor.untyped_storage()._cdata: number for number, tensor in enumerate(metas)}
    written = _returned(func, args, kwargs)
    if written is not None and written.numel():  # an empty one may grow
        return Result(storages[written.untyped_storage()._cdata], None)

    def result(tensor: Tensor) -> Result:
        argument = storages.get(tensor.untyped_storage()._cdata)
        if argument is not None and tensor is metas[argument]:
            return Result(argument, None)
        return Result(argument, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)

    return tree_map_only(Tensor, result, func(*args, **kwargs))


def _returned(func, args: Sequence[object], kwargs: Mapping[str, object]) -> Tensor | None:
    """The tensor that an operation writes to and gives back, None where it gives back another one or several.

    Its shape is known without asking: PyTorch 2.11 cannot tell it of `addmm` with another dtype for its result.
    """
    schema = func._schema
    if len(schema.returns) != 1 or not (alias := schema.returns[0].alias_info) or not alias.is_write:
        return None
    named = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
    written = [named.get(argument.name) for argument in schema.arguments
               if argument.alias_info and argument.alias_info.before_set == alias.before_set]  # fmt: skip
    return written[0] if len(written) == 1 and isinstance(written[0], Tensor) else None


def _made(result: Result, tensors: Sequence[Tensor]) -> Tensor:
    if result.argument is None:
        return torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="cpu")
    tensor = tensors[result.argument]
    if result.shape is None:
        return tensor
    return tensor.as_strided(result.shape, result.stride, tensor.storage_offset() + result.offset)
