"""What is raced: forward, training step, head with loss, complex stack, other models; each against its plain form.

Every group runs its paths on the same weights and tokens. "muse" paths are this package's, compiled, as a CUDA graph or
eager; "naive" is `muse.bench.naive`; peers are in `muse.bench.peers`. Vector parameters are stirred first, so that a
path which forgets a bias or a gain is found out. References are float64.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from muse.catalog import BASELINE, BENCH_GROUPS, REFERENCE, WITH_MEMORY, YARDSTICK
from muse.measure.common import Progress, passthrough
from muse.measure.memory import measure_memory
from muse.measure.throughput import (
    Ceiling,
    copy_ceiling,
    flops_per_token,
    forward_logits,
    matrix_ceiling,
    training_step,
)
from muse.ops import planar
from muse.records.schema import Metric

from .bench_layers import compiled, head_race, num_bytes, replayed, stack_race
from .gates import Check, check, check_gradients, check_rows, gradients, reference_gradients
from .naive import NaiveStage1, stir
from .race import RaceResult, Trial, one_line, race, release

Build = Callable[..., nn.Module]
OTHERS = (WITH_MEMORY, BASELINE, YARDSTICK)
FORWARD_BATCHES = {"cuda": (4, 64), "cpu": (4,)}
GATE_TOKENS = {"cpu": 256}  # float64 takes long there: the first tokens of the first and the last sequence
TRAINING_BATCHES = {"cuda": (16, 64), "cpu": (1,)}


@dataclass(frozen=True)
class BenchSizes:
    """How much is raced; empty batch sizes take those of the device."""

    vocab_size: int = 50257
    d_model: int = 512
    n_layers: int = 6
    n_seq: int = 1024
    n_tokens: int = 1024  # per sequence
    forward_batches: tuple[int, ...] = ()
    training_batches: tuple[int, ...] = ()
    head_tokens: int = 2048
    stack_batch: int = 2
    memory_batch: int = 2
    warmups: int = 10
    samples: int = 30
    seconds: float = 2.0  # timed calls of one path
    seed: int = 0
    groups: tuple[str, ...] = BENCH_GROUPS

    def for_device(self, device_type: str) -> BenchSizes:
        """Return the same with the batch sizes filled in."""
        forward = self.forward_batches or FORWARD_BATCHES.get(device_type, FORWARD_BATCHES["cpu"])
        training = self.training_batches or TRAINING_BATCHES.get(device_type, TRAINING_BATCHES["cpu"])
        return replace(self, forward_batches=forward, training_batches=training)


@dataclass(frozen=True)
class BenchResult:
    """Every race, the ceilings of the machine, and what has no race."""

    found: tuple[RaceResult | Metric, ...]  # in the order of the groups
    matrix: Ceiling
    copy: Ceiling
    seconds: float

    @property
    def races(self) -> tuple[RaceResult, ...]:
        return tuple(one for one in self.found if isinstance(one, RaceResult))

    def metrics(self) -> list[Metric]:
        """Return all of it, under names that start with `bench_`."""
        ceilings = [*self.matrix.metrics(), *self.copy.metrics()]
        found = [metric.model_copy(update={"name": f"bench_{metric.name}"}) for metric in ceilings]
        for one in self.found:
            found += [one] if isinstance(one, Metric) else one.metrics(self.matrix.value, self.copy.value)
        took = Metric(name="bench_seconds", value=self.seconds, unit="s", note="all of it, compiling included")
        return [*found, took]


def measure_bench(
    build: Build,
    sizes: BenchSizes,
    device: torch.device | str,
    *,
    progress: Progress = passthrough,
    on_group: Callable[[BenchResult], None] = lambda so_far: None,
) -> BenchResult:
    """Race every group of `sizes`; `build(name, use_complex32=...)` returns an untrained model on the device.

    `on_group` gets what there is after each group, so that an interruption loses one group.
    """
    start, device = time.perf_counter(), torch.device(device)
    sizes = sizes.for_device(device.type)
    half = planar.compute_dtype(torch.float16, device)
    ceilings = [matrix_ceiling(device, dtype) for dtype in dict.fromkeys((half, torch.float32))]
    result = BenchResult((), max(ceilings, key=lambda ceiling: ceiling.value), copy_ceiling(device), 0.0)
    bench = Bench(build, sizes, device, half, progress)
    for group in (group for group in BENCH_GROUPS if group in sizes.groups):
        found: list[RaceResult | Metric] = []
        try:
            found.extend(getattr(bench, group)())
        except Exception as error:  # a reference that does not fit, for instance; the other groups go on
            found.append(nothing(f"bench_{group}_speed", "token/s", f"failed: {one_line(error)}"))
        result = replace(result, found=(*result.found, *found), seconds=time.perf_counter() - start)
        on_group(result)
        release(device)
    return result


@dataclass
class Bench:
    """The groups, each a generator of results named after it."""

    build: Build
    sizes: BenchSizes
    device: torch.device
    half: torch.dtype  # of products of half-precision numbers on this device
    progress: Progress

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What training computes in: bfloat16, or None where this machine has no fast half precision."""
        return None if self.half == torch.float32 else torch.bfloat16

    @property
    def complex32(self) -> torch.dtype:
        """What decides how exact complex32 numbers can be: float16 where only their storage is in half precision."""
        return torch.float16 if self.half == torch.float32 else self.half

    def cast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Return normal random numbers, drawn on the host."""
        generator = torch.Generator().manual_seed(self.sizes.seed + seed)
        return torch.randn(shape, generator=generator)

    def tokens(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return random inputs and targets (B T)."""
        generator = torch.Generator().manual_seed(self.sizes.seed)
        ids = torch.randint(self.sizes.vocab_size, (batch, self.sizes.n_tokens + 1), generator=generator)
        ids = ids.to(self.device)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def race(self, group: str, candidates: Mapping[str, Callable[[], Trial]], **work) -> RaceResult:
        sizes = self.sizes
        work = {"baseline": "naive", "samples": sizes.samples, "limit_seconds": sizes.seconds} | work
        return race(group, candidates, device=self.device, warmups=sizes.warmups, progress=self.progress, **work)

    def forward(self):
        """Forward with logits written, the published protocol, in complex32."""
        model = stir(self.build(REFERENCE, use_complex32=True), self.sizes.seed).eval()
        flops = flops_per_token(model, self.sizes.n_tokens)
        for batch in self.sizes.forward_batches:
            ids, _ = self.tokens(batch)
            rows = sorted({0, batch - 1})
            with torch.no_grad():
                want = NaiveStage1(model, checks=False).double()(ids[rows, : GATE_TOKENS.get(self.device.type)])

            def trial(make, ids=ids, rows=rows, want=want, graph=False) -> Trial:
                call = forward_logits(make(), ids)
                call = replayed(call) if graph else call
                return Trial(call, partial(check_rows, call, rows, want, self.complex32))

            candidates = {"muse compiled": partial(trial, lambda: compiled(model, self.device))}
            if self.device.type == "cuda":
                candidates["muse graph"] = partial(trial, lambda: compiled(model, self.device), graph=True)
            candidates["muse eager"] = partial(trial, lambda: model)
            candidates["naive"] = partial(trial, lambda: NaiveStage1(model))
            least = num_bytes(*model.blocks.parameters(), *model.head_parameters())
            least += ids.numel() * (self.sizes.vocab_size + 2 * self.sizes.d_model) * 2
            yield self.race(f"forward_{batch}x{self.sizes.n_tokens}", candidates, tokens_per_call=ids.numel(),
                            flops_per_token=flops, least_bytes=least)  # fmt: skip
            del want

    def training(self):
        """Forward + backward + AdamW of the reference model: float32 masters, products in half precision."""
        master = stir(self.build(REFERENCE, use_complex32=False), self.sizes.seed)
        flops = 3 * flops_per_token(master, self.sizes.n_tokens)
        for batch in self.sizes.training_batches:
            ids, targets = self.tokens(batch)
            reference = NaiveStage1(master, checks=False).double()
            loss, grads = reference_gradients(reference, ids, targets)
            del reference

            def compare(got_loss: float, got: Mapping[str, Tensor], loss=loss, grads=grads) -> list[Check]:
                products = self.autocast_dtype or torch.float32
                return [check("loss", abs(got_loss - loss), products), *check_gradients(got, grads, products)]

            trial = partial(self.training_trial, ids=ids, targets=targets, compare=compare)
            candidates = {
                "muse compiled": partial(trial, lambda: copy.deepcopy(master), compile_loss=True),
                "muse eager": partial(trial, lambda: copy.deepcopy(master)),
                "naive": partial(trial, lambda: NaiveStage1(master)),
            }
            yield self.race(f"training_{batch}x{self.sizes.n_tokens}", candidates, tokens_per_call=ids.numel(),
                            flops_per_token=flops, least_bytes=optimizer_bytes(master))  # fmt: skip
            del grads

    def models(self):
        """Training of the other models against GPT-2, eager and compiled, at the smallest training batch; CUDA only."""
        if self.device.type != "cuda":
            yield nothing("bench_models_speed", "token/s", "missing: full-size models are trained in turn on CUDA only")
            return
        for mode in ("eager", "compiled"):
            yield self.race_models(mode, min(self.sizes.training_batches))

    def race_models(self, mode: str, batch: int) -> RaceResult:
        """Training steps of several models, all on the same tokens; FLOPs are each model's own."""
        ids, targets = self.tokens(batch)
        masters = {name: stir(self.build(name, use_complex32=False), self.sizes.seed) for name in OTHERS}
        candidates = {
            name: partial(self.training_trial, lambda master=master: master, ids=ids, targets=targets,
                          compare=partial(self.compare_with_float32, master, ids, targets),
                          compile_loss=mode == "compiled")
            for name, master in masters.items()
        }  # fmt: skip
        flops = {name: 3 * flops_per_token(master, self.sizes.n_tokens) for name, master in masters.items()}
        least = {name: optimizer_bytes(master) for name, master in masters.items()}
        return self.race(f"models_{mode}_{batch}x{self.sizes.n_tokens}", candidates, tokens_per_call=ids.numel(),
                        baseline=YARDSTICK, flops_per_token=flops, least_bytes=least)  # fmt: skip

    def training_trial(self, make, *, ids: Tensor, targets: Tensor, compare: Callable, compile_loss=False) -> Trial:
        """A training step, and its loss and gradients before the first one; both by the same loss function."""
        model, dtype = make().train(), self.autocast_dtype
        loss_of = compiled(model.loss, self.device) if compile_loss else model.loss
        graph = compile_loss and self.device.type == "cuda"
        call = training_step(model, ids, targets, autocast_dtype=dtype, loss=loss_of, replayed=graph)

        def compared() -> list[Check]:
            with self.cast(dtype):
                loss = loss_of(ids, targets)
            loss.backward()
            found = compare(loss.item(), gradients(model))
            model.zero_grad(set_to_none=True)
            return found

        return Trial(call, compared)

    def compare_with_float32(
        self, model: nn.Module, ids: Tensor, targets: Tensor, loss: float, grads: Mapping[str, Tensor | None]
    ) -> list[Check]:
        """Checks of a model that has no naive form: against itself, eager and in float32."""
        got = {name: grad.clone() for name, grad in grads.items() if grad is not None}
        want_loss, want = reference_gradients(model, ids, targets)
        dtype = self.autocast_dtype or torch.float32
        return [check("loss", abs(loss - want_loss), dtype), check_gradients(got, want, dtype)[0]]

    def head(self):
        """Head + cross entropy, forward and backward."""
        yield head_race(self)

    def stack(self):
        """The complex stack, forward and backward."""
        yield stack_race(self)

    def memory(self):
        """Peak of forward + backward of the reference model in complex32; without CUDA an estimate."""
        model = partial(self.build, REFERENCE, use_complex32=True)
        for name, make in {"muse eager": model, "naive": lambda: NaiveStage1(model())}.items():
            shape = {"batch_size": self.sizes.memory_batch, "n_seq": self.sizes.n_seq}
            found = measure_memory(make, **shape, device=self.device, seed=self.sizes.seed)
            note = f"forward + loss + backward, batch {found.batch_size} x {found.n_seq}; {found.note}"
            yield Metric(name="bench_peak_memory", model=name, value=found.peak_bytes, unit="byte", basis=found.basis,
                         note=note)  # fmt: skip


def nothing(name: str, unit: str, note: str) -> Metric:
    """Return a metric without a value, and why."""
    return Metric(name=name, value=None, unit=unit, n=0, reason=note, note=note)


def optimizer_bytes(model: nn.Module) -> int:
    """Return what AdamW must move: it reads weight, gradient and two moments, and writes all but the gradient."""
    return sum(7 * p.nbytes for p in model.parameters() if p.requires_grad)
