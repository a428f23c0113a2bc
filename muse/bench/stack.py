"""The complex stack, forward and backward: this package against plain forms and other libraries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from muse.ops import planar

from .context import Context
from .equality import Check, check, check_gradients, gradients, relative_rms
from .libraries import STACKS, build_library_stack
from .naive import NaiveStack, PlanarStack, perturb
from .paths import compiled, cuda_graph, num_bytes
from .timing import GroupResult, Trial


@dataclass(frozen=True)
class Inputs:
    """What a path gets, and what must come out of it: of <out, g>, the gradient of z and of every parameter."""

    z: Tensor  # planar r(B T 2D) or c(B T D)
    g: Tensor
    want: Tensor  # planar, as are the gradients
    want_gradients: dict[str, Tensor]

    @classmethod
    def of(cls, stack: PlanarStack, z: Tensor, g: Tensor) -> Self:
        """Return planar inputs with what the naive stack makes of them in float64."""
        naive, leaf = NaiveStack(stack, checks=False).double(), z.double().requires_grad_()
        out = naive(leaf)
        out.backward(g.double())
        return cls(z, g, out.detach(), {"z": leaf.grad, **gradients(naive)})

    def as_complex(self) -> Self:
        """Return the same as complex64 numbers; their conversion is not timed."""
        return replace(self, z=planar.to_complex(self.z), g=planar.to_complex(self.g))


def complex_stack(bench: Context) -> Iterator[GroupResult]:
    """Compare L complex layers on (B T) tokens with all gradients; float32 weights, and complex32 ones on CUDA."""
    settings = bench.settings
    shape = settings.bench_stack_batch_size, bench.n_tokens, 2 * settings.d_model
    stack = perturb(PlanarStack(settings.d_model, settings.n_layers, settings.seed), settings.seed).to(bench.device)
    z, g = (bench.draw(*shape, seed=seed).half().float().to(bench.device) for seed in (3, 4))
    inputs = Inputs.of(stack, z, g)
    half = None if bench.half == torch.float32 else bench.half
    trial = partial(stack_trial, bench, inputs)
    copied = lambda: copy.deepcopy(stack)  # noqa: E731  each path has weights of its own
    paths = {"muse compiled": lambda: trial(copied(), half, compile_it=True)}
    if bench.device.type == "cuda":
        paths["muse graph"] = lambda: trial(copied(), half, compile_it=True, graph=True)
        paths["muse graph complex32"] = lambda: trial(copied().half(), None, compile_it=True, graph=True)
        paths["muse compiled complex32"] = lambda: trial(copied().half(), None, compile_it=True)
        paths["muse eager complex32"] = lambda: trial(copied().half(), None)
    paths["muse eager"] = lambda: trial(copied(), half)
    paths["naive"] = lambda: trial(NaiveStack(stack), half)
    if half is not None:
        paths["muse eager float32"] = lambda: trial(copied(), None)
        paths["naive float32"] = lambda: trial(NaiveStack(stack), None)
    for name in STACKS:
        paths[name] = lambda name=name: stack_trial(bench, inputs.as_complex(), build_library_stack(name, stack), None)
    least = num_bytes(z, z, g, z) + 2 * num_bytes(*stack.parameters())  # in, out and their gradients; weights' too
    yield bench.compare(f"stack_{shape[0]}x{shape[1]}", paths, tokens_per_call=shape[0] * shape[1],
                        flops_per_token=3 * settings.n_layers * 8 * settings.d_model**2, least_bytes=least)  # fmt: skip


def stack_trial(
    bench: Context,
    inputs: Inputs,
    module: nn.Module,
    autocast: torch.dtype | None,
    *,
    compile_it: bool = False,
    graph: bool = False,
) -> Trial:
    """Forward and backward of one stack, and its output and gradients against what must come out."""
    dtype = next(module.parameters()).dtype
    products = autocast or (bench.half if dtype == torch.float16 else torch.float32)
    z = inputs.z.detach()
    leaf = z.to(z.dtype if z.is_complex() else dtype, copy=True).requires_grad_()
    run = compiled(module, bench.device) if compile_it else module

    def call() -> Tensor:
        module.zero_grad(set_to_none=True)
        leaf.grad = None
        with bench.cast(autocast):
            out = run(leaf)
        out.backward(inputs.g.to(out.dtype))
        return out

    if graph:
        call = cuda_graph(call)

    def compared() -> list[Check]:
        out = call()
        named = module.gradients() if hasattr(module, "gradients") else gradients(module)
        got = {"z": leaf.grad} | named
        if out.is_complex():
            out, got["z"] = planar.from_complex(out), planar.from_complex(got["z"])
        forward = check("forward", relative_rms([(out, inputs.want)]), products)
        return [forward, *check_gradients(got, inputs.want_gradients, products)]

    return Trial(call, compared)
