"""Muon against the polar factor by SVD, its step against a step written plainly, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config, metrics

from muse.models.build import build_model
from muse.training import muon

SHAPES = [(5, 5), (3, 11), (13, 4), (1, 7)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planar(c: Tensor) -> Tensor:
    """(N R C), real or complex, as (N P R C)."""
    return torch.view_as_real(c).movedim(-1, 1) if c.is_complex() else c[:, None]


def complex_of(x: Tensor) -> Tensor:
    return torch.complex(*x.unbind(1)) if x.shape[1] == 2 else x[:, 0]


def by_svd(x: Tensor, quintic: bool) -> Tensor:
    """The polar factor, or what the quintic makes of the singular values: each is a number of its own."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    if quintic:
        a, b, c = muon.QUINTIC
        for _ in range(muon.STEPS):
            s = a * s + b * s**3 + c * s**5
    else:
        s = torch.ones_like(s)
    return u * s[..., None, :].to(u.dtype) @ vh


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("planes", [1, 2])
def test_the_polar_factor_is_that_of_an_svd(shape, planes):
    real, imag = draw(2, *shape), draw(2, *shape, seed=1)
    x = real if planes == 1 else torch.complex(real, imag)
    found = complex_of(muon.polar(planar(x)))
    assert torch.allclose(found, by_svd(x, quintic=True), atol=1e-6)
    assert torch.linalg.matrix_norm(found - by_svd(x, quintic=False), 2).max() < 0.33


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("shape", [(48, 96), (96, 48)])
def test_in_bfloat16_only_roundings_are_lost(shape, planes):
    """Beside the singular vectors there is what rounding brings, and the values are in the quintic's band."""
    x = draw(2, planes, *shape).bfloat16()
    u, _, vh = torch.linalg.svd(complex_of(x.double()), full_matrices=False)
    found = complex_of(muon.polar(x).double())
    values = (u.mH @ found @ vh.mH).diagonal(dim1=-2, dim2=-1).real
    assert (found - u * values[..., None, :] @ vh).norm() < 0.05 * found.norm()
    assert 0.65 < values.min() <= values.max() < 1.22


def test_what_is_compiled_between_products_is_one_kernel_and_the_same():
    x = draw(2, 2, 13, 4)
    torch.compiler.reset()
    metrics.reset()
    with config.patch(fx_graph_cache=False):  # of what was kept no kernel would be counted
        found = muon.polar(x, compiled=True)
    assert metrics.generated_kernel_count == 1
    assert torch.allclose(found, muon.polar(x), atol=1e-7)


def test_singular_values_down_to_a_300th_of_the_norm_are_brought_near_one():
    u, v = (torch.linalg.qr(draw(40, 40, seed=seed))[0] for seed in (2, 3))
    values = torch.logspace(0, -2.3, 40, dtype=torch.float64)
    found = torch.linalg.svdvals(muon.polar((u * values @ v)[None, None])[0, 0])
    assert 0.67 < found.min() <= found.max() < 1.22
    assert muon.polar(torch.zeros(1, 2, 3, 4)).eq(0).all()


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_two_steps_are_those_of_the_formula(shape, planes):
    lr, decay, mu = 0.02, 0.3, muon.MOMENTUM
    matrices = [tuple(nn.Parameter(draw(*shape, seed=10 * i + j)) for j in range(planes)) for i in range(3)]
    weights = [torch.cat([p.detach().clone() for p in matrix]) for matrix in matrices]
    optimizer = muon.Muon(matrices, torch.tensor(lr), weight_decay=decay, compute=torch.float64)
    kept = [torch.zeros_like(weight) for weight in weights]
    for step in range(2):
        for i, matrix in enumerate(matrices):
            g = draw(planes * shape[0], shape[1], seed=100 + 10 * step + i)
            for plane, part in zip(matrix, g.chunk(planes), strict=True):
                plane.grad = part.clone()
            kept[i] = mu * kept[i] + (1 - mu) * g
            ahead = ((1 - mu) * g + mu * kept[i]).unflatten(0, (planes, -1))
            moved = muon.polar(ahead[None])[0].flatten(0, 1) * math.sqrt(max(1, shape[0] / shape[1]))
            weights[i] = (1 - lr * decay) * weights[i] - lr * moved
        optimizer.step()
    for matrix, weight in zip(matrices, weights, strict=True):
        assert torch.allclose(torch.cat([*matrix]), weight, atol=1e-7)


@pytest.mark.parametrize("name", ["stage1", "stage1_memory", "real_twin", "phase2", "gpt2"])
def test_every_matrix_of_the_blocks_is_found_and_no_table_or_taps(name):
    model = build_model(name, vocab_size=50, d_model=16, n_layers=2, n_seq=32)
    blocks = getattr(model, "blocks", None) or model.gpt2.transformer.h
    found = [plane for matrix in muon.matrices_of(blocks) for plane in matrix]
    left = {n for n, p in blocks.named_parameters() if p.ndim > 1 and not any(p is plane for plane in found)}
    assert len({id(plane) for plane in found}) == len(found) > 0
    assert {n.split(".")[-1] for n in left} <= {"taps", "turn_bias"}


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ValueError, match="optimizer: muon steps matrices"):
        muon.Muon([], 0.1)
