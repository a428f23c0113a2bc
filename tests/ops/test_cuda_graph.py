"""A replayed step is the ordinary one: same losses and weights, new dropout each time."""

from __future__ import annotations

import pytest
import torch

from muse.models.build import build_model
from muse.ops.cuda_graph import WARMUPS, Replayed, let_capture

SIZES = {"vocab_size": 101, "d_model": 16, "n_layers": 2, "n_seq": 24}
STEPS = WARMUPS + 5


def losses_of_a_training(replayed: bool, rate: float, dropout: float = 0.0) -> list[float]:
    torch.manual_seed(0)
    model = build_model("phase2", dropout=dropout, **SIZES).cuda().train()
    learning_rate = torch.zeros((), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, fused=True)

    def step(ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = model.loss(ids, targets)
        loss.backward()
        let_capture(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return (loss.detach(),)

    update = Replayed(step) if replayed else step
    drawn = torch.randint(SIZES["vocab_size"], (STEPS, 4, 25), generator=torch.Generator().manual_seed(1)).cuda()
    if not rate:
        drawn = drawn[:1].expand_as(drawn)
    found = []
    for number, ids in enumerate(drawn):
        learning_rate.fill_(rate * (number + 1))
        found.append(update(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[0].clone())
    return [loss.item() for loss in found]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_replayed_training_on_cuda_is_the_ordinary_one_with_changing_batches_and_learning_rates():
    want = losses_of_a_training(replayed=False, rate=1e-3)
    assert losses_of_a_training(replayed=True, rate=1e-3) == pytest.approx(want, rel=2e-5)
    stale = losses_of_a_training(replayed=False, rate=0.0)
    assert max(abs(a - b) / a for a, b in zip(want, stale, strict=True)) > 1e-3  # a stale batch or rate would be seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_replays_on_cuda_draw_their_dropout_anew():
    found = losses_of_a_training(replayed=True, rate=0.0, dropout=0.5)
    assert len(set(found)) == STEPS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_loss_that_nobody_can_reach_does_not_end_a_capture():
    """It was computed on another stream, and a circle of references keeps it until memory is looked through."""
    model = build_model("gpt2", **SIZES).cuda().train()
    ids = torch.randint(SIZES["vocab_size"], (2, 25), device="cuda")

    def step(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        model.zero_grad(set_to_none=True)
        return (loss.detach(),)

    for _ in range(2):
        circle = [model.loss(ids[:, :-1], ids[:, 1:])]
        circle.append(circle)
    del circle
    update = Replayed(step)
    found = [update(ids)[0].item() for _ in range(STEPS)]
    assert found == pytest.approx([found[0]] * STEPS, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_what_ends_a_capture_is_told_and_not_that_it_ended():
    calls = []

    def late(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(x)
        if len(calls) > WARMUPS:
            raise ValueError("of the function")
        return (x + 1,)

    update = Replayed(late)
    x = torch.zeros(3, device="cuda")
    for _ in range(WARMUPS):
        update(x)
    with pytest.raises(ValueError, match="of the function"):
        update(x)
