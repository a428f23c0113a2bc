from __future__ import annotations

import contextlib
import dataclasses

import pytest
import reference
import torch

from muse.ops import planar


def complex_problem(rows=7, fan_in=13, fan_out=11, dtype=torch.float64, seed=0):
    """z r(rows 2I), A and B r(O I), a and b r(O), all random with prime sizes, rounded to dtype."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(rows, 2 * fan_in), (fan_out, fan_in), (fan_out, fan_in), (fan_out,), (fan_out,)]
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def test_pack_and_unpack_are_inverse_and_keep_the_planes_apart():
    real, imag = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    z = planar.pack(real, imag)
    assert z.shape == (2, 3, 10)
    assert torch.equal(z[..., :5], real)
    assert torch.equal(z[..., 5:], imag)
    views = planar.unpack(z)
    assert torch.equal(views[0], real)
    assert torch.equal(views[1], imag)
    assert all(view.stride(-1) == 1 for view in views)
    assert views[0].data_ptr() == z.data_ptr()
    assert views[1].data_ptr() == z.data_ptr() + 5 * z.element_size()


@pytest.mark.parametrize(
    ("dtype", "native"),
    [(torch.float64, torch.complex128), (torch.float32, torch.complex64), (torch.float16, torch.complex64)],
)
def test_complex_round_trip(dtype, native):
    z = torch.randn(3, 14, dtype=torch.float64).to(dtype)
    c = planar.to_complex(z)
    assert c.dtype == native
    assert torch.equal(c.to(torch.complex128), reference.native(z))
    assert torch.equal(planar.from_complex(c, dtype), z)


def test_bad_planar_tensors_say_what_is_wrong():
    with pytest.raises(ValueError, match="even number of channels, got 7"):
        planar.unpack(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="even number"):
        planar.to_complex(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="must match"):
        planar.pack(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="complex tensor"):
        planar.from_complex(torch.zeros(2))
    with pytest.raises(ValueError, match="planar channels, got 8"):
        planar.linear(torch.zeros(2, 8), torch.zeros(3, 5), torch.zeros(3, 5))


def test_linear_by_hand():
    z = torch.tensor([[2.0, 3.0]])  # 2 + 3i
    got = planar.linear(z, torch.tensor([[5.0]]), torch.tensor([[7.0]]), torch.tensor([10.0]), torch.tensor([20.0]))
    assert got.tolist() == [[-1.0, 49.0]]  # (5 + 7i)(2 + 3i) + 10 + 20i = -11 + 29i + 10 + 20i


@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_match_native_complex(bias):
    inputs = [t.requires_grad_() for t in complex_problem()]
    inputs = inputs if bias else inputs[:3]
    got = planar.linear(*inputs)
    want = reference.linear(reference.native(inputs[0]), *inputs[1:])
    assert reference.rms_error(got, reference.planes(want)) < 1e-15
    direction = torch.randn_like(got)
    got_grads = torch.autograd.grad((got * direction).sum(), inputs)
    want_grads = torch.autograd.grad((reference.planes(want) * direction).sum(), inputs)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        assert reference.rms_error(got_grad, want_grad) < 1e-14


@pytest.mark.parametrize(
    ("dtype", "cpu_compute", "bound"),
    [(torch.float32, "auto", 1e-6), (torch.float16, "float32", 3e-4), (torch.float16, "auto", 4e-3)],
)
def test_linear_rounding_error(dtype, cpu_compute, bound):
    inputs = complex_problem(rows=67, fan_in=127, fan_out=101, dtype=dtype)
    want = reference.planes(reference.linear(reference.native(inputs[0]), *inputs[1:]))
    with planar.cpu_compute(cpu_compute):
        got = planar.linear(*inputs)
    assert got.dtype == dtype
    assert reference.rms_error(got, want) < bound


@pytest.mark.parametrize("cpu_compute", ["auto", "float32"])
def test_overflow_of_the_stored_format_shows(cpu_compute):
    z, weight = torch.full((1, 4), 300.0).half(), torch.full((1, 2), 300.0).half()
    with planar.cpu_compute(cpu_compute):
        got = planar.linear(z, weight, torch.zeros_like(weight))
    assert got.isinf().all()


def test_autocast_decides_the_dtype():
    z, a, b, *_ = complex_problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = planar.linear(z, a, b)
        assert planar.linear(z.double(), a, b).dtype == torch.float64
    assert got.dtype == torch.bfloat16
    assert reference.rms_error(got, planar.linear(z, a, b)) < 1e-2


def test_dtype_table_rules():
    assert planar.compute_dtype(torch.float16, "cuda") == torch.float16
    assert planar.compute_dtype(torch.float16, torch.device("cuda:0")) == torch.float16
    assert planar.compute_dtype(torch.float16, "cpu") in (torch.bfloat16, torch.float32)
    assert planar.compute_dtype(torch.float32, "cpu") == torch.float32
    assert planar.compute_dtype(torch.float64, "cuda") == torch.float64
    for row in planar.DTYPE_TABLE:
        assert row.accumulate == row.master == planar.accumulate_dtype(row.storage)
        assert row.accumulate.itemsize >= 4
        with pytest.raises(dataclasses.FrozenInstanceError):
            row.compute = torch.float64
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        planar.compute_dtype(torch.int64, "cpu")


@pytest.mark.parametrize(
    ("found", "tiles", "expected"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, False, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, False, False),
        ({"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True}, False, False),
        ({"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True}, True, True),
        ({}, False, False),
    ],
)
def test_bfloat16_is_multiplied_as_such_where_that_is_faster(found, tiles, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert planar._cpu_multiplies_bfloat16() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert planar._cpu_multiplies_bfloat16() == tiles


def test_cpu_compute_mode_is_local_and_checked():
    planar.set_cpu_compute("auto")
    before = planar.compute_dtype(torch.float16, "cpu")
    assert before == planar.dtype_row(torch.float16, "cpu").compute
    with planar.cpu_compute("float32"):
        assert planar.compute_dtype(torch.float64, "cpu") == torch.float64
        assert planar.compute_dtype(torch.float16, "cpu") == torch.float32
        assert planar.compute_dtype(torch.float16, "cuda") == torch.float16
    assert planar.compute_dtype(torch.float16, "cpu") == before
    with pytest.raises(ZeroDivisionError), planar.cpu_compute("float32"):
        1 / 0  # noqa: B018  (an exception inside the block)
    assert planar.compute_dtype(torch.float16, "cpu") == before
    with pytest.raises(ValueError, match="got 'exact'"):
        planar.set_cpu_compute("exact")


def test_rounding_by_way_of_float32_gives_the_bits_of_rounding_at_once():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for one, other in ((torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)):
        every = bits.view(one)
        got, want = planar.rounded(every, other), every.to(other)
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got[~want.isnan()].view(torch.int16), want[~want.isnan()].view(torch.int16))
    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    planar.rounded(x, torch.float16).sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_float32_products_of_a_training_are_tf32_on_cuda_alone_and_the_callers_again_behind_it():
    before = torch.get_float32_matmul_precision()
    for device_type, inside in (("cuda", "high"), ("cpu", before)):
        with planar.training_products(device_type):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == before


def test_an_error_in_a_training_leaves_the_callers_products_too():
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(KeyError), planar.training_products("cuda"):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
