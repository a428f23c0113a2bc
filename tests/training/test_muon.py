"""Muon against the polar factor by SVD, its step against a step written plainly, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from muse.models.build import build_model
from muse.training import muon

SHAPES = [(5, 5), (3, 11), (13, 4), (1, 7)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tall(c: Tensor) -> Tensor:
    return torch.cat([c.real, c.imag], dim=-2)


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
    found = muon.polar(x if planes == 1 else tall(x), planes)
    exact = by_svd(x, quintic=True)
    assert torch.allclose(found, exact if planes == 1 else tall(exact), atol=1e-6)
    factor = by_svd(x, quintic=False)
    off = found - (factor if planes == 1 else tall(factor))
    assert torch.linalg.matrix_norm(off if planes == 1 else torch.complex(*off.chunk(2, -2)), 2).max() < 0.33


def test_singular_values_down_to_a_300th_of_the_norm_are_brought_near_one():
    u, v = (torch.linalg.qr(draw(40, 40, seed=seed))[0] for seed in (2, 3))
    values = torch.logspace(0, -2.3, 40, dtype=torch.float64)
    found = torch.linalg.svdvals(muon.polar((u * values @ v)[None])[0])
    assert 0.67 < found.min() <= found.max() < 1.22
    assert muon.polar(torch.zeros(1, 3, 4)).eq(0).all()


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
            moved = muon.polar(((1 - mu) * g + mu * kept[i])[None], planes)[0] * math.sqrt(max(1, shape[0] / shape[1]))
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
