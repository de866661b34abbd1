"""Depth in place of width: the same function, its size to the number, its width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation.rounds import in_rounds


def wave(x):
    return jnp.sin(3 * x.sum(axis=1) + 0.3) / 9


def built(d: int, n: int) -> pa.Network:
    return pa.taylor_network(wave, n, d, {1: 5, 2: 2}[d])


@pytest.mark.parametrize(("d", "n", "rounds"), [(1, 2, 2), (1, 2, 6), (1, 1, 4), (2, 2, 4)])
def test_a_network_in_rounds_is_the_same_function_and_costs_what_it_says(d, n, rounds):
    net = built(d, n)
    deep = in_rounds(net, rounds, offset=2.0)
    with jax.enable_x64(True):
        x = np.random.default_rng(0).random((200, d))
        # Float64: the partial sums are below 2, and as many roundings are made as there are rounds.
        np.testing.assert_allclose(pa.evaluate(deep, x), pa.evaluate(net, x), rtol=0, atol=1e-13)
    assert deep.depth == rounds * net.depth
    assert deep.size == net.size + 2 * (d + 1) * net.depth * (rounds - 1) + 2
    assert deep.width <= -(-net.width // rounds) + net.width // (3 * rounds) + d + 1


def test_an_interpolant_with_a_bias_can_be_computed_in_rounds_too():
    net = pa.linear_interpolant(wave, 7)
    deep = in_rounds(net, 7, offset=2.0)
    with jax.enable_x64(True):
        x = np.linspace(0, 1, 100)[:, None]
        np.testing.assert_allclose(pa.evaluate(deep, x), pa.evaluate(net, x), rtol=0, atol=1e-14)
    assert (deep.depth, deep.width) == (7, 3)
    assert deep.size == net.size + 4 * 6 + 1


def test_the_offset_must_bound_the_bias_too():
    net = pa.linear_interpolant(lambda x: wave(x) - 10, 7)
    assert net.readout.biases[0, 0] == pytest.approx(-10 + np.sin(0.3) / 9)
    with jax.enable_x64(True):
        x = np.linspace(0, 1, 100)[:, None]
        exact = pa.evaluate(net, x)
        enough, sums_alone = (pa.evaluate(in_rounds(net, 7, offset=c), x) for c in (12.0, 2.0))
        np.testing.assert_allclose(enough, exact, rtol=0, atol=1e-13)
        assert np.abs(sums_alone - exact).min() > 1  # cut off at 0 everywhere


def test_one_round_is_the_network_as_it_was():
    net = built(1, 2)
    deep = in_rounds(net, 1, offset=2.0)
    assert (deep.size, deep.depth, deep.width) == (net.size, net.depth, net.width)


def test_other_networks_are_refused():
    with pytest.raises(InputError, match="rounds=7 must be from 1 to the 6 copies"):
        in_rounds(built(1, 2), 7, offset=2.0)
    with pytest.raises(InputError, match="copies alike in number"):
        in_rounds(pa.linear(np.eye(2)), 1, offset=2.0)


@pytest.mark.parametrize(("pieces", "levels"), [(2, 1), (2, 4), (3, 3), (5, 2), (8, 1)])
def test_a_folded_square_has_the_pieces_and_the_error_that_it_says(pieces, levels):
    net = pa.folded_square(pieces, levels)
    cells = pieces**levels
    if pieces & (pieces - 1) == 0:  # elsewhere the zeros of the fold are rounded, and count, too
        assert pa.count_pieces(net) == cells
    assert net.depth == 2 * levels - 1
    with jax.enable_x64(True):
        nodes = np.arange(cells + 1) / cells
        middles = nodes[:-1] + 0.5 / cells
        # Float64; slopes reach p^m.
        at = np.asarray(pa.evaluate(net, nodes[:, None]))[:, 0]
        np.testing.assert_allclose(at, nodes**2, rtol=0, atol=1e-13)
        between = np.asarray(pa.evaluate(net, middles[:, None]))[:, 0]
        np.testing.assert_allclose(between - middles**2, 0.25 / cells**2, rtol=0, atol=1e-13)
