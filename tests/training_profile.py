"""Where a training step spends its time on CUDA: `python tests/training_profile.py stage1_compact gpt2 --out FOLDER`.

Each model takes the step of `muse train`, compiled and as one graph, in bfloat16 autocast as it recomputes by default,
by AdamW and by Muon. The step is timed, then some steps are profiled: kernels by kind and by name. Each optimizer is
timed once more by itself, as a graph of its own, since its products look like the model's. FOLDER/NAME.json has a
model's numbers, times in microseconds a step. Without CUDA the step is neither compiled nor a graph, and operations of
the host stand in the place of kernels: to try this program itself. With --only-compile nothing is timed, which fills
the compiler's cache: models may be compiled side by side before they are timed one by one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from muse.catalog import COMPARED, OPTIMIZERS, recomputes
from muse.measure.throughput import flops_per_token
from muse.models.build import build_model
from muse.ops import planar
from muse.ops.cuda_graph import WARMUPS, Replayed, let_capture
from muse.training.recipe import Recipe
from muse.training.trainer import OptimizerStep

OPS = Path(__file__).resolve().parent.parent / "muse" / "ops"
PROFILED_STEPS, TOP = 3, 25
KERNEL = re.compile(r"@triton\.jit(?:\(.*\))?\s+def (\w+)")
KINDS = (
    ("attention of the library", r"flash|fmha|attention"),
    ("matrix products", r"gemm|cutlass|cublas|xmma|nvjet|wgmma|gemv|splitk|::mm|aten::(add|b)?mm"),
    ("optimizer, fused", r"multi_tensor|fused_adam|foreach"),
    ("copies and fills", r"memcpy|memset"),
    ("compiled reductions", r"^triton_(red|per|mix)"),
    ("compiled pointwise", r"^triton_"),
    ("reductions of the library", r"reduce_kernel|reduce"),
    ("pointwise of the library", r"elementwise|at::native|aten::"),
)
"""Kinds of kernels that are not the package's own, each by what its names hold; the first that fits counts."""


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        started = time.perf_counter()
        with planar.training_products(device.type):
            found = of_model(name, options, device)
        found["seconds"] = time.perf_counter() - started
        if options.only_compile:
            print(f"{name}: compiled in {found['seconds']:.0f} s", flush=True)
            continue
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        for optimizer in options.optimizers:
            _print(name, optimizer, found["by"][optimizer])


def of_model(name: str, options: argparse.Namespace, device: torch.device) -> dict:
    """Everything of one model: its operations a token, and its steps by each optimizer."""
    tokens = options.batch * options.tokens
    sizes = {"vocab_size": options.vocab, "d_model": options.width, "n_layers": options.layers}
    found = {"model": name, "tokens": tokens, "recompute": recomputes(name, None), "torch": torch.__version__, "by": {}}
    found |= sizes | {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    ids = torch.randint(options.vocab, (options.batch, options.tokens + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = (part.contiguous().to(device) for part in (ids[:, :-1], ids[:, 1:]))
    for optimizer in options.optimizers:
        model = build_model(name, **sizes, n_seq=options.tokens, use_complex32=False)
        model.recompute = found["recompute"]
        found["flops_per_token"] = flops_per_token(model)
        recipe = Recipe(train_tokens=10**9, batch_tokens=tokens, n_seq=options.tokens, learning_rate=1e-5,
                        optimizer=optimizer, muon_learning_rate=1e-5, precision="bfloat16",
                        compile=device.type == "cuda")  # fmt: skip
        update = OptimizerStep(model.to(device).train(), recipe, name)
        started = time.perf_counter()
        for step in range(WARMUPS + 1 if device.type == "cuda" else 1):
            update(inputs, targets, step)
        _synchronize(device)
        ready = time.perf_counter() - started
        if options.only_compile:
            continue
        timed = measured(partial(update, inputs, targets, 1), options, device)
        found["by"][optimizer] = {"ready_seconds": ready, **timed, "optimizers": alone(update, options, device)}
    return found


def measured(call: Callable[[], object], options: argparse.Namespace, device: torch.device) -> dict:
    """Median microseconds of a call, and its kernels by kind and by name."""
    times = []
    for _ in range(options.samples):
        _synchronize(device)
        started = time.perf_counter()
        for _ in range(options.row):
            call()
        _synchronize(device)
        times.append((time.perf_counter() - started) / options.row * 1e6)
    kernels = profiled(call, device)
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for kernel, (count, us) in kernels.items():
        kinds[kind_of(kernel)][0] += count
        kinds[kind_of(kernel)][1] += us
    wall, busy = statistics.median(times), sum(us for _, us in kernels.values())
    most = sorted(kernels.items(), key=lambda entry: -entry[1][1])
    return {
        "step_us": wall,
        "step_us_samples": times,
        "busy_us": busy,
        "idle_us": wall - busy,
        "launches": sum(count for count, _ in kernels.values()),
        "kinds": {kind: {"count": count, "us": us, "share": us / wall}
                  for kind, (count, us) in sorted(kinds.items(), key=lambda entry: -entry[1][1])},
        "kernels": [{"name": kernel[:160], "kind": kind_of(kernel), "count": count, "us": us}
                    for kernel, (count, us) in most[: options.top]],
    }  # fmt: skip


def profiled(call: Callable[[], object], device: torch.device) -> dict[str, tuple[float, float]]:
    """Launches and microseconds a call, by the kernel's name."""
    activity, on_cuda = torch.profiler.ProfilerActivity, device.type == "cuda"
    kinds = [activity.CPU, activity.CUDA] if on_cuda else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(PROFILED_STEPS):
            call()
        _synchronize(device)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    wanted = torch.autograd.DeviceType.CUDA if on_cuda else torch.autograd.DeviceType.CPU
    for event in profile.events():
        if event.device_type == wanted and not getattr(event, "is_user_annotation", False):
            us = event.time_range.elapsed_us() if on_cuda else event.self_cpu_time_total
            found[event.name][0] += 1 / PROFILED_STEPS
            found[event.name][1] += us / PROFILED_STEPS
    return {name: (round(count, 2), us) for name, (count, us) in found.items()}


def alone(update: OptimizerStep, options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """Each optimizer of a step by itself, on gradients that stay as they are."""
    for parameter in update.parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)

    def stepping(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        def step() -> tuple[torch.Tensor, ...]:
            let_capture(optimizer)
            optimizer.step()
            return (update.learning_rate,)

        return Replayed(step) if device.type == "cuda" else step

    found = {}
    for optimizer in update.optimizers:
        call = stepping(optimizer)
        for _ in range(WARMUPS + 1 if device.type == "cuda" else 1):
            call()
        found[type(optimizer).__name__] = measured(call, options, device)
    return found


def kind_of(kernel: str) -> str:
    """The kind of a kernel: the module of the package that it is of, or the first of KINDS that its name fits."""
    if kernel in OWN:
        return OWN[kernel]
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel, re.IGNORECASE)), "other")


def _own() -> dict[str, str]:
    """The package's own kernels, each with the file that it stands in."""
    files = sorted(OPS.glob("*_triton.py"))
    return {name: f"muse {path.stem}" for path in files for name in KERNEL.findall(path.read_text(encoding="utf-8"))}


OWN = _own()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _print(name: str, optimizer: str, found: dict) -> None:
    parts = [f"{kind} {entry['share']:.1%}" for kind, entry in found["kinds"].items()]
    own = [f"{name} {entry['step_us'] / found['step_us']:.1%}" for name, entry in found["optimizers"].items()]
    print(f"\n{name}, {optimizer}: {found['step_us'] / 1e3:.2f} ms a step, ready after {found['ready_seconds']:.0f} s, "
          f"{found['launches']:.0f} launches, idle {found['idle_us'] / found['step_us']:.1%}; {', '.join(parts)}; "
          f"alone: {', '.join(own)}", flush=True)  # fmt: skip
    for kernel in found["kernels"][:12]:
        print(f"  {kernel['us']:9.1f} us {kernel['count']:7.1f} x  {kernel['kind']:24}  {kernel['name'][:90]}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", choices=COMPARED)
    parser.add_argument("--out", type=Path, default=Path("reports", "profile"))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--samples", type=int, default=7, help="timed rows of steps, whose median is told")
    parser.add_argument("--row", type=int, default=5, help="steps in a row")
    parser.add_argument("--top", type=int, default=TOP, help="kernels that are told of each step")
    parser.add_argument("--only-compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
