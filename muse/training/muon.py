"""Muon: each matrix moves along the nearest unitary (orthogonal) matrix to its momentum.

    M <- mu M + (1 - mu) g,   W <- (1 - lr decay) W - lr sqrt(max(1, rows / columns)) polar((1 - mu) g + mu M)

polar(X) = U V^H for X = U S V^H, approached by five steps of a quintic that brings every singular value above 1/300 of
the norm to between 0.68 and 1.21. A complex matrix A + iB is taken to its *unitary* polar factor by complex products on
two planes, half the operations of the real form [[A, -B], [B, A]].
Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), coefficients and factor included;
arXiv:2502.16982 for the weight decay. The complex form is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from muse.models.layers import ComplexLinear

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5
TINY = 1e-7  # added to a norm before it divides

Matrix = tuple[nn.Parameter, ...]
"""(W,) of a real matrix, (Re W, Im W) of a complex one."""


def matrices_of(module: nn.Module) -> list[Matrix]:
    """Return the trained matrices of linear maps inside a module, such as a model's blocks; no tables, no vectors."""
    found: list[Matrix] = []
    for part in module.modules():
        if isinstance(part, ComplexLinear):
            found.append((part.weight_real, part.weight_imag))
        elif not isinstance(part, nn.Embedding) and getattr(getattr(part, "weight", None), "ndim", 0) == 2:
            found.append((part.weight,))
    return [matrix for matrix in found if matrix[0].requires_grad]


def polar(x: Tensor, planes: int = 1, steps: int = STEPS) -> Tensor:
    """Return the polar factor of matrices (N R C), or of complex ones whose planes stand one below the other (N 2R C).

    Computed in the dtype of x, of which nothing as large as x is copied between products; a matrix of zeros stays zero.
    """
    wide = x.shape[-2] // planes <= x.shape[-1]
    x = x if wide else adjoint(x, planes)
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + TINY)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = _gram(x, planes)
        half = gram[..., : gram.shape[-1] // planes]  # its planes one below the other
        polynomial = torch.baddbmm(half, gram, half, beta=b, alpha=c)
        x = torch.baddbmm(x, _square_form(polynomial, planes), x, beta=a)
    return x if wide else adjoint(x, planes)


def adjoint(x: Tensor, planes: int) -> Tensor:
    """The conjugate transpose of (N R C), or of (N 2R C) with planes one below the other: (N C R) or (N 2C R)."""
    if planes == 1:
        return x.mT
    real, imag = x.chunk(2, dim=-2)
    return torch.cat([real.mT, -imag.mT], dim=-2)


def _gram(x: Tensor, planes: int) -> Tensor:
    """x x^H of (N R C), or of (N 2R C) with planes one below the other, as what multiplies: (N R R) or (N 2R 2R).

    (A + iB)(A + iB)^H = A A^T + B B^T + i (B A^T - A B^T), whose four products are one of the planes with themselves.
    """
    products = x @ x.mT
    if planes == 1:
        return products
    (aa, ab), (ba, bb) = (rows.chunk(2, dim=-1) for rows in products.chunk(2, dim=-2))
    form = torch.empty_like(products)
    real, imag = form.chunk(2, dim=-1)[0].chunk(2, dim=-2)
    torch.add(aa, bb, out=real)
    torch.sub(ba, ab, out=imag)
    return _completed(form)


def _square_form(x: Tensor, planes: int) -> Tensor:
    """What multiplies planes that stand one below the other: [[A, -B], [B, A]] of A + iB, or the real matrix itself."""
    if planes == 1:
        return x
    form = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])
    form[..., : x.shape[-1]] = x
    return _completed(form)


def _completed(form: Tensor) -> Tensor:
    """[[A, ?], [B, ?]] to [[A, -B], [B, A]], in place."""
    left, right = form.chunk(2, dim=-1)
    (a, b), (minus_b, again) = left.chunk(2, dim=-2), right.chunk(2, dim=-2)
    torch.neg(b, out=minus_b)
    again.copy_(a)
    return form


class Muon(torch.optim.Optimizer):
    """Muon for real and complex matrices; those of equal shape are stepped together.

    `lr` may be a tensor on the parameters' device, so that a captured step follows a schedule. `compute` is the dtype
    of the products of `polar`.
    """

    def __init__(
        self,
        matrices: Iterable[Matrix],
        lr: Tensor | float,
        *,
        momentum: float = MOMENTUM,
        weight_decay: float = 0.0,
        compute: torch.dtype = torch.float32,
    ) -> None:
        shapes: dict[tuple[int, torch.Size], list[Matrix]] = {}
        for matrix in matrices:
            shapes.setdefault((len(matrix), matrix[0].shape), []).append(matrix)
        if not shapes:
            raise ValueError("optimizer: muon steps matrices of linear maps, and this model has none; expected adamw")
        groups = [
            {"params": [plane for planes in zip(*alike, strict=True) for plane in planes], "planes": planes}
            for (planes, _), alike in shapes.items()
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.compute = compute

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix; all of them must have gradients."""
        for group in self.param_groups:
            parameters, planes, momentum = group["params"], group["planes"], group["momentum"]
            gradients = [parameter.grad for parameter in parameters]
            kept = [self._momentum(parameter) for parameter in parameters]
            torch._foreach_lerp_(kept, gradients, 1 - momentum)
            ahead = torch._foreach_lerp(gradients, kept, momentum)
            count = len(parameters) // planes
            rows, columns = parameters[0].shape
            stacked = parameters[0].new_empty(count, planes * rows, columns, dtype=self.compute)
            torch._foreach_copy_([matrix for plane in stacked.split(rows, dim=1) for matrix in plane.unbind()], ahead)
            factor = group["lr"] * math.sqrt(max(1.0, rows / columns))
            moved = (polar(stacked, planes).to(parameters[0].dtype) * factor).split(rows, dim=1)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(parameters, [update for plane in moved for update in plane.unbind()])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]
