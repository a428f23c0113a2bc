"""What every test of a benchmark starts with."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def imported():
    """What benchmarks import on their way, left out of the garbage collections that they ask for between paths."""
    import torch._dynamo  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    gc.collect()
    gc.freeze()
