"""Muon: each matrix moves along the nearest unitary (orthogonal) matrix to its momentum.

    M <- mu M + (1 - mu) g,   W <- (1 - lr decay) W - lr sqrt(max(1, rows / columns)) polar((1 - mu) g + mu M)

polar(X) = U V^H for X = U S V^H, approached by five steps of a quintic that brings every singular value above 1/300 of
the norm to between 0.68 and 1.21. A complex matrix A + iB is taken to its *unitary* polar factor by products on two
planes, at most two thirds of the operations of the real form [[A, -B], [B, A]].
Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), coefficients and factor included;
arXiv:2502.16982 for the weight decay. The complex form is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor, nn

from muse.models.layers import ComplexLinear
from muse.ops import compiling
from muse.ops.momentum import look_ahead_, move_

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


def polar(x: Tensor, steps: int = STEPS, compiled: bool = False) -> Tensor:
    """Return the polar factor of each matrix in x (N P R C), of one real plane or of two: real, imaginary.

    Computed in the dtype of x, of which nothing as large as x is copied between products; a matrix of zeros stays zero.
    A tall matrix is taken as its transpose, whose factor is the transposed one; nothing is moved in memory for that.
    """
    tall = x.shape[-2] > x.shape[-1]
    norm = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) + TINY
    x = x.mT if tall else x
    count, planes, rows, columns = x.shape
    # In memory (N C P R) if tall: then, too, planes stand one below the other in a matrix (PR C) that a product takes.
    room = x.new_empty(count, columns, planes, rows).permute(0, 2, 3, 1) if tall else torch.empty_like(x)
    x = torch.div(x, norm, out=room).flatten(1, 2)
    a, _, c = QUINTIC  # a x + b G x + c G^2 x as a (1 + b/a G + c/a G^2) x: rounded near 1, and x is not added to
    one = torch.eye(planes * rows, dtype=x.dtype, device=x.device)
    for _ in range(steps):
        gram, polynomial = _gram_and_line(x @ x.mT, one, planes, compiled)
        polynomial.baddbmm_(gram, gram, alpha=c / a)
        x = torch.empty_like(x).baddbmm_(polynomial, x, beta=0, alpha=a)
    x = x.unflatten(1, (planes, rows))
    return x.mT if tall else x


def _gram_and_line(products: Tensor, one: Tensor, planes: int, compiled: bool) -> tuple[Tensor, Tensor]:
    """G = x x^H and 1 + b/a G of the quintic as what multiplies, from x x^T of planes one below the other (N PR PR)."""
    if planes == 1:
        return products, torch.add(one, products, alpha=QUINTIC[1] / QUINTIC[0])
    found = (_compiled() if compiled else _complex_gram_and_line)(*map(_quarters, (products, one)))
    return tuple(x.reshape(products.shape) for x in found)


def _complex_gram_and_line(products: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """The same by quarters (N 2 R 2 R).

    (A + iB)(A + iB)^H = S + iK with S = A A^T + B B^T and K = B A^T - A B^T. It multiplies planes that stand one below
    the other as [[S, -K], [K, S]], and so does a polynomial in it: of the four products each is added to the opposite
    one, or has it taken away.
    """
    signs = 2 * torch.eye(2, dtype=products.dtype, device=products.device) - 1
    opposite, b = products.flip(1, 3).mul_(signs[:, None, :, None]), QUINTIC[1] / QUINTIC[0]
    line = torch.add(one, products, alpha=b).add_(opposite, alpha=b)
    return opposite.add_(products), line


@cache
def _compiled() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same as one kernel for each size, which it knows as a constant."""
    return compiling.compiled(_complex_gram_and_line)


def _quarters(x: Tensor) -> Tensor:
    """(.. 2R 2R) as (.. 2 R 2 R)."""
    return x.unflatten(-1, (2, -1)).unflatten(-3, (2, -1))


class Muon(torch.optim.Optimizer):
    """Muon for real and complex matrices; those of equal shape are stepped together.

    `lr` may be a tensor on the parameters' device, so that a captured step follows a schedule. `compute` is the dtype
    of the products of `polar`, `compiled` whether torch.compile joins what it does between them.
    """

    def __init__(
        self,
        matrices: Iterable[Matrix],
        lr: Tensor | float,
        *,
        momentum: float = MOMENTUM,
        weight_decay: float = 0.0,
        compute: torch.dtype = torch.float32,
        compiled: bool = False,
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
        self.compute, self.compiled = compute, compiled

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix; all of them must have gradients."""
        for group in self.param_groups:
            parameters, planes, momentum = group["params"], group["planes"], group["momentum"]
            gradients = [parameter.grad for parameter in parameters]
            kept = [self._momentum(parameter) for parameter in parameters]
            ahead = look_ahead_(kept, gradients, momentum, self.compute, planes)
            rows, columns = ahead.shape[-2:]
            directions = polar(ahead, compiled=self.compiled)
            move_(parameters, directions, group["lr"], math.sqrt(max(1.0, rows / columns)), group["weight_decay"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]
