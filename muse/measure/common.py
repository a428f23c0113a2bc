"""What the measurements share: random tokens, the mode and device of a model, hooks, non-finite checks.

Every measurement takes a model by its protocol: `config`, `forward`, `features`, `head_parameters`, `loss`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

Progress = Callable[[Iterable, str, int | None], Iterable]


def passthrough(iterable: Iterable, description: str, total: int | None = None) -> Iterable:
    """Return the iterable as it is: no progress display."""
    return iterable


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the model to training or evaluation mode, and put every module's own mode back at the end."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random numbers that dropout draws, and put the global generators back at the end."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Register a forward hook on each of some modules, and remove them all at the end."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def random_batch(
    model: nn.Module, batch_size: int, n_tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return uniform random inputs and next-token targets, int64 (B T), drawn on the host, on the model's device."""
    if not 1 <= n_tokens <= model.config.n_seq:
        raise ValueError(f"n_tokens must be 1 to n_seq={model.config.n_seq}, got {n_tokens}")
    ids = torch.randint(model.config.vocab_size, (batch_size, n_tokens + 1), generator=generator)
    ids = ids.to(device_of(model))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no element is NaN or infinite: one pass over each tensor, one device synchronisation."""
    bounds = []
    for tensor in tensors:
        if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        bounds.extend(bound.float() for bound in real.detach().aminmax())  # the extremes of a tensor with NaN are NaN
    return not bounds or bool(torch.stack(bounds).isfinite().all())


def safe_exp(value: float) -> float | None:
    """Return exp(value), or None where a float64 cannot hold it."""
    try:
        result = math.exp(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def tensors_in(value: object) -> list[Tensor]:
    """Return the tensors of a module's output, which may be nested in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]
