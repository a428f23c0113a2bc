"""The kernels of the product in float32 against float64, with both gradients."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, INTERPRETED, interpret, needs_kernels
from reference import rms_error

from muse.ops import exact_product as exact

kernels = exact.exact_product_triton
needs_kernels = needs_kernels(kernels)
ROWS, CHANNELS = (7, 20) if INTERPRETED else (131, 1000)


@pytest.fixture(autouse=True)
def kernels_serve(monkeypatch):
    """As on CUDA with the interpreter, too: rows and channels still make several programs and tiles."""
    if INTERPRETED:
        for name, value in {"ROWS": 16, "COLUMN_BYTES": 64, "TILES": 2}.items():
            monkeypatch.setattr(kernels, name, value)
        interpret(monkeypatch)


def drawn(outputs, dtype):
    generator = torch.Generator().manual_seed(outputs)
    shapes = (9, ROWS, CHANNELS), (outputs, CHANNELS), (9, ROWS, outputs)
    u, weight, grad = (torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE) for s in shapes)
    return u.to(dtype), weight.float(), grad.float()


def results(call, u, weight, grad):
    leaves = u.detach().requires_grad_(), weight.detach().requires_grad_()
    out = call(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("outputs", [1, 8, 17])
def test_results_are_those_in_float64_whatever_autocast_says(outputs, dtype):
    """u comes and its gradient goes in its own dtype; nothing else is rounded to it."""
    given = drawn(outputs, dtype)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = results(exact.exact_product, *given)
    want = results(exact.exact_product, *(x.double() for x in given))
    assert [x.dtype for x in got] == [torch.float32, dtype, torch.float32]
    eps = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    for value, expected, bound in zip(got, want, (2e-6, eps, 2e-6), strict=True):
        assert value.shape == expected.shape
        assert rms_error(value, expected) < bound


@needs_kernels
def test_weights_in_half_precision_and_inputs_without_rows_are_taken_too(monkeypatch):
    """So are inputs that are not contiguous; what has many outputs goes by a library's product."""
    u, weight, grad = drawn(8, torch.float16)
    narrow = results(exact.exact_product, u.transpose(0, 1), weight.half(), grad.transpose(0, 1))
    want = results(exact.exact_product, *(x.double() for x in (u.transpose(0, 1), weight.half(), grad.transpose(0, 1))))
    assert [x.dtype for x in narrow] == [torch.float32, torch.float16, torch.float16]
    assert all(rms_error(a, b) < 1e-3 for a, b in zip(narrow, want, strict=True))
    nothing = results(exact.exact_product, u[:0], weight, grad[:0])
    assert [x.shape for x in nothing] == [(0, ROWS, 8), (0, ROWS, CHANNELS), (8, CHANNELS)]
    assert not nothing[2].any()
    monkeypatch.setattr(kernels, "product", None)
    wide = drawn(kernels.MOST_OUTPUTS + 1, torch.float32)
    assert exact.exact_product(*wide[:2]).shape == wide[2].shape
