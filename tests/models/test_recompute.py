"""Blocks that keep only their input for the backward pass: less memory, and nothing else changes, in any model."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from muse.measure.memory import count, measure_memory
from muse.models.build import build_model
from muse.models.layers import run_blocks
from muse.models.memory_block import MemoryBlock
from muse.models.phase2 import Phase2Block

MODELS = ("stage1", "stage1_memory", "phase2", "gpt2", "real_twin")
SIZES = {"vocab_size": 31, "d_model": 16, "n_layers": 3, "n_seq": 24}
IDS = torch.randint(31, (2, 25), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: nn.Module, loss=None) -> dict[str, Tensor]:
    """The loss, every gradient and the random state after one pass; dropout draws from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        found = (loss or model.loss)(IDS[:, :-1], IDS[:, 1:])
        found.backward()
        left = torch.get_rng_state()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    return {name: p.grad for name, p in trained.items()} | {"loss": found.detach(), "random state": left}


def calls_of_blocks(model: nn.Module) -> list[int]:
    """How often each block has computed, counted from now on."""
    blocks = model.gpt2.transformer.h if hasattr(model, "gpt2") else model.blocks
    calls = [0] * len(blocks)

    def count(index: int, forward):
        def counted(*arguments, **named):
            calls[index] += 1
            return forward(*arguments, **named)

        return counted

    for i, block in enumerate(blocks):
        # What is computed again lies below the forward of a block that has halves, and of the library's.
        part = next((getattr(block, name) for name in ("ln_1", "feed_norm") if hasattr(block, name)), block)
        part.forward = count(i, part.forward)
    return calls


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_same_bit_for_bit(name, dropout):
    kept = build_model(name, **SIZES, dropout=dropout, seed=2).train()
    again = copy.deepcopy(kept)
    again.recompute = True
    want, got = loss_and_gradients(kept), loss_and_gradients(again)
    assert want.keys() == got.keys()
    assert [key for key in want if not torch.equal(want[key], got[key])] == []
    if dropout:
        still = build_model(name, **SIZES, dropout=0.0, seed=2).train()
        assert not torch.equal(loss_and_gradients(still)["loss"], want["loss"]), "the masks have to matter"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_autocast_is_the_same_when_blocks_compute_again(name, dtype):
    kept = build_model(name, **SIZES, dropout=0.1, seed=2).train()
    again = copy.deepcopy(kept)
    again.recompute = True

    def loss_of(model: nn.Module):
        def loss(ids: Tensor, targets: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype):
                return model.loss(ids, targets)

        return loss

    want, got = (loss_and_gradients(model, loss_of(model)) for model in (kept, again))
    assert [key for key in want if not torch.equal(want[key], got[key])] == []


@pytest.mark.parametrize("name", MODELS)
def test_blocks_compute_twice_in_training_and_once_elsewhere(name):
    model = build_model(name, **SIZES)
    assert model.recompute is False
    model.recompute = True
    assert copy.deepcopy(model).recompute is True
    calls = calls_of_blocks(model)
    loss_and_gradients(model.train())
    assert calls == [2, 2, 2]
    with torch.no_grad():
        model.loss(IDS[:, :-1], IDS[:, 1:])
    assert calls == [3, 3, 3]
    loss_and_gradients(model.eval())
    assert calls == [4, 4, 4]
    with torch.inference_mode():
        model(IDS[:, :-1])
    model.recompute = False
    loss_and_gradients(model.train())
    assert calls == [6, 6, 6]


def test_only_the_input_of_a_block_is_kept():
    """Storages that autograd holds between the passes: three inputs and the last output, nothing from within."""
    blocks = [nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(3)]
    z = torch.randn(4, 8, requires_grad=True)
    kept: dict[bool, list[tuple[int, ...]]] = {}
    for recompute in (False, True):
        kept[recompute] = found = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, found=found: found.append(tuple(t.shape)) or t,
                                                      lambda t: t):  # fmt: skip
            run_blocks(blocks, z, recompute).sum().backward()
    assert (4, 64) in kept[False]
    assert (4, 64) not in kept[True][: len(kept[True]) - len(kept[False])]


@pytest.mark.parametrize("name", MODELS)
def test_the_estimated_peak_is_lower(name):
    def build(recompute: bool) -> nn.Module:
        model = build_model(name, vocab_size=31, d_model=64, n_layers=4, n_seq=128, use_complex32=True)
        model.recompute = recompute
        return model

    kept, again = (measure_memory(partial(build, on), n_seq=128, device="cpu") for on in (False, True))
    assert (kept.recompute, again.recompute) == (False, True)
    assert again.peak_bytes - again.held_bytes < 0.7 * (kept.peak_bytes - kept.held_bytes)
    assert again.held_bytes == kept.held_bytes
    assert "recomputes the blocks" in again.metrics(name)[0].note
    assert "recomputes" not in kept.metrics(name)[0].note


@pytest.mark.parametrize("name", ["phase2", "real_twin", "stage1_memory"])
def test_halves_of_blocks_hold_less_at_once_than_whole_ones(name, monkeypatch):
    def peak() -> int:
        model = build_model(name, vocab_size=31, d_model=64, n_layers=2, n_seq=128, use_complex32=True)
        model.recompute = True
        found = count(model, 2, 128, workspace_bytes=0)
        return found.peak_bytes - found.held_bytes

    by_halves = peak()
    for block in (MemoryBlock, Phase2Block):
        monkeypatch.setattr(block, "halves", lambda self: (self,))
    assert by_halves < 0.95 * peak()


@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles; this test is about numbers
def test_the_compiled_loss_recomputes_too():
    """Traced and split into forward and backward as torch.compile does it, without the minute of making kernels."""
    torch.compiler.reset()
    kept = build_model("stage1", **SIZES, seed=2).train()
    again = copy.deepcopy(kept)
    again.recompute = True
    found, held = [], []
    for model in (kept, again):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        compiled = torch.compile(model.loss, backend="aot_eager_decomp_partition")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found.append(loss_and_gradients(model, compiled))
        held.append(sum(storages.values()))
    assert held[1] < 0.7 * held[0]
    for key in found[0].keys() - {"random state"}:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-4, atol=1e-6)
