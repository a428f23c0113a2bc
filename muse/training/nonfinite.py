"""Where a number first stopped being finite: looked for once a loss or a gradient norm is not, never before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn

from muse.models.tensor_file import first_non_finite

Batch = tuple[Tensor, Tensor]


class NonFiniteStepError(ArithmeticError):
    """A step that was not finished since its loss or gradient norm, which the message names, is not finite."""


def moments(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return what optimizers keep for each parameter as {"kind:parameter": tensor}."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}:{names[parameter]}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def first_place(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager],
) -> str:
    """Return, in words, where the first number that is not finite stands.

    In turn: the optimizers' moments, weights and buffers, what modules take and give on these batches, and gradients,
    the one next to the loss first.
    """
    gradients = {f"gradient:{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    values = [*model.named_parameters(), *model.named_buffers()]
    return (
        first_non_finite(moments(model, optimizers))
        or first_non_finite({f"weight:{name}": tensor for name, tensor in values})
        or _first_module(model, batches, autocast)
        or first_non_finite(dict(reversed(gradients.items())))
        or "no tensor that is still there: computed again, all is finite"
    )


@torch.no_grad()
def _first_module(
    model: nn.Module, batches: Iterable[Batch], autocast: Callable[[], AbstractContextManager]
) -> str | None:
    """Compute losses again and return which module first takes or gives a number that is not finite."""
    found: list[str] = []

    def looking_at(what: str) -> Callable[..., None]:
        def look(module: nn.Module, *values: object) -> None:
            bad = (first_non_finite({what: tensor}) for tensor in _tensors_in(values[-1]))
            found.extend([] if found else filter(None, bad))

        return look

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(looking_at(f"input:{name}")).remove)
                hooks.callback(module.register_forward_hook(looking_at(f"output:{name}")).remove)
        for inputs, targets in batches:
            with autocast():
                loss = model.loss(inputs, targets)
            if not found and not loss.isfinite().all():
                found.append("the loss itself, of finite features")
            if found:
                return found[0]
    return None


def _tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors_in(item)] if isinstance(value, list | tuple) else []
