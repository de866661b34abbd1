import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain, random_network

from polycom_jax import InputError
from polycom_jax import approximation as pa

EPS = (1e-1, 1e-3, 1e-5, 1e-7)


def is_relu(net: pa.Network) -> bool:
    return not any(layer.coeffs[..., 2:].any() for layer in net.layers)


@pytest.mark.parametrize("coeffs", [(0.0, 0.0, 1.0), (0.1, 0.5, -0.3, 0.7), (1.0, 0, 0, 0, -2.0)])
def test_an_activation_is_imitated_within_eps_on_its_interval(coeffs):
    x = np.linspace(-2, 2, 2001)[:, None]
    expected = sum(a * np.maximum(x, 0) ** i for i, a in enumerate(coeffs))
    sizes = []
    for eps in EPS:
        net = pa.imitate_activation(coeffs, eps, radius=2.0)
        assert is_relu(net)
        assert np.abs(plain(net, x) - expected).max() <= eps
        sizes.append(net.size)
    # O(log(1/eps)): a hundredth of the error costs a number of teeth that does not grow.
    steps = np.diff(sizes)
    assert steps.max() <= 1.5 * steps.min()


def test_an_activation_that_is_a_relu_costs_nothing_more():
    x = np.linspace(-1, 1, 101)[:, None]
    few = [pa.imitate_activation((0.5, 2.0, 0.0, 0.0), eps) for eps in (1e-1, 1e-9)]
    assert few[0].size == few[1].size
    assert (few[0].width, few[0].depth) == (2, 1)
    assert distance(plain(few[1], x), 0.5 + 2 * np.maximum(x, 0)) < ROUNDING
    constant = pa.imitate_activation((0.5, 0.0, 0.0), 1e-3)
    assert np.array_equal(plain(constant, x), np.full_like(x, 0.5))


def test_beyond_its_interval_an_imitation_is_constant():
    # So that errors of earlier layers, which leave the interval, are not amplified.
    net = pa.imitate_activation((0.1, 0.5, -0.3, 0.7), 1e-3, radius=2.0)
    y = plain(net, np.array([[-100.0], [-2.0], [2.0], [2.5], [100.0]]))[:, 0]
    np.testing.assert_allclose(y[[0, 3, 4]], y[[1, 2, 2]], rtol=1e-12)  # rounding


def test_a_network_is_imitated_within_eps_on_its_box():
    net, draw = random_network(3, 2, 4, 3, 2), np.random.default_rng(0)
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    x = np.concatenate([draw.uniform(-1, 1, size=(500, 2)), corners])
    found = []
    for eps in EPS:
        imitated = pa.imitate(net, eps)
        assert is_relu(imitated)
        assert imitated.smoothness == 1
        found.append((imitated.size, np.abs(plain(imitated, x) - plain(net, x)).max()))
        assert found[-1][1] <= eps
    sizes, errors = np.array(found).T
    # Error against size falls geometrically: a line in size against log error.
    slopes = np.diff(np.log(errors)) / np.diff(sizes)
    assert (slopes < 0).all()
    assert slopes.min() > 4 * slopes.max()


def test_a_relu_network_imitates_itself_exactly():
    net = random_network(3, 2, 4, 3, 1, order=1)
    x = np.random.default_rng(0).uniform(-1, 1, size=(100, 2))
    assert distance(plain(pa.imitate(net, 1e-2), x), plain(net, x)) < ROUNDING


def test_errors_and_boxes_must_be_positive():
    net = random_network(3, 1, 2, 1)
    for wrong in (
        lambda: pa.imitate(net, 0),
        lambda: pa.imitate(net, 0.1, radius=-1),
        lambda: pa.imitate_activation((0, 1, 1), -0.1),
        lambda: pa.imitate_activation((0, 1, 1), 0.1, radius=0),
        lambda: pa.imitate_activation((0,), 0.1),
    ):
        with pytest.raises(InputError):
            wrong()
