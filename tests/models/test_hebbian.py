"""Dissipative Hebbian memory: the chunked form against the token-by-token one, values and gradients."""

import math

import pytest
import torch

from muse.models.hebbian import HebbianMemory, hebbian_chunked, hebbian_step


def inputs(tokens, decay=0.2, dtype=torch.float64, seed=0, batch=2, heads=3, width=5):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, heads, tokens, width, generator=generator, dtype=torch.float64)
    log_decay = -decay * torch.rand(batch, heads, tokens, generator=generator, dtype=torch.float64)
    eta = torch.rand(heads, generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, log_decay, eta)]


def stepwise(q, k, v, log_decay, eta):
    state, outputs = q.new_zeros(*q.shape[:2], q.shape[-1], q.shape[-1]), []
    for t in range(q.shape[2]):
        state, y = hebbian_step(state, q[:, :, t], k[:, :, t], v[:, :, t], log_decay[:, :, t], eta)
        outputs.append(y)
    return torch.stack(outputs, dim=2)


def value_and_gradients(function, tensors, *options):
    value = function(*tensors, *options)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return value.detach(), torch.autograd.grad((value * weights).sum(), tensors)


def relative_rms(value, reference):
    return ((value - reference).square().mean() / reference.square().mean()).sqrt().item()


def test_one_step_is_decay_then_write_then_read():
    state = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    q, k, v = (torch.tensor(x).view(1, 1, 2) for x in ([1.0, 10.0], [1.0, 2.0], [5.0, 7.0]))
    new, y = hebbian_step(state, q, k, v, torch.tensor([[math.log(0.5)]]), torch.tensor([0.1]))
    torch.testing.assert_close(new[0, 0], torch.tensor([[0.5 + 0.5, 1.0 + 0.7], [1.5 + 1.0, 2.0 + 1.4]]))
    torch.testing.assert_close(y[0, 0], torch.tensor([26.0, 35.7]))


@pytest.mark.parametrize("chunk", [1, 5, 16, 128])
@pytest.mark.parametrize("tokens", [1, 2, 7, 31, 67])
def test_chunked_equals_stepwise_with_gradients(tokens, chunk):
    value, gradients = value_and_gradients(hebbian_chunked, inputs(tokens), chunk)
    expected, expected_gradients = value_and_gradients(stepwise, inputs(tokens))
    assert relative_rms(value, expected) < 1e-12
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 1e-3, 3.0])
def test_chunked_float32_at_the_default_chunk_and_an_odd_length(decay):
    tensors = inputs(389, decay, torch.float32)
    value, gradients = value_and_gradients(hebbian_chunked, tensors)
    expected, expected_gradients = value_and_gradients(stepwise, inputs(389, decay))
    assert value.dtype == torch.float32
    assert relative_rms(value, expected) < 2e-6
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert relative_rms(gradient, reference) < 2e-5


def test_gradcheck_across_chunks():
    tensors = inputs(7, batch=1, heads=2, width=2)
    assert torch.autograd.gradcheck(lambda *x: hebbian_chunked(*x, 3), tensors)


def test_total_forgetting_neither_overflows_nor_makes_nan():
    tensors = inputs(67, dtype=torch.float32)
    with torch.no_grad():
        tensors[3].fill_(-1e4)
    value, gradients = value_and_gradients(hebbian_chunked, tensors, 16)
    q, k, v, _, eta = tensors
    own_token = (q * k).sum(-1, keepdim=True) * eta[:, None, None] * v
    torch.testing.assert_close(value, own_token)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_half_precision_values_keep_float32_decays_and_states():
    tensors = inputs(389, 0.01)
    expected = stepwise(*tensors)
    q, k, v, log_decay, eta = (x.float() for x in tensors)
    half = hebbian_chunked(q.bfloat16(), k.bfloat16(), v.bfloat16(), log_decay, eta)
    rounded = hebbian_chunked(q.bfloat16(), k.bfloat16(), v.bfloat16(), log_decay.bfloat16(), eta)
    assert half.dtype == torch.bfloat16
    error = relative_rms(half.double(), expected)
    assert error < 0.01
    assert relative_rms(rounded.double(), expected) > error


def memory(n_heads=4, d_model=24):
    module = HebbianMemory(d_model, n_heads, initial_rate=0.7, shortest_tokens=2, longest_tokens=50)
    module.initialise(torch.Generator().manual_seed(0), 0.3, 0.3)
    return module.double()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_module_steps_equal_its_forward(groups):
    module = memory()
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(2, 131, 24, generator=generator, dtype=torch.float64)
    rate = torch.rand(2, 131, groups, generator=generator, dtype=torch.float64)
    state, outputs = None, []
    for t in range(131):
        state, y = module.step(state, u[:, t], rate[:, t])
        outputs.append(y)
    assert state.shape == (2, 4, 6, 6)
    torch.testing.assert_close(module(u, rate), torch.stack(outputs, dim=1))


def test_heads_share_rates_in_order_and_remember_log_spaced_spans():
    module = memory()
    span_tokens = -1 / module.log_decay(torch.full((1, 4), 0.7, dtype=torch.float64))[0]
    assert (span_tokens[1:] > 2 * span_tokens[:-1]).all()
    assert span_tokens[0] > 2
    assert span_tokens[-1] < 50
    shared = module.log_decay(torch.tensor([[1.0, 3.0]], dtype=torch.float64))[0]
    torch.testing.assert_close(shared / module.log_dt.exp(), torch.tensor([-1.0, -1.0, -3.0, -3.0]).double())


def test_every_parameter_and_the_rate_get_a_gradient():
    module = memory()
    rate = torch.rand(2, 9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    u = torch.randn(2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    module(u, rate).square().sum().backward()
    assert all(p.grad.count_nonzero() == p.numel() for p in module.parameters())
    # the first token starts from zero, so nothing of its decay matters
    assert rate.grad[:, 0].abs().max() < 1e-10
    assert rate.grad[:, 1:].abs().min() > 1e-8
