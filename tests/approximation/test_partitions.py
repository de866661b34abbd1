import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain

from polycom_jax import InputError
from polycom_jax import approximation as pa

Z = np.linspace(-0.5, 0.5, 61)


@pytest.mark.parametrize("kind", ["trapezoid", "spline"])
def test_bumps_are_a_partition_of_unity(kind):
    basis = pa.partition(kind)
    shifts = np.arange(-3, 4)[:, None]
    values = plain(basis.bump, (Z + shifts).reshape(-1, 1)).reshape(7, -1)
    assert distance(values.sum(0), np.ones(61)) < ROUNDING
    assert values.min() > -ROUNDING


def test_the_trapezoid_has_three_units_and_is_exactly_flat():
    basis = pa.partition("trapezoid")
    assert sum(layer.units for layer in basis.bump.layers) == 3
    far = np.concatenate([np.linspace(2 / 3 + 1e-15, 100, 500), -np.linspace(0.67, 100, 500)])
    assert not plain(basis.bump, far[:, None]).any()
    flat = plain(basis.bump, np.linspace(-1 / 3, 1 / 3, 50)[:, None])
    assert np.array_equal(flat, np.ones((50, 1)))


def test_the_spline_is_cubic_between_knots_and_twice_differentiable():
    net, knots = pa.partition("spline").bump, np.arange(-3, 4) / 3
    pieces = []
    for left in knots[:-1]:
        z = left + np.linspace(0, 1 / 3, 9)
        piece, (residual, *_) = np.polynomial.Polynomial.fit(
            z, plain(net, z[:, None])[:, 0], 3, full=True
        )
        assert np.sqrt(residual).max(initial=0) < ROUNDING
        pieces.append(piece)
    nothing = np.polynomial.Polynomial([0.0])
    for knot, before, after in zip(knots, [nothing, *pieces], [*pieces, nothing], strict=True):
        for k in range(3):
            assert abs(before.deriv(k)(knot) - after.deriv(k)(knot)) < 1e3 * ROUNDING
    assert net.smoothness == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["trapezoid", "spline"])
def test_far_away_the_units_of_a_bump_are_exactly_zero(kind, dtype):
    far = np.array([[-1e4], [-300.0], [-1.0], [1.0], [300.0], [1e4]], dtype)
    with jax.enable_x64(True):
        assert not np.any(pa.evaluate(pa.partition(kind).bump, far))


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_at_nodes_and_kinks_are_those_of_the_spline(order):
    basis, z = pa.partition("spline"), np.array([-1.5, -1.0, 0.0, 0.5, 1.0, 1.5])

    def product(z):
        x = jnp.stack([z, z])[None]
        features = pa.block_diagonal(basis.bump, basis.coordinate)
        terms = pa.compose(pa.monomials([(1, 2)], pa.exact_arithmetic(nonnegative=True)), features)
        return pa.evaluate(terms, x)[0, 0]

    derivative = product
    for _ in range(order):
        derivative = jax.jacfwd(derivative)
    with jax.enable_x64(True):
        found = jax.vmap(derivative)(jnp.asarray(z))
    # At 1/2, s(1 - z) is 1 - 9/2 (z^3 - 3 (z - 1/3)^3).
    bump = (
        np.polynomial.Polynomial([1, 0, 0, -4.5])
        + 13.5 * np.polynomial.Polynomial([-1 / 3, 1]) ** 3
    )
    at_half = (bump * np.polynomial.Polynomial([1 / 2, 1 / 4]) ** 2).deriv(order)(0.5)
    at_zero = {1: 1 / 4, 2: 1 / 8}[order]
    np.testing.assert_allclose(found, [0, 0, at_zero, at_half, 0, 0], atol=1e3 * ROUNDING)


@pytest.mark.parametrize("kind", ["trapezoid", "spline"])
def test_coordinates_are_linear_on_the_support_and_bounded(kind):
    basis = pa.partition(kind)
    z = np.linspace(-basis.radius, basis.radius, 50)
    t = plain(basis.coordinate, z[:, None])[:, 0]
    assert distance(basis.span * (t - 0.5), z) < ROUNDING
    far = plain(basis.coordinate, np.linspace(-50, 50, 400)[:, None])
    assert 0 <= far.min() <= far.max() <= 1


def test_unknown_partitions_are_refused():
    with pytest.raises(InputError, match="Did you mean 'spline'"):
        pa.partition("splines")  # pyright: ignore[reportArgumentType]
