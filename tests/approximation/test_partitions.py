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


def test_the_spline_is_the_cubic_b_spline_and_vanishes_far_away():
    z = np.linspace(-2.5, 2.5, 301)
    far = np.array([-300.0, -5.0, 5.0, 300.0])
    expected = np.where(abs(z) < 1, 4 - 6 * z**2 + 3 * abs(z) ** 3, np.maximum(2 - abs(z), 0) ** 3)
    bump = pa.partition("spline").bump
    assert distance(plain(bump, z[:, None])[:, 0], expected / 6) < ROUNDING
    # Levelled off: what is left is rounding of S, some 300^3 * 1e-16, where the spline is flat.
    assert np.abs(plain(bump, far[:, None])).max() < 1e-13
    assert bump.smoothness == 3


@pytest.mark.parametrize("kind", ["trapezoid", "spline"])
def test_coordinates_are_linear_on_the_support_and_bounded(kind):
    basis = pa.partition(kind)
    z = np.linspace(-basis.radius, basis.radius, 50)
    t = plain(basis.coordinate, z[:, None])[:, 0]
    assert distance(basis.span * (t - 0.5), z) < ROUNDING
    far = plain(basis.coordinate, np.linspace(-50, 50, 400)[:, None])
    assert -1e-9 < far.min() <= far.max() < 1 + 1e-9  # rounding of cubes of 50


def test_unknown_partitions_are_refused():
    with pytest.raises(InputError, match="Did you mean 'spline'"):
        pa.partition("splines")  # pyright: ignore[reportArgumentType]
