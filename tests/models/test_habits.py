"""What people do with any module of PyTorch, done with every model."""

from __future__ import annotations

import math

import pytest
import torch

from muse.catalog import COMPARED
from muse.models.build import build_model

SIZES = {"vocab_size": 11, "d_model": 16, "n_layers": 1, "n_seq": 8}
EMPTY = torch.zeros(0, 4, dtype=torch.long)


@pytest.mark.parametrize("name", COMPARED)
def test_a_model_on_the_meta_device_has_shapes_and_loads_values(name):
    with torch.device("meta"):
        shaped = build_model(name, **SIZES)
    assert all(tensor.is_meta for tensor in shaped.state_dict().values())
    model = build_model(name, **SIZES, seed=5).eval()
    loaded = shaped.to_empty(device="cpu").eval()
    loaded.load_state_dict(model.state_dict())
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("name", [name for name in COMPARED if name != "gpt2"])
def test_a_batch_of_no_texts_counts_nothing(name):
    model = build_model(name, **SIZES)
    assert model(EMPTY).shape == (0, 4, 11)
    assert model.loss(EMPTY, EMPTY, reduction="none").shape == (0, 4)
    assert math.isnan(model.loss(EMPTY, EMPTY).item())  # as of torch.nn.functional.cross_entropy
    loss = model.loss(EMPTY, EMPTY, reduction="sum")
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_the_library_of_gpt2_takes_no_empty_batch():
    with pytest.raises(ValueError, match=r"GPT-2 needs at least one text, got a batch of shape \(0, 4\)"):
        build_model("gpt2", **SIZES)(EMPTY)


@pytest.mark.parametrize("name", COMPARED)
def test_half_precision_works_on_a_cpu(name):
    ids = torch.tensor([[1, 2, 3]])
    logits = build_model(name, **SIZES).half()(ids)
    assert logits.dtype == torch.float16
    assert logits.isfinite().all()
