"""The naive reference computes what an independent complex128 version does, and so do other libraries."""

from __future__ import annotations

import importlib
import re

import pytest
import reference
import torch

from muse.bench.equality import gradients, worst_gradient
from muse.bench.libraries import STACKS, PathMissingError, build_library_stack
from muse.bench.naive import NaiveStack, NaiveStage1, PlanarStack, perturb
from muse.host.workbook import to_install
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model
from muse.ops import planar

SIZES = {"vocab_size": 37, "d_model": 10, "n_layers": 3, "n_seq": 11}


def stage1(**changes):
    return perturb(Phase3Stage1Model(Phase3Stage1Config(**SIZES | {"use_complex32": False} | changes)))


def batch(shape=(3, 7), vocab_size=37):
    ids = torch.randint(vocab_size, (shape[0], shape[1] + 1), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def test_naive_stage1_is_the_complex128_model():
    model = stage1().double()
    ids, targets = batch()
    logits = NaiveStage1(model)(ids)
    assert reference.rms_error(logits, reference.stage1_logits(model.state_dict(), ids, 3)) < 1e-12
    loss = NaiveStage1(model).loss(ids, targets)
    assert abs(loss - reference.cross_entropy(logits, targets).mean()) < 1e-12


def test_naive_gradients_are_those_of_the_model_in_float64():
    model = stage1().double()
    naive = NaiveStage1(model)
    for each in (model, naive):
        each.loss(*batch()).backward()
    assert gradients(naive).keys() == gradients(model).keys()
    assert worst_gradient(gradients(model), gradients(naive)) < 1e-10


def test_naive_keeps_weights_of_its_own_and_the_published_dtypes():
    model = stage1(use_complex32=True)
    naive = NaiveStage1(model)
    assert naive(batch()[0]).dtype == torch.float32
    assert {p.dtype for p in naive.parameters()} == {torch.float16}
    with torch.no_grad():
        model.head_bias += 1
    assert not torch.equal(naive.head_bias, model.head_bias)


def test_naive_looks_for_nan_after_each_layer():
    model = stage1()
    with torch.no_grad():
        model.blocks[1].linear.weight_imag[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        NaiveStage1(model)(batch()[0])
    assert NaiveStage1(model, checks=False)(batch()[0]).isnan().any()


def test_naive_is_the_model_without_a_memory():
    model = Phase3Stage1Model(Phase3Stage1Config(vocab_size=9, d_model=8, n_layers=1, n_seq=8, mixer="memory"))
    with pytest.raises(ValueError, match="mixer none"):
        NaiveStage1(model)


def test_perturbing_moves_every_vector_and_no_matrix():
    before, after = PlanarStack(6, 2), perturb(PlanarStack(6, 2))
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert bool((a != b).all()) if a.ndim == 1 else torch.equal(a, b), name


def stacks(channels=10, n_layers=3):
    stack = perturb(PlanarStack(channels, n_layers))
    generator = torch.Generator().manual_seed(2)
    z, g = (torch.randn(2, 5, 2 * channels, generator=generator) for _ in range(2))
    naive, leaf = NaiveStack(stack).double(), z.double().requires_grad_()
    out = naive(leaf)
    out.backward(g.double())
    return stack, z, g, out, {"z": leaf.grad, **gradients(naive)}


def test_planar_stack_is_the_naive_one():
    stack, z, g, want, grads = stacks()
    leaf = z.requires_grad_()
    out = stack(leaf)
    out.backward(g)
    assert reference.rms_error(out, want) < 1e-6
    assert worst_gradient({"z": leaf.grad, **gradients(stack)}, grads) < 1e-5


@pytest.mark.parametrize("name", STACKS)
def test_libraries_compute_the_same_function_and_gradients(name):
    stack, z, g, want, grads = stacks()
    try:
        other = build_library_stack(name, stack)
    except PathMissingError as error:
        pytest.skip(str(error))
    leaf = planar.to_complex(z).requires_grad_()
    out = other(leaf)
    out.backward(planar.to_complex(g))
    assert reference.rms_error(planar.from_complex(out), want) < 1e-6
    assert worst_gradient({"z": planar.from_complex(leaf.grad)} | other.gradients(), grads) < 1e-5


@pytest.mark.parametrize("name", ["complextorch", "complexPyTorch"])
def test_a_library_that_is_not_installed_says_how_to_get_it(name, monkeypatch):
    def refuse(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(PathMissingError, match=re.escape(f"not installed: {to_install('peers')} ({name}: ")):
        build_library_stack(name, PlanarStack(4, 1))


def test_an_unknown_library_is_an_error():
    with pytest.raises(ValueError, match="got 'numpy', expected one of complex64"):
        build_library_stack("numpy", PlanarStack(4, 1))
