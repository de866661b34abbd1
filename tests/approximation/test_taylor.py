"""Theorem 3: what it says, for targets in the unit ball."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_networks import ROUNDING, distance, plain

from polycom_jax import InputError
from polycom_jax import approximation as pa
from polycom_jax.approximation.taylor import local_coefficients

pytestmark = pytest.mark.usefixtures("x64")

NUMPYS: Any = lambda x: np.sin(x[:, 0])  # noqa: E731
"""What JAX cannot trace."""

FRACTIONS = np.array([1e-3, 1 / 3, 0.4, 1 / 2, 2 / 3, 0.9])
"""Places in a cell; never its nodes, where an interpolant is right anyway."""


def points(cells: int, d: int) -> np.ndarray:
    axis = ((np.arange(cells)[:, None] + FRACTIONS) / cells).ravel()
    return np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1).reshape(-1, d)


def wave(n: int, d: int):
    """prod_k sin(2 x_k + 1) / 2^n, whose derivatives up to order n are at most 1."""
    return lambda x: jnp.prod(jnp.sin(2 * x + 1), axis=1) / 2**n


def error(net: pa.Network, f, cells: int, d: int) -> float:
    x = points(cells, d)
    y = pa.evaluate_copies(net, x, pa.active_copies(x, cells))[:, 0]
    return float(np.abs(y - f(jnp.asarray(x))).max())


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_in_one_dimension_the_interior_error_is_the_known_constant(n: int):
    # f^(n) = 1 between all nodes; the error of the whole network, copies that vanish included.
    def f(x):
        return x[:, 0] ** n / math.factorial(n)

    net = pa.taylor_network(f, n, 1, 10)
    y = pa.evaluate(net, points(10, 1))[:, 0]
    worst = np.abs(y - f(points(10, 1))).max()
    assert worst == pytest.approx(pa.interior_error(n, 10), rel=1e-2)
    assert worst * 10**n == pytest.approx({1: 1 / 3, 2: 1 / 8, 3: 1 / 162, 4: 1 / 384}[n], rel=1e-2)


RATES = [
    *((n, 1, (8, 24, 64)) for n in (1, 2, 3, 4)),
    *((n, 2, (8, 16)) for n in (1, 2, 3, 4)),
]


@pytest.mark.parametrize(("n", "d", "range_"), RATES)
def test_errors_stay_below_the_bound_and_fall_at_the_rate_of_the_theorem(n, d, range_):
    f, found = wave(n, d), []
    for cells in range_:
        net = pa.taylor_network(f, n, d, cells)
        assert net.size == pa.cell_size(n, d) * (cells + 1) ** d == pa.size_formula(n, d, cells)
        found.append((cells, net.size, error(net, f, cells, d)))
        assert found[-1][2] <= pa.bound(n, d, cells)
    cells, sizes, errors = np.log(np.array(found, float)).T
    assert np.polyfit(cells, errors, 1)[0] == pytest.approx(-n, rel=0.1)
    assert np.polyfit(sizes, errors, 1)[0] == pytest.approx(-n / d, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_three_dimensions(n: int):
    f, found = wave(n, 3), []
    for cells in (4, 6, 8):
        net = pa.taylor_network(f, n, 3, cells)
        assert net.size == pa.size_formula(n, 3, cells)
        found.append((cells, error(net, f, cells, 3)))
        assert found[-1][1] <= pa.bound(n, 3, cells)
    cells, errors = np.log(np.array(found, float)).T
    assert np.polyfit(cells, errors, 1)[0] == pytest.approx(-n, rel=0.1)


def test_eps_gives_the_least_cells_and_is_kept():
    f = wave(2, 2)
    net = pa.taylor_network(f, 2, 2, eps=0.01)
    cells = pa.cells_for(0.01, 2, 2)
    assert net.size == pa.size_formula(2, 2, cells)
    assert error(net, f, cells, 2) <= 0.01


@pytest.mark.parametrize(("d", "cells"), [(1, 256), (1, 2048), (2, 40)])
@pytest.mark.parametrize("kind", ["trapezoid", "spline"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_narrow_dtypes_keep_the_bound_up_to_their_roundings(dtype, kind, d, cells):
    f = wave(3, d)
    net = pa.taylor_network(f, 3, d, cells, kind=kind)
    x = jnp.asarray(np.random.default_rng(0).random((300, d)), dtype)
    y = pa.evaluate(net, x)
    assert y.dtype == dtype
    few = pa.evaluate_copies(net, x, pa.active_copies(x, cells))
    # The value is at most 1/8, its slope 1/4 on each axis. What is rounded in float32: N x, every
    # unit's input, the sum.
    rounding = float(jnp.finfo(dtype).eps) / 16 + 4 * float(jnp.finfo(jnp.float32).eps)
    for values in (y, few):
        gap = np.asarray(values[:, 0], np.float64) - f(x.astype(jnp.float64))
        assert np.abs(gap).max() <= pa.bound(3, d, cells, kind) + rounding


def test_more_cells_than_a_dtype_can_tell_apart_are_refused_with_the_most_it_can():
    net = pa.taylor_network(wave(1, 1), 1, 1, 1000)
    with pytest.raises(InputError, match=r"bfloat16 does not distinguish .* at most N=84 cells"):
        pa.to_dense(net, dtype=jnp.bfloat16)
    held = pa.taylor_network(wave(1, 1), 1, 1, 84)
    tree, x = pa.to_dense(held, dtype=jnp.bfloat16), points(84, 1).astype(np.float32)
    # The readout's values, at most 1/2, are rounded; its cells are not.
    gap = pa.apply_dense(tree, x) - pa.evaluate(held, x)
    assert np.abs(gap).max() <= 2**-8
    first, *others = held.layers
    away = replace(first, affine=replace(first.affine, biases=first.affine.biases + 2.0**26))
    with pytest.raises(InputError, match="float32 does not distinguish the cells"):
        pa.evaluate(replace(held, layers=(away, *others)), x[:2])


def test_polynomials_of_degree_below_n_are_met_exactly():
    def f(x):
        return 1 + x[:, 0] - 3 * x[:, 0] * x[:, 1] ** 2 + x[:, 1] ** 3

    for kind in ("trapezoid", "spline"):
        net = pa.taylor_network(f, 4, 2, 3, kind=kind)
        x = np.random.default_rng(0).random((50, 2))
        assert distance(plain(net, x)[:, 0], f(x)) < ROUNDING


def test_local_coefficients_are_those_of_the_taylor_polynomial():
    basis, t = pa.partition("trapezoid"), np.random.default_rng(0).random((1, 2))
    coeffs = local_coefficients(lambda x: jnp.exp(x[:, 0] + 2 * x[:, 1]), 3, 2, 2, basis)
    assert coeffs.shape == (9, 6)
    indices = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)]
    for m, node in enumerate((i / 2, j / 2) for i in range(3) for j in range(3)):
        h = 4 / 3 * (t[0] - 0.5) / 2
        step = h[0] + 2 * h[1]
        expected = np.exp(node[0] + 2 * node[1]) * (1 + step + step**2 / 2)
        value = sum(
            c * (t[0] ** np.array(i)).prod() for c, i in zip(coeffs[m], indices, strict=True)
        )
        assert value == pytest.approx(expected, rel=1e-13)


def test_splines_approximate_derivatives_too():
    # Rates n, n-1, n-2 in L^inf, W^1, W^2; the approximant is C^2, as no ReLU network is.
    f, found = wave(4, 1), []
    for cells in (8, 32):
        net = pa.taylor_network(f, 4, 1, cells, kind="spline")
        assert net.size == pa.size_formula(4, 1, cells, "spline")
        assert net.smoothness == 3
        x = jnp.asarray(points(cells, 1))

        def gap(x, net=net):
            return pa.evaluate(net, x)[:, 0] - f(x)

        def slope(x, gap=gap):
            return jax.jvp(gap, (x,), (jnp.ones_like(x),))[1]

        def bend(x, slope=slope):
            return jax.jvp(slope, (x,), (jnp.ones_like(x),))[1]

        errors = jnp.abs(jax.jit(lambda x, gs=(gap, slope, bend): jnp.stack([g(x) for g in gs]))(x))
        found.append([cells, *errors.max(1)])
        assert found[-1][1] <= pa.bound(4, 1, cells, "spline")
    _, *rates = np.diff(np.log(np.array(found)), axis=0)[0] / np.log(4)
    np.testing.assert_allclose(rates, [-4, -3, -2], rtol=0.1)


@pytest.mark.parametrize(
    ("n", "d", "eps"), [(1, 1, 0.05), (2, 1, 1e-3), (4, 1, 1e-4), (3, 2, 1e-2)]
)
def test_relu_networks_reach_eps_too(n: int, d: int, eps: float):
    f = wave(n, d)
    net = pa.relu_taylor_network(f, n, d, eps)
    assert not any(layer.coeffs[..., 2:].any() for layer in net.layers)
    cells = pa.cells_for(eps if n * d == 1 else eps / 2, n, d)
    assert 0 < error(net, f, cells, d) <= eps


def test_polyrelu_needs_no_logarithm_and_relu_does_from_three_derivatives_on():
    for n in (3, 4):
        flat, rising = [], []
        for cells in (8, 32, 128):
            f, eps = wave(n, 1), pa.bound(n, 1, cells)
            flat.append(pa.taylor_network(f, n, 1, eps=eps).size * eps ** (1 / n))
            rising.append(pa.relu_taylor_network(f, n, 1, eps).size * eps ** (1 / n))
        assert flat[0] >= flat[1] >= flat[2] > flat[0] / (1 + 1 / 8)  # its N + 1 nodes, no more
        assert rising[0] < rising[1] < rising[2]
        assert rising[-1] / rising[0] > 1.15


@pytest.mark.parametrize("n", [3, 4])
def test_in_two_dimensions_the_logarithm_is_in_what_a_node_costs(n: int):
    # In size eps^(d/n) it hides behind (N + 1)^2 / N^2 until N is large.
    f, cells = wave(n, 2), (4, 16, 32)
    nets = [pa.relu_taylor_network(f, n, 2, 2 * pa.bound(n, 2, c)) for c in cells]
    costs = [net.size / (c + 1) ** 2 for net, c in zip(nets, cells, strict=True)]
    assert costs[0] < costs[1] < costs[2]
    assert costs[-1] / costs[0] > 1.15


def test_linear_interpolation_is_log_free():
    for n in (1, 2):
        for cells in (8, 64):
            net = pa.linear_interpolant(wave(n, 1), cells)
            assert net.size == 4 * cells + 1
            x = points(cells, 1)
            worst = np.abs(plain(net, x)[:, 0] - wave(n, 1)(jnp.asarray(x))).max()
            assert worst <= pa.interpolation_bound(n, cells)


def test_whatever_cannot_be_built_is_refused_before_work_starts():
    f = wave(1, 1)
    for wrong, message in (
        (lambda: pa.taylor_network(f, 1, 1), "one of cells and eps"),
        (lambda: pa.taylor_network(f, 1, 1, 4, eps=0.1), "one of cells and eps"),
        (lambda: pa.taylor_network(f, 1, 1, eps=1.5), "eps=1.5"),
        (lambda: pa.taylor_network(f, 0, 1, 4), "n=0"),
        (lambda: pa.taylor_network(f, 1, 0, 4), "d=0"),
        (lambda: pa.taylor_network(f, 1, 1, 0), "N=0"),
        (lambda: pa.taylor_network(f, 4, 3, 2000), "Take a smaller N"),
        (lambda: pa.relu_taylor_network(f, 1, 1, 0), "eps=0"),
        (lambda: pa.relu_taylor_network(f, 1, 3, 1e-6), "Take a smaller N"),
        (lambda: pa.taylor_network(lambda x: x, 1, 1, 4), "must map points"),
        (lambda: pa.taylor_network(lambda x: jnp.sqrt(x[:, 0]), 2, 1, 4), "not finite"),
        (lambda: pa.taylor_network(NUMPYS, 2, 1, 4), "jax.numpy in place of"),
        (lambda: pa.interpolation_bound(3, 4), "n = 1 and n = 2"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
