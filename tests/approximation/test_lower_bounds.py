"""What is necessary: the constants, against functions that attain them."""

import math

import numpy as np
import pytest
from numpy.polynomial import Polynomial

from polycom_jax import InputError
from polycom_jax import approximation as pa


def antiderivative(knots: np.ndarray, pieces: list[Polynomial], times: int) -> list[Polynomial]:
    """The `times`-fold antiderivative of a piecewise polynomial that begins at 0."""
    for _ in range(times):
        height, made = 0.0, []
        for piece, start, end in zip(pieces, knots[:-1], knots[1:], strict=True):
            whole = piece.integ()
            made.append(whole - whole(start) + height)
            height = made[-1](end)
        pieces = made
    return pieces


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_the_bump_has_its_height_and_ends_flat(n: int):
    knots = -np.cos(np.arange(n + 2) * np.pi / (n + 1))  # the zeros of U_n, and -1 and 1
    signs = (-1.0) ** np.arange(n + 1)
    pieces = antiderivative(knots, [Polynomial([sign]) for sign in signs], n)
    for k in range(n):
        assert abs(pieces[-1].deriv(k)(1.0)) < 1e-13
    x = np.linspace(-1, 1, 2001)
    which = np.clip(np.searchsorted(knots, x) - 1, 0, n)
    height = max(abs(pieces[i](v)) for i, v in zip(which, x, strict=True))
    assert pa.bump_height(n) * 2**n == pytest.approx(height, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_periodic_splines_do_not_climb_faster_than_the_width_says(n: int):
    """|s^(n)| <= sup |s| / (K_n (2 pi m)^-n) for splines of period 1 with 2 m cells."""
    cells, rng = 6, np.random.default_rng(n)
    knots = np.arange(cells + 1) / cells
    width = pa.favard_constant(n) * (math.pi * cells) ** -n
    for signs in [(-1.0) ** np.arange(cells), *rng.normal(size=(30, cells))]:
        values = signs - signs.mean()
        least = half_range(knots, values, n)
        assert np.abs(values).max() * width <= least * (1 + 1e-3)  # of the grid
    euler = half_range(knots, (-1.0) ** np.arange(cells), n)
    assert euler == pytest.approx(width, rel=1e-3)


def half_range(knots: np.ndarray, values: np.ndarray, n: int) -> float:
    """The least sup norm, over constants added, of the n-fold periodic antiderivative."""
    pieces = [Polynomial([v]) for v in values]
    for _ in range(n):
        pieces = antiderivative(knots, pieces, 1)
        areas = zip(pieces, knots[:-1], knots[1:], strict=True)
        mean = sum(piece.integ(lbnd=a)(b) for piece, a, b in areas)
        pieces = [piece - mean for piece in pieces]  # so that the next one is periodic, too
    x = np.linspace(0, 1, 6001)
    which = np.clip(np.searchsorted(knots, x) - 1, 0, len(values) - 1)
    y = np.array([pieces[i](v) for i, v in zip(which, x, strict=True)])
    return (y.max() - y.min()) / 2


@pytest.mark.parametrize("n", [2, 3, 4])
def test_splines_have_asymptotically_the_least_error(n: int):
    for cells in (4, 32, 1000):
        least = pa.least_error(n, cells + n - 1)
        assert least < pa.spline_bound(n, cells)
    assert least / pa.spline_bound(n, 1000) > 0.97


def test_fewest_parameters_are_the_least_that_reach_eps():
    for n in (1, 2, 4):
        for eps in (1e-1, 1e-3, 1e-7):
            count = pa.fewest_parameters(n, eps)
            assert pa.least_error(n, count) <= eps
            assert count == 1 or pa.least_error(n, count - 1) > eps
        # Widths are known of splines with 2 m cells, which are for odd numbers of parameters.
        assert pa.least_error(n, 2) == pa.least_error(n, 3) < pa.least_error(n, 1)
    assert pa.least_error(1, 1) == pytest.approx(1 / 4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_any_choice_needs_fewer_than_a_continuous_one_and_more_for_a_smaller_error(n: int):
    counts = [pa.fewest_weights(n, eps, 3, 2) for eps in (1e-2, 1e-6, 1e-10)]
    assert counts == sorted(counts)
    assert counts[-1] > 1
    assert counts[-1] <= pa.fewest_parameters(n, 1e-10)
    assert pa.fewest_weights(n, 1e-10, 6, 2) <= counts[-1]  # depth helps
    assert pa.fewest_weights(n, 1e-10, 3, 4) <= counts[-1]  # so do higher powers


@pytest.mark.parametrize("points", [250, 440, 620, 810, 1000])
def test_fewest_weights_are_the_first_whose_regions_are_as_many_as_the_targets(points: int):
    """Warren's count, multiplied out, for so many bumps."""
    degrees = (1, 4, 10, 22)  # of layers, each of order 2, and the output

    def regions(weights: int) -> float:
        found = 1.0
        for units, degree in zip((weights / 3,) * 3 + (1,), degrees, strict=True):
            polynomials = points * max(units, 1)
            few = 2**polynomials if polynomials <= weights else math.inf
            warren = 2 * (2 * math.e * polynomials * degree / weights) ** weights
            found *= min(few, warren)
        return found

    wanted = next(weights for weights in range(1, 100) if regions(weights) >= 2.0**points)
    assert wanted > 3
    assert pa.fewest_weights(1, 0.5 / (points + 0.5), 3, 2) == wanted


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InputError, match="parameters=0"):
        pa.least_error(2, 0)
    with pytest.raises(InputError, match="eps=2"):
        pa.fewest_parameters(2, 2.0)
    with pytest.raises(InputError, match="depth=0"):
        pa.fewest_weights(2, 0.1, 0, 2)
