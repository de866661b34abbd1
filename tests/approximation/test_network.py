import math

import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.approximation import feed_forward, linear
from polycom_jax.approximation.network import Affine, Layer, Network


def test_size_counts_nonzero_weights_biases_and_coefficients():
    net = feed_forward([[[1, 0], [2, 3]], [[4, 0]]], [[0, 5], [6]], [[[0, 1, 0], [0, 0.5, 2]]])
    assert net.size == (3 + 1 + 3) + (1 + 1)
    assert (net.inputs, net.outputs, net.depth, net.width) == (2, 1, 1, 2)


def test_copies_count_like_the_units_they_stand_for():
    enter = Affine(
        np.ones((1, 2, 1)), np.ones((7, 2)), np.ones((2, 1), bool), np.ones(2, bool), 1, 7
    )
    leave = Affine(
        np.zeros((7, 1, 2)), np.zeros((1, 1)), np.ones((1, 2), bool), np.zeros(1, bool), 7, 1
    )
    net = Network((Layer(enter, np.array([[[0.0, 1.0]] * 2])),), leave, 1)
    assert net.size == 7 * (2 + 2 + 2) + 7 * 2
    assert (net.width, net.depth) == (14, 1)


def test_a_network_is_as_smooth_as_its_lowest_power():
    weights = [np.ones((2, 1)), np.ones((1, 2))]
    assert feed_forward(weights, [None, None], [[[1, 0, 0, 2], [0, 0, 1, 0]]]).smoothness == 2
    assert linear([[1.0]]).smoothness == math.inf


@pytest.mark.parametrize(
    ("weights", "biases", "coeffs", "message"),
    [
        ([np.ones((2, 1))], [None], [np.ones((2, 2))], "need 2 matrices"),
        ([np.ones((2, 1)), np.ones((1, 3))], [None] * 2, [np.ones((2, 2))], "matrix 1 reads 3"),
        ([np.ones((2, 1)), np.ones((1, 2))], [None] * 2, [np.ones((3, 2))], "must be .2 units"),
        ([np.ones((2, 1)), np.ones((1, 2))], [None] * 2, [np.ones((2, 1))], "order >= 1"),
        ([np.ones((2, 1)), np.ones((1, 2))], [[1.0], None], [np.ones((2, 2))], "do not fit"),
        ([np.ones(2), np.ones((1, 2))], [None] * 2, [np.ones((2, 2))], "must be a matrix"),
        ([[[math.nan]], [[1.0]]], [None] * 2, [np.ones((1, 2))], "finite"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(weights, biases, coeffs, message):
    with pytest.raises(InputError, match=message):
        feed_forward(weights, biases, coeffs)
