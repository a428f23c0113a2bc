"""The step that a CUDA graph holds, here as it is: equal tokens, buffers that stay, what is not finite is found."""

from __future__ import annotations

import pytest
import torch
from devices import AsCaptured, needs_cuda, without_data
from torch._subclasses.fake_tensor import FakeTensorMode

from muse.models import states
from muse.models.generate import Recurrent, generate
from muse.models.static_step import StaticStep, generators
from muse.models.stepper import Stepper

from .test_generate import prompt, tiny
from .test_stepper import MODELS, built

CHOICES = [{"temperature": 0}, {"seed": 5}, {"seed": [6, 7, 8], "top_p": 0.8, "top_k": 20, "temperature": 0.7}]


def written(model, ids, n_new, capture=False, **choices):
    """Tokens (B n_new) by static steps, and the steps."""
    first = generate(model, ids, n_new, **choices)
    tokens = [next(first)]
    values = {"temperature": 1.0, "top_k": None, "top_p": None} | {k: v for k, v in choices.items() if k != "seed"}
    state = states.read(model, ids)
    static = StaticStep(Stepper(model, state), tokens[0][:, None], *values.values(), first.drawing, capture=capture)
    tokens += [static() for _ in range(n_new - 1)]
    return torch.stack(tokens, 1), static


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_tokens_are_those_of_the_blocks(name, choices):
    model, ids = built(name), torch.randint(37, (3, 7), generator=torch.Generator().manual_seed(1))
    want = torch.stack(list(generate(model, ids, 10, plain=True, **choices)), 1)
    assert torch.equal(written(model, ids, 10, **choices)[0], want)


def test_every_step_writes_to_the_same_buffers():
    model = tiny(positions=True)
    steps, drawing = Stepper(model, states.read(model, prompt())), generators(0, 2, "cpu")
    static = StaticStep(steps, prompt()[:, :1], 1.0, None, None, drawing)
    kept = [*static.steps.buffers(), static.token, static.noise, static.logits, static.index, static.bad]
    places, before = [x.data_ptr() for x in kept], [x.clone() for x in kept]
    tokens = [static() for _ in range(3)]
    kept = [*static.steps.buffers(), static.token, static.noise, static.logits, static.index, static.bad]
    assert [x.data_ptr() for x in kept] == places
    assert not any(torch.equal(x, old) for x, old in zip(kept[:-1], before[:-1], strict=True))
    assert static.steps.lengths.tolist() == [10, 10]
    assert not any(token.data_ptr() == static.token.data_ptr() for token in tokens)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("values", [(0.0, None, None), (0.7, 20, 0.8)], ids=str)
def test_a_step_needs_no_number_that_only_the_device_knows(name, values):
    """On tensors without data whoever asks for one fails, as a capture would."""
    model = built(name)
    state, token = states.read(model, torch.zeros(3, 7, dtype=torch.int64)), torch.zeros(3, 1, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        without_data(model, mode)
        static = StaticStep(Stepper(model, state._mapped(mode.from_tensor)), mode.from_tensor(token), *values, [])
        with AsCaptured():
            static._step()
            static.restart(state._mapped(mode.from_tensor), mode.from_tensor(token))
        assert static.token.shape == (3, 1)


def test_the_first_step_that_is_not_finite_is_named():
    model = tiny()
    _, static = written(model, prompt(), 4, temperature=0)
    assert static.first_bad() is None
    static.steps.head.bias[3] = float("nan")
    static(), static()
    assert static.first_bad() == 3


@pytest.mark.parametrize("choices", CHOICES[:2], ids=str)
def test_a_stream_goes_by_static_steps_where_they_serve(monkeypatch, choices):
    """As on CUDA, but for the capture: tokens, states in between and what is not finite."""
    monkeypatch.setattr(Recurrent, "captures", lambda reader: reader.prepared())
    made = []
    call = StaticStep.__call__
    monkeypatch.setattr(StaticStep, "__call__", lambda step: (made.append(step), call(step))[1])
    model = tiny()
    want = torch.stack(list(generate(model, prompt(), 40, plain=True, **choices)))
    assert torch.equal(torch.stack(list(generate(model, prompt(), 40, **choices))), want)
    assert len(made) == 39
    stream = generate(model, prompt(), 40, **choices)
    tokens = [next(stream) for _ in range(9)]
    rest = list(generate(model, None, 5, state=stream.state(), seed=None, temperature=choices.get("temperature", 1.0)))
    assert torch.equal(torch.stack([*tokens, *rest]), want[:14])
    assert torch.equal(torch.stack([*tokens, *stream]), want)
    broken = generate(model, prompt(), 60, **choices)
    next(broken), next(broken)
    broken.reader.stepper.head.bias[2] = float("nan")
    with pytest.raises(ValueError, match="logits of new token 3 are not finite"):
        list(broken)


@needs_cuda
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_on_cuda_a_graph_writes_the_tokens_of_the_same_steps_without_one(name, dtype, batch):
    model = built(name).to("cuda", dtype)
    ids = torch.randint(37, (batch, 7), generator=torch.Generator().manual_seed(1)).cuda()
    for choices in ({"temperature": 0}, {"seed": 5}, {"seed": 6, "top_p": 0.8, "top_k": 20, "temperature": 0.7}):
        (want, _), (got, static) = (written(model, ids, 10, capture, **choices) for capture in (False, True))
        assert static.graph is not None
        assert torch.equal(got, want)
        assert torch.equal(torch.stack(list(generate(model, ids, 10, **choices)), 1), want)


@needs_cuda
@pytest.mark.parametrize("name", MODELS)
def test_on_cuda_a_graph_writes_the_tokens_of_the_blocks(name):
    model, ids = built(name).cuda(), torch.randint(37, (3, 7), generator=torch.Generator().manual_seed(1)).cuda()
    for choices in ({"temperature": 0}, {"seed": 5}):
        got, want = (torch.stack(list(generate(model, ids, 10, plain=plain, **choices))) for plain in (False, True))
        assert torch.equal(got, want)
