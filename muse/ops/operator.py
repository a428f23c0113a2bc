"""How an operation gets its gradient: a formula with one written by hand, or a pair of kernels as a custom operator.

Whoever looks inside gets the formula: a compiler (but for kernels, which stay opaque to it) and every transform of
torch.func, whose derivatives of any order are then those of the formula. Ordinary autograd takes what is written by
hand, or a kernel. Its second derivative is that of the formula again, or refused where there is none beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

KERNEL_DEVICE = "cuda"  # where kernels compute; the tests of Triton's interpreter say "cpu"


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Inside, no kernel computes anything, forward or backward: what is left are the forms to read."""
    global KERNEL_DEVICE
    before, KERNEL_DEVICE = KERNEL_DEVICE, ""
    try:
        yield
    finally:
        KERNEL_DEVICE = before


def transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._are_functorch_transforms_active()


def readable(x: Tensor) -> bool:
    """Whether a check may look at the values of x: on a CPU, where no compiler and no transform is at work."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()


def has_kernels(kernels: ModuleType | None, *tensors: Tensor, float64: bool = False) -> bool:
    """Whether a module of kernels (None: no Triton) computes with these tensors: on CUDA, outside of torch.func."""
    if kernels is None or transformed():
        return False
    return all(x.device.type == KERNEL_DEVICE and (float64 or x.dtype != torch.float64) for x in tensors)


def _by_formula(formula: Callable, needed: tuple[bool, ...], inputs: tuple, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of each needed input, which autograd can differentiate again."""
    copies = [x.view_as(x) if wanted else x for x, wanted in zip(inputs, needed, strict=True)]
    wanted = [x for x, wants in zip(copies, needed, strict=True) if wants]
    found = iter(torch.autograd.grad(formula(*copies)[0], wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if wants else None for wants in needed)


def by_hand(formula: Callable, gradient: Callable) -> Callable:
    """The function formula(*inputs)[0] with a gradient that keeps less, or computes sooner, than autograd would.

    Inputs are tensors or None, then options. Eager code keeps the tensors and what formula(*inputs) returns beside its
    result, and calls gradient(needed, grad, *inputs, *kept) for the gradient of each input, None where not needed.
    """

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            result, *kept = formula(*inputs)
            tensors = [x for x in inputs if x is None or isinstance(x, Tensor)]
            ctx.options, ctx.count = inputs[len(tensors) :], len(tensors)
            ctx.save_for_backward(*tensors, *kept)
            return result

        @staticmethod
        def backward(ctx, grad):
            saved = ctx.saved_tensors
            inputs, kept = (*saved[: ctx.count], *ctx.options), saved[ctx.count :]
            if torch.is_grad_enabled():  # the graph of this pass was asked for
                return _by_formula(formula, ctx.needs_input_grad, inputs, grad)
            return gradient(ctx.needs_input_grad, grad, *inputs, *kept)

    def call(*inputs):
        look_inside = torch.compiler.is_compiling() or transformed()
        return formula(*inputs)[0] if look_inside else ByHand.apply(*inputs)

    return call


class Operator:
    """The custom operator muse::`name` for a compiler, and `forward` itself, which costs the host less, for eager code.

    The schema's tensors come first. fake(*inputs) gives results without values; backward(*grads, *inputs) gives `found`
    tensors, of which split(*those) makes the gradient of each tensor input, in any dtype. By default there is one for
    each, contiguous and in its dtype, empty for an absent one. The grad of a result that nobody used is None with
    `absent_grads`, else zeros. A second derivative is a RuntimeError.

    With `formula` eager code gets the operator too, torch.func and second derivatives formula(*inputs)[0], and backward
    the result before the inputs. Without it torch.vmap makes a call for each member, torch.func.jvp is refused.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable,
        fake: Callable,
        backward: Callable,
        fake_backward: Callable | None = None,
        *,
        found: int = 0,
        split: Callable = lambda *found: found,
        absent_grads: bool = False,
        formula: Callable | None = None,
    ) -> None:
        self.name, self.backward, self.split, self.formula = name, backward, split, formula
        self.absent_grads = absent_grads
        inputs, results = schema[1:].split(") -> ")
        self.tensors, found = inputs.count("Tensor"), found or inputs.count("Tensor")
        grads = [f"Tensor{'?' * absent_grads} grad_{i}" for i in range(results.count("Tensor"))]
        given = ", ".join([*grads, *["Tensor result"] * bool(formula), inputs])
        returned = f"({', '.join(['Tensor'] * found)})" if found > 1 else "Tensor"
        self.op = torch.library.custom_op(f"muse::{name}", forward, mutates_args=(), schema=schema)
        self.backward_op = torch.library.custom_op(
            f"muse::{name}_backward", backward, mutates_args=(), schema=f"({given}) -> {returned}"
        )
        self.op.register_fake(fake)
        self.backward_op.register_fake(fake_backward or self._like_inputs)
        self.op.register_autograd(partial(self._gradients, self.backward_op), setup_context=self._save)
        self.backward_op.register_autograd(self._refuse)
        self.eager_backward = _function(f"{name}_backward", backward, lambda ctx, inputs, output: None, self._refuse)
        self.eager = _function(name, forward, self._save, self._eager_gradients)

    def __call__(self, *inputs: object) -> Tensor | tuple[Tensor, ...]:
        if self.formula and transformed():
            return self.formula(*inputs)[0]
        return self.op(*inputs) if self.formula or torch.compiler.is_compiling() else self.eager(*inputs)

    def _save(self, ctx, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        ctx.options = inputs[self.tensors :]
        ctx.save_for_backward(*([output] if self.formula else []), *inputs[: self.tensors])
        ctx.set_materialize_grads(not self.absent_grads)

    def _like_inputs(self, *given: object) -> tuple[Tensor, ...]:
        """Room for what `backward` gives by default."""
        tensors = [x for x in given if x is None or isinstance(x, Tensor)][-self.tensors :]
        like = next(x for x in tensors if x is not None)
        return tuple(like.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors)

    def _gradients(self, backward: Callable, ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of each input, in its dtype."""
        saved, options = ctx.saved_tensors, ctx.options
        tensors = saved[-self.tensors :]
        if self.formula and torch.is_grad_enabled():  # the graph of this pass was asked for
            return _by_formula(self.formula, ctx.needs_input_grad, (*tensors, *options), *grads)
        found = backward(*grads, *saved, *options)
        found = self.split(*found) if isinstance(found, tuple) else self.split(found)
        pairs = zip(found, tensors, strict=True)
        return *(None if g is None or x is None else g.to(x.dtype) for g, x in pairs), *(None for _ in options)

    def _eager_gradients(self, ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        looked_at = torch.is_grad_enabled() or transformed()
        return self._gradients(self.eager_backward if looked_at else self.backward, ctx, *grads)

    def _refuse(self, ctx, *grads: Tensor) -> None:
        raise RuntimeError(f"muse::{self.name} has no second derivative: got one to take, expected the first alone")


def _function(name: str, forward: Callable, setup_context: Callable, backward: Callable) -> Callable:
    """What an autograd Function of these pieces applies; torch.vmap calls it for one member after the other."""

    def mapped(info, in_dims, *inputs):
        pairs = list(zip(inputs, in_dims, strict=True))
        calls = [call(*(x if d is None else x.select(d, i) for x, d in pairs)) for i in range(info.batch_size)]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        return tuple(map(torch.stack, zip(*calls, strict=True))), (0,) * len(calls[0])

    pieces = {"forward": forward, "setup_context": setup_context, "backward": backward, "vmap": mapped}
    pieces = {key: staticmethod(piece) for key, piece in pieces.items()}
    call = type(name, (torch.autograd.Function,), pieces).apply
    return call
