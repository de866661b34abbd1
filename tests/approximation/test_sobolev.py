"""Sobolev norms against closed forms, and the traps they must not fall into."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation import sobolev
from polycom_jax.approximation.bounds import multi_indices
from polycom_jax.approximation.sobolev import (
    CHUNK,
    Grid,
    derivative_norms,
    sobolev_error,
    sobolev_norm,
)

SMOOTH = math.inf
# Gauss rules and automatic differentiation in float64: rounding alone, over some 1e3 operations.
TIGHT = 1e-12


@pytest.mark.parametrize("gauss", [1, 3, 5])
def test_quadrature_is_exact_up_to_its_degree(gauss: int):
    grid = Grid(dim=1, cells=1, gauss=gauss)
    for power in range(2 * gauss):
        integral = grid.weights @ grid.points[:, 0] ** power
        assert integral == pytest.approx(1 / (power + 1), rel=TIGHT)
    wrong = grid.weights @ grid.points[:, 0] ** (2 * gauss)
    assert gauss == 5 or abs(wrong - 1 / (2 * gauss + 1)) > 1e-7  # else under rounding


def test_the_grid_holds_the_fractions_and_no_node():
    grid = Grid(dim=2, cells=4)
    assert len(grid.points) == grid.size
    assert grid.weights.min() >= 0
    assert grid.weights.sum() == pytest.approx(1, rel=TIGHT)
    for fraction in (1 / 3, 1 / 2, 2 / 3):
        for cell in range(4):
            assert np.abs(grid.fractions[:, 0] - (cell + fraction) / 4).min() == 0
    scaled = 4 * grid.points
    assert np.abs(scaled - np.round(scaled)).min() > 1e-7
    assert np.abs(3 * scaled - np.round(3 * scaled)).min() > 1e-7  # derivatives stay off kinks


def test_a_dyadic_sawtooth_is_not_taken_for_zero():
    def sawtooth(x):
        u = 8 * x[:, 0]
        return jnp.abs(u - jnp.round(u))

    # Its maximum 1/2 is at the middle of each of the grid's cells.
    assert sobolev_norm(sawtooth, Grid(1, 8), order=0, smoothness=1) == pytest.approx(0.5)


def test_norms_of_a_product_wave_are_the_closed_forms():
    w = 2 * math.pi

    def f(x):
        return jnp.sin(w * x[:, 0]) * jnp.cos(w * x[:, 1])

    norms = derivative_norms(f, Grid(2, 8), order=3, p=2, smoothness=SMOOTH)
    assert set(norms) == set(multi_indices(2, 3))
    assert len(norms) == math.comb(2 + 3, 2)
    for index, value in norms.items():  # each factor has the mean square 1/2
        assert value == pytest.approx(w ** sum(index) / 2, rel=1e-5), index  # Gauss, 8 cells
    whole = sobolev_norm(f, Grid(2, 8), order=1, p=2, smoothness=SMOOTH)
    assert whole == pytest.approx(math.sqrt(1 + 2 * w**2) / 2, rel=1e-5)
    sup = sobolev_norm(f, Grid(2, 8), order=2, smoothness=SMOOTH)
    assert w**2 * 0.999 < sup <= w**2


@pytest.mark.parametrize("size", [1e-170, 1e-3, 10.0, 1e200])
@pytest.mark.parametrize("p", [2, 120, 400])
def test_powers_of_large_and_small_numbers_are_never_formed(size: float, p: float):
    def line(x):
        return size * (1 + x[:, 0])

    grid = Grid(1, 64, gauss=5)
    # The integral of (1 + x)^p is (2^(p+1) - 1) / (p + 1).
    share = math.exp(((p + 1) * math.log(2) + math.log1p(-(2.0 ** -(p + 1)))) / p)
    share /= (p + 1) ** (1 / p)
    norms = derivative_norms(line, grid, order=1, p=p, smoothness=SMOOTH)
    assert norms[(0,)] == pytest.approx(share * size, rel=1e-6, abs=0)
    assert norms[(1,)] == pytest.approx(size, rel=1e-12, abs=0)
    whole = sobolev_norm(line, grid, order=1, p=p, smoothness=SMOOTH)
    assert whole == pytest.approx(size * (1 + share**p) ** (1 / p), rel=1e-6, abs=0)


def test_derivatives_agree_with_a_polynomials_own():
    p = np.polynomial.Polynomial([0.3, -1.0, 2.0, 0.5, -0.25])
    grid = Grid(1, 2)
    got = derivative_norms(
        lambda x: jnp.polyval(jnp.array(p.coef[::-1]), x[:, 0]), grid, order=4, smoothness=SMOOTH
    )
    points = {0: np.concatenate([grid.points, grid.fractions])[:, 0]}
    for order in range(5):
        derived = p.deriv(order) if order else p
        expected = np.abs(derived(points.get(order, grid.points[:, 0]))).max()
        assert got[(order,)] == pytest.approx(expected, rel=TIGHT)


def test_suprema_of_derivatives_see_both_sides_of_a_kink():
    # |x - 1/3| + x: slopes 0 and 2. On the kink itself JAX would say 1.
    f = lambda x: jnp.abs(x[:, 0] - 1 / 3) + x[:, 0]  # noqa: E731
    assert sobolev_norm(f, Grid(1, 1), order=1, smoothness=1) == pytest.approx(2)


def test_second_derivatives_of_a_kinked_function_are_refused():
    f = lambda x: jnp.maximum(x[:, 0] - 0.4, 0)  # noqa: E731
    assert sobolev_norm(f, Grid(1, 1), order=1, smoothness=1) == pytest.approx(1)
    with pytest.raises(InputError, match=r"order=2: .* k <= 1 only"):
        sobolev_error(f, f, Grid(1, 1), order=2, smoothness=1)


def test_networks_are_refused_derivatives_they_do_not_have_whatever_is_declared():
    target = pa.get_target("waves", order=2, dim=1)
    for net in (pa.taylor_network(target, 2, 1, 4), pa.linear_interpolant(target, 4)):
        for declared in (None, math.inf):
            with pytest.raises(InputError, match=r"order=2: .* k <= 1 only"):
                sobolev_error(net, target, Grid(1, 4), order=2, smoothness=declared)
    rough = pa.get_target("spline", order=1, dim=1)
    with pytest.raises(InputError, match=r"order=2: .* k <= 1 only"):
        sobolev_norm(rough, Grid(1, 4), order=2)
    smooth = pa.taylor_network(target, 2, 1, 4, kind="spline")
    assert 0 < sobolev_error(smooth, target, Grid(1, 4), order=0) <= pa.bound(2, 1, 4, "spline")
    with pytest.raises(InputError, match="neither networks nor targets"):
        sobolev_error(smooth, lambda x: x[:, 0], Grid(1, 4), order=0)
    with pytest.raises(InputError, match="one output, not 2"):
        sobolev_norm(pa.parallel(smooth, smooth), Grid(1, 4), order=0)


def test_errors_are_the_norms_of_differences_and_float64_inside():
    f = lambda x: jnp.exp(x[:, 0])  # noqa: E731
    g = jax.tree_util.Partial(lambda a, x: jnp.exp(x[:, 0]) + a * x[:, 0], 1e-12)
    error = sobolev_error(f, g, Grid(1, 2), order=0, smoothness=SMOOTH)
    assert error == pytest.approx(1e-12, rel=1e-3)  # float32 would give 0; e has 2e-16
    assert not jax.config.jax_enable_x64


def test_points_beyond_one_chunk_count_too():
    grid = Grid(1, 2000)
    assert CHUNK < grid.size < 2 * CHUNK
    norms = derivative_norms(lambda x: x[:, 0], grid, order=1, p=2, smoothness=SMOOTH)
    assert norms[(0,)] == pytest.approx(math.sqrt(1 / 3), rel=TIGHT)
    assert norms[(1,)] == pytest.approx(1, rel=TIGHT)
    assert sobolev_norm(lambda x: x[:, 0], grid, order=0, smoothness=SMOOTH) > 0.9999


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_parts_of_a_grid_are_the_grid(dim: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sobolev, "CHUNK", 100)
    grid = Grid(dim, cells=2, gauss=1)
    points, weights = map(np.concatenate, zip(*grid.chunks(), strict=True))
    np.testing.assert_array_equal(points[: grid.size], grid.points)
    np.testing.assert_array_equal(weights[: grid.size], grid.weights)
    assert not weights[grid.size :].any()
    fractions = np.concatenate(list(grid.fraction_chunks()))
    np.testing.assert_array_equal(fractions[: 6**dim], grid.fractions)
    np.testing.assert_array_equal(
        fractions[6**dim :], grid.fractions[-1:].repeat(len(fractions) - 6**dim, 0)
    )


def test_a_grid_of_any_size_takes_no_memory():
    # 576^3 points would be 5 GB, and half as much again for weights.
    points, weights = next(Grid(3, cells=64, gauss=1).chunks())
    assert points.shape == (CHUNK, 3)
    assert weights.max() < 1e-6


def test_values_that_are_no_numbers_do_not_vanish():
    f = lambda x: jnp.where(x[:, 0] > 0.5, jnp.nan, 0.0)  # noqa: E731
    assert math.isnan(sobolev_norm(f, Grid(1, 1), order=0, smoothness=SMOOTH))


def numpys(x):
    """A function that JAX cannot trace."""
    return np.sin(x[:, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Grid(0, 1), "dim=0"),
        (lambda: Grid(1, 0), "cells=0"),
        (lambda: Grid(1, 1, gauss=2), "gauss=2 must be odd"),
        (lambda: sobolev_norm(jnp.sum, Grid(1, 1), order=0, smoothness=1), "one value a point"),
        (lambda: sobolev_norm(jnp.sum, Grid(1, 1), order=-1, smoothness=1), "order=-1"),
        (lambda: sobolev_norm(numpys, Grid(1, 1), order=1, smoothness=2), "jax.numpy in place of"),
        (lambda: sobolev_norm(jnp.sum, Grid(1, 1), order=0, p=0.5, smoothness=1), "p=0.5"),
    ],
)
def test_bad_input_is_named(call, message: str):
    with pytest.raises(InputError, match=message):
        call()
