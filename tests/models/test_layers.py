from __future__ import annotations

import copy
import math

import pytest
import reference
import torch
from devices import DEVICE, INTERPRETED, interpret, needs_kernels
from torch import nn
from torch.autograd import gradcheck

from muse.models import layers
from muse.ops import norms, planar

D = 7


def planar_noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomised(module, seed=1):
    """The module in float64 with every parameter moved away from its initial value."""
    module = module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * planar_noise(*parameter.shape, seed=seed + i))
    return module


def cases():
    """(name, module, its complex128 reference)."""
    linear = randomised(layers.ComplexLinear(D, 5))
    activation = randomised(layers.ModReLU(D))
    norm = randomised(layers.ComplexLayerNorm(D))
    return {
        "linear": (
            linear,
            lambda z: reference.linear(z, linear.weight_real, linear.weight_imag, linear.bias_real, linear.bias_imag),
        ),
        "modrelu": (activation, lambda z: reference.modrelu(z, activation.bias, norms.MAGNITUDE_EPS)),
        "norm": (norm, lambda z: reference.layer_norm(z, norm.gamma, norm.beta)),
    }


@pytest.mark.parametrize("name", ["linear", "modrelu", "norm"])
def test_forward_and_gradients_match_the_reference(name):
    module, naive = cases()[name]
    z = planar_noise(3, 11, 2 * D).requires_grad_()
    got, want = module(z), reference.planes(naive(reference.native(z)))
    assert reference.rms_error(got, want) < 1e-14
    direction = planar_noise(*got.shape, seed=5)
    inputs = [z, *module.parameters()]
    got_grads = torch.autograd.grad((got * direction).sum(), inputs)
    want_grads = torch.autograd.grad((want * direction).sum(), inputs)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        assert reference.rms_error(got_grad, want_grad) < 1e-12


@pytest.mark.parametrize("name", ["linear", "modrelu", "norm"])
def test_gradcheck(name):
    module, _ = cases()[name]
    z = planar_noise(2, 3, 2 * D).requires_grad_()
    parameters = dict(module.named_parameters())

    def call(z, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (z,))

    assert gradcheck(call, (z, *parameters.values()))


@pytest.mark.parametrize(("name", "bound"), [("linear", 4e-3), ("modrelu", 3e-4), ("norm", 3e-4)])
def test_float16_rounding_error(name, bound):
    module, naive = cases()[name]
    module.half()
    z = planar_noise(5, 13, 2 * D, dtype=torch.float16).requires_grad_()
    got = module(z)
    assert got.dtype == torch.float16
    z64 = z.detach().double().requires_grad_()
    want = reference.planes(naive(reference.native(z64)))
    assert reference.rms_error(got, want) < bound
    direction = planar_noise(*got.shape, seed=5, dtype=torch.float16)
    (got * direction).sum().backward()
    (want_grad,) = torch.autograd.grad((want * direction.double()).sum(), z64)
    assert z.grad.dtype == torch.float16
    assert reference.rms_error(z.grad, want_grad) < 2 * bound


def rotate(z, angle):
    return reference.planes(reference.native(z) * torch.exp(1j * torch.tensor(angle, dtype=torch.float64)))


@pytest.mark.parametrize("name", ["linear", "modrelu", "norm"])
@pytest.mark.parametrize("angle", [0.7, math.pi / 2, 4.0])
def test_phase_equivariance_without_shifts(name, angle):
    """f(e^{ia} z) = e^{ia} f(z) once the additive complex bias, or beta, is zero."""
    module, _ = cases()[name]
    with torch.no_grad():
        for shift in ("bias_real", "bias_imag", "beta"):
            if hasattr(module, shift):
                getattr(module, shift).zero_()
        z = planar_noise(3, 2 * D)
        assert reference.rms_error(module(rotate(z, angle)), rotate(module(z), angle)) < 1e-14


def test_zero_imaginary_part_is_the_real_layer():
    real = planar_noise(3, D)
    z = planar.pack(real, torch.zeros_like(real))
    linear, activation, norm = (module for module, _ in cases().values())
    with torch.no_grad():
        linear.weight_imag.zero_()
        linear.bias_imag.zero_()
        x, y = planar.unpack(linear(z))
        assert reference.rms_error(x, torch.nn.functional.linear(real, linear.weight_real, linear.bias_real)) < 1e-15
        assert not y.any()
        x, y = planar.unpack(norm(z))
        assert reference.rms_error(x, torch.nn.functional.layer_norm(real, (D,), norm.gamma, norm.beta)) < 1e-15
        assert not y.any()
        activation.bias.copy_(-activation.bias.abs())
        x, y = planar.unpack(activation(z))
        soft_threshold = torch.sign(real) * torch.relu(real.abs() + activation.bias)
        assert reference.rms_error(x, soft_threshold) < 1e-5  # |z| is smoothed by MAGNITUDE_EPS
        assert not y.any()


def test_beta_moves_the_real_plane_only():
    norm = layers.ComplexLayerNorm(D).double()
    z = planar_noise(3, 2 * D)
    before = norm(z)
    with torch.no_grad():
        norm.beta.fill_(2.5)
    x, y = planar.unpack(norm(z) - before)
    assert torch.allclose(x, torch.full_like(x, 2.5))
    assert not y.any()


def test_norm_output_has_zero_mean_and_unit_complex_variance_per_token():
    z = planar_noise(5, 11, 2 * 64) * torch.linspace(1, 9, 11, dtype=torch.float64)[:, None] + 3
    c = reference.native(layers.ComplexLayerNorm(64).double()(z))
    assert c.mean(-1).abs().max() < 1e-14
    assert torch.allclose(c.abs().square().mean(-1), torch.ones(5, 11, dtype=torch.float64), atol=1e-4)


def test_norm_in_float16_survives_values_whose_squares_overflow():
    z = (planar_noise(2, 2 * D) * 2000).half()
    assert layers.ComplexLayerNorm(D).half()(z).isfinite().all()
    assert layers.ModReLU(D).half()(z).isfinite().all()


@pytest.mark.parametrize("bias", [0.0, 0.25, -0.25])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_modrelu_at_zero(bias, dtype):
    z = torch.zeros(2, 2 * D, dtype=dtype, requires_grad=True)
    b = torch.full((D,), bias, dtype=dtype, requires_grad=True)
    out = norms.modrelu(z, b)
    out.sum().backward()
    assert not out.any()
    assert z.grad.isfinite().all()
    assert b.grad.isfinite().all()
    assert torch.equal(z.grad, torch.ones_like(z.grad)) or bias != 0.0  # b = 0 is the identity


def test_modrelu_is_the_textbook_away_from_zero():
    z = planar_noise(3, 2 * D)
    z = torch.where(z.abs() < 0.1, z.sign() * 0.1, z)
    bias = planar_noise(D, seed=3)
    want = reference.planes(reference.modrelu(reference.native(z), bias))
    assert reference.rms_error(norms.modrelu(z, bias), want) < 1e-6
    closed = norms.modrelu(z, torch.full((D,), -10.0, dtype=torch.float64))
    assert not closed.any()


@pytest.mark.parametrize("bias", [0.0, -1.0])
def test_modrelu_of_numbers_whose_squares_overflow(bias):
    z = torch.tensor([[3e20, -1e30, 4e20, 0.0]], requires_grad=True)
    layer = layers.ModReLU(2)
    nn.init.constant_(layer.bias, bias)
    y = layer(z)
    y.backward(torch.ones_like(y))
    assert torch.equal(y, z)
    assert torch.allclose(z.grad, torch.ones_like(z))
    assert torch.allclose(layer.bias.grad, torch.tensor([1.4, -1.0]))


@pytest.mark.parametrize("name", ["linear", "modrelu", "norm"])
def test_a_wrong_width_and_integers_are_refused(name):
    layer, _ = cases()[name]
    for width in (2, D, 2 * D - 2, 2 * D + 2):
        with pytest.raises(ValueError, match=f"z must have 2 x {D} planar channels, got .*{width}"):
            layer(planar_noise(3, width))
    if name != "linear":  # whose product refuses them itself
        with pytest.raises(ValueError, match=r"must be floating-point, got torch.int64"):
            layer(torch.zeros(3, 2 * D, dtype=torch.int64))


def test_residual_norm_refuses_another_width():
    z = planar_noise(3, 2 * D + 2)
    with pytest.raises(ValueError, match=f"2 x {D} planar channels"):
        norms.residual_norm(z, z, None, layers.ModReLU(D).double(), layers.ComplexLayerNorm(D).double())


@pytest.mark.parametrize("name", ["linear", "modrelu", "norm"])
def test_one_token_without_other_dimensions_has_the_gradients_of_a_batch_of_one(name):
    found, (layer, _) = [], cases()[name]
    for shape in ((2 * D,), (1, 1, 2 * D)):
        layer.zero_grad()
        z = planar_noise(2 * D).reshape(shape).requires_grad_()
        layer(z).square().sum().backward()
        found.append([z.grad.flatten(), *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("make", "sizes", "told"),
    [
        (layers.ComplexLinear, (3, 4), "ComplexLinear(3, 4, bias=True)"),
        (layers.ModReLU, (4,), "ModReLU(4)"),
        (layers.ComplexLayerNorm, (4,), "ComplexLayerNorm(4, eps=1e-05)"),
        (layers.ComplexEmbedding, (5, 4), "ComplexEmbedding(5, 4)"),
    ],
)
def test_layers_are_made_printed_and_reset_as_those_of_the_library(make, sizes, told):
    assert str(make(*sizes)) == told
    assert {p.dtype for p in make(*sizes, dtype=torch.float64).parameters()} == {torch.float64}
    empty = make(*sizes, device="meta")
    assert all(p.is_meta for p in empty.parameters())
    filled = empty.to_empty(device="cpu")
    for parameter in filled.parameters():
        nn.init.constant_(parameter, math.nan)
    torch.manual_seed(3)
    filled.reset_parameters()
    torch.manual_seed(3)
    for one, other in zip(filled.parameters(), make(*sizes).parameters(), strict=True):
        assert torch.equal(one, other)


def test_embedding_looks_up_both_parts():
    table = layers.ComplexEmbedding(13, D)
    ids = torch.tensor([[3, 12], [0, 3]])
    want = torch.complex(table.weight_real, table.weight_imag)[ids]
    assert torch.equal(planar.to_complex(table(ids)), want)
    direction = planar_noise(2, 2, 2 * D, dtype=torch.float32)
    (table(ids) * direction).sum().backward()
    assert torch.equal(table.weight_real.grad[3], direction[0, 0, :D] + direction[1, 1, :D])
    assert torch.equal(table.weight_imag.grad[12], direction[0, 1, D:])
    assert not table.weight_imag.grad[1].any()


def test_dropout_keeps_or_drops_whole_complex_elements():
    torch.manual_seed(0)
    z = torch.ones(50, 2 * 100)
    assert norms.dropout(z, 0.3, training=False) is z
    x, y = planar.unpack(norms.dropout(z, 0.3, training=True))
    assert torch.equal(x, y)
    assert set(x.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert abs((x == 0).float().mean().item() - 0.3) < 0.02


class End(nn.Module):
    """What ends a block: norm(z + keep modrelu(h)), parameters moved away from their initial values."""

    def __init__(self, channels, rows=11, dropped=True):
        super().__init__()
        self.activation = randomised(layers.ModReLU(channels))
        self.norm = randomised(layers.ComplexLayerNorm(channels), seed=2)
        keep = 1.25 * (planar_noise(rows, channels, seed=9) > -0.5)
        self.register_buffer("keep", keep if dropped else None)

    def forward(self, z, h):
        keep = None if self.keep is None else self.keep.to(h.dtype)
        return norms.residual_norm(z, h, keep, self.activation, self.norm)


class EndAndNext(End):
    """The same with the norm that follows: alone, or added to what ends the block."""

    def __init__(self, channels, rows, dropped, alone):
        super().__init__(channels, rows, dropped)
        self.following = randomised(layers.ComplexLayerNorm(channels), seed=3)
        self.alone = alone

    def forward(self, z, h):
        keep = None if self.keep is None else self.keep.to(h.dtype)
        y, n = norms.residual_norms(z, h, keep, self.activation, self.norm, self.following, z.dtype)
        return n if self.alone else y + n


def test_residual_norms_are_two_steps_in_one():
    end, inputs = EndAndNext(D, 11, True, alone=False), [planar_noise(11, 2 * D, seed=i) for i in (7, 8)]
    y = End.forward(end, *inputs)
    assert torch.equal(end(*inputs), y + end.following(y))
    keep, modules = end.keep, (end.activation, end.norm, end.following)
    pair = norms.residual_norms(*inputs, keep, *modules, torch.bfloat16)
    assert [x.dtype for x in pair] == [torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dropped", [False, True])
def test_residual_norm_matches_the_reference(dropped):
    end, inputs = End(D, dropped=dropped), [planar_noise(11, 2 * D, seed=i).requires_grad_() for i in (7, 8)]
    z, update = reference.native(inputs[0]), reference.modrelu(reference.native(inputs[1]), end.activation.bias, 1e-4)
    update = update * end.keep if dropped else update
    want = reference.planes(reference.layer_norm(z + update, end.norm.gamma, end.norm.beta))
    got = end(*inputs)
    assert reference.rms_error(got, want) < 1e-14
    inputs, direction = [*inputs, *end.parameters()], planar_noise(*got.shape, seed=5)
    pairs = (torch.autograd.grad(y, inputs, direction) for y in (got, want))
    for got_grad, want_grad in zip(*pairs, strict=True):
        assert reference.rms_error(got_grad, want_grad) < 1e-12


def test_residual_norm_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"one shape, got \(11, 14\) and \(1, 14\)"):
        End(D)(planar_noise(11, 2 * D), planar_noise(1, 2 * D))


def test_dropout_is_its_mask():
    z = planar_noise(5, 2 * D, dtype=torch.float32)
    torch.manual_seed(0)
    keep = norms.dropout_mask(z, 0.3, training=True)
    assert keep.shape == (5, D)
    torch.manual_seed(0)
    assert torch.equal(norms.dropout(z, 0.3, training=True), z * keep.repeat(1, 2))
    assert norms.dropout_mask(z, 0.0, training=True) is None


def test_norm_rounds_once_to_another_dtype():
    norm = cases()["norm"][0].float()
    z = planar_noise(3, 2 * D, dtype=torch.float32).requires_grad_()
    direction = planar_noise(3, 2 * D, seed=5, dtype=torch.bfloat16)
    got, want = norm(z, torch.bfloat16), norm(z)
    assert torch.equal(got, want.bfloat16())
    inputs = [z, *norm.parameters()]
    pairs = torch.autograd.grad(got, inputs, direction), torch.autograd.grad(want, inputs, direction.float())
    assert all(torch.equal(*pair) for pair in zip(*pairs, strict=True))


@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles; this test is about numbers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["modrelu", "norm", "linear"])
def test_compiled_layers_have_the_gradients_of_eager_ones(name, dtype):
    """A compiler gets formulas, eager code gradients written by hand."""
    module = cases()[name][0].to(dtype)
    z = planar_noise(3, 11, 2 * D, dtype=dtype).requires_grad_()
    direction = planar_noise(*module(z).shape, seed=5, dtype=dtype)
    torch.compiler.reset()
    results = []
    for run in (module, torch.compile(module, backend="aot_eager")):
        y = run(z)
        results.append([y, *torch.autograd.grad(y, [z, *module.parameters()], direction)])
    for want, got in zip(*results, strict=True):
        assert reference.rms_error(got, want) < {torch.bfloat16: 5e-3, torch.float32: 1e-6}.get(dtype, 1e-14)


needs_kernels = needs_kernels(norms.norms_triton)
SHAPES = [(1, 512), (3, 7), (700, 33), (1301, 512), (5, 4096)]
SHAPES = [(1, 70), (3, 7), (5, 33)] if INTERPRETED else SHAPES
ROWS = 7 if INTERPRETED else 700
BOUNDS = {torch.float32: 3e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


@pytest.fixture
def kernels(monkeypatch):
    interpret(monkeypatch)


def stream_and_update(rows, channels, z_dtype, h_dtype):
    """What ends a block takes: the stream z and the linear layer's result h."""
    return [planar_noise(rows, 2 * channels, seed=seed, dtype=dtype) for seed, dtype in ((7, z_dtype), (8, h_dtype))]


def assert_kernel_matches_float64(module, inputs, out_dtype, **options):
    """module(*inputs) and all gradients against the plain path, which float64 takes on CUDA too."""
    exact, module = copy.deepcopy(module).to(DEVICE), module.to(DEVICE, inputs[0].dtype)
    exact.load_state_dict(module.state_dict())  # the rounded parameters
    inputs = [x.to(DEVICE).requires_grad_() for x in inputs]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    assert all(map(norms._has_kernel, inputs))
    got, want = module(*inputs, **options), exact(*exact_inputs)
    assert (got.dtype, got.is_contiguous()) == (out_dtype, True)
    assert reference.rms_error(got, want) < BOUNDS[out_dtype]
    direction = planar_noise(*got.shape, seed=5, dtype=out_dtype).to(DEVICE)
    inputs = [*inputs, *module.parameters()]
    got_grads = torch.autograd.grad(got, inputs, direction)
    want_grads = torch.autograd.grad(want, [*exact_inputs, *exact.parameters()], direction.double())
    for x, got_grad, want_grad in zip(inputs, got_grads, want_grads, strict=True):
        assert got_grad.dtype == x.dtype
        assert reference.rms_error(got_grad, want_grad) < BOUNDS[x.dtype]


@needs_kernels
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    ("z_dtype", "h_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_cuda_residual_norm_kernel(rows, channels, z_dtype, h_dtype, dropped):
    inputs = stream_and_update(rows, channels, z_dtype, h_dtype)
    assert_kernel_matches_float64(End(channels, rows, dropped), inputs, z_dtype)


@needs_kernels
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    ("z_dtype", "h_dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float16)],
)
@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_cuda_residual_norms_kernel(rows, channels, z_dtype, h_dtype, dropped, alone):
    inputs = stream_and_update(rows, channels, z_dtype, h_dtype)
    assert_kernel_matches_float64(EndAndNext(channels, rows, dropped, alone), inputs, z_dtype)


@needs_kernels
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_cuda_norm_kernel(rows, channels, dtype, out_dtype):
    norm = randomised(layers.ComplexLayerNorm(channels))
    assert_kernel_matches_float64(norm, [planar_noise(rows, 2 * channels, dtype=dtype)], out_dtype, dtype=out_dtype)


@needs_kernels
@pytest.mark.usefixtures("kernels")
def test_cuda_kernels_take_any_strides_and_no_tokens():
    norm = layers.ComplexLayerNorm(D).to(DEVICE)
    z = planar_noise(2 * D, 3, 5, dtype=torch.float32).to(DEVICE).permute(2, 1, 0).requires_grad_()
    got, want = norm(z), norm(z.contiguous())
    assert torch.equal(got, want)
    direction = planar_noise(2 * D, 3, 5, seed=5, dtype=torch.float32).to(DEVICE).permute(2, 1, 0)
    pairs = (torch.autograd.grad(y, z, direction)[0] for y in (got, want))
    assert torch.equal(*pairs)
    empty = torch.zeros(0, 2 * D, device=DEVICE, requires_grad=True)
    end = End(D, 0).to(DEVICE, torch.float32)
    end(empty, empty).sum().backward()
    assert empty.grad.shape == empty.shape
    assert not any(p.grad.any() for p in end.parameters())


@needs_kernels
@pytest.mark.usefixtures("kernels")
def test_cuda_kernels_keep_nan_and_give_equal_sums_again():
    end = End(64, ROWS).to(DEVICE, torch.float32)
    z, h = (planar_noise(ROWS, 128, seed=i, dtype=torch.float32).to(DEVICE) for i in (7, 8))
    results = []
    for _ in range(2):
        end.zero_grad()
        end(z, h).square().sum().backward()
        results.append([p.grad for p in end.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    h[3, 5] = math.nan
    assert torch.equal(end(z, h).isnan().all(-1), torch.arange(ROWS, device=DEVICE) == 3)


def test_initial_values_have_the_stated_variances():
    linear, table = layers.ComplexLinear(300, 500), layers.ComplexEmbedding(400, 300)
    generator = torch.Generator().manual_seed(0)
    for module in (linear, table):
        layers.initialise(module, generator)
    for weight in (linear.weight_real, linear.weight_imag):
        want = reference.xavier_part_variance(300, 500)
        assert abs(weight.var().item() / want - 1) < 6 * math.sqrt(2 / weight.numel())
        assert abs(weight.mean().item()) < 6 * math.sqrt(want / weight.numel())
    parts_product = (linear.weight_real * linear.weight_imag).mean().abs().item()
    assert parts_product < 6 * reference.xavier_part_variance(300, 500) / math.sqrt(linear.weight_real.numel())
    power = table.weight_real.square() + table.weight_imag.square()
    assert abs(power.mean().item() - 1) < 6 / math.sqrt(power.numel())
    assert not linear.bias_real.any()
    assert not linear.bias_imag.any()
    assert not layers.ModReLU(D).bias.any()
    norm = layers.ComplexLayerNorm(D)
    assert torch.equal(norm.gamma, torch.ones(D))
    assert not norm.beta.any()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), r"\(batch, positions\), got \(4,\)"),
        (torch.zeros(1, 4), r"int64 or int32, got torch\.float32"),
        (torch.zeros(1, 9, dtype=torch.int64), "n_seq=8 positions, got 9"),
        (torch.zeros(1, 0, dtype=torch.int64), "positions, got 0"),
        (torch.tensor([[0, 10]]), r"\[0, 10\), got 0 to 10"),
        (torch.tensor([[-1, 9]]), r"\[0, 10\), got -1 to 9"),
    ],
)
def test_bad_token_ids_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        layers.check_token_ids(ids, vocab_size=10, n_seq=8)


def test_good_token_ids_pass():
    layers.check_token_ids(torch.tensor([[0, 9]]), vocab_size=10, n_seq=2)
    layers.check_token_ids(torch.tensor([[0, 9]], dtype=torch.int32), vocab_size=10, n_seq=2)
