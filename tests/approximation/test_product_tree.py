import math

import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation.product_tree import product_levels

X = np.random.default_rng(0).normal(size=(100, 3))


def test_monomials_in_several_variables_are_exact():
    exponents = [(0, 0, 0), (1, 0, 0), (0, 2, 0), (3, 1, 0), (2, 2, 1), (0, 0, 5), (1, 0, 0)]
    net = pa.monomials(exponents, pa.exact_arithmetic())
    expected = np.stack([(X ** np.array(e)).prod(1) for e in exponents], axis=1)
    assert (net.depth, net.smoothness) == (3, math.inf)
    for k in range(len(exponents)):
        assert distance(plain(net, X)[:, k], expected[:, k]) < ROUNDING


def test_a_product_that_occurs_twice_is_computed_once():
    assert product_levels([(0, 0, 1), (0, 0, 2), (0, 0)]) == [
        [(0,), (1,), (2,)],
        [(0, 0), (1,), (2,)],
        [(0, 0), (0, 0, 1), (0, 0, 2)],
    ]


def test_a_product_of_equals_is_a_square():
    assert pa.monomials([(2, 0), (0, 4)], pa.exact_arithmetic()).width == 4


def test_constants_alone_need_no_layer():
    net = pa.monomials([(0, 0, 0)], pa.exact_arithmetic())
    assert net.depth == 0
    assert np.array_equal(plain(net, X), np.ones((100, 1)))


@pytest.mark.parametrize("exponents", [[], [(1,), (1, 2)], [(-1, 1)], [(0.5, 1)]])
def test_exponents_that_are_no_matrix_of_counts_are_refused(exponents):
    with pytest.raises(InputError, match="integers >= 0"):
        pa.monomials(exponents, pa.exact_arithmetic())
