import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain, random_network

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation import evaluation

pytestmark = pytest.mark.usefixtures("x64")


def test_values_are_those_of_a_plain_loop():
    net, x = random_network(0, 3, 8, 5, 2), np.random.default_rng(1).normal(size=(4, 25, 3))
    y = pa.evaluate(net, x)
    assert y.shape == (4, 25, 2)
    assert distance(y.reshape(-1, 2), plain(net, x.reshape(-1, 3))) < ROUNDING


def test_copies_are_evaluated_like_the_units_they_stand_for():
    net = pa.taylor_network(lambda x: jnp.sin(x[:, 0] + 2 * x[:, 1]), 2, 2, 2)
    assert {layer.affine.copies for layer in net.layers} == {9}
    x = np.random.default_rng(0).random((20, 2))
    assert distance(pa.evaluate(net, x), plain(net, x)) < ROUNDING
    both = pa.compose(pa.polynomial([0, 1, 1]), net)
    assert distance(pa.evaluate(both, x), plain(both, x)) < ROUNDING


def test_many_points_go_through_in_chunks(monkeypatch: pytest.MonkeyPatch):
    net, x = random_network(0, 1, 7, 1), np.linspace(-1, 1, 101)[:, None]
    whole = pa.evaluate(net, x)
    monkeypatch.setattr(evaluation, "CHUNK_UNITS", 7 * 16)
    jax.clear_caches()
    assert distance(pa.evaluate(net, x), whole) < ROUNDING


def test_the_dtype_is_that_of_the_points():
    net = random_network(0, 1, 4, 1)
    assert pa.evaluate(net, np.ones((2, 1))).dtype == jnp.float64
    assert pa.evaluate(net, np.ones((2, 1), np.float32)).dtype == jnp.float32
    assert pa.evaluate(net, np.ones((2, 1), int)).dtype == jnp.float64


def test_pairs_that_make_a_polynomial_have_its_derivatives_also_at_the_kink():
    net = pa.polynomial([3.0, -2.0, 5.0, 7.0])

    def at(x):
        return pa.evaluate(net, x.reshape(1, 1))[0, 0]

    bend = jax.grad(jax.jacfwd(at))
    derivatives = jax.jit(lambda x: jnp.stack([jax.grad(at)(x), bend(x), jax.jacfwd(bend)(x)]))
    for x in (0.0, 0.5, -0.5):
        expected = [-2 + 10 * x + 21 * x**2, 10 + 42 * x, 42]
        np.testing.assert_allclose(derivatives(x), expected, rtol=1e-14)  # rounding


def test_coefficients_have_derivatives():
    z, coeffs = jnp.array([[[2.0]], [[-1.0]]]), jnp.array([[[[1.0, 2.0, 3.0]]]])
    jacobian = jax.jacrev(evaluation.truncated_polynomial, argnums=1)(z, coeffs)
    np.testing.assert_array_equal(jacobian.reshape(2, 3), [[2, 4, 8], [0, 0, 0]])


def test_the_copies_that_do_not_vanish_are_enough():
    for kind in ("trapezoid", "spline"):
        net = pa.taylor_network(lambda x: jnp.exp(x[:, 0] - x[:, 1]), 2, 2, 3, kind=kind)
        x = np.concatenate([np.random.default_rng(0).random((50, 2)), [[0, 0], [1, 1], [1 / 3, 1]]])
        few = pa.evaluate_copies(net, x, pa.active_copies(x, 3))
        assert distance(few, pa.evaluate(net, x)) < ROUNDING


def test_points_of_the_wrong_dimension_are_refused():
    net = random_network(0, 2, 3, 1)
    with pytest.raises(InputError, match="last axis of 2"):
        pa.evaluate(net, np.ones((5, 3)))
    with pytest.raises(InputError, match="alike in number"):
        pa.evaluate_copies(
            pa.compose(random_network(0, 1, 3, 1), pa.taylor_network(lambda x: x[:, 0], 1, 1, 2)),
            np.ones((5, 1)),
            np.zeros((5, 1), int),
        )
