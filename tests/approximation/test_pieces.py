import math

import numpy as np
import pytest
from plain_networks import plain, random_network

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation.pieces import breakpoints, curvature


def test_kinks_are_where_the_slope_changes():
    net = pa.relu_network([[[1.0], [1.0], [2.0]], [[1.0, -3.0, 1.0]]], [[0, -0.25, -1.5], None])
    np.testing.assert_allclose(breakpoints(net, -1, 1), [0, 0.25, 0.75], atol=1e-15)
    assert pa.count_pieces(net, -1, 1) == 4


def test_kinks_that_cancel_or_are_never_seen_do_not_count():
    assert pa.count_pieces(pa.identity(1), -1, 1) == 1
    hidden = pa.relu_network([[[1.0]], [[1.0]], [[1.0]]], [[-0.5], [-10.0], None])
    assert pa.count_pieces(hidden) == 1


@pytest.mark.parametrize("size", [0.1, 0.3, 0.7, 7.0])
def test_a_kink_of_several_units_is_one_whatever_its_place_is_rounded_to(size):
    weights = [[3.0], [3 * size], [-3 * size]]
    net = pa.relu_network([weights, [[1.0, -2.0, 0.5]]], [[-1.0, -size, size], None])
    np.testing.assert_allclose(breakpoints(net, 0, 1), [1 / 3], rtol=1e-15)
    assert pa.count_pieces(net) == 2


def test_a_random_network_is_linear_between_its_kinks():
    net = random_network(5, 1, 6, 6, 1, order=1)
    kinks = breakpoints(net, -3, 3)
    assert 3 <= len(kinks) < pa.most_pieces([6, 6])
    ends = np.concatenate([[-3], kinks, [3]])
    thirds = ends[:-1, None] + np.diff(ends)[:, None] * np.array([0.0, 1 / 3, 2 / 3, 1])
    y = plain(net, thirds.reshape(-1, 1)).reshape(-1, 4)
    assert np.abs(np.diff(y, n=2, axis=1)).max() < 1e-12  # rounding


def test_no_imitation_beats_the_lower_bound_and_the_sawtooth_is_near():
    for teeth in (1, 3, 5):
        net = pa.compose(
            pa.linear([[1.0]], [-pa.sawtooth_error(teeth) / 2]), pa.sawtooth_square(teeth)
        )
        x = np.linspace(0, 1, 4097)[:, None]
        error = np.abs(plain(net, x) - x**2).max()
        # Lowered by half of its error, the interpolant is the best piecewise linear function.
        np.testing.assert_allclose(
            error, pa.imitation_lower_bound(pa.count_pieces(net)), rtol=1e-12
        )


def test_the_bound_is_zero_for_what_is_a_relu():
    assert pa.imitation_lower_bound(1, (0.0, 1.0, 0.0, 0.0)) == 0
    assert pa.imitation_lower_bound(4) == 1 / (8 * 16)
    assert pa.imitation_lower_bound(1, (0, 0, 0, 1)) == 0  # p'' = 6 z begins at 0
    assert curvature((0, 0, 1, 1)) == 2
    assert curvature((0, 0, -1, 0, -1)) == 2
    assert curvature((0, 0, 1, -1)) == 0  # p'' changes its sign


def test_pieces_that_an_error_asks_for():
    for pieces in range(1, 40):
        assert pa.fewest_pieces(pa.imitation_lower_bound(pieces)) == pieces
        assert pa.fewest_pieces(pa.imitation_lower_bound(pieces) * 0.99) == pieces + 1
    assert pa.fewest_units(1e-40) == pytest.approx(0.5 * math.log2(1 / 8e-40), abs=1e-3)
    assert pa.most_pieces([3, 4]) == 20


def test_pieces_are_counted_for_relu_networks_on_a_line():
    for wrong, message in (
        (lambda: pa.count_pieces(random_network(0, 2, 3, 1, order=1)), "2 inputs"),
        (lambda: pa.count_pieces(random_network(0, 1, 3, 1)), "higher order"),
        (lambda: pa.count_pieces(pa.power(1), 1, 0), "must not be empty"),
        (lambda: pa.imitation_lower_bound(0), "at least 1"),
        (lambda: pa.fewest_pieces(0), "positive"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
