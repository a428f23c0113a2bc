"""Stage 1 with memory and its real twin, token by token in complex128; nothing here is imported by the package."""

from __future__ import annotations

import math

import torch
from reference import native, planes, rms_error
from torch import Tensor, nn


def memory(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, theta: Tensor, imaginary_scores: bool = True) -> Tensor:
    """M_t = exp(-gamma_t + i theta_t) M_{t-1} + k_t* v_t, y_t = q_t M_t: c(B H T K), gamma (B H T), theta (B H T K).

    Without imaginary scores: y_t = sum over s <= t of Re(q_t k_s* times the decays between them) v_s.
    """
    length, out = q.shape[2], []
    if imaginary_scores:
        state = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=q.dtype)
        for t in range(length):
            decay = torch.exp(-gamma[:, :, t, None] + 1j * theta[:, :, t])
            state = decay[..., None] * state + k[:, :, t, :, None].conj() * v[:, :, t, None, :]
            out.append(torch.einsum("bhk,bhkj->bhj", q[:, :, t], state))
        return torch.stack(out, 2)
    for t in range(length):
        y = 0
        for s in range(t + 1):
            gap = -gamma[:, :, s + 1 : t + 1].sum(2)[..., None] + 1j * theta[:, :, s + 1 : t + 1].sum(2)
            y = y + (q[:, :, t] * k[:, :, s].conj() * gap.exp()).real.sum(-1, keepdim=True) * v[:, :, s]
        out.append(y)
    return torch.stack(out, 2)


def rms(z: Tensor, eps: float = 1e-6) -> Tensor:
    """z over the root mean square of its real scalars."""
    energy = z.real**2 + z.imag**2 if z.is_complex() else z**2
    return z / (energy.mean(-1, keepdim=True) / (2 if z.is_complex() else 1) + eps).sqrt()


def product(p: dict, name: str, z: Tensor) -> Tensor:
    """The matrix `name` times z: complex times complex, or real times the planes (real twin: the channels) of z."""
    if f"{name}.weight_real" in p:
        return z @ (p[f"{name}.weight_real"] + 1j * p[f"{name}.weight_imag"]).T
    return (planes(z) if z.is_complex() else z) @ p[f"{name}.weight"].T


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def spaced(first: float, last: float, count: int) -> Tensor:
    return torch.tensor([first * (last / first) ** ((j + 0.5) / count) for j in range(count)], dtype=torch.float64)


def mixer(p: dict, u: Tensor, options, heads: int, longest: float, cap: float) -> Tensor:
    """u c(B T D), or r(B T 2D) for the twin -> the same."""
    batch, length = u.shape[:2]
    qkv = product(p, "qkv", u)
    taps = p.get("taps")
    if taps is not None:
        width = taps.shape[1]
        qkv = sum(torch.cat([torch.zeros_like(qkv[:, :lag]), qkv[:, : length - lag]], 1) * taps[:, width - 1 - lag]
                  for lag in range(min(width, length)))  # fmt: skip
    q, k, v = (part.reshape(batch, length, heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
    if not qkv.is_complex():  # real heads turn as pairs (first half, second half), here as complex numbers
        q, k = native(q), native(k)
    if options.qk_norm:
        q, k = (x / ((x.abs() ** 2).sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    gamma = torch.zeros(batch, heads, length, dtype=torch.float64)
    if options.decay != "none":
        shortest = max(2.0, 2 / cap)
        rate = 1 / spaced(shortest, max(longest, shortest), heads)
        logit = torch.log(rate / (cap - rate)) + p["decay_bias"]
        logit = logit + (product(p, "decay", planes(u) if u.is_complex() else u) if options.decay == "data" else 0)
        gamma = (cap / (1 + torch.exp(-logit))).expand(batch, length, heads).transpose(1, 2)
    if options.input_scaling:
        k = k * (1 - torch.exp(-2 * gamma))[..., None].sqrt()
    theta = torch.zeros(batch, heads, length, q.shape[-1], dtype=torch.float64)
    if options.rotation == "angles":
        turned = torch.tanh(product(p, "turning", u) / math.sqrt(p["turning.weight"].shape[1]))
        turned = turned.reshape(batch, length, heads, -1)
        theta = math.pi * turned.transpose(1, 2)
        k = k * (2 / (1 + torch.exp(-product(p, "writes", u)))).transpose(1, 2)[..., None]
    elif options.rotation != "none":
        theta = (spaced(1.0, 1e-4, q.shape[-1]) * p["turn_bias"].exp())[:, None].expand_as(theta)
        if options.rotation == "data":
            theta = theta * (2 / (1 + torch.exp(-product(p, "pace", u)))).transpose(1, 2)[..., None]
    real_width = q.shape[-1] * (2 if q.is_complex() else 1)
    y = rms(memory(q / real_width, k, v, gamma, theta, options.imaginary_scores), options.head_norm_eps)
    y = y.transpose(1, 2).reshape(batch, length, -1)
    y = y * p["norm_gain"]
    if options.output_gate:
        y = y * silu(product(p, "gate", u))
    return product(p, "writing", y)


def feed_forward(p: dict, u: Tensor) -> Tensor:
    value = product(p, "value", u)
    if "activation.bias" in p:
        size = (value.real**2 + value.imag**2 + 1e-8).sqrt()
        return product(p, "writing", torch.relu(size + p["activation.bias"]) / size * value)
    return product(p, "writing", value * silu(product(p, "gate", u)))


def logits(parameters: dict, ids: Tensor, config) -> Tensor:
    """The whole model from its named parameters in float64: ids (B T) -> r(B T V)."""
    p = {name: value.double() for name, value in parameters.items()}
    options, width = config.memory, config.d_model
    complex_numbers = options.numbers == "complex"
    heads = options.heads(width)
    z = p["embedding.weight"][ids] * (math.sqrt(options.table_rank or 2 * width) / 0.64)
    if options.table_rank:
        complex_rows = complex_numbers and options.table == "complex"
        z = product(p, "embedding.lift", native(z) if complex_rows else z)
        z = planes(z) if complex_rows else z
    z = torch.cat([z, torch.zeros(*z.shape[:-1], 2 * width - z.shape[-1], dtype=z.dtype)], -1)
    if options.positions:
        z = torch.cat([z[..., :width] + p["positions"][: ids.shape[1]], z[..., width:]], -1)
    z = native(z) if complex_numbers else z
    for i in range(config.n_layers):
        prefix = f"blocks.{i}."
        block = {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
        part = {name: {key.removeprefix(f"{name}."): x for key, x in block.items() if key.startswith(f"{name}.")}
                for name in ("memory", "feed")}  # fmt: skip
        cap = 4.0 * (options.last_rate_cap / 4.0) ** (i / max(1, config.n_layers - 1))
        z = z + mixer(part["memory"], rms(z) * block["memory_norm.gain"], options, heads, config.n_seq / 2, cap)
        z = z + feed_forward(part["feed"], rms(z) * block["feed_norm.gain"])
    gain = p["norm.gain_real"] + 1j * p["norm.gain_imag"] if complex_numbers else p["norm.gain_real"]
    z = rms(z) * gain
    if options.table_rank:
        return lowered(p, z, options, width) @ p["embedding.weight"].T + p["head_bias"]
    z = planes(z) if complex_numbers else z
    if options.tied:
        return z @ p["embedding.weight"].T + p["head_bias"]
    return z[..., :width] @ p["head_weight"].T + p["head_bias"]


def lowered(p: dict, z: Tensor, options, width: int) -> Tensor:
    """The last norm of the stream, native, to what the rows of a low-rank table are multiplied by, r(B T R)."""
    complex_rows = z.is_complex() and options.table == "complex"
    z = planes(z) if z.is_complex() and not complex_rows else z
    if not options.adjoint_head:
        z = product(p, "head_projection", z)
    elif complex_rows:
        lift = p["embedding.lift.weight_real"] + 1j * p["embedding.lift.weight_imag"]
        z = z @ lift.conj() * math.sqrt(options.table_rank / (2 * width))
    else:
        z = z @ p["embedding.lift.weight"] * math.sqrt(options.table_rank / (2 * width))
    return planes(z) if complex_rows else z


def check(model: nn.Module, ids: Tensor) -> None:
    """Assert that a model in float64 has the logits of these ids (B T) and the gradients that are worked out here."""
    weights = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    want, got = logits(weights, ids, model.config), model(ids)
    assert rms_error(got, want) < 1e-11
    upstream = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (want * upstream).sum().backward()
    (got * upstream).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rms_error(parameter.grad, weights[name].grad) < 1e-9, name
