import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain, random_network

from polycom_jax import InputError
from polycom_jax import approximation as pa

pytestmark = pytest.mark.usefixtures("x64")


def test_the_parameter_tree_computes_what_the_network_computes():
    for net in (
        random_network(0, 2, 7, 4, 3),
        pa.taylor_network(lambda x: jnp.exp(x[:, 0] * x[:, 1]), 3, 2, 2),
        pa.linear([[1.0, 2.0]], [3.0]),
    ):
        params, x = pa.to_dense(net), np.random.default_rng(0).random((2, 10, 2))
        y = jax.jit(pa.apply_dense)(params, x)
        assert y.dtype == jnp.float64
        assert distance(y.reshape(20, -1), plain(net, x.reshape(20, 2))) < ROUNDING


def test_the_parameter_tree_has_as_many_nonzero_numbers_as_the_size_says():
    net = pa.taylor_network(lambda x: jnp.exp(x[:, 0]), 3, 1, 3)
    leaves = jax.tree.leaves(pa.to_dense(net))
    assert sum(int(jnp.count_nonzero(leaf)) for leaf in leaves) == net.size


def test_one_can_train_from_it():
    net = random_network(0, 1, 5, 1)
    params, x = pa.to_dense(net, dtype=jnp.float32), jnp.linspace(-1, 1, 20, dtype=jnp.float32)

    def loss(params):
        return jnp.mean((pa.apply_dense(params, x[:, None])[:, 0] - jnp.abs(x)) ** 2)

    before, slope = jax.jit(jax.value_and_grad(loss))(params)
    after = jax.jit(loss)(jax.tree.map(lambda p, g: p - 0.01 * g, params, slope))
    assert after.dtype == jnp.float32
    assert after < before


def test_more_memory_than_allowed_is_refused_before_it_is_taken():
    net = pa.taylor_network(lambda x: x[:, 0] * x[:, 1], 2, 2, 100)
    with pytest.raises(InputError, match="limit is 1,024 MiB"):
        pa.to_dense(net)


def test_wires_are_the_numbers_that_stand_in_the_network():
    # Of (1 - x)^2 many coefficients are 0 at a node; their wires are there all the same.
    for net in (
        pa.taylor_network(lambda x: (1 - x[:, 0]) ** 2, 3, 1, 3),
        pa.taylor_network(lambda x: (1 - x[:, 0]) ** 2, 3, 1, 3, kind="spline"),
        random_network(0, 2, 7, 4, 3),
    ):
        params, wires = pa.to_dense(net), pa.dense_wires(net)
        assert sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(wires)) == net.size
        kept = jax.tree.map(lambda number, wire: bool(((number != 0) <= wire).all()), params, wires)
        assert all(jax.tree.leaves(kept))
    with pytest.raises(InputError, match="limit is 0 MiB"):
        pa.dense_wires(pa.taylor_network(lambda x: x[:, 0], 2, 1, 3), limit=100)


def test_numbers_that_a_dtype_does_not_hold_are_refused():
    net = pa.feed_forward([[[1e5]], [[1.0]]], [None, None], [[[0.0, 1.0]]])
    with pytest.raises(InputError, match=r"float16 does not hold the network's 1e\+05"):
        pa.to_dense(net, dtype=jnp.float16)
