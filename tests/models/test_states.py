"""States of blocks: read in pieces of any length, side by side at different lengths, kept and continued."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from muse.measure.live_bytes import LiveBytes
from muse.models import states
from muse.models.build import build_model
from muse.models.generate import Recurrent, generate
from muse.models.phase2 import Phase2Model
from muse.models.states import State, empty_state, read

from .test_generate import REAL, prompt, tiny

OPTIONS = [
    {}, {"rotation": "data", "qk_norm": True, "input_scaling": True}, {"rotation": "none", "convolution": 1},
    {"imaginary_scores": False}, {"decay": "none", "tied": False}, {"positions": True, "table_rank": 6},
    REAL | {"rotation": "data"}, "stage1_compact_angles", "phase2", "phase2_compact",
]  # fmt: skip
MODELS = ["stage1_memory", "real_twin", "stage1_compact", "stage1_compact_angles", "phase2", "phase2_compact"]


def model_of(options, **more):
    if not isinstance(options, str):
        return tiny(**options).double()
    model = build_model(options, vocab_size=41, d_model=16, n_layers=2, n_seq=64, seed=3, **more)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.double()


def apart(one, other):
    """The largest difference of two states, angles as points of the circle."""
    found = [(one.logits - other.logits).abs().max(), (one.lengths - other.lengths).abs().max().double()]
    for a, b in zip(one.blocks, other.blocks, strict=True):
        for name in vars(a):
            x, y = getattr(a, name), getattr(b, name)
            pairs = [(x.cos(), y.cos()), (x.sin(), y.sin())] if name == "angle" else [(x, y)]
            found += [(x - y).abs().max() for x, y in pairs if x.numel()]
    return max(found).item()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_prompt_in_pieces_is_the_whole_prompt(options):
    model, ids = model_of(options), prompt(3, 23)
    whole = read(model, ids)
    assert (whole.logits - model.eval()(ids)[:, -1]).abs().max() < 1e-10
    for chunk in (1, 2, 5, 7, 22, 23, 99):
        assert apart(read(model, ids, chunk_tokens=chunk), whole) < 1e-10, chunk
    given = read(model, ids[:, :9])
    before = copy.deepcopy(given)
    assert apart(read(model, ids[:, 9:], given, chunk_tokens=4), whole) < 1e-10
    assert apart(given, before) == 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_prompts_of_different_lengths_are_read_as_each_alone(options, chunk):
    model, ids, lengths = model_of(options), prompt(4, 11), [1, 11, 4, 8]
    found = read(model, ids, lengths=lengths, chunk_tokens=chunk)
    more = read(model, ids, found, lengths=[3, 0, 1, 2], chunk_tokens=chunk)
    for row, (length, then) in enumerate(zip(lengths, [3, 0, 1, 2], strict=True)):
        alone = read(model, ids[row : row + 1, :length])
        assert apart(found.rows([row]), alone) < 1e-10
        alone = read(model, ids[row : row + 1, :then], alone) if then else alone
        assert apart(more.rows([row]), alone) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, REAL | {"rotation": "none"}, "phase2"], ids=str)
def test_pieces_are_as_close_to_the_exact_numbers_as_the_whole_is(options, dtype):
    model, ids = model_of(options), prompt(3, 40)
    low = copy.deepcopy(model).to(dtype)
    exact = copy.deepcopy(low).double().eval()(ids)[:, -1]
    errors = [(read(low, ids, chunk_tokens=chunk).logits - exact).square().mean().sqrt() for chunk in (40, 7, 1)]
    assert max(errors) < 1.5 * errors[0] + 1e-6


@pytest.mark.parametrize("name", [*MODELS, "gpt2", "stage1"])
@pytest.mark.parametrize("choices", [{"temperature": 0}, {"seed": [5, 5, 6]}, {"seed": [1, 2, 3], "top_p": 0.7}])
def test_texts_of_different_lengths_are_written_as_each_alone(name, choices):
    model, ids, lengths = model_of(name), prompt(3, 9), [2, 9, 5]
    together = torch.stack(list(generate(model, ids, 12, lengths=lengths, **choices)), 1)
    for row, length in enumerate(lengths):
        own = choices | ({"seed": choices["seed"][row : row + 1]} if "seed" in choices else {})
        alone = torch.stack(list(generate(model, ids[row : row + 1, :length], 12, **own)), 1)
        assert torch.equal(together[row : row + 1], alone)
        if "seed" in own:
            own["seed"] = own["seed"][0]
            assert torch.equal(torch.stack(list(generate(model, ids[row : row + 1, :length], 12, **own)), 1), alone)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [3, [3, 4]])
def test_a_text_goes_on_from_a_state_that_was_saved(name, seed, tmp_path):
    model, ids = model_of(name), prompt()
    whole = list(generate(model, ids, 14, seed=seed))
    stream = generate(model, ids, 6, seed=seed)
    first = list(stream)
    stream.state().save(tmp_path / "state")
    kept = State.load(tmp_path / "state", model)
    assert kept.lengths.tolist() == [13, 13]
    for _ in range(2):  # it stays what it is
        rest = list(generate(model, None, 8, state=kept, seed=None))
        assert torch.equal(torch.stack([*first, *rest]), torch.stack(whole))
    stream = generate(model, ids, 14, seed=seed)  # a look at the state changes no token
    seen = [(next(stream), stream.state())[0] for _ in range(14)]
    assert torch.equal(torch.stack(seen), torch.stack(whole))


def test_a_state_with_a_further_prompt_is_the_longer_prompt():
    model, ids = model_of({}), prompt(2, 20)
    stream = generate(model, ids[:, :8], 0)
    state = stream.state()
    want = torch.stack(list(generate(model, ids, 9, temperature=0)))
    assert torch.equal(torch.stack(list(generate(model, ids[:, 8:], 9, state=state, temperature=0))), want)
    twice = state.rows([1, 1, 0])
    found = torch.stack(list(generate(model, ids[[1, 1, 0], 8:], 9, state=twice, temperature=0)))
    assert torch.equal(found, want[:, [1, 1, 0]])


def test_a_copy_shares_nothing_and_its_size_does_not_grow():
    model = model_of({})
    one = read(model, prompt(2, 9))
    other = one.copy()
    for block in other.blocks:
        for x in vars(block).values():
            x.zero_()
    assert apart(one, read(model, prompt(2, 9))) == 0
    assert one.num_bytes == read(model, prompt(2, 60)).num_bytes == empty_state(model, 2).num_bytes > 0


@pytest.mark.parametrize("name", ["phase2", "phase2_compact"])
def test_phase2_writes_by_its_states_as_far_as_positions_go_and_the_tokens_are_those_of_its_window(name, monkeypatch):
    model, ids = model_of(name), prompt(2, 30)
    want = []
    for _ in range(35):
        seen = torch.cat([ids, *want], 1)
        want.append(model(seen)[:, -1:].argmax(-1))
    assert Recurrent(model)(ids).shape == (2, 41)
    further = torch.stack(list(generate(model, ids, 50, temperature=0)), 1)
    assert torch.equal(further[:, :35], torch.cat(want, 1))

    def no_window(*_):
        raise AssertionError("the window is read anew")

    monkeypatch.setattr(Phase2Model, "features", no_window)
    assert torch.equal(torch.stack(list(generate(model, ids, 35, temperature=0)), 1), torch.cat(want, 1))
    with pytest.raises(AssertionError, match="anew"):
        list(generate(model, ids, 36, temperature=0))


def test_what_hooks_a_block_of_phase2_reads_the_window():
    model, ids = model_of("phase2"), prompt()
    model.blocks[0].register_forward_hook(lambda block, given, found: 1.5 * found)
    assert not states.recurrent(model)
    token = next(generate(model, ids, 1, temperature=0))
    assert torch.equal(token, model.eval()(ids)[:, -1].argmax(-1))


def test_the_memory_that_a_prompt_takes_does_not_grow_with_its_length():
    model, peaks = tiny(n_seq=8), []
    for length in (512, 4096):
        with LiveBytes() as live:
            read(model, prompt(1, length), chunk_tokens=64)
        peaks.append(live.peak)
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("name", ["stage1_memory", "phase2"])
def test_64_texts_are_written_as_one_is(name):
    model, ids = model_of(name), prompt(64, 5)
    for batch in (1, 2, 17, 64):
        found = torch.stack(list(generate(model, ids[:batch], 8, temperature=0)), 1)
        alone = torch.stack(list(generate(model, ids[batch - 1 : batch], 8, temperature=0)), 1)
        assert torch.equal(found[-1:], alone)


@pytest.mark.parametrize("name", ["phase2", "gpt2", "stage1"])
def test_where_positions_end_a_longer_prompt_is_one_line(name):
    with pytest.raises(ValueError, match=r"^token_ids must have 1 to n_seq=64 positions, got 65$"):
        generate(model_of(name), prompt(2, 65), 3)
    assert len(list(generate(model_of("stage1_memory"), prompt(2, 200), 3))) == 3


@pytest.mark.parametrize(("given", "message"), [
    ({"lengths": [1, 8]}, r"lengths must be 2 numbers from 1 to 7, got \[1, 8\]"),
    ({"lengths": [0, 3]}, "from 1 to 7"), ({"lengths": [1]}, "2 numbers"), ({"chunk_tokens": 0}, "chunk_tokens must"),
    ({"seed": None}, "no state says how its text was drawn"), ({"seed": [1, 2, 3]}, "one a row, 2, got 3"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(given, message):
    with pytest.raises(ValueError, match=message):
        list(generate(tiny(), prompt(), 3, **given))


def test_states_that_do_not_fit_are_one_line(tmp_path):
    model = model_of("phase2")
    state = read(model, prompt(2, 60))
    with pytest.raises(ValueError, match="the position table ends at n_seq=64, got 65 tokens"):
        read(model, prompt(2, 5), state)
    with pytest.raises(ValueError, match=r"the position table ends at n_seq=64, got 60 \+ 6 tokens"):
        generate(model, None, 6, state=state)
    with pytest.raises(ValueError, match="as many rows as the state, 2, got 3"):
        read(model, prompt(3, 2), state)
    with pytest.raises(ValueError, match="expected none: this model reads its last n_seq tokens"):
        generate(model_of("gpt2"), None, 3, state=state)
    with pytest.raises(ValueError, match="expected a prompt or a state"):
        generate(model, None, 3)
    with pytest.raises(ValueError, match="has none of fixed size"):
        generate(model_of("gpt2"), prompt(), 3).state()
    state.save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"blocks.0.angle: got nothing, expected \(2, "):
        State.load(tmp_path / "state", tiny())
    (tmp_path / "state").write_text("something else")
    with pytest.raises(ValueError, match="no state can be read there"):
        State.load(tmp_path / "state", model)
    assert dataclasses.is_dataclass(state)
