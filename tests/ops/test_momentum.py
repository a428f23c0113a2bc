"""Momentum in and weights out: kernels against the passes over lists, which the tests of Muon hold to its formula."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, INTERPRETED, interpret, needs_kernels
from reference import rms_error

from muse.ops import momentum
from muse.ops.operator import plain_forms

kernels = momentum.momentum_triton
needs_kernels = needs_kernels(kernels)
COUNT, ROWS, COLUMNS = 3, 13, 24
MU, LR, FACTOR, DECAY = 0.95, 0.02, 1.7, 0.3


@pytest.fixture(autouse=True)
def kernels_serve(monkeypatch):
    """As on CUDA with the interpreter, too: a matrix still takes several programs, of which the last is not full."""
    if INTERPRETED:
        monkeypatch.setattr(kernels, "BLOCK", 128)
        interpret(monkeypatch)


def drawn(planes: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, COLUMNS, generator=generator).to(DEVICE) for _ in range(COUNT * planes)]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("planes", [1, 2])
def test_momentum_and_what_is_multiplied_are_those_of_the_passes_over_lists(planes, dtype):
    """A gradient that lies otherwise in memory than its weight is taken as it is."""
    gradients = drawn(planes, 1)
    gradients[1] = gradients[1].t().contiguous().t()
    ours, plain = drawn(planes, 0), drawn(planes, 0)
    with plain_forms():
        want = momentum.look_ahead_(plain, gradients, MU, dtype, planes)
    got = momentum.look_ahead_(ours, gradients, MU, dtype, planes)
    assert (got.dtype, got.shape) == (dtype, (COUNT, planes, ROWS, COLUMNS))
    assert rms_error(got, want.double()) < (1e-6 if dtype == torch.float32 else 5e-3)  # the interpreter rounds to zero
    assert all(rms_error(a, b.double()) < 1e-6 for a, b in zip(ours, plain, strict=True))


@needs_kernels
@pytest.mark.parametrize("lr", [LR, "tensor"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)], ids=["planes", "rows", "columns"])
@pytest.mark.parametrize("planes", [1, 2])
def test_weights_move_as_by_the_passes_over_lists_however_directions_lie_in_memory(planes, order, lr):
    lr = torch.tensor(LR, device=DEVICE) if lr == "tensor" else lr
    directions = torch.stack(drawn(planes, 1)).view(planes, COUNT, ROWS, COLUMNS).transpose(0, 1).bfloat16()
    back = [order.index(dim) for dim in range(4)]
    lying = directions.permute(order).contiguous().permute(back)
    ours, plain = drawn(planes, 0), drawn(planes, 0)
    with plain_forms():
        momentum.move_(plain, directions, lr, FACTOR, DECAY)
    momentum.move_(ours, lying, lr, FACTOR, DECAY)
    assert all(rms_error(a, b.double()) < 1e-6 for a, b in zip(ours, plain, strict=True))
    assert not torch.equal(ours[0], drawn(planes, 0)[0])
