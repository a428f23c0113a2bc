"""Tokens per second of several code paths, sampled in turn so that a drift of the machine hits all of them alike.

Three protocols have a constructor here: forward with logits written, forward with loss and no logits, training step.
The ceilings say what the same device does at best: a large matrix product, and a copy.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from muse.ops import planar
from muse.ops.cuda_graph import Replayed, let_capture
from muse.records.schema import Metric

from .common import Progress, passthrough, training_mode

Path = Callable[[], object]
MATRIX_SIZES = {"cuda": (2048, 4096, 8192, 16384), "cpu": (512, 1024, 2048)}
COPY_BYTES = {"cuda": 2**31, "cpu": 2**27}
LEAST_SAMPLES = 2
ROW_SECONDS, LONGEST_ROW = 5e-3, 32  # of calls in a row on CUDA, which are one sample
WARMUP_SHARE = 0.25  # of the time limit of a path


@dataclass(frozen=True)
class ThroughputResult:
    """Seconds of every timed call of every path, and what they are to be compared with."""

    tokens_per_call: int
    seconds: dict[str, tuple[float, ...]]
    device: str
    flops_per_token: float | None = None  # forward
    matrix_flops_per_second: float | None = None

    def tokens_per_second(self, path: str) -> float:
        """Return the median of a path."""
        return self.tokens_per_call / statistics.median(self.seconds[path])

    def metrics(self, model_name: str) -> list[Metric]:
        """Return `throughput_<path>` for every path (interval: quartiles) and the share of the matrix ceiling."""
        found = []
        for path, seconds in self.seconds.items():
            samples = [self.tokens_per_call / s for s in seconds]
            low, high = np.percentile(samples, (25, 75)).tolist()
            found.append(
                Metric(name=f"throughput_{path}", model=model_name, value=self.tokens_per_second(path), unit="token/s",
                       n=len(samples), interval=(low, high), samples=samples,
                       note=f"median, interval = quartiles; {self.tokens_per_call} tokens per call on {self.device}")
            )  # fmt: skip
        if self.flops_per_token is not None:
            found.append(flops_metric(self.flops_per_token, model_name))
            if self.matrix_flops_per_second is not None:
                found.append(self._share(model_name))
        return found

    def _share(self, model_name: str) -> Metric:
        share_of_rate = self.flops_per_token / self.matrix_flops_per_second
        passes = {path: 3 if path == "training" else 1 for path in self.seconds}
        shares = {path: self.tokens_per_second(path) * share_of_rate * passes[path] for path in self.seconds}
        first = next(iter(shares))
        note = f"forward matrix FLOPs (training: three times) over the matrix ceiling; the value is of {first}"
        return Metric(name="ceiling_share", model=model_name, value=shares[first], unit="1", n=len(self.seconds[first]),
                      samples=list(shares.values()), labels=list(shares), note=note)  # fmt: skip


@dataclass(frozen=True)
class Ceiling:
    """What the device does at best."""

    name: str
    value: float
    unit: str
    samples: tuple[float, ...]
    labels: tuple[str, ...] = ()
    note: str = ""

    def metrics(self, model_name: str = "") -> list[Metric]:
        """Return the ceiling, with what each size reached as samples."""
        return [
            Metric(name=self.name, model=model_name, value=self.value, unit=self.unit, n=len(self.samples),
                   samples=list(self.samples), labels=list(self.labels), note=self.note)
        ]  # fmt: skip


def measure_throughput(
    paths: Mapping[str, Path],
    *,
    tokens_per_call: int,
    warmups: int = 10,
    samples: int = 30,
    device: torch.device | str,
    flops_per_token: float | None = None,
    matrix_flops_per_second: float | None = None,
    limit_seconds: float | None = None,
    progress: Progress = passthrough,
) -> ThroughputResult:
    """Time the paths in turn: every path `warmups` times, then `samples` rounds of one call each, in rotating order.

    On CUDA a sample is the mean of as many calls in a row as fill ROW_SECONDS: a host that stays ahead of the device
    hides what its launches cost, and one that does not is measured as it is.
    A path that has used up `limit_seconds` gets no more calls than LEAST_SAMPLES samples need. A call that takes longer
    than that all by itself counts as a sample even where it is a warm-up, but for the first one on CUDA: that compiles
    kernels for its shapes, and its time is nobody's.
    """
    if not paths or samples < 1 or warmups < 0:
        raise ValueError(f"needs a path, samples >= 1, warmups >= 0, got {list(paths)}, {samples}, {warmups}")
    device = torch.device(device)
    timers = [_Timer(path, device, math.inf if limit_seconds is None else limit_seconds) for path in paths.values()]
    for round_ in progress(range(warmups + samples), f"throughput, {', '.join(paths)}", warmups + samples):
        first = round_ % len(timers)
        for timer in timers[first:] + timers[:first]:
            if round_ < warmups:
                timer.warm_up(again=round_ >= 1)
            else:
                timer.sample()
    seconds = {name: tuple(timer.seconds) for name, timer in zip(paths, timers, strict=True)}
    return ThroughputResult(tokens_per_call, seconds, device_name(device), flops_per_token, matrix_flops_per_second)


class _Timer:
    """One path with the time that it has used and the samples that it has given."""

    def __init__(self, call: Path, device: torch.device, limit_seconds: float) -> None:
        self.call, self.device, self.limit_seconds = call, device, limit_seconds
        self.seconds: list[float] = []
        self.spent, self.row = 0.0, 1

    def warm_up(self, again: bool) -> None:
        if again and self.spent > self.limit_seconds * WARMUP_SHARE:
            return
        elapsed = self._time()
        self.row = calls_in_a_row(elapsed, self.device)
        if not again and self.device.type == "cuda":
            self.spent = 0.0
        elif elapsed > self.limit_seconds:
            self.seconds.append(elapsed)

    def sample(self) -> None:
        if len(self.seconds) < LEAST_SAMPLES or self.spent <= self.limit_seconds:
            self.seconds.append(self._time())

    def _time(self) -> float:
        elapsed = _seconds(self.call, self.device, self.row)
        self.spent += elapsed * self.row
        return elapsed


def device_name(device: torch.device) -> str:
    """Return the name of a CUDA device, or what another one is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def calls_in_a_row(seconds: float, device: torch.device) -> int:
    """Return how many calls of this duration make one sample."""
    return 1 if device.type != "cuda" else max(1, min(LONGEST_ROW, round(ROW_SECONDS / max(seconds, 1e-9))))


def _seconds(call: Path, device: torch.device, calls: int = 1) -> float:
    """Return the mean duration of some calls in a row: between CUDA events, or on the host's clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def forward_logits(model: nn.Module, token_ids: Tensor) -> Path:
    """Return the published protocol: a forward pass that writes all logits. Puts the model in evaluation mode."""
    model.eval()
    return torch.inference_mode()(lambda: model(token_ids))


def forward_loss(model: nn.Module, token_ids: Tensor, targets: Tensor) -> Path:
    """Return a forward pass to the mean loss without a logits tensor. Puts the model in evaluation mode."""
    model.eval()
    return torch.inference_mode()(lambda: model.loss(token_ids, targets))


def training_step(
    model: nn.Module,
    token_ids: Tensor,
    targets: Tensor,
    *,
    autocast_dtype: torch.dtype | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    replayed: bool = False,
) -> Path:
    """Return forward + backward + AdamW step on the model's own parameters, with gradients scaled for float16 autocast.

    Float32 products are those of a training. `loss` may be a compiled form of the model's own; `replayed` makes the
    step one CUDA graph, as `muse train` does with compiled losses. Puts the model in training mode: give a model with
    dropout to this path alone.
    """
    loss_of = loss or model.loss
    device_type = token_ids.device.type
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    scaler = torch.amp.GradScaler(device_type, enabled=autocast_dtype == torch.float16)

    def step(token_ids: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        cast = torch.autocast(device_type, autocast_dtype) if autocast_dtype else contextlib.nullcontext()
        optimizer.zero_grad(set_to_none=True)
        with planar.training_products(device_type):
            with cast:
                loss = loss_of(token_ids, targets)
            scaler.scale(loss).backward()
        let_capture(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return (loss.detach(),)

    update = Replayed(step) if replayed else step
    return lambda: update(token_ids, targets)


def matrix_ceiling(device: torch.device | str, dtype: torch.dtype, *, sizes: tuple[int, ...] = ()) -> Ceiling:
    """Return the FLOP/s of the fastest square matrix product, a multiply-add counting two."""
    device = torch.device(device)
    sizes = sizes or MATRIX_SIZES.get(device.type, MATRIX_SIZES["cpu"])
    rates = []
    for size in sizes:
        a, b, out = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))
        rates.append(2 * size**3 / _typical_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device))
    return Ceiling("matrix_ceiling", max(rates), "FLOP/s", tuple(rates), tuple(str(size) for size in sizes),
                   f"best square {str(dtype).removeprefix('torch.')} product")  # fmt: skip


def copy_ceiling(device: torch.device | str, *, num_bytes: int = 0) -> Ceiling:
    """Return the bytes per second of a large copy, reads and writes both counted."""
    device = torch.device(device)
    num_bytes = num_bytes or COPY_BYTES.get(device.type, COPY_BYTES["cpu"])
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = 2 * num_bytes / _typical_seconds(lambda: target.copy_(source), device)
    return Ceiling("copy_ceiling", rate, "byte/s", (rate,), (str(num_bytes),), "bytes read plus bytes written")


def _typical_seconds(call: Path, device: torch.device, *, warmups: int = 3, samples: int = 10) -> float:
    return statistics.median([_seconds(call, device) for _ in range(warmups + samples)][warmups:])


def flops_per_token(model: nn.Module, n_tokens: int | None = None) -> float:
    """Return the forward matrix FLOPs per token, logits included, counted on one sequence without data.

    A multiply-add counts two. `n_tokens` defaults to n_seq; it matters for mixers whose cost grows with the context.
    Padding that only some devices add is not counted.
    """
    n_tokens = n_tokens or model.config.n_seq
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True), training_mode(model, False), torch.no_grad():
        fakes = {name: torch.empty(t.shape, dtype=t.dtype, device="cpu") for name, t in tensors.items()}
        # Attention as plain products: the counter does not know every fused kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            functional_call(model, fakes, (torch.zeros((1, n_tokens), dtype=torch.int64),))
    return counter.get_total_flops() / n_tokens


def flops_metric(flops: float, model_name: str) -> Metric:
    """Return forward matrix FLOPs per token as a metric."""
    return Metric(name="flops_per_token", model=model_name, value=flops, unit="FLOP/token",
                  note="forward matrix products, multiply-add = 2, counted from the model's operations")  # fmt: skip
