"""Head with cross entropy, forward and backward: this package against plain forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.ops.cross_entropy import head_loss

from .context import Context
from .equality import Check, check, check_gradients
from .libraries import PathMissingError
from .paths import cuda_graph, extra_bytes, num_bytes
from .timing import GroupResult, Trial

HEAD_WEIGHT_STD = 0.05  # logits with a standard deviation near 1: some tokens are likelier than others
HEAD_LOSS_SCALE = 16  # times the number of tokens: keeps float16 gradients of a mean loss above their smallest number


def head(bench: Context) -> Iterator[GroupResult]:
    """Compare mean cross entropies of (N D) features with all gradients; all dtypes get the same numbers."""
    n, vocab, d = bench.settings.bench_head_tokens, bench.settings.vocab_size, bench.settings.d_model
    drawn = bench.draw(n, d), bench.draw(vocab, d, seed=1) * HEAD_WEIGHT_STD, bench.draw(vocab, seed=2) * 0.1
    # Rounded to both half precisions, so that no path starts from other numbers than the reference.
    inputs = {name: t.bfloat16().half().float().to(bench.device) for name, t in zip("xwb", drawn, strict=True)}
    targets = bench.tokens(n)
    trial = partial(head_trial, bench, inputs, targets, head_reference(inputs, targets))
    paths = {"muse graph": lambda: trial(head_loss, torch.float16, graph=True)} if bench.device.type == "cuda" else {}
    paths |= {
        "muse eager": lambda: trial(head_loss, torch.float16),
        "naive": lambda: trial(naive_head, torch.bfloat16),
        "naive float32": lambda: trial(naive_head, torch.float32),
        "torch": lambda: trial(native_head(None), torch.bfloat16),
        "torch chunked": lambda: trial(native_head("LinearCrossEntropyOptions"), torch.bfloat16),
    }
    least = num_bytes(*inputs.values())  # as halves: read once, gradients written once
    yield bench.compare(f"head_{n}", paths, tokens_per_call=n, flops_per_token=6 * vocab * d, least_bytes=least)


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
    bench: Context,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    want: tuple[float, dict],
    loss_of: Callable,
    dtype: torch.dtype,
    *,
    graph: bool = False,
) -> Trial:
    """Forward and backward of one form of the loss, as one CUDA graph if asked, and its gradients against `want`."""
    leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in inputs.items()}
    scale = float(HEAD_LOSS_SCALE * len(targets))
    products = bench.complex32 if dtype == torch.float16 else dtype

    def call() -> Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        loss = loss_of(*leaves.values(), targets)
        (loss.float() * scale).backward()
        return loss

    memory = partial(extra_bytes, call, [*leaves.values()], bench.device)
    if graph:
        call = cuda_graph(call)

    def compared() -> list[Check]:
        loss = call().item()
        got = {name: leaf.grad.float() / scale for name, leaf in leaves.items()}
        return [check("loss", abs(loss - want[0]), products), *check_gradients(got, want[1], products)]

    return Trial(call, compared, memory)
