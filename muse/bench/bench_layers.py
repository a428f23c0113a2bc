"""Two groups of the bench: head with cross entropy, and the complex stack; forward and backward, gradients included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.measure.memory import LiveBytes
from muse.ops import planar
from muse.ops.cross_entropy import head_loss
from muse.ops.cuda_graph import WARMUPS, Replayed

from .gates import Check, check, check_gradients, gradients, relative_rms
from .naive import NaiveStack, PlanarStack, stir
from .peers import PEERS, PathMissingError, build_peer
from .race import RaceResult, Trial, free

if TYPE_CHECKING:
    from .bench import Bench

HEAD_WEIGHT_STD = 0.05  # logits with a standard deviation near 1: some tokens are likelier than others
HEAD_LOSS_SCALE = 16  # times the number of tokens: keeps float16 gradients of a mean loss above their smallest number


def compiler_problem(device: torch.device) -> str:
    """Return why torch.compile cannot work here, or an empty string."""
    compiler = os.environ.get("CXX", "g++") if device.type == "cpu" else os.environ.get("CC", "gcc")
    if shutil.which(compiler) is None and (device.type == "cpu" or shutil.which("clang") is None):
        return f"no compiler: {compiler} is not on this machine"
    if device.type == "cuda":
        try:
            import triton  # noqa: F401  the question is whether it is there
        except ImportError:
            return "no compiler: triton is not installed"
    return ""


def compiled(function: Callable, device: torch.device, mode: str | None = None) -> Callable:
    """Return torch.compile of a function for exactly the shapes it gets; PathMissingError where nothing can compile."""
    if problem := compiler_problem(device):
        raise PathMissingError(problem)
    return torch.compile(function, dynamic=False, mode=mode)


def replayed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return the call as one CUDA graph, already captured, so that what is compared is a replay."""
    update = Replayed(lambda: (call(),))
    for _ in range(WARMUPS + 1):
        update()
    return lambda: update()[0]


def num_bytes(*tensors: Tensor) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def head_race(bench: Bench) -> RaceResult:
    """Race mean cross entropy of (N D) features with all its gradients; inputs are the same numbers in every dtype."""
    n, vocab, d = bench.sizes.head_tokens, bench.sizes.vocab_size, bench.sizes.d_model
    drawn = bench.draw(n, d), bench.draw(vocab, d, seed=1) * HEAD_WEIGHT_STD, bench.draw(vocab, seed=2) * 0.1
    # Rounded to both half precisions, so that no path starts from other numbers than the reference.
    inputs = {name: t.bfloat16().half().float().to(bench.device) for name, t in zip("xwb", drawn, strict=True)}
    generator = torch.Generator().manual_seed(bench.sizes.seed)
    targets = torch.randint(vocab, (n,), generator=generator).to(bench.device)
    want = head_reference(inputs, targets)
    trial = partial(head_trial, bench, inputs, targets, want)
    candidates = {
        "muse eager": lambda: trial(muse_head, torch.float16),
        "naive": lambda: trial(naive_head, torch.bfloat16),
        "naive float32": lambda: trial(naive_head, torch.float32),
        "torch": lambda: trial(native_head(None), torch.bfloat16),
        "torch chunked": lambda: trial(native_head("LinearCrossEntropyOptions"), torch.bfloat16),
    }
    half_bytes = sum(2 * 2 * t.numel() for t in inputs.values())  # read once, gradients written once
    return bench.race(f"head_{n}", candidates, tokens_per_call=n, flops_per_token=6 * vocab * d, least_bytes=half_bytes)


def muse_head(x: Tensor, w: Tensor, b: Tensor, targets: Tensor) -> Tensor:
    return head_loss(x, w, b, targets)


def naive_head(x: Tensor, w: Tensor, b: Tensor, targets: Tensor) -> Tensor:
    """Logits of all tokens in the dtype of x, cross entropy of a float32 copy."""
    return F.cross_entropy(F.linear(x, w, b).float(), targets)


def native_head(options: str | None) -> Callable:
    """Return torch's own F.linear_cross_entropy, with default options of that name or in its reference form."""
    if not hasattr(F, "linear_cross_entropy"):
        raise PathMissingError(f"torch {torch.__version__} has no F.linear_cross_entropy")
    chosen = {"options": getattr(nn, options)()} if options else {}
    return lambda x, w, b, targets: F.linear_cross_entropy(x, w, targets, linear_bias=b, **chosen)


def head_reference(inputs: Mapping[str, Tensor], targets: Tensor, rows: int = 512) -> tuple[float, dict[str, Tensor]]:
    """Return mean loss and gradients in float64 with the formulas of softmax, some rows at a time."""
    x, w, b = (inputs[name].double() for name in "xwb")
    total, grads = 0.0, {"x": torch.empty_like(x), "w": torch.zeros_like(w), "b": torch.zeros_like(b)}
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        log_p = torch.log_softmax(x[part] @ w.t() + b, -1)
        total -= log_p.gather(1, targets[part, None]).sum().item()
        g = log_p.exp_().scatter_add_(1, targets[part, None], -log_p.new_ones(len(log_p), 1)).div_(len(x))
        grads["x"][part] = g @ w
        grads["w"].addmm_(g.t(), x[part])
        grads["b"] += g.sum(0)
    return total / len(x), grads


def head_trial(
    bench: Bench, inputs: Mapping[str, Tensor], targets: Tensor, want: tuple[float, dict], loss_of, dtype: torch.dtype
) -> Trial:
    leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in inputs.items()}
    scale = float(HEAD_LOSS_SCALE * len(targets))
    products = bench.complex32 if dtype == torch.float16 else dtype

    def call() -> Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        loss = loss_of(*leaves.values(), targets)
        (loss.float() * scale).backward()
        return loss

    def compared() -> list[Check]:
        loss = call().item()
        got = {name: leaf.grad.float() / scale for name, leaf in leaves.items()}
        return [check("loss", abs(loss - want[0]), products), *check_gradients(got, want[1], products)]

    eager = not hasattr(loss_of, "_torchdynamo_orig_callable")
    clear = [lambda leaf=leaf: setattr(leaf, "grad", None) for leaf in leaves.values()]
    measurable = bench.device.type == "cuda" or eager
    return Trial(call, compared, partial(extra_bytes, call, clear, bench.device) if measurable else None)


def extra_bytes(
    call: Callable, clear: list[Callable], device: torch.device
) -> tuple[int, Literal["measured", "estimate"]]:
    """Return the peak of a call above what was there before: the CUDA allocator's, else live tensors added up."""
    for forget in clear:
        forget()
    if device.type != "cuda":
        with LiveBytes() as live:
            call()
        return live.peak, "estimate"
    free(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, "measured"


def stack_race(bench: Bench) -> RaceResult:
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
    bench: Bench,
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
