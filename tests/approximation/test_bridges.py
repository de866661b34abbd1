import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain, random_network

import polycom_jax as pc
from polycom_jax import InputError
from polycom_jax import approximation as pa

DRAW = np.random.default_rng(0)
X = DRAW.uniform(-2, 2, size=(200, 1))
SHARED = [0.3, 1 / 3, -0.5, 0.2]


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_units_that_share_their_coefficients_make_every_power(exponent: int):
    net = pa.shared_power(exponent, SHARED)
    assert (net.width, net.depth) == (3, 1)
    assert np.array_equal(net.layers[0].coeffs[0], np.tile(SHARED, (3, 1)))
    assert distance(plain(net, X), np.maximum(X, 0) ** exponent) < ROUNDING


def test_a_whole_network_can_share_its_coefficients():
    net, x = random_network(0, 2, 4, 3, 2), DRAW.uniform(-1, 1, size=(50, 2))
    shared = pa.share_coefficients(net, SHARED, scales=[0.5, 1.0, 2.0])
    assert shared.depth == net.depth
    assert [layer.units for layer in shared.layers] == [12, 9]
    assert all(np.array_equal(c, SHARED) for n in shared.layers for c in n.coeffs[0])
    assert distance(plain(shared, x), plain(net, x)) < ROUNDING


def test_shared_coefficients_that_cannot_do_it_are_refused():
    net = random_network(0, 1, 2, 1, order=3)
    for coeffs, scales, message in (
        ([0, 1, 0, 1], None, "must not be 0"),
        ([0, 1, 1], None, "of order 3 need"),
        (SHARED, [1.0, 1.0, 2.0], "3 different positive"),
        (SHARED, [-1.0, 1.0, 2.0], "3 different positive"),
        ([1.0], None, "two or more"),
    ):
        with pytest.raises(InputError, match=message):
            pa.share_coefficients(net, coeffs, scales)
    with pytest.raises(InputError, match="from 1 to the order, 3"):
        pa.shared_power(4, SHARED)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_type_2_unit_is_two_type_1_units(order: int):
    coeffs = DRAW.normal(size=order + 1)
    net = pa.type2_unit(coeffs)
    expected = pc.polycom(jnp.asarray(X), jnp.asarray(coeffs), jax.nn.relu, kind="type2")
    assert (net.width, net.depth) == (2, 1)
    assert distance(plain(net, X), expected) < ROUNDING


@pytest.mark.usefixtures("x64")
def test_a_type_1_unit_is_two_layers_of_type_2():
    coeffs = DRAW.normal(size=4)
    h = jnp.asarray(X)
    for a in pa.type1_by_type2(coeffs):
        h = pc.polycom(h, jnp.asarray(a), jax.nn.relu, kind="type2")
    expected = pc.polycom(jnp.asarray(X), jnp.asarray(coeffs), jax.nn.relu, kind="type1")
    assert distance(h, expected) < ROUNDING


def test_one_layer_of_type_2_has_squared_relu_as_a_limit():
    x = np.linspace(-2, 2, 1001)[:, None]
    for h in (0.5, 0.05, 0.005):
        net = pa.type2_limit(h)
        assert not net.layers[0].coeffs[..., 2].any()
        error = np.abs(plain(net, x) - np.maximum(x, 0) ** 2).max()
        np.testing.assert_allclose(error, h**2 / 3, rtol=1e-6)  # rounding over h^2
    with pytest.raises(InputError, match="must be positive"):
        pa.type2_limit(0)


def test_poly_norm_of_one_variable_without_biases_sees_its_sign_alone():
    # Why the studies give PolyNorm networks biases: rows are scale-invariant.
    w = jnp.asarray(DRAW.normal(size=(1, 16)), jnp.float32)
    b = jnp.asarray(DRAW.normal(size=(1, 16)), jnp.float32)
    x, coeffs = jnp.array([[0.5], [1.0], [2.0]], jnp.float32), pc.init_coeffs()
    blind, seeing = pc.poly_norm(x @ w, coeffs), pc.poly_norm(x @ w + b, coeffs)
    np.testing.assert_allclose(blind[1:], blind[:1].repeat(2, 0), rtol=1e-4, atol=1e-5)  # eps
    assert np.abs(seeing[0] - seeing[2]).max() > 0.1


def test_a_dtype_in_which_shared_units_cancel_too_far_is_refused():
    coeffs = [0.0, *[1 / 8] * 8]
    net, x = pa.shared_power(3, coeffs), X[:5]
    with pytest.raises(InputError, match="float32 keeps less than three digits of this network"):
        pa.evaluate(pa.parallel(net, pa.power(2)), x)
    with pytest.raises(InputError, match="float32 keeps less than three digits"):
        pa.to_dense(net, dtype=jnp.float32)
    with pytest.raises(InputError, match="float32 keeps less than three digits"):
        pa.evaluate(pa.type2_limit(1e-5), x)
    with jax.enable_x64(True):
        assert distance(pa.evaluate(net, x), np.maximum(x, 0) ** 3) < 1e8 * 2**-53
    low = pa.shared_power(3, coeffs[:5])
    assert distance(pa.evaluate(low, x), np.maximum(x, 0) ** 3) < low.condition * 2**-22
