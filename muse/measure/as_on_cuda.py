"""What a step holds on a CUDA device, counted on CPU tensors without data.

Inside `as_on_cuda` kernels serve CPU tensors: what they allocate is allocated, what they launch is not. Where the
package asks whether a tensor is on CUDA, it is. PyTorch keeps what its kernels for CUDA keep: dropout a mask of one
byte an element, attention no scores, and autocast computes in float32 what it does there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

import muse.ops
from muse.catalog import WORKSPACE_BYTES
from muse.ops import (
    cross_entropy,
    cross_entropy_blocks,
    exact_product,
    gate,
    green,
    linear_attention,
    logits,
    momentum,
    norms,
    operator,
    qkv,
)

from .live_bytes import WithoutData

KERNELS = {
    "cross_entropy_triton": (cross_entropy, cross_entropy_blocks),
    "exact_product_triton": (exact_product,),
    "gate_triton": (gate,),
    "green_triton": (green,),
    "linear_attention_triton": (linear_attention,),
    "momentum_triton": (momentum,),
    "norms_triton": (norms,),
    "qkv_triton": (qkv,),
}
"""Modules of kernels, each with those that call it."""

PRODUCTS = frozenset({torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm})
NO_WORK = ("empty", "new_empty", "detach", "_unsafe_view", "resize")
"""Operations that only name memory, by how they begin."""

FLOAT32 = frozenset({
    *("cumprod", "cumsum", "exp", "expm1", "layer_norm", "log", "log1p", "log_softmax", "logsumexp", "norm", "pow"),
    *("prod", "reciprocal", "rsqrt", "softmax", "softplus", "sum", "__pow__", "__rpow__"),
})  # fmt: skip
"""What autocast computes in float32 on CUDA, and not on a CPU."""

_IS_CUDA = Tensor.is_cuda.__get__


@dataclass
class Work:
    """What a step does: products by the dtype of their factors, and the bytes that everything else reads and writes."""

    flops: Counter[torch.dtype] = field(default_factory=Counter)  # of matrix products, a multiply-add counting two
    pointwise_bytes: int = 0  # of operations of PyTorch, which a compiler fuses
    kernel_bytes: int = 0  # of the package's kernels and of optimizers, which nothing fuses
    pointwise_calls: int = 0
    other_calls: int = 0  # products, kernels, optimizers


class AsOnCuda(WithoutData):
    """Counts what `as_on_cuda` leaves to the device: workspaces, gradients that are added in place, and work."""

    def __init__(self, workspace_bytes: int = WORKSPACE_BYTES) -> None:
        super().__init__()
        self.workspace_bytes = workspace_bytes
        self.workspaces: dict[bool, Tensor] = {}  # by whether the thread is that of the backward pass
        self.work = Work()

    def call(self, func, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        backward = torch._C._current_graph_task_id() != -1
        if func.overloadpacket in PRODUCTS and backward not in self.workspaces:
            self.workspaces[backward] = torch.empty(self.workspace_bytes, dtype=torch.uint8, device="cpu")
            self.track((self.workspaces[backward],))
        if func is torch.ops.aten.add.Tensor and backward and _accumulates(args[0]):
            return args[0]
        return super().call(func, args, kwargs)

    def done(self, func, tensors: Sequence[Tensor], result: object) -> object:
        name, work = func.overloadpacket.__name__, self.work
        if func.overloadpacket in PRODUCTS:
            a = tensors[name in ("addmm", "baddbmm")]  # behind what is added
            work.flops[a.dtype] += 2 * result.numel() * a.shape[-1]
            work.other_calls += 1
        elif name.startswith(("_foreach", "_fused")):
            work.kernel_bytes += sum(tensor.nbytes for tensor in tensors)
            work.other_calls += 1
        elif not name.startswith(NO_WORK):
            made = (result,) if isinstance(result, Tensor) else tree_leaves(result)
            work.pointwise_bytes += sum(x.nbytes for x in (*tensors, *made) if isinstance(x, Tensor))
            work.pointwise_calls += 1
        return result

    def launched(self, arguments: Sequence[object]) -> None:
        """Count a kernel of the package by the tensors that it is given."""
        self.work.kernel_bytes += sum(x.nbytes for x in tree_leaves(arguments) if isinstance(x, Tensor))
        self.work.other_calls += 1


def _accumulates(total: Tensor) -> bool:
    """Whether autograd itself adds to a gradient that nobody else has: in place, but where a mode looks on."""
    frame = sys._getframe(2)
    while frame.f_code.co_name in ("__torch_dispatch__", "_fn"):
        frame = frame.f_back
    alone = torch._C._storage_Use_Count(total.untyped_storage()._cdata) == 2  # the tensor's and the one asked here
    return alone and frame.f_code.co_name == "_engine_run_backward"


class _OnCuda(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == _IS_CUDA:
            return True
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:  # a mask here is one that values decide, and there are none
            kwargs = {key: value for key, value in kwargs.items() if key not in ("attn_mask", "dropout_p")}
            return func(*args[:3], **kwargs | {"is_causal": True})
        if func is Tensor.backward:
            return self._backward(args[0])
        if func.__name__ in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, args)
        return func(*args, **kwargs)

    def _backward(self, loss: Tensor) -> None:
        """The backward pass with this mode at work, which is off while it answers: what is computed again asks too."""
        with self:
            ones = torch.ones_like(loss)
            _engine_run_backward((loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


class _NotLaunched:
    """A kernel that does nothing but be counted; what it would write was allocated before."""

    def __init__(self, live: AsOnCuda) -> None:
        self.live = live

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: self.live.launched(arguments)


@contextlib.contextmanager
def as_on_cuda(workspace_bytes: int = WORKSPACE_BYTES) -> Iterator[AsOnCuda]:
    """Inside, models of the package on CPU tensors without data allocate what they do on CUDA; yields the count."""
    live = AsOnCuda(workspace_bytes)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(operator, "KERNEL_DEVICE", "cpu"))
        stack.enter_context(mock.patch.dict(logits.VOCAB_MULTIPLE, {"cpu": logits.VOCAB_MULTIPLE["cuda"]}))
        for name, callers in KERNELS.items():
            module = _kernels(name)
            for kernel in [key for key, value in vars(module).items() if _launches(value)]:
                stack.enter_context(mock.patch.object(module, kernel, _NotLaunched(live)))
            for caller in callers:
                stack.enter_context(mock.patch.object(caller, name, module))
        stack.enter_context(_OnCuda())
        yield stack.enter_context(live)


def _launches(value: object) -> bool:
    """Whether a value of a module is a kernel, of Triton or of its interpreter."""
    return not isinstance(value, type) and hasattr(type(value), "__getitem__") and hasattr(value, "fn")


@functools.cache
def _kernels(name: str) -> ModuleType:
    """A module of kernels; without Triton with something in its place that can launch nothing."""
    if importlib.util.find_spec("triton"):
        return importlib.import_module(f"muse.ops.{name}")
    absent = _no_triton()
    with mock.patch.dict(sys.modules, {"triton": absent, "triton.language": absent.language}):
        module = importlib.import_module(f"muse.ops.{name}")
    for imported in (name, "tile_triton"):  # nobody else may take them for the real ones
        vars(muse.ops).pop(imported, None)
    return module


def _no_triton() -> SimpleNamespace:
    """What modules of kernels ask of Triton while they are read and before a launch."""

    def jit(function: Callable | None = None, **options: object) -> object:
        return jit if function is None else _Unread(function)

    numbers = {"cdiv": lambda a, b: -(-a // b), "next_power_of_2": lambda n: 1 << (n - 1).bit_length()}
    return SimpleNamespace(jit=jit, language=SimpleNamespace(constexpr=lambda value: value), **numbers)


class _Unread:
    """A kernel that was not compiled; like Triton's it knows its function, and is launched on a grid."""

    def __init__(self, function: Callable) -> None:
        self.fn = function

    def __getitem__(self, grid: object) -> Callable[..., None]:
        raise RuntimeError(f"{self.fn.__name__}: Triton is not installed")
