from __future__ import annotations

import math

import mpmath
import pytest
import torch

from muse.models import zeta


def smooth_count(t):
    """Riemann-von Mangoldt: the smooth part of N(t), the number of zeros with imaginary part below t."""
    return t / (2 * math.pi) * torch.log(t / (2 * math.pi * math.e)) + 7 / 8


@pytest.mark.parametrize("n", [1, 2, 29, 256, 512, 1024])
def test_shipped_zeros_are_zeros_of_zeta(n):
    shipped = zeta.zeros(1024)[n - 1].item()
    step = 1e-9
    assert mpmath.siegelz(shipped - step) * mpmath.siegelz(shipped + step) < 0
    assert mpmath.nzeros(shipped - step) == n - 1


def test_first_zeros_by_the_book():
    assert zeta.zeros(3).tolist() == pytest.approx([14.134725141735, 21.022039638772, 25.010857580146], abs=1e-12)


def test_no_zero_is_missing_or_repeated():
    gamma = zeta.zeros(1024)
    n = torch.arange(1, 1025)
    assert (gamma.diff() > 0.1).all()
    s = n - 0.5 - smooth_count(gamma)  # S(t) averaged over the jump: small, with mean zero
    assert s.abs().max() < 1.0
    assert s.unfold(0, 32, 32).mean(1).abs().max() < 0.05


def test_frequencies_follow_the_zeros_and_stay_below_nyquist():
    for count in (1, 5, 256, 1024):
        omega = zeta.frequencies(count)
        ratio = omega / zeta.zeros(count)
        assert torch.allclose(ratio, ratio[:1].expand(count), rtol=1e-14)
        assert omega[0] > 0
        assert omega[-1] < math.pi
        assert omega[-1] == pytest.approx(math.pi * count / (count + 1))


def test_position_table_by_hand():
    table = zeta.position_table(6, 4)
    assert table.dtype == torch.float32
    assert table.shape == (6, 4)
    highest = math.pi * 2 / 3
    lowest = highest * 14.134725141735 / 21.022039638772
    for t in range(6):
        want = [math.sin(t * lowest), math.sin(t * highest), math.cos(t * lowest), math.cos(t * highest)]
        assert table[t].tolist() == pytest.approx(want, abs=1e-6)


def test_no_column_is_aliased_and_no_two_positions_look_alike():
    """The spectrum of every column peaks at that column's own frequency; distinct rows stay apart."""
    n_seq, d_model = 1024, 64
    table = zeta.position_table(n_seq, d_model).double()
    phasor = torch.complex(table[:, d_model // 2 :], table[:, : d_model // 2])
    measured = torch.fft.fft(phasor, dim=0).abs().argmax(0) * (2 * math.pi / n_seq)
    assert (measured - zeta.frequencies(d_model // 2)).abs().max() < 2 * math.pi / n_seq
    distances = torch.pdist(table)
    assert distances.min() > 0.5
    assert torch.equal(zeta.position_table(n_seq, d_model), zeta.position_table(n_seq, d_model))


def test_impossible_tables_are_refused():
    with pytest.raises(ValueError, match=r"1024 zeros .* are shipped, got a request for 1025"):
        zeta.position_table(4, 2050)
    with pytest.raises(ValueError, match="even d_model >= 2, got 4 and 7"):
        zeta.position_table(4, 7)
    with pytest.raises(ValueError, match="got 0 and 8"):
        zeta.position_table(0, 8)
