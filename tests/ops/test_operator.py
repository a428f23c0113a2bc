"""Derivatives by every way to ask for them: autograd once and twice, torch.func, and operators under both."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, interpret, needs_kernels
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from muse.catalog import MODEL_NAMES
from muse.models import layers, memory_block
from muse.models.build import build_model
from muse.ops import cross_entropy, gate, green, linear_attention, norms, operator, planar, qkv
from muse.ops.exact_product import _exact, exact_product_triton

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, for its first jvp
SIZES = {"vocab_size": 11, "d_model": 8, "n_layers": 2, "n_seq": 8}


@pytest.fixture(autouse=True)
def attention_by_formulas():
    """PyTorch's fused attention, which GPT-2 calls, has one derivative and no rule for vmap."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def made(name):
    """A tiny model in float64 away from its initial values, its trained parameters, ids (B T) and targets (B T)."""
    model = build_model(name, **SIZES).double().eval()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for i, p in enumerate(trained.values()):
            p.add_(0.1 * noise(*p.shape, seed=i))
    ids = torch.randint(11, (2, 3, 6), generator=torch.Generator().manual_seed(1))
    return model, trained, *ids


def loss_of(model, reduction="mean"):
    """The loss as a function of parameters, ids and targets."""

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, targets):
            return self.model.loss(ids, targets, reduction)

    return lambda parameters, *given: functional_call(
        Loss(), {f"model.{key}": p for key, p in parameters.items()}, given
    )


def first(results):
    return results[0] if isinstance(results, tuple) else results


def close(got, want, bound=1e-9):
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].shape == value.shape, key
        assert (got[key] - value).abs().max() <= bound * max(1.0, value.abs().max()), key


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_torch_func_differentiates_every_model(name):
    """grad is autograd's gradient, vmap of grad that of each text, jvp and nested ones its slopes along a direction."""
    model, trained, ids, targets = made(name)
    loss = loss_of(model)
    want = dict(zip(trained, torch.autograd.grad(model.loss(ids, targets), trained.values()), strict=True))
    detached = {key: p.detach() for key, p in trained.items()}
    close(grad(loss)(detached, ids, targets), want)
    each = vmap(grad(loss), in_dims=(None, 0, 0))(detached, ids[:, None], targets[:, None])
    close({key: g.mean(0) for key, g in each.items()}, want)
    along = {key: noise(*p.shape, seed=50 + i) for i, (key, p) in enumerate(detached.items())}
    _, slope = jvp(lambda p: loss(p, ids, targets), (detached,), (along,))
    assert slope.item() == pytest.approx(sum((want[key] * along[key]).sum().item() for key in want), rel=1e-9)
    by_rows = jacrev(lambda p: loss_of(model, "none")(p, ids, targets))(detached)
    close({key: g.mean((0, 1)) for key, g in by_rows.items()}, want)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_torch_func_has_the_second_derivative_of_every_model(name):
    model, trained, ids, targets = made(name)
    loss, detached = loss_of(model), {key: p.detach() for key, p in trained.items()}
    along = {key: noise(*p.shape, seed=50 + i) for i, (key, p) in enumerate(detached.items())}

    def slope(parameters):
        found = grad(loss)(parameters, ids, targets)
        return sum((found[key] * along[key]).sum() for key in found)

    step = 1e-6
    moved = [{key: p + sign * step * along[key] for key, p in detached.items()} for sign in (1, -1)]
    ahead, behind = (grad(loss)(parameters, ids, targets) for parameters in moved)
    want = {key: (ahead[key] - behind[key]) / (2 * step) for key in ahead}
    close(grad(slope)(detached), want, 1e-6)
    close(jvp(lambda p: grad(loss)(p, ids, targets), (detached,), (along,))[1], want, 1e-6)


def layer_cases():
    """(function, inputs in float64) of everything with a gradient written by hand that keeps its inputs."""
    z, bias = noise(2, 3, 10), noise(5, seed=1)
    weights, biases = [noise(4, 5, seed=i) for i in (2, 3)], [noise(4, seed=i) for i in (4, 5)]
    chain = [noise(2, 5, 3, seed=6), -noise(2, 5, 3, seed=7).exp(), noise(2, 5, 3, seed=8).exp()]
    targets = torch.tensor([3, 0, -100, 4])
    return {
        "linear": (planar.linear, [z, *weights, *biases]),
        "modrelu": (norms.modrelu, [z, bias]),
        "norm": (norms.complex_layer_norm, [z, bias, noise(5, seed=9)]),
        "rms_norm": (lambda z, gain: memory_block._norm(z, gain, 2), [z, bias]),
        "convolution": (lambda seen, taps: qkv.convolved(seen, taps, 2), [noise(2, 6, 12), noise(6, 3, seed=1)]),
        "rates": (_exact, [z, noise(3, 10, seed=2)]),
        "left_green": (green.left_green, chain),
        "loss by rows": (
            lambda x, w, b: cross_entropy.head_loss(x, w, b, targets, reduction="none", chunk_tokens=3),
            [noise(4, 5), noise(7, 5, seed=1), noise(7, seed=2)],
        ),
    }


@pytest.mark.parametrize("name", layer_cases())
def test_autograd_and_torch_func_have_the_second_derivative_of_every_layer(name):
    function, inputs = layer_cases()[name]
    assert gradgradcheck(function, [x.requires_grad_() for x in inputs])
    direction = noise(*first(function(*inputs)).shape, seed=20)

    def total(*inputs):
        return (first(function(*inputs)) * direction).sum().square()

    each = tuple(range(len(inputs)))
    got = hessian(total, argnums=each)(*(x.detach() for x in inputs))
    want = torch.autograd.functional.hessian(total, tuple(inputs))
    for got_row, want_row in zip(got, want, strict=True):
        for got_block, want_block in zip(got_row, want_row, strict=True):
            torch.testing.assert_close(got_block, want_block)


def test_a_layer_without_bias_has_both_derivatives():
    z, *weights = (noise(*shape, seed=len(shape)).requires_grad_() for shape in ((3, 10), (4, 5), (4, 5)))
    assert gradgradcheck(planar.linear, (z, *weights))
    assert gradgradcheck(lambda z: planar.linear(z, *(w.detach() for w in weights)), (z,))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_autograd_refuses_the_second_derivative_of_the_loss_that_keeps_no_logits(reduction):
    x, weight, bias = (noise(*shape, seed=len(shape)).requires_grad_() for shape in ((4, 5), (7, 5), (7,)))
    loss = cross_entropy.head_loss(x, weight, bias, torch.tensor([3, 0, 1, 4]), reduction=reduction)
    (slope,) = torch.autograd.grad(loss.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_a_check_of_values_is_left_out_where_they_cannot_be_read():
    ids = torch.tensor([[0, 10]])
    with pytest.raises(ValueError, match="got 0 to 10"):
        layers.check_token_ids(ids, 10, 2)
    vmap(lambda row: layers.check_token_ids(row[None], 10, 2) or row)(ids)


def kernel_cases():
    """(inputs on the device, options) of each pair of kernels, by the operator's name and what it is given."""
    def drawn(*shapes):
        return [noise(*shape, seed=i).to(DEVICE, torch.float32) for i, shape in enumerate(shapes)]

    stream, vector, heads = (3, 10), (5,), (1, 2, 16, 32)
    return {
        "norm": (drawn(stream, vector, vector), (1e-5, torch.float32)),
        "residual_norm": (drawn(stream, stream, (3, 5), vector, vector, vector), (1e-5, 1e-4)),
        "residual_norms": (drawn(stream, stream, (3, 5), *[vector] * 5), (1e-5, 1e-4, torch.float32)),
        "mixer_write": (drawn((2, 2, 3, 4), (2, 3, 4), (4,)), (2, 1e-6, torch.float32)),
        "mixer_gated": (drawn((2, 3, 10), (2, 3, 5)), (2,)),
        "mixer_prepare": ([*drawn((2, 3, 24), (12, 2), (2, 2)), None], (2, 2)),
        "mixer_prepare by angle": ([*drawn((2, 3, 24), (12, 2)), None, *drawn((2, 2, 3, 2))], (2, 2)),
        "memory": ([*drawn(heads, heads, heads), -drawn((1, 2, 16))[0].exp()], (True,)),
        "exact_product": (drawn((2, 3, 10), (3, 10)), ()),
    }


needs_kernels = needs_kernels(norms.norms_triton)


@pytest.fixture(params=kernel_cases())
def kernel(request):
    """An operator of kernels, its inputs on the device, and what is left of it as a function of the first input."""
    inputs, options = kernel_cases()[request.param]
    homes = norms.norms_triton, gate.gate_triton, qkv.qkv_triton, linear_attention.linear_attention_triton
    homes = *homes, exact_product_triton
    every = (x for home in homes for x in vars(home).values() if isinstance(x, operator.Operator))
    (found,) = (x for x in every if x.name == request.param.split()[0])
    return found, inputs, options, lambda x: first(found(x, *inputs[1:], *options)).square().sum()


@needs_kernels
def test_cuda_operators_are_registered_with_the_gradients_of_eager_code(kernel):
    """opcheck compares schema, fakes and traced autograd; eager code has the same gradients without the operator."""
    found, inputs, options, _ = kernel
    leaves = [x.requires_grad_() for x in inputs if x is not None]
    torch.library.opcheck(found.op, (*inputs, *options))

    def gradients(call):
        results = call(*inputs, *options)
        results = results if isinstance(results, tuple) else (results,)
        weights = [noise(*x.shape, seed=7).to(x) for x in results]
        return torch.autograd.grad(results, leaves, weights, allow_unused=True)

    for got, want in zip(gradients(found), gradients(found.op), strict=True):
        assert (got is None and want is None) or torch.equal(got, want)


@needs_kernels
def test_cuda_operators_refuse_a_second_derivative_and_jvp(kernel):
    found, inputs, options, value = kernel
    x = inputs[0]
    for call in (found, found.op):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            first(call(leaf, *inputs[1:], *options)).square().sum(), leaf, create_graph=True
        )
        with pytest.raises(RuntimeError, match="has no second derivative"):
            slope.square().sum().backward()
    with pytest.raises(RuntimeError, match="has no second derivative"):
        grad(lambda x: grad(value)(x).square().sum())(x)
    with pytest.raises(RuntimeError, match="forward"):
        jvp(value, (x,), (x,))


@needs_kernels
def test_torch_func_takes_gradients_of_cuda_operators_and_maps_them(kernel):
    _, inputs, _, value = kernel
    leaf = inputs[0].clone().requires_grad_()
    (want,) = torch.autograd.grad(value(leaf), leaf)
    assert torch.equal(grad(value)(inputs[0]), want)
    assert torch.equal(vmap(grad(value))(torch.stack([2 * inputs[0], inputs[0]]))[1], want)


@needs_kernels
def test_torch_func_gets_the_plain_forms_where_kernels_would_serve(monkeypatch):
    interpret(monkeypatch)
    z, *weights = (noise(*shape, dtype=torch.float32).to(DEVICE) for shape in ((3, 10), (5,), (5,)))
    assert operator.has_kernels(norms.norms_triton, z)
    assert vmap(lambda z: z * operator.has_kernels(norms.norms_triton, z))(z).count_nonzero() == 0
    curvature = hessian(lambda z: norms.complex_layer_norm(z, *weights)[0, :2].square().sum())(z)
    assert curvature.count_nonzero() > 0
