"""How fast models write: `python tests/generation_seconds.py --prompts 1024 8192 32768 --batches 1 64`.

The paths of the group `generation` of `muse bench`, each checked before it is timed, at sizes of one's own; the table
comes last, with ratios to GPT-2's growing and static caches, the bytes that a step must read and the kernels that it
launches. Without CUDA, or with --rehearse, steps run without graphs and compiler, to try this program itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from muse.bench import generation
from muse.bench.context import Context
from muse.bench.timing import GroupResult
from muse.catalog import YARDSTICK
from muse.measure.common import passthrough
from muse.models.build import build_model
from muse.ops import planar
from muse.params import Settings

STATIC = f"{YARDSTICK} static cache, one graph"
COLUMNS = ("prompt", "batch", "path", "tokens/s", "x growing", "x static", "MB a step", "kernels", "what was found")


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() and not options.rehearse else "cpu")
    sizes = {"vocab_size": options.vocab, "d_model": options.width, "n_layers": options.layers}
    sizes["n_seq"] = max(options.prompts) + generation.NEW_TOKENS
    timing = {"throughput_samples": options.samples, "throughput_warmups": 2, "bench_seconds": options.seconds}
    settings = Settings(**sizes, **timing)

    def build(name: str, use_complex32: bool) -> torch.nn.Module:
        return build_model(name, **sizes, use_complex32=use_complex32).to(device)

    generation.PROMPTS[device.type], generation.BATCHES[device.type] = options.prompts, options.batches
    kernels: dict[tuple[str, int, int], int] = {}
    plain = generation.paths_of

    def counted(built: dict[str, torch.nn.Module], graphs: bool) -> dict:
        return {name: (model, partial(starting, name, start)) for name, (model, start) in plain(built, True).items()}

    def starting(name: str, start: Callable, model: torch.nn.Module, prompt: torch.Tensor) -> generation.Writes:
        writes = start(model, prompt)
        kernels[name, *prompt.shape] = launches(writes, prompt[:, -1:])
        return writes

    generation.paths_of = counted
    if device.type == "cpu":
        generation.compiled = lambda function, device: function
    half = planar.compute_dtype(torch.float16, device)
    bench = Context(build, settings, device, half, passthrough, lambda: None)
    results = []
    for result in generation.generation(bench):
        results.append(result)
        found = (f"{path.name} {path.status} {path.note}".strip() for path in result.paths)
        print(f"{result.group}: {'; '.join(found)}", flush=True)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU, rehearsed"
    print(f"\n{where}, torch {torch.__version__}, {sizes}")
    _print([COLUMNS, *(row for result in results for row in _rows(result, kernels))])


def launches(writes: generation.Writes, token: torch.Tensor) -> int:
    """The kernels of one token, by the profiler; 0 where there is no CUDA."""
    if not token.is_cuda:
        return 0
    if isinstance(writes, generation.ByReader):
        call = partial(writes.again(), token)
    else:
        writes.restart(token)
        call = writes.step._step
    call()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def _rows(result: GroupResult, kernels: dict) -> list[tuple[str, ...]]:
    size, _, prompt = result.group.removeprefix("generation_").rpartition("x")
    batch = int(size or 1)
    speed = {p.name: result.tokens_per_call / statistics.median(p.seconds) for p in result.paths if p.seconds}
    new, rows = result.tokens_per_call // batch, []
    for path in result.paths:
        own, found = speed.get(path.name), "; ".join([path.status, path.note, *map(str, path.checks)])
        count = kernels.get((path.name, batch, int(prompt)), 0)
        ratios = [f"{own / speed[name]:.2f}" if own and name in speed else "-" for name in (YARDSTICK, STATIC)]
        shown = f"{own:,.0f}" if own else "-"
        size_mb = f"{result.least_bytes[path.name] / new / 1e6:,.1f}"
        rows.append((prompt, str(batch), path.name, shown, *ratios, size_mb, str(count), found))
    return rows


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        cells = [row[i].ljust(widths[i]) if i in (2, 8) else row[i].rjust(widths[i]) for i in range(len(COLUMNS))]
        print("  ".join(cells).rstrip())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the timing of a group")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--rehearse", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
