"""Cards by name, and how long one needs for a step that was counted without it.

A product runs at a share of the peak, everything else at a share of the bandwidth, every kernel takes a moment. Where a
compiler fuses pointwise operations, a share of their bytes and calls is left. Without one the host may be slower than
the card. The shares fit the two steps of one model, gpt2, in reports/bench-h100; docs/scale.md has the errors of all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .as_on_cuda import WORKSPACE_BYTES, Work

PRODUCT_SHARE = 0.6  # of the peak, by products of the sizes that models of this package have
COPY_SHARE = 0.8  # of the bandwidth; a large copy reaches 0.9
FUSED_SHARE = 0.3  # of pointwise operations that is left where they are fused
KERNEL_SECONDS = 7e-6  # of a kernel, whatever it does
HOST_SECONDS = 15e-6  # for the host to launch an operation of a step that is no CUDA graph
USABLE_SHARE = 0.92  # of a card's memory: the rest is the driver's, and lost between blocks of the allocator

GIB = 2**30
SMALL_WORKSPACE_BYTES = 13_107_200  # 8.125 MiB of cuBLAS where it is not Hopper's 32, and what the allocator adds


class Card(NamedTuple):
    """What a card's data sheet says, without sparsity; bytes are as its driver counts them, bandwidth in bytes/s."""

    name: str
    title: str  # of the data sheet
    bfloat16_flops: float
    float32_flops: float  # of products, which a training runs as TF32
    bandwidth: float
    memory_bytes: int
    workspace_bytes: int = SMALL_WORKSPACE_BYTES  # for each of the two threads that multiply


CARDS = {
    card.name: card
    for card in (
        Card("h100", "NVIDIA H100 SXM 80 GB", 989e12, 494e12, 3.35e12, int(79.2 * GIB), WORKSPACE_BYTES),
        Card("h200", "NVIDIA H200 SXM 141 GB", 989e12, 494e12, 4.8e12, int(139.8 * GIB), WORKSPACE_BYTES),
        Card("a100", "NVIDIA A100 SXM 80 GB", 312e12, 156e12, 2.039e12, int(79.2 * GIB)),
        Card("a100-40gb", "NVIDIA A100 SXM 40 GB", 312e12, 156e12, 1.555e12, int(39.4 * GIB)),
        Card("l40s", "NVIDIA L40S 48 GB", 362e12, 183e12, 0.864e12, int(44.4 * GIB)),
        Card("l4", "NVIDIA L4 24 GB", 121e12, 60e12, 0.3e12, int(22.2 * GIB)),
        Card("rtx4090", "NVIDIA GeForce RTX 4090 24 GB", 165e12, 82.6e12, 1.008e12, int(23.5 * GIB)),
    )
}


def seconds(work: Work, card: Card, compiled: bool) -> float:
    """Return how long a step takes on a card: compiled and one CUDA graph, or each operation by itself."""
    left = FUSED_SHARE if compiled else 1.0
    peaks = {torch.float32: card.float32_flops, torch.float64: card.float32_flops}
    products = sum(flops / peaks.get(dtype, card.bfloat16_flops) for dtype, flops in work.flops.items())
    moved = (left * work.pointwise_bytes + work.kernel_bytes) / card.bandwidth
    calls = left * work.pointwise_calls + work.other_calls
    device = products / PRODUCT_SHARE + moved / COPY_SHARE + calls * KERNEL_SECONDS
    return device if compiled else max(device, calls * HOST_SECONDS)
