"""The layout check passes the planar model and finds every deviation put into it."""

from __future__ import annotations

import re

import pytest
import torch
from measure_toys import Toy
from torch import nn

from muse.measure.layout import check_layout
from muse.models.build import build_model


def planar_model(use_complex32: bool = True) -> nn.Module:
    return build_model("stage1", vocab_size=31, d_model=8, n_layers=2, n_seq=16, use_complex32=use_complex32)


def block_linear(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name == "blocks.1.linear")


def test_the_half_precision_planar_model_is_clean():
    result = check_layout(planar_model())
    assert result.violations == ()
    assert result.bytes_per_complex == 4
    assert result.num_parameters == 4 + 2 + 2 * 9 - 2  # table 2, last norm 2; per block: 2 norms 4, linear 4, bias 1
    assert result.num_activations >= 2 * 4 * 2
    violations, size = result.metrics("stage1")
    assert (violations.name, violations.value, size.name, size.value) == (
        "layout_violations",
        0,
        "bytes_per_complex",
        4,
    )


def test_float32_is_found_in_activations_and_parameters():
    result = check_layout(planar_model(use_complex32=False))
    assert result.bytes_per_complex == 8
    assert len(result.violations) == result.num_activations + result.num_parameters
    assert "blocks.0.linear.weight_real: float32 is not half precision" in result.violations
    assert "output of blocks.0.linear: float32 is not half precision" in result.violations


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda z: torch.complex(*z.float().chunk(2, -1)), "complex64 keeps real and imaginary parts interleaved"),
        (lambda z: torch.stack(z.chunk(2, -1), -1), r"shape \(2, 8, 8, 2\) is not"),
        (lambda z: torch.stack([z, z], -1)[..., 0], "planes have stride 2"),
        (lambda z: z.float(), "float32 is not half precision"),
    ],
)
def test_an_activation_that_is_not_planar_is_found(change, problem):
    model = planar_model()
    names = {module: name for name, module in model.named_modules()}
    last = model.norm
    last.register_forward_hook(lambda _module, _inputs, z: change(z))
    model.features = lambda ids, inner=model.norm: inner(torch.zeros(*ids.shape, 16, dtype=torch.float16))
    result = check_layout(model)
    (violation,) = result.violations
    assert result.bytes_per_complex == (8 if "64" in problem or "float32" in problem else 4)
    assert violation.startswith(f"output of {names[last]}: ")
    assert re.search(problem, violation), violation


def test_an_embedding_that_interleaves_its_planes_is_found():
    model = planar_model()
    model.embedding.register_forward_hook(lambda _m, _i, z: torch.stack(z.chunk(2, -1), -1).flatten(-2))
    assert (
        "output of embedding: its halves are not the rows of the real and of the imaginary table"
        in check_layout(model).violations
    )


def test_interleaved_parameters_are_found():
    model = planar_model()
    linear = block_linear(model)
    pairs = torch.stack([linear.weight_real.data, linear.weight_imag.data], -1)
    linear.weight_real.data, linear.weight_imag.data = pairs[..., 0], pairs[..., 1]
    violations = check_layout(model).violations
    assert "blocks.1.linear.weight_real: strides (16, 2) are not contiguous" in violations
    assert "blocks.1.linear.weight_imag: strides (16, 2) are not contiguous" in violations
    assert "blocks.1.linear.weight_real: its memory overlaps that of the other plane" in violations


def test_complex_and_unpaired_parameters_are_found():
    model = planar_model()
    linear = block_linear(model)
    linear.extra = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    linear.lonely_real = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    violations = check_layout(model).violations
    assert len(violations) == 2
    assert "blocks.1.linear.extra: complex64 keeps real and imaginary parts interleaved" in violations
    assert "blocks.1.linear.lonely_real: no other plane of shape (3,)" in violations


def test_a_real_model_has_nothing_to_check():
    result = check_layout(Toy())
    assert [metric.value for metric in result.metrics("toy")] == [None, None]
    assert "no complex layers" in result.metrics("toy")[0].note
