"""What an arm remembers with: one recurrence each, from a normed stream u r(B T D) to r(B T D).

    h_t = A(u_t) h_{t-1} + g(u_t) (B u_t),   y_t = C norm(h_t),   h_0 = 0

The arms differ in A and in nothing else: g in (0, 1) lets writes vanish, decays reach 1, norms are per head. Letters: B
batch, T positions, D width of the stream, N real scalars of the state, H heads. Angles are float32, summed over tokens;
a turning state is kept unturned, and what goes in and out is turned instead, as in `muse.ops.linear_attention`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse.models.layers import ComplexLinear
from muse.ops.linear_attention import rotate

HEADS = 4
KEEPS = 5.0  # what the sigmoid of a fresh decay reads: 0.993
SPREAD = 2.0  # of a fresh signed decay before its tanh, so that both signs are there
HOUSEHOLDER_WIDTH = 8  # of a head that reflects; A5 needs three


class _Scan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t over the first axis, from zero; backward runs the same recurrence from the end."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        h = torch.empty_like(b)
        h[0] = b[0]
        for t in range(1, len(b)):
            torch.addcmul(b[t], a[t], h[t - 1], out=h[t])
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        back = torch.empty_like(grad)
        back[-1] = grad[-1]
        for t in range(len(grad) - 2, -1, -1):
            torch.addcmul(grad[t], a[t + 1], back[t + 1], out=back[t])
        grad_a = torch.zeros_like(a)
        torch.mul(back[1:], h[:-1], out=grad_a[1:])
        return grad_a, back


def scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t for r(B T N) twice, from a zero state."""
    return _Scan.apply(a.transpose(0, 1).contiguous(), b.transpose(0, 1).contiguous()).transpose(0, 1)


class _LowRankScan(torch.autograd.Function):
    """h_t = (I - sum_r u_tr k_tr') h_{t-1} + b_t from zero: k u (T R .. X), b (T .. X); backward the same from the end.

    Some five operations a token each way, where autograd would keep and launch three times as many.
    """

    @staticmethod
    def forward(ctx, k: Tensor, u: Tensor, b: Tensor) -> Tensor:
        h, seen = torch.empty_like(b), torch.zeros_like(k[..., :1])
        h[0] = b[0]
        for t in range(1, len(b)):
            _without(h[t - 1], k[t], u[t], b[t], seen[t], h[t])
        ctx.save_for_backward(k, u, h, seen)
        return h

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, u, h, seen = ctx.saved_tensors
        back, asked = torch.empty_like(grad), torch.zeros_like(seen)
        back[-1] = grad[-1]
        for t in range(len(grad) - 1, 0, -1):
            _without(back[t], u[t], k[t], grad[t - 1], asked[t], back[t - 1])
        grad_k = torch.zeros_like(k)
        torch.mul(h[:-1, None], asked[1:], out=grad_k[1:]).neg_()
        return grad_k, -back[:, None] * seen, back


def _without(h: Tensor, k: Tensor, u: Tensor, b: Tensor, seen: Tensor, out: Tensor) -> None:
    """out = h + b - sum_r u_r (k_r' h), and seen = k_r' h: h b out (.. X), k u (R .. X), seen (R .. 1)."""
    torch.sum(k * h, -1, keepdim=True, out=seen)
    torch.add(h, b, out=out)
    for along, much in zip(u, seen, strict=True):
        out.addcmul_(along, much, value=-1)


def reflected(k: Tensor, scaled: Tensor, b: Tensor) -> Tensor:
    """h_t = product over r of (I - scaled_tr k_tr') h_{t-1} + b_t, r = 0 first: k scaled (B T R H X), b (B T H X).

    The product is I less one outer product a reflection: each changes what those before it take away.
    """
    keys, taken = k.unbind(2), []
    for key, scale in zip(keys, scaled.unbind(2), strict=True):
        taken = [u - scale * (key * u).sum(-1, keepdim=True) for u in taken] + [scale]
    k, u = (torch.stack([x.transpose(0, 1) for x in planes], 1) for planes in (keys, taken))
    return _LowRankScan.apply(k, u, b.transpose(0, 1).contiguous()).transpose(0, 1)


def normed(h: Tensor) -> Tensor:
    """Each head of r(B T N) over its root mean square: a state that only fades looks the same."""
    heads = h.unflatten(-1, (HEADS, -1))
    return F.rms_norm(heads, heads.shape[-1:], eps=1e-6).flatten(-2)


class Diagonal(nn.Module):
    """A real diagonal state: decays in (0, 1), or in (-1, 1) where `signed`."""

    def __init__(self, width: int, state: int, signed: bool) -> None:
        super().__init__()
        self.signed = signed
        self.reading, self.gate, self.decay = (nn.Linear(width, state) for _ in range(3))
        self.writing = nn.Linear(state, width, bias=False)
        with torch.no_grad():
            self.decay.bias.fill_(0.0 if signed else KEEPS)
            if signed:
                self.decay.weight.normal_(0, SPREAD / math.sqrt(width))

    def forward(self, u: Tensor) -> Tensor:
        decay = torch.tanh(self.decay(u)) if self.signed else torch.sigmoid(self.decay(u))
        return self.writing(normed(scan(decay, torch.sigmoid(self.gate(u)) * self.reading(u))))


class Turning(nn.Module):
    """N/2 planes that fade and turn: by `angles` pi tanh(W u) from the token, by `fixed` ones of the plane, or not.

    With `numbers="complex"` what reads and writes is a complex matrix on the stream's two halves, with half as many
    scalars as a real one.
    """

    def __init__(self, width: int, state: int, rotation: str, numbers: str) -> None:
        super().__init__()
        planes = state // 2
        if numbers == "complex":
            self.reading = ComplexLinear(width // 2, planes)
            self.writing = ComplexLinear(planes, width // 2, bias=False)
        else:
            self.reading, self.writing = nn.Linear(width, state), nn.Linear(state, width, bias=False)
        self.gate, self.decay = nn.Linear(width, planes), nn.Linear(width, planes)
        self.turning = nn.Linear(width, planes, bias=False) if rotation == "angles" else None
        frequencies = torch.logspace(0, -4, planes)
        self.frequencies = nn.Parameter(frequencies) if rotation == "fixed" else None
        with torch.no_grad():
            self.decay.bias.fill_(KEEPS)

    def angles(self, u: Tensor) -> Tensor:
        """What a token turns each plane by, in radians: r(B T N/2), or r(N/2) where it has no say, or zero."""
        if self.turning is not None:
            return math.pi * torch.tanh(self.turning(u).float())
        return u.new_zeros(()) if self.frequencies is None else self.frequencies

    def forward(self, u: Tensor) -> Tensor:
        turned = self.angles(u).expand(*u.shape[:2], self.gate.out_features).cumsum(1)
        decay, gate = torch.sigmoid(self.decay(u)), torch.sigmoid(self.gate(u))
        written = rotate(self.reading(u) * gate.repeat(1, 1, 2), -turned)
        h = rotate(scan(decay.repeat(1, 1, 2), written), turned)
        heads = h.unflatten(-1, (2, HEADS, -1)).transpose(2, 3).flatten(3)  # both planes of a head side by side
        heads = F.rms_norm(heads, heads.shape[-1:], eps=1e-6)
        return self.writing(heads.unflatten(-1, (2, -1)).transpose(2, 3).flatten(2))


class Householder(nn.Module):
    """A product of `reflections` of I - beta k k' a token, |k| = 1 and beta in (0, 2), in heads of their own."""

    def __init__(self, width: int, state: int, reflections: int) -> None:
        super().__init__()
        self.heads, self.reflections = state // HOUSEHOLDER_WIDTH, reflections
        self.reading, self.gate = nn.Linear(width, state), nn.Linear(width, self.heads)
        self.keys = nn.Linear(width, reflections * state)
        self.betas = nn.Linear(width, reflections * self.heads)
        self.writing = nn.Linear(state, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        split = self.heads, HOUSEHOLDER_WIDTH
        written = self.reading(u).unflatten(-1, split) * torch.sigmoid(self.gate(u))[..., None]
        k = F.normalize(self.keys(u).unflatten(-1, (self.reflections, *split)), dim=-1)
        scaled = k * 2 * torch.sigmoid(self.betas(u)).unflatten(-1, (self.reflections, -1))[..., None]
        return self.writing(normed(reflected(k, scaled, written).flatten(2)))


class Gru(nn.Module):
    """A GRU of the library, as wide as the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru, self.writing = nn.GRU(width, width, batch_first=True), nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        return self.writing(self.gru(u)[0])


class Counts(nn.Module):
    """How often each token came so far, in units of the training length: what no order and no turning is left of."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.length, self.writing = length, nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        return self.writing(u.cumsum(1) / self.length)
