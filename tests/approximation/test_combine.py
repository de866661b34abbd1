import jax.numpy as jnp
import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain, random_network

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation.combine import dense_bytes

X = np.random.default_rng(0).uniform(-1, 1, size=(30, 2))


def wave(x):
    return jnp.sin(3 * x[:, 0] + 1)


def test_composing_adds_depths_and_no_units():
    f, g = random_network(1, 2, 6, 3), random_network(2, 3, 5, 4, 2)
    joint = pa.compose(g, f)
    assert (joint.depth, joint.width) == (3, 6)
    assert distance(plain(joint, X), plain(g, plain(f, X))) < ROUNDING


def test_composing_with_affine_maps_adds_no_layer():
    f = random_network(1, 2, 6, 3)
    around = pa.compose(pa.linear(np.ones((1, 3)), [2.0]), pa.compose(f, pa.linear(-np.eye(2))))
    assert around.depth == 1
    assert distance(plain(around, X)[:, 0], plain(f, -X).sum(1) + 2) < ROUNDING


def test_a_bias_that_comes_from_the_inner_network_is_counted():
    assert pa.power(2).size == 3
    assert pa.compose(pa.power(2), pa.linear([[1.0]], [2.0])).size == 4


def test_what_cancels_is_not_counted():
    moved = pa.compose(pa.linear([[1.0]], [-2.0]), pa.linear([[1.0]], [2.0]))
    assert moved.size == 1
    both = pa.compose(pa.linear([[1.0, 1.0]]), pa.linear([[1.0, 2.0], [-1.0, 3.0]]))
    assert both.size == 1
    assert pa.compose(pa.power(2), both).size == 3
    # In a network made of copies the block stays whole: a coefficient may vanish at one node.
    copies = pa.taylor_network(lambda x: 0 * x[:, 0], 2, 1, 3)
    assert pa.compose(pa.linear([[1.0]]), copies).size == pa.size_formula(2, 1, 3)


def test_the_identity_and_deeper_networks_are_the_same_function():
    assert np.array_equal(plain(pa.identity(2), X), X)
    f = random_network(1, 2, 6, 3)
    deep = pa.deepen(f, 4)
    assert deep.depth == 4
    assert distance(plain(deep, X), plain(f, X)) < ROUNDING


def test_tokenizer_files_reads_apart_and_parallel_reads_the_same():
    f, g = random_network(1, 2, 6, 3, order=2), random_network(2, 2, 5, 4, 2)
    apart, same = pa.block_diagonal(f, g), pa.parallel(f, g)
    assert (apart.inputs, same.inputs, same.outputs, same.depth) == (4, 2, 5, 2)
    expected = np.concatenate([plain(f, X), plain(g, X)], axis=1)
    assert distance(plain(apart, np.concatenate([X, X], axis=1)), expected) < ROUNDING
    assert distance(plain(same, X), expected) < ROUNDING
    assert apart.size == pa.deepen(f, 2).size + g.size


def test_networks_of_copies_combine():
    few, many = pa.taylor_network(wave, 2, 1, 2), pa.taylor_network(wave, 2, 1, 3)
    x = np.abs(X[:, :1])
    joint = pa.compose(many, few)
    assert distance(plain(joint, x), plain(many, plain(few, x))) < ROUNDING
    for pair, copies in (((many, many), 4), ((many, few), 1)):
        side = pa.parallel(*pair)
        assert side.layers[0].affine.copies == copies
        assert side.size == sum(net.size for net in pair)
        expected = np.concatenate([plain(net, x) for net in pair], axis=1)
        assert distance(plain(side, x), expected) < ROUNDING


def test_written_out_without_copies_it_is_the_same_network():
    net = pa.taylor_network(wave, 3, 1, 3)
    flat = pa.flatten(net)
    assert all(layer.affine.copies == 1 for layer in flat.layers)
    assert (flat.size, flat.depth, flat.width) == (net.size, net.depth, net.width)
    x = np.abs(X[:, :1])
    assert distance(plain(flat, x), plain(net, x)) < ROUNDING


def test_what_is_too_large_to_write_out_is_refused():
    net = pa.taylor_network(wave, 3, 1, 3)
    with pytest.raises(InputError, match="the limit is 0 MiB"):
        pa.flatten(net, limit=dense_bytes(net) - 1)
    assert pa.flatten(net, limit=dense_bytes(net)).size == net.size


def test_networks_that_do_not_fit_are_refused():
    f, g = random_network(1, 2, 6, 3), random_network(2, 2, 5, 2)
    with pytest.raises(InputError, match="reads 2 numbers, the inner one gives 3"):
        pa.compose(g, f)
    with pytest.raises(InputError, match="same variables"):
        pa.parallel(f, random_network(2, 1, 5, 2))
    with pytest.raises(InputError, match="below the network's, 1"):
        pa.deepen(f, 0)
