"""Compiled functions: each form of a function that many share has its own code, however many there are."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from muse.ops.compiling import compiled


def scaled(x, factor):
    return x * factor


@pytest.fixture
def forms(monkeypatch):
    """The graphs that a compiler gets, as the shapes of their inputs."""
    given, compile_ = [], torch.compile

    def keep(graph, inputs):
        given.append([tuple(x.shape) for x in inputs])
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_(function, backend=keep, **how))
    yield given
    torch.compiler.reset()


def test_the_ninth_form_is_compiled_like_the_first(forms):
    x = torch.ones(3)
    for factor in range(12):
        assert torch.equal(compiled(partial(scaled, factor=factor + 0.5))(x), x * (factor + 0.5))
    assert len(forms) == 12


def test_every_shape_has_a_code_of_its_own(forms):
    double = compiled(partial(scaled, factor=2.0))
    for length in (3, 4, 5, 4):
        assert torch.equal(double(torch.ones(length)), torch.full((length,), 2.0))
    assert forms == [[(3,)], [(4,)], [(5,)]]
