"""How long a card needs for a step that was counted without it.

A product runs at a share of the peak, everything else at a share of the bandwidth, every kernel takes a moment. Where a
compiler fuses pointwise operations, a share of their bytes and calls is left. Without one the host may be slower than
the card. The shares fit the two steps of one model, gpt2, in reports/bench-h100; docs/scale.md has the errors of all.
"""

from __future__ import annotations

import torch

from muse.catalog import Card

from .as_on_cuda import Work

PRODUCT_SHARE = 0.6  # of the peak, by products of the sizes that models of this package have
COPY_SHARE = 0.8  # of the bandwidth; a large copy reaches 0.9
FUSED_SHARE = 0.3  # of pointwise operations that is left where they are fused
KERNEL_SECONDS = 7e-6  # of a kernel, whatever it does
LINK_SHARE = 0.3  # of the bandwidth between cards, by one message; of two H200 at 16,384 tokens a step (reports/cards)
HOST_SECONDS = 15e-6  # for the host to launch an operation of a step that is no CUDA graph
USABLE_SHARE = 0.92  # of a card's memory: the rest is the driver's, and lost between blocks of the allocator


def seconds(work: Work, card: Card, compiled: bool) -> float:
    """Return how long a step takes on a card: compiled and one CUDA graph, or each operation by itself."""
    left = FUSED_SHARE if compiled else 1.0
    peaks = {torch.float32: card.float32_flops, torch.float64: card.float32_flops}
    products = sum(flops / peaks.get(dtype, card.bfloat16_flops) for dtype, flops in work.flops.items())
    moved = (left * work.pointwise_bytes + work.kernel_bytes) / card.bandwidth
    calls = left * work.pointwise_calls + work.other_calls
    device = products / PRODUCT_SHARE + moved / COPY_SHARE + calls * KERNEL_SECONDS
    return device if compiled else max(device, calls * HOST_SECONDS)


def message_seconds(num_bytes: int, card: Card, cards: int) -> float:
    """Return how long cards of one machine need to sum so many bytes of each, along a ring."""
    return 2 * (cards - 1) / cards * num_bytes / card.link_bandwidth / LINK_SHARE
