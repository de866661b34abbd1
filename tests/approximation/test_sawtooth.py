from itertools import pairwise

import numpy as np
import pytest
from plain_networks import plain

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation.sawtooth import teeth_for


@pytest.mark.parametrize("teeth", [1, 2, 5, 9])
def test_the_square_has_its_stated_error_and_pieces(teeth: int):
    # Midpoints of the pieces, where it is worst, and the dyadic nodes, where it is right.
    net, x = pa.sawtooth_square(teeth), np.arange(2 ** (teeth + 1) + 1)[:, None] / 2 ** (teeth + 1)
    error = plain(net, x) - x**2
    assert np.array_equal(error[::2], np.zeros_like(error[::2]))
    assert np.array_equal(error[1::2], np.full_like(error[1::2], pa.sawtooth_error(teeth)))
    assert pa.count_pieces(net) == 2**teeth
    assert net.depth == teeth


def test_the_error_falls_geometrically_in_the_size():
    nets = [pa.sawtooth_square(m) for m in range(2, 9)]
    assert len({b.size - a.size for a, b in pairwise(nets)}) == 1


@pytest.mark.parametrize("nonnegative", [False, True])
def test_products_and_squares_have_their_stated_error_and_stay_in_their_domain(nonnegative: bool):
    how = pa.sawtooth_arithmetic(4, nonnegative=nonnegative)
    axis = np.arange(0 if nonnegative else -32, 33) / 32  # sums hold the middles of the pieces
    x = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    y = plain(how.product, x)[:, 0]
    worst = np.abs(y - x.prod(1)).max()
    assert worst == how.error
    assert axis[0] <= y.min()
    assert y.max() <= 1
    assert not y[(x == 0).any(1)].any()
    assert np.abs(plain(how.square, axis[:, None])[:, 0] - axis**2).max() <= how.error
    assert np.array_equal(plain(how.carry, axis[:, None])[:, 0], axis)
    assert how.product.depth == how.square.depth == how.carry.depth == 5


def test_a_product_of_several_adds_up_the_errors():
    how = pa.sawtooth_arithmetic(5)
    x = np.random.default_rng(0).uniform(-1, 1, size=(2000, 5))
    error = np.abs(plain(pa.monomials([(1,) * 5], how), x)[:, 0] - x.prod(1)).max()
    assert how.error / 10 < error <= 4 * how.error


def test_as_many_teeth_as_the_error_asks_for():
    for m in range(1, 12):
        assert teeth_for(pa.sawtooth_error(m)) == m
        assert teeth_for(pa.sawtooth_error(m) * 0.99) == m + 1
    assert teeth_for(10.0) == 1
    for wrong in (lambda: teeth_for(0), lambda: pa.sawtooth_square(0)):
        with pytest.raises(InputError):
            wrong()
