"""Compiles every CUDA kernel of the package for a card that need not be there, and says what came of it.

    python compile_kernels.py 90      # compute capability 9.0

A driver that only names the card stands in the place of CUDA's, and each launch ends once its kernel is machine code,
for which Triton brings all that it takes. So the operators themselves, called with tensors on the CPU, say with which
types and constants: those of the catalog's models at full size, and what else decides about a branch of a kernel.

Prints JSON: `kernels`, the names of all that there are; `shared_bytes`, those of shared memory by launch; `failed`, the
message of each launch whose kernel did not compile.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import muse.ops
from muse.catalog import MODEL_NAMES
from muse.models import states
from muse.models.build import build_model, configured
from muse.models.memory_options import MemoryOptions
from muse.models.static_step import StaticStep
from muse.models.stepper import Stepper
from muse.ops import (
    cross_entropy_triton,
    exact_product_triton,
    gate_triton,
    green,
    linear_attention_triton,
    momentum_triton,
    norms_triton,
    operator,
    planar,
    qkv_triton,
)

DTYPES = torch.bfloat16, torch.float16, torch.float32
VOCABULARY, WIDTH = 50257, 512
BATCH, TOKENS = 2, 64
EPS = 1e-5


class Card:
    """What Triton asks of a driver until a kernel is compiled."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Launches:
    """What became of each launch, by its kernel, the types of what it was given, and its constants."""

    def __init__(self) -> None:
        self.shared_bytes: dict[str, int] = {}
        self.failed: dict[str, str] = {}

    def compiling(self, run: Callable) -> Callable:
        """What stands in the place of JITFunction.run."""

        def compiled(kernel: JITFunction, *arguments: object, grid: object, warmup: bool, **constants: object) -> None:
            types = (str(x.dtype).removeprefix("torch.") for x in arguments if isinstance(x, Tensor))
            launch = " ".join([kernel.__name__, *types, *(f"{key}={value}" for key, value in constants.items())])
            try:
                found = run(kernel, *arguments, grid=grid, warmup=True, **constants)
            except Exception as error:  # of Triton, of LLVM or of ptxas: all are wanted, not the first
                while error.__cause__:  # the last one says what is wrong, those before it who called
                    error = error.__cause__
                self.failed[launch] = f"{type(error).__name__}: {error}"
            else:
                assert found.asm["cubin"]
                self.shared_bytes[launch] = found.metadata.shared

        return compiled


def kernel_names() -> list[str]:
    modules = sorted(path.stem for path in Path(muse.ops.__file__).parent.glob("*_triton.py"))
    found = (vars(importlib.import_module(f"muse.ops.{name}")).values() for name in modules)
    functions = (x.__name__ for x in itertools.chain(*found) if isinstance(x, JITFunction))
    return sorted({name for name in functions if name.endswith("_kernel")})


def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=dtype.is_floating_point)


def there_and_back(function, *inputs: object, used: tuple[bool, ...] = (True, True, True)) -> None:
    """Calls a function, and the backward pass from those of its results that are `used`."""
    found = function(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    wanted = [x for x, wants in zip(found, used, strict=False) if wants]
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    torch.autograd.grad(wanted, leaves, [torch.zeros_like(x) for x in wanted], allow_unused=True)


def memories() -> Iterator[tuple[int, int, int]]:
    """Planes, heads and real channels X of a head, of every model with a memory of Stage 1 at full size."""
    for name in MODEL_NAMES:
        _, config = configured(name, vocab_size=VOCABULARY, d_model=WIDTH, n_layers=1, n_seq=1024)
        if isinstance(memory := getattr(config, "memory", None), MemoryOptions):
            heads = memory.heads(WIDTH)
            yield memory.planes, heads, memory.planes * WIDTH // heads


def products() -> None:
    for dtype, outputs in zip(DTYPES, (8, 8, exact_product_triton.MOST_OUTPUTS), strict=True):
        u, weight = room(BATCH, TOKENS, 2 * WIDTH, dtype=dtype), room(outputs, 2 * WIDTH)
        there_and_back(exact_product_triton.product, u, weight)


def norms() -> None:
    """Every set of switches in one dtype or another, and all of them for the widest token, which fills the most."""
    cases = [(*case, WIDTH) for case in itertools.product((False, True), ("alone", "both", "next"))]
    for dtype, (has_keep, read, channels) in zip(
        (*DTYPES, *DTYPES, torch.float32), [*cases, (True, "both", norms_triton.MOST_CHANNELS)], strict=True
    ):
        h, vectors = room(BATCH, TOKENS, 2 * channels, dtype=dtype), [room(channels) for _ in range(5)]
        keep = room(BATCH, TOKENS, channels) if has_keep else None
        there_and_back(norms_triton.complex_layer_norm, h, *vectors[:2], EPS, dtype)
        if read == "alone":
            there_and_back(norms_triton.residual_norm, h, h, keep, *vectors[:3], EPS, EPS)
            continue
        z = room(BATCH, TOKENS, 2 * channels)
        used = read == "both", True
        there_and_back(norms_triton.residual_norms, z, h, keep, *vectors, EPS, EPS, dtype, used=used)


def around_memories() -> None:
    """Every dtype with every number of planes, every set of switches in one of these or another."""
    shapes = sorted({planes: (heads, width) for planes, heads, width in memories()}.items())
    for dtype, (planes, (heads, width)), has_gate in zip(
        (*DTYPES, DTYPES[0]), shapes * 2, (True, True, False, False), strict=True
    ):
        channels = heads * width // planes
        y, gate = room(BATCH, heads, TOKENS, width, dtype=dtype), room(BATCH, TOKENS, channels, dtype=dtype)
        there_and_back(gate_triton.write, y, gate if has_gate else None, room(channels), planes, EPS, dtype)
        there_and_back(gate_triton.gated, room(BATCH, TOKENS, planes * channels, dtype=dtype), gate, planes)
    switches = [*itertools.product((False, True), ("none", "frequencies", "angle")), (True, "frequencies")]
    dtypes = *DTYPES, *DTYPES, torch.float16
    forms = [*shapes * 3, shapes[-1]]
    for dtype, (planes, (heads, width)), (has_taps, turn) in zip(dtypes, forms, switches, strict=True):
        seen, pairs = room(BATCH, TOKENS, 3 * heads * width, dtype=dtype), width // 2
        taps = room(3 * heads * width // planes, 4) if has_taps else None
        frequencies = room(heads, pairs) if turn == "frequencies" else None
        angle = room(BATCH, heads, TOKENS, pairs) if turn == "angle" else None
        there_and_back(qkv_triton.prepare, seen, taps, frequencies, angle, planes, heads)


def inside_memories() -> None:
    """The gradient of a wide complex head alone takes as long as most others together, so it has one dtype."""
    widths = {planes: width for planes, _, width in memories()}
    for width, complex_, dtype, precision in (
        (widths[2], True, torch.bfloat16, "highest"),
        (32, True, torch.float32, "highest"),
        (widths[1], False, torch.float32, "high"),
        (64, False, torch.float16, "highest"),  # of the model with real numbers only
    ):
        torch.set_float32_matmul_precision(precision)
        q, k, v = (room(BATCH, 2, TOKENS, width, dtype=dtype) for _ in range(3))
        for used in ((True, False), (True, True)):
            memory = linear_attention_triton.remembered
            there_and_back(memory, q, k, v, room(BATCH, 2, TOKENS), complex_, used=used)


def losses() -> None:
    """All logits of a token with the vocabulary's padding, and a block of them."""
    sizes = (VOCABULARY, -(-VOCABULARY // 64) * 64), (8192, 8192)
    for dtype, has_bias, (columns, width) in zip((*DTYPES, DTYPES[0]), (True, False) * 2, sizes * 2, strict=True):
        logits, targets = torch.zeros(BATCH, width, dtype=dtype), torch.zeros(BATCH, dtype=torch.long)
        bias, sums = torch.zeros(width, dtype=dtype) if has_bias else None, torch.zeros(BATCH)
        cross_entropy_triton.log_sum_(logits, bias, targets, 0, columns, sums, torch.zeros(BATCH))
        cross_entropy_triton.gradient_(logits, bias, targets, 0, columns, sums, -100, 256.0, summed=has_bias)


def chains() -> None:
    """The longest scans take minutes: these are as long as the models' texts."""
    for dtype, tokens in ((torch.float32, 1024), (torch.float64, TOKENS)):
        there_and_back(green.left_green, *(room(BATCH, tokens, 1, dtype=dtype) for _ in range(3)))


def muon() -> None:
    """The optimizer's own dtypes: float32 parameters, products in bfloat16; matrices of one plane and of two."""
    for planes, columns in ((1, WIDTH), (2, 704)):
        matrices, gradients = ([torch.zeros(64, columns) for _ in range(6 * planes)] for _ in range(2))
        ahead = torch.zeros(6, planes, 64, columns, dtype=torch.bfloat16)
        momentum_triton.look_ahead_(matrices, gradients, 0.95, ahead)
        momentum_triton.move_(matrices, ahead, torch.zeros(()), 1.5, 0.1)


def steps() -> None:
    """One token, for few and for many texts, of the models whose shapes differ, as they are stored on a card."""
    planar.set_cpu_compute("storage")
    names = "stage1_memory", "stage1_compact", "real_twin_compact", "stage1_compact_real_scores"
    for dtype, name, batch in zip((*DTYPES, DTYPES[0]), names, (1, 2, 1, 3), strict=True):
        model = build_model(name, vocab_size=1000, d_model=WIDTH, n_layers=1, n_seq=64).to(dtype).eval()
        token = torch.zeros(batch, 1, dtype=torch.int64)
        stepper = Stepper(model, states.read(model, token))
        assert stepper.kernels
        for temperature in (0.0, 1.0):
            StaticStep(stepper, token, temperature, None, None, [], capture=False)._step()


def main(capability: int) -> None:
    launches = Launches()
    triton.runtime.driver.set_active(Card(capability))
    operator.KERNEL_DEVICE = "cpu"
    with mock.patch.object(JITFunction, "run", launches.compiling(JITFunction.run)):
        for part in (products, norms, around_memories, inside_memories, losses, chains, muon, steps):
            part()
    print(json.dumps({"kernels": kernel_names(), "shared_bytes": launches.shared_bytes, "failed": launches.failed}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
