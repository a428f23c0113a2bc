"""Phase 2: the left Green's function against explicit inverses, and the model's contract at tiny and published size."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, INTERPRETED, interpret, needs_kernels

from muse.models.phase2 import LEAST_RATE, BKCore, Phase2Config, Phase2Model
from muse.ops import green
from muse.ops.green import left_green

TINY = {"vocab_size": 53, "d_model": 32, "n_layers": 2, "n_seq": 301, "n_heads": 4}


def chain(tokens, least_damping=0.1, dtype=torch.float64, seed=0, batch=2, chains=3, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    potential = torch.randn(batch, tokens, chains, generator=generator, dtype=torch.float64)
    damping = least_damping * (1 + torch.rand(batch, tokens, chains, generator=generator, dtype=torch.float64))
    coupling = 2 * torch.rand(batch, tokens, chains, generator=generator, dtype=torch.float64)
    return [x.to(device, dtype).requires_grad_() for x in (potential, -damping, coupling)]


def tridiagonal(diagonal, coupling):
    """c(.. T T) with off-diagonal products coupling_t between t and t + 1."""
    hop = coupling[..., :-1].sqrt().to(diagonal.dtype)
    return torch.diag_embed(diagonal) + torch.diag_embed(hop, 1) + torch.diag_embed(hop, -1)


def by_inverse(diagonal_real, diagonal_imag, coupling):
    """The last diagonal element of the inverse of every leading block, for (B T N)."""
    matrix = tridiagonal(torch.complex(diagonal_real, diagonal_imag).mT, coupling.mT)
    blocks = [torch.linalg.inv(matrix[..., :t, :t])[..., -1, -1] for t in range(1, matrix.shape[-1] + 1)]
    return torch.stack(blocks, dim=1)


def by_recursion(diagonal_real, diagonal_imag, coupling):
    diagonal = torch.complex(diagonal_real, diagonal_imag)
    values = [1 / diagonal[:, 0]]
    for t in range(1, diagonal.shape[1]):
        values.append(1 / (diagonal[:, t] - coupling[:, t - 1] * values[-1]))
    return torch.stack(values, dim=1)


def relative_rms(value, reference):
    return ((value - reference).abs().square().mean() / reference.abs().square().mean()).sqrt().item()


def green_and_gradients(function, inputs):
    """Values, and the gradients of a fixed random weighting of them."""
    value = function(*inputs)
    value = torch.complex(*value) if isinstance(value, tuple) else value
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(9), dtype=torch.complex128)
    (value * weights.to(value)).real.sum().backward()
    return value.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 16, 37])
def test_left_green_is_the_inverse_of_the_leading_block_with_its_gradients(tokens):
    value, gradients = green_and_gradients(left_green, chain(tokens))
    expected, expected_gradients = green_and_gradients(by_inverse, chain(tokens))
    assert relative_rms(value, expected) < 1e-12
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("least_damping", "tolerance"), [(1.0, 1e-6), (0.1, 3e-6), (LEAST_RATE, 1e-3)])
def test_left_green_in_float32_over_a_long_odd_sequence(least_damping, tolerance):
    value, gradients = green_and_gradients(left_green, chain(1021, least_damping, torch.float32))
    expected, expected_gradients = green_and_gradients(by_recursion, chain(1021, least_damping))
    assert relative_rms(value, expected) < tolerance
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert relative_rms(gradient, reference) < tolerance


@pytest.mark.parametrize("tokens", [1, 2, 5, 11])
def test_left_green_gradcheck(tokens):
    assert torch.autograd.gradcheck(left_green, chain(tokens))


def test_left_green_operator_is_registered_consistently_for_autograd_and_tracing():
    torch.library.opcheck(green._green.op, [x[0].detach().requires_grad_() for x in chain(5)])


@pytest.mark.parametrize("coupling", [0.0, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("potential", [0.0, 1.0, 1e4])
def test_left_green_stays_below_the_inverse_damping_at_extremes(potential, coupling):
    damping = torch.full((1, 257, 1), LEAST_RATE)
    values = torch.complex(*left_green(torch.full_like(damping, potential), -damping, torch.tensor(coupling)))
    assert values.isfinite().all()
    assert (values.abs() <= (1 + 1e-5) / LEAST_RATE).all()
    assert (values.imag >= 0).all()


def test_two_sided_inverse_sees_the_future_and_the_left_green_function_does_not():
    potential, imag, coupling = chain(9, batch=1, chains=1)
    t = 4
    inverse = torch.linalg.inv(tridiagonal(torch.complex(potential, imag).mT, coupling.mT))
    (two_sided,) = torch.autograd.grad(inverse[0, 0, t, t].real, potential, retain_graph=True)
    (left,) = torch.autograd.grad(left_green(potential, imag, coupling)[0][0, t, 0], potential)
    assert two_sided[0, t + 1].abs() > 0.01 * two_sided[0, t].abs()
    assert left[0, t + 1 :].count_nonzero() == 0
    assert left[0, : t + 1].count_nonzero() == t + 1


@needs_kernels(green.green_triton)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 37] if INTERPRETED else [1, 2, 3, 127, 1024])
def test_left_green_kernel_equals_the_portable_scan(tokens, dtype, tolerance, monkeypatch):
    expected, expected_gradients = green_and_gradients(left_green, chain(tokens))
    interpret(monkeypatch)
    assert green._has_kernel(chain(1, device=DEVICE)[0])
    value, gradients = green_and_gradients(left_green, chain(tokens, dtype=dtype, device=DEVICE))
    assert relative_rms(value.cpu(), expected) < tolerance
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.cpu().double(), reference, rtol=100 * tolerance, atol=100 * tolerance)


def test_bk_core_features_follow_their_definition():
    core = BKCore(d_model=6, n_chains=2).double()
    core.initialise(torch.Generator().manual_seed(0), 0.5, 0.5)
    with torch.no_grad():
        core.z_real.copy_(torch.tensor([0.3, -0.2]))
        core.output.bias.copy_(torch.arange(6.0))
    u = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    added, rate = core(u)
    potential, raw_rate = (u @ core.potential_rate.weight.T).chunk(2, dim=-1)
    torch.testing.assert_close(rate, F.softplus(raw_rate) + LEAST_RATE, rtol=1e-13, atol=0)
    z = torch.complex(core.z_real, F.softplus(core.z_imag_raw))
    diagonal = potential - 1j * rate - z
    values = by_recursion(diagonal.real, diagonal.imag, F.softplus(core.coupling_raw).expand(2, 5, 2))
    expected = torch.cat([values.real, values.imag], dim=-1) @ core.output.weight.T + core.output.bias
    torch.testing.assert_close(added, expected)
    torch.testing.assert_close(z.imag, torch.full((2,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(F.softplus(core.coupling_raw), torch.ones(2, dtype=torch.float64))


@pytest.fixture(scope="module")
def published():
    return Phase2Model(Phase2Config())


def random_ids(vocab_size, *shape, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_published_size_counts_about_70_9_million_parameters(published):
    groups = published.parameter_groups()
    assert sum(groups.values()) == sum(p.numel() for p in published.parameters()) == 70_912_114
    assert groups["embedding"] == groups["head"] == 50257 * 512
    assert groups["positions"] == 1024 * 512
    assert published.config.n_heads == 8
    assert all(p.dtype == torch.float32 for p in published.parameters())


def test_published_size_starts_near_uniform_with_healthy_gradients(published):
    ids, targets = random_ids(50257, 2, 128), random_ids(50257, 2, 128, seed=1)
    loss = published.loss(ids, targets)
    assert loss.item() == pytest.approx(math.log(50257), rel=0.02)
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in published.named_parameters() if p.requires_grad}
    published.zero_grad(set_to_none=True)
    assert {name: norm for name, norm in norms.items() if not 1e-6 <= norm <= 1e3} == {}
    assert [name for name, p in published.named_parameters() if not p.requires_grad] == ["positions"]


@pytest.mark.parametrize("d_model", [32, 64])
def test_tiny_sizes_start_near_uniform(d_model):
    model = Phase2Model(Phase2Config(vocab_size=97, d_model=d_model, n_layers=2, n_seq=64))
    loss = model.loss(random_ids(97, 8, 64), random_ids(97, 8, 64, seed=1))
    assert loss.item() == pytest.approx(math.log(97), rel=0.02)


@pytest.mark.parametrize("changed", [0, 40, 127, 128, 258])
def test_a_token_changes_later_logits_and_no_earlier_ones(changed):
    model = Phase2Model(Phase2Config(**TINY)).double().eval()
    ids = random_ids(53, 2, 259)  # odd, and more than two chunks of the memory
    other = ids.clone()
    other[0, changed] = (other[0, changed] + 1) % 53
    with torch.no_grad():
        change = (model(other) - model(ids)).abs().amax(-1)
    assert (change[0, :changed] <= 1e-13).all()
    assert change[1].max() <= 1e-13  # sequences of a batch do not meet
    assert change[0, changed] > 1e-3
    assert (change[0, changed:] > 1e-8).all()


def test_gradient_of_a_logit_reaches_every_earlier_position_and_no_later_one():
    model = Phase2Model(Phase2Config(**TINY)).double()
    inputs = []
    model.embedding.register_forward_hook(lambda _m, _i, output: inputs.append(output) or output.retain_grad())
    model(random_ids(53, 1, 259))[0, 200].sum().backward()
    reached = inputs[0].grad[0].abs().amax(-1)
    assert (reached[:201] > 1e-12).all()
    assert (reached[201:] == 0).all()


def test_gradients_of_the_whole_model_are_the_true_ones():
    model = Phase2Model(Phase2Config(**TINY, n_chains=2)).double()
    ids, targets, step = random_ids(53, 2, 13), random_ids(53, 2, 13, seed=1), 1e-5
    model.loss(ids, targets).backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        with torch.no_grad():
            for sign in (1, -2):
                parameter += sign * step * direction
                losses.append(model.loss(ids, targets).item())
            parameter += step * direction
        slope = (parameter.grad * direction).sum().item()
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-9), name


def test_calls_share_no_state():
    model = Phase2Model(Phase2Config(**TINY)).eval()
    ids = random_ids(53, 2, 67)
    with torch.no_grad():
        first = model(ids)
        model(random_ids(53, 2, 301, seed=5))
        assert torch.equal(model(ids), first)
    assert dict(model.named_buffers()) == {}


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first = Phase2Model(Phase2Config(**TINY), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(77)
    second, other = Phase2Model(Phase2Config(**TINY), seed=3), Phase2Model(Phase2Config(**TINY), seed=4)
    torch.random.set_rng_state(state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def overfit(model, steps, learning_rate, vocab_size):
    ids = random_ids(vocab_size, 4, 34)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_overfits_one_batch_and_repeats_itself():
    losses = overfit(Phase2Model(Phase2Config(**TINY)), 40, 1e-2, 53)
    assert losses[-1] < 0.1
    assert overfit(Phase2Model(Phase2Config(**TINY)), 5, 1e-2, 53) == losses[:5]


def test_loss_is_the_cross_entropy_of_the_logits():
    model = Phase2Model(Phase2Config(**TINY)).eval()
    ids, targets = random_ids(53, 3, 17), random_ids(53, 3, 17, seed=1)
    with torch.no_grad():
        logits = model(ids)
        assert logits.shape == (3, 17, 53)
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 17)
        torch.testing.assert_close(model.loss(ids, targets, reduction="none"), expected)
        torch.testing.assert_close(model.loss(ids, targets, reduction="sum"), expected.sum())
        torch.testing.assert_close(model.loss(ids, targets), expected.mean())
        torch.testing.assert_close(F.linear(model.features(ids), *model.head_parameters()), logits)


def test_half_precision_autocast_stays_close_to_float32():
    model = Phase2Model(Phase2Config(**TINY)).eval()
    ids = random_ids(53, 2, 259)
    with torch.no_grad():
        expected = model.features(ids)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_rms(model.features(ids).float(), expected) < 0.02


@pytest.mark.parametrize("recompute", [False, True])
def test_a_copy_in_bfloat16_computes_in_it_but_for_its_rates(recompute):
    full = Phase2Model(Phase2Config(vocab_size=31, d_model=32, n_layers=2, n_seq=24), seed=1)
    half = copy.deepcopy(full).to(torch.bfloat16)
    half.recompute = recompute
    ids = torch.randint(31, (2, 24), generator=torch.Generator().manual_seed(0))
    loss = half.loss(ids, ids)
    loss.backward()
    assert loss.item() == pytest.approx(full.loss(ids, ids).item(), rel=0.02)
    assert {p.grad.dtype for p in half.parameters() if p.requires_grad} == {torch.bfloat16}
    assert half.features(ids).dtype == torch.bfloat16
    added, rate = half.blocks[0].core(half.blocks[0].core_norm(half.embedding(ids)))
    assert (added.dtype, rate.dtype) == (torch.bfloat16, torch.float32)


def test_dropout_acts_in_training_only():
    model = Phase2Model(Phase2Config(**TINY, dropout=0.5))
    ids = random_ids(53, 2, 19)
    with torch.no_grad():
        torch.manual_seed(0)
        assert not torch.allclose(model(ids), model(ids))
        model.eval()
        assert torch.equal(model(ids), model(ids))
        assert torch.equal(model(ids), Phase2Model(Phase2Config(**TINY)).eval()(ids))


@pytest.mark.parametrize(
    "change",
    [{"d_model": 0}, {"n_heads": 5}, {"n_chains": 3}, {"dropout": 1.0}, {"dropout": -0.1}, {"vocab_size": -1}],
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}.*got"):
        Phase2Config(**{**TINY, **change})


def test_every_head_can_have_its_own_chain():
    model = Phase2Model(Phase2Config(**TINY, n_chains=4))
    ids = random_ids(53, 2, 35)
    model.loss(ids, ids).backward()
    assert model.blocks[0].core.coupling_raw.grad.count_nonzero() == 4


def test_wrong_token_ids_are_refused():
    model = Phase2Model(Phase2Config(**TINY))
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(1, 302, dtype=torch.int64), torch.full((1, 2), 53)):
        with pytest.raises(ValueError, match="got"):
            model.features(bad)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("computed", [None, torch.float16, torch.bfloat16])
def test_half_precision_computes_on_the_cpu(stored, computed):
    """Stored in one half precision, with or without autocast to any."""
    model = Phase2Model(Phase2Config(vocab_size=11, d_model=16, n_layers=2, n_seq=8)).to(stored)
    ids = torch.arange(16).reshape(2, 8) % 11
    with torch.autocast("cpu", computed or torch.bfloat16, enabled=computed is not None):
        loss = model.loss(ids, ids)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
