"""The complex stack, forward and backward: this package against plain forms and other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from muse.ops import planar

from .context import Context
from .gates import Check, check, check_gradients, gradients, relative_rms
from .naive import NaiveStack, PlanarStack, stir
from .paths import compiled, num_bytes, replayed
from .peers import PEERS, build_peer
from .race import RaceResult, Trial


def stack_race(bench: Context) -> RaceResult:
    """Race L complex layers on (B T) tokens with all gradients; float32 weights, and complex32 ones on CUDA."""
    sizes, shape = bench.sizes, (bench.sizes.stack_batch, bench.sizes.n_tokens, 2 * bench.sizes.d_model)
    stack = stir(PlanarStack(sizes.d_model, sizes.n_layers, sizes.seed), sizes.seed).to(bench.device)
    z, g = (bench.draw(*shape, seed=seed).half().float().to(bench.device) for seed in (3, 4))
    half = None if bench.half == torch.float32 else bench.half
    trial = partial(stack_trial, bench, z, g, stack_reference(stack, z, g))
    copy_of = partial(like, stack)
    candidates = {"muse compiled": lambda: trial(copy_of(), half, compile_it=True)}
    if bench.device.type == "cuda":
        candidates["muse graph"] = lambda: trial(copy_of(), half, compile_it=True, graph=True)
        candidates["muse graph complex32"] = lambda: trial(copy_of().half(), None, compile_it=True, graph=True)
        candidates["muse compiled complex32"] = lambda: trial(copy_of().half(), None, compile_it=True)
        candidates["muse eager complex32"] = lambda: trial(copy_of().half(), None)
    candidates["muse eager"] = lambda: trial(copy_of(), half)
    candidates["naive"] = lambda: trial(NaiveStack(stack), half)
    if half is not None:
        candidates["muse eager float32"] = lambda: trial(copy_of(), None)
        candidates["naive float32"] = lambda: trial(NaiveStack(stack), None)
    for name in PEERS:
        candidates[name] = partial(peer_trial, name, stack, z, g, trial)
    least = num_bytes(z, z, g, z) + 2 * num_bytes(*stack.parameters())  # in, out and their gradients; weights' too
    return bench.race(f"stack_{shape[0]}x{shape[1]}", candidates, tokens_per_call=shape[0] * shape[1],
                      flops_per_token=3 * sizes.n_layers * 8 * sizes.d_model**2, least_bytes=least)  # fmt: skip


def like(stack: PlanarStack) -> PlanarStack:
    """Return another stack with the same weights."""
    made = PlanarStack(stack.norms[0].gamma.numel(), len(stack.norms)).to(stack.norms[0].gamma.device)
    made.load_state_dict(stack.state_dict())
    return made


def stack_reference(stack: PlanarStack, z: Tensor, g: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and all gradients of <out, g>, the input's as `z`, from the naive stack in float64."""
    naive, leaf = NaiveStack(stack, checks=False).double(), z.double().requires_grad_()
    out = naive(leaf)
    out.backward(g.double())
    return out.detach(), {"z": leaf.grad, **gradients(naive)}


def stack_trial(
    bench: Context,
    z: Tensor,
    g: Tensor,
    want: tuple[Tensor, dict],
    module: nn.Module,
    autocast: torch.dtype | None,
    *,
    compile_it: bool = False,
    graph: bool = False,
) -> Trial:
    dtype = next(module.parameters()).dtype
    products = autocast or (bench.half if dtype == torch.float16 else torch.float32)
    leaf = z.detach().to(z.dtype if z.is_complex() else dtype, copy=True).requires_grad_()
    run = compiled(module, bench.device) if compile_it else module

    def call() -> Tensor:
        module.zero_grad(set_to_none=True)
        leaf.grad = None
        with bench.cast(autocast):
            out = run(leaf)
        out.backward(g.to(out.dtype))
        return out

    if graph:
        call = replayed(call)

    def compared() -> list[Check]:
        out = call()
        named = module.gradients() if hasattr(module, "gradients") else gradients(module)
        got = {"z": leaf.grad} | named
        if out.is_complex():
            out, got["z"] = planar.from_complex(out), planar.from_complex(got["z"])
        forward = check("forward", relative_rms([(out, want[0])]), products)
        return [forward, *check_gradients(got, want[1], products)]

    return Trial(call, compared)


def peer_trial(name: str, stack: PlanarStack, z: Tensor, g: Tensor, trial: Callable) -> Trial:
    """The trial of a peer, on complex64 numbers; their conversion is not timed."""
    bench, _, _, want = trial.args
    return stack_trial(bench, planar.to_complex(z), planar.to_complex(g), want, build_peer(name, stack), None)
