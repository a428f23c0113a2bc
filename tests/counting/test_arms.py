"""The arms: their recurrences against ones written out, equal sizes, causality, and what a turn's error does."""

from __future__ import annotations

import math

import pytest
import torch

from muse import catalog
from muse.counting.arms import Sizes, breaks_at, build_arm, loss, nearest_turn, num_scalars, widest
from muse.counting.mixers import Diagonal, Householder, Turning, reflected, scan
from muse.data.counting import task

SIZES = Sizes(order=3, width=32, state=64, layers=1, length=12, longest=30)
IDS = torch.randint(3, (2, 13), generator=torch.Generator().manual_seed(0)).index_fill(1, torch.tensor([0]), 3)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_scan_and_its_gradients():
    a, b = noise(2, 7, 3).requires_grad_(), noise(2, 7, 3, seed=1).requires_grad_()
    h, want = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(7):
        h = a[:, t] * h + b[:, t]
        want.append(h)
    assert torch.allclose(scan(a, b), torch.stack(want, 1))
    assert torch.autograd.gradcheck(scan, (a, b))
    assert torch.autograd.gradcheck(scan, (a[:, :1], b[:, :1]))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 5])
def test_reflections_one_after_the_other_and_their_gradients(count, tokens):
    k, scaled = (noise(2, tokens, count, 3, 4, seed=seed).requires_grad_() for seed in (0, 1))
    b = noise(2, tokens, 3, 4, seed=2).requires_grad_()
    h, want = torch.zeros(2, 3, 4, dtype=torch.float64), []
    for t in range(tokens):
        for r in range(count):
            h = h - scaled[:, t, r] * (k[:, t, r] * h).sum(-1, keepdim=True)
        h = h + b[:, t]
        want.append(h)
    assert torch.allclose(reflected(k, scaled, b), torch.stack(want, 1))
    assert torch.autograd.gradcheck(reflected, (k, scaled, b))


@pytest.mark.parametrize("rotation", ["angles", "fixed", "none"])
@pytest.mark.parametrize("numbers", ["complex", "real"])
def test_a_turning_state_is_the_complex_recurrence_written_out(rotation, numbers):
    mixer, u = Turning(8, 16, rotation, numbers).double(), noise(2, 9, 8)
    with torch.no_grad():
        x, gate, decay = mixer.reading(u), torch.sigmoid(mixer.gate(u)), torch.sigmoid(mixer.decay(u))
        theta = mixer.angles(u).double().expand(2, 9, 8)
        h, got = torch.zeros(2, 8, dtype=torch.complex128), mixer(u)
        for t in range(9):
            h = torch.polar(decay[:, t], theta[:, t]) * h + gate[:, t] * torch.complex(*x[:, t].chunk(2, -1))
            heads = h.unflatten(-1, (4, 2))
            heads = heads / (heads.abs().square().sum(-1, keepdim=True) / 4 + 1e-6).sqrt()
            y = heads.flatten(1)
            assert torch.allclose(got[:, t], mixer.writing(torch.cat([y.real, y.imag], -1)), atol=1e-6)
    assert bool(theta.any()) == (rotation != "none")
    assert theta.abs().max() < math.pi


@pytest.mark.parametrize("reflections", [1, 2])
def test_reflections_are_products_of_householder_matrices(reflections):
    mixer, u = Householder(8, 32, reflections).double(), noise(2, 5, 8)
    h = torch.zeros(2, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        got = mixer(u)
        keys = mixer.keys(u).reshape(2, 5, reflections, 4, 8)
        beta = 2 * torch.sigmoid(mixer.betas(u)).reshape(2, 5, reflections, 4)
        new = mixer.reading(u).reshape(2, 5, 4, 8) * torch.sigmoid(mixer.gate(u))[..., None]
        for t in range(5):
            for r in range(reflections):
                k = keys[:, t, r] / keys[:, t, r].norm(dim=-1, keepdim=True)
                matrix = torch.eye(8).double() - beta[:, t, r, :, None, None] * k[..., :, None] * k[..., None, :]
                assert torch.linalg.matrix_norm(matrix, 2).max() <= 1 + 1e-9
                h = (matrix @ h[..., None])[..., 0]
            h = h + new[:, t]
            y = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            assert torch.allclose(got[:, t], mixer.writing(y.flatten(1)), atol=1e-9)


def test_decays_lie_where_they_should():
    u = 5 * noise(4, 50, 8).float()
    signed, plain = Diagonal(8, 16, signed=True), Diagonal(8, 16, signed=False)
    kept = torch.tanh(signed.decay(u)), torch.sigmoid(plain.decay(u))
    assert (kept[0] < -0.9).any()
    assert (kept[0] > 0.9).any()
    assert (kept[1] >= 0).all()
    assert (kept[1] == 1).any() or (kept[1] > 0.999).any()


@pytest.mark.parametrize("name", catalog.ARMS)
def test_every_arm_has_the_same_size_sees_the_past_only_and_starts_near_guessing(name):
    arm, again, other = (build_arm(name, SIZES, seed) for seed in (1, 1, 2))
    most = num_scalars(build_arm("real_householder_2", SIZES, 0))
    assert 0.93 * most < num_scalars(arm) <= most
    out = arm(IDS)
    assert out.shape == (2, 13, 3)
    assert torch.equal(out, again(IDS))
    assert not torch.equal(out, other(IDS))
    changed = IDS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 3
    moved = (arm(changed) - out).abs().amax((0, 2))
    assert moved[:5].max() < 1e-5
    assert moved[6:].max() > 1e-7  # it remembers
    assert loss(arm, IDS, IDS[:, 1:]).item() < 2.5
    loss(arm, IDS, IDS[:, 1:]).backward()
    assert all(p.grad is not None for p in arm.parameters() if p.requires_grad)
    assert (arm.angles(IDS) is not None) == (name in ("complex_angles", "real_rotations", "memory_angles"))


def test_an_arm_that_is_none_and_widths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"^arm: got 'lstm', expected one of complex_angles, "):
        build_arm("lstm", SIZES, 0)
    for wrong in ({"width": 12}, {"width": 0}, {"state": 24}):
        with pytest.raises(ValueError, match=r"^(width|state): got \d+, expected a multiple of"):
            Sizes(**vars(SIZES) | wrong)


def test_the_widest_is_found():
    assert [widest(lambda n: 10 * n, most) for most in (5, 10, 19, 57, 1000)] == [1, 1, 1, 5, 100]


def test_turns_that_were_set_are_found_and_tell_where_a_sum_breaks():
    tokens = torch.arange(5)
    angles = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    angles[:, 2] = torch.remainder(2 * math.pi * 3 / 5 * tokens + 0.01 + math.pi, 2 * math.pi) - math.pi
    mean, spread = nearest_turn(angles, 5)
    assert (mean, spread) == (pytest.approx(0.01, abs=1e-5), pytest.approx(0, abs=1e-5))
    assert breaks_at(0.01, 0.0, 5) == pytest.approx(math.pi / 5 / 0.01)
    assert breaks_at(0.0, 0.1, 5) == pytest.approx((math.pi / 5 / 0.1) ** 2)
    t = breaks_at(0.01, 0.05, 5)
    assert 0.01 * t + 0.05 * math.sqrt(t) == pytest.approx(math.pi / 5)
    assert breaks_at(0.0, 0.0, 5) == math.inf


def test_what_theory_says_of_every_arm():
    tasks = ("mod2", "mod3", "s3")
    said = {arm: "".join("ny"[catalog.can_track(arm, name)] for name in tasks) for arm in catalog.ARMS}
    assert (said["complex_angles"], said["real_signed"], said["real_householder_2"], said["counts"]) == (
        "yyn", "ynn", "yyy", "nnn"
    )  # fmt: skip
    assert set(catalog.COUNTING_GROUPS) == {name for name in tasks + catalog.COUNTING_GROUPS if name[:3] != "mod"}
    assert all(task(name).order in (6, 60) for name in catalog.COUNTING_GROUPS)
