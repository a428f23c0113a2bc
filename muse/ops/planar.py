"""Planar complex numbers: c(B T D) is one real tensor r(B T 2D), the D real parts, then the D imaginary parts.

B batch, T positions, D complex channels. No complex dtype is used inside a model, so autograd, autocast, GradScaler
and torch.compile see ordinary real tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .operator import by_hand


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: with matrix units (AMX), or an AMD with AVX512-BF16.

    On an Intel the latter alone is slower than float32. Versions of torch that do not name the CPU count as neither.
    """
    found = getattr(torch.cpu, "get_capabilities", dict)()
    on_amd = str(found.get("cpu_name", "")).startswith("AMD") and bool(found.get("avx512_bf16"))
    return on_amd or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


@dataclass(frozen=True)
class DtypeRow:
    """How numbers stored as `storage` are handled on one kind of device."""

    storage: torch.dtype  # parameters and activations in memory
    device_type: str  # "cpu", or "any" for every device without a row of its own
    compute: torch.dtype  # operands of matrix products
    accumulate: torch.dtype  # sums, norm statistics, softmax, losses
    master: torch.dtype  # weights that an optimizer updates


_CPU_HALF = torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32

DTYPE_TABLE = (
    DtypeRow(torch.float16, "cpu", _CPU_HALF, torch.float32, torch.float32),
    DtypeRow(torch.bfloat16, "cpu", _CPU_HALF, torch.float32, torch.float32),
    DtypeRow(torch.float16, "any", torch.float16, torch.float32, torch.float32),
    DtypeRow(torch.bfloat16, "any", torch.bfloat16, torch.float32, torch.float32),
    DtypeRow(torch.float32, "any", torch.float32, torch.float32, torch.float32),
    DtypeRow(torch.float64, "any", torch.float64, torch.float64, torch.float64),
)
_ROWS = {(row.storage, row.device_type): row for row in DTYPE_TABLE}
_cpu_compute = "auto"


def dtype_row(storage: torch.dtype, device_type: str) -> DtypeRow:
    """Row of the dtype table for numbers stored as `storage` on a device type such as "cpu" or "cuda"."""
    row = _ROWS.get((storage, device_type)) or _ROWS.get((storage, "any"))
    if row is None:
        wanted = ", ".join(sorted({str(row.storage) for row in DTYPE_TABLE}))
        raise ValueError(f"storage dtype must be one of {wanted}, got {storage}")
    return row


def set_cpu_compute(mode: str) -> None:
    """Choose the matrix products of half-precision numbers on CPU.

    "auto": the table; "float32": exact, slower; "storage": as on an accelerator, which slow CPUs are only to imitate.
    """
    global _cpu_compute
    if mode not in ("auto", "float32", "storage"):
        raise ValueError(f'CPU compute mode must be "auto", "float32" or "storage", got {mode!r}')
    _cpu_compute = mode


@contextmanager
def cpu_compute(mode: str) -> Iterator[None]:
    """Apply `set_cpu_compute(mode)` inside a with block; the backward pass has to run inside it too."""
    before = _cpu_compute
    set_cpu_compute(mode)
    try:
        yield
    finally:
        set_cpu_compute(before)


@contextmanager
def training_products(device_type: str) -> Iterator[None]:
    """What a training computes in: on CUDA float32 products, where it has any, are TF32 ones."""
    before = torch.get_float32_matmul_precision()
    if device_type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compute_dtype(storage: torch.dtype, device: torch.device | str) -> torch.dtype:
    """Dtype in which matrix products of numbers stored as `storage` run on `device`."""
    device_type = device.type if isinstance(device, torch.device) else torch.device(device).type
    row = dtype_row(storage, device_type)
    if _cpu_compute == "auto" or device_type != "cpu" or storage.itemsize != 2:
        return row.compute
    return torch.float32 if _cpu_compute == "float32" else storage


def accumulate_dtype(storage: torch.dtype) -> torch.dtype:
    """Dtype of sums, norm statistics and losses: float64 for float64, float32 for all else."""
    return torch.float64 if storage == torch.float64 else torch.float32


def product_dtypes(z: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """(compute, storage) dtypes of a matrix product with left operand z; autocast, where enabled, decides both."""
    if torch.is_autocast_enabled(z.device.type) and z.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(z.device.type)
        return dtype, dtype
    return compute_dtype(z.dtype, z.device), z.dtype


def rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in `dtype`; on a CPU the two half precisions become each other by way of float32: the same bits, sooner."""
    slow = t.device.type == "cpu" and {t.dtype, dtype} == {torch.bfloat16, torch.float16}
    return t.float().to(dtype) if slow else t.to(dtype)


def pack(real: Tensor, imag: Tensor) -> Tensor:
    """Real parts r(... D) and imaginary parts r(... D) to planar r(... 2D)."""
    if real.shape != imag.shape or real.dtype != imag.dtype:
        raise ValueError(
            f"real and imag must match in shape and dtype, got {tuple(real.shape)} {real.dtype} "
            f"and {tuple(imag.shape)} {imag.dtype}"
        )
    return torch.cat([real, imag], dim=-1)


def unpack(z: Tensor) -> tuple[Tensor, Tensor]:
    """Planar r(... 2D) to views of its real parts r(... D) and imaginary parts r(... D)."""
    if z.shape[-1] % 2:
        raise ValueError(f"a planar tensor needs an even number of channels, got {z.shape[-1]}")
    real, imag = z.chunk(2, dim=-1)
    return real, imag


def to_complex(z: Tensor) -> Tensor:
    """Planar r(... 2D) to a native complex tensor c(... D): complex128 from float64, complex64 from all else."""
    real, imag = unpack(z)
    dtype = accumulate_dtype(z.dtype)
    return torch.complex(real.to(dtype), imag.to(dtype))


def from_complex(c: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Native complex c(... D) to planar r(... 2D), rounded to `dtype` if one is given."""
    if not c.is_complex():
        raise ValueError(f"from_complex needs a complex tensor, got {c.dtype}")
    z = torch.cat([c.real, c.imag], dim=-1)
    return z if dtype is None else z.to(dtype)


def linear(
    z: Tensor,
    weight_real: Tensor,
    weight_imag: Tensor,
    bias_real: Tensor | None = None,
    bias_imag: Tensor | None = None,
) -> Tensor:
    """(A + iB)(x + iy) + (a + ib) as one real product [[A, -B], [B, A]] [x; y]: planar r(... 2I) to planar r(... 2O).

    Weights are r(O I), biases r(O). Operands are cast to the compute dtype and the result back to the dtype of z (under
    autocast: the autocast dtype), so a result too large for the stored format is inf, whatever the compute dtype.
    """
    if z.shape[-1] != 2 * weight_real.shape[1]:
        raise ValueError(f"z must have 2 x {weight_real.shape[1]} planar channels, got {z.shape[-1]}")
    return _product(z, weight_real, weight_imag, bias_real, bias_imag, *product_dtypes(z))


def _matrix(weight_real: Tensor, weight_imag: Tensor, dtype: torch.dtype) -> Tensor:
    """[[A, -B], [B, A]]: r(O I) twice to r(2O 2I)."""
    a, b = weight_real.to(dtype), weight_imag.to(dtype)
    return torch.cat([torch.cat([a, -b], dim=1), torch.cat([b, a], dim=1)], dim=0)


def _product_formula(z, weight_real, weight_imag, bias_real, bias_imag, compute, storage) -> tuple[Tensor]:
    bias = None if bias_real is None else torch.cat([bias_real, bias_imag]).to(compute)
    return (rounded(F.linear(z.to(compute), _matrix(weight_real, weight_imag, compute), bias), storage),)


def _product_gradient(needed, grad, z, weight_real, weight_imag, bias_real, bias_imag, compute, storage):
    """Builds [[A, -B], [B, A]] again, twice the size of what it is made of.

    With G = [P, Q; R, S] the gradient of that matrix, A gets P + S and B gets R - Q.
    """
    (of_z, *of_weight, of_bias, _, _, _) = needed
    g, found = grad.to(compute).reshape(-1, grad.shape[-1]), [None] * 7
    if of_z:
        found[0] = (g @ _matrix(weight_real, weight_imag, compute)).to(z.dtype).view(z.shape)
    if any(of_weight):
        whole = g.t() @ z.to(compute).reshape(-1, z.shape[-1])
        (p, q), (r, s) = (rows.chunk(2, dim=1) for rows in whole.chunk(2, dim=0))
        found[1], found[2] = (p + s).to(weight_real.dtype), (r - q).to(weight_imag.dtype)
    if of_bias:
        found[3], found[4] = g.sum(0).to(bias_real.dtype).chunk(2)
    return tuple(found)


_product = by_hand(_product_formula, _product_gradient)
