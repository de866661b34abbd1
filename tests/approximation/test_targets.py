"""Targets lie in the unit ball of W^{n,inf}, at its edge, and are as smooth as they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.approximation.sobolev import Grid, derivative, sobolev_norm
from polycom_jax.approximation.targets import TARGETS, get_target

CASES = [(1, 1), (4, 1), (2, 2), (1, 3)]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("order", "dim"), CASES)
def test_the_norm_is_what_it_says(name: str, order: int, dim: int):
    target = get_target(name, order=order, dim=dim)
    grid = {1: Grid(1, 48), 2: Grid(2, 6), 3: Grid(3, 3, gauss=1)}[dim]
    measured = sobolev_norm(target, grid, order=order, smoothness=target.smoothness)
    low, high = target.norm
    # Half a step h of the grid from a maximum, a bump has fallen by 3 (5 h)^2 in each variable.
    missed = {1: 1e-3, 2: 0.02, 3: 0.15}[dim]
    assert low * (1 - missed) < measured <= high * (1 + 1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("dim", [1, 3])
def test_a_perfect_spline_has_nth_derivative_one_in_size(order: int, dim: int):
    target = get_target("spline", order=order, dim=dim)
    x = np.random.default_rng(0).random((200, dim))
    index = (order, *(0,) * (dim - 1))
    with jax.enable_x64(True):
        top = derivative(target, index)(jnp.asarray(x))
        beyond = derivative(target, (order + 1, *index[1:]))(jnp.asarray(x))
    np.testing.assert_allclose(np.abs(top), 1, rtol=1e-12)
    assert len(np.unique(np.sign(top))) == 2
    np.testing.assert_array_equal(beyond, 0)


@pytest.mark.parametrize(("name", "edge"), [("spline", 0), ("bumps", 2)])
def test_smoothness_ends_where_it_is_said_to(name: str, edge: int):
    order = 2
    target = get_target(name, order=order, dim=1)
    assert target.smoothness == order + edge
    knot = {"spline": 1 / 3, "bumps": 0.05}[name]

    def jump(k: int) -> float:
        sides = jnp.array([[knot - 1e-9], [knot + 1e-9]])
        low, high = derivative(target, (k,))(sides)
        return abs(float(high - low))

    with jax.enable_x64(True):
        # Across 2e-9 a continuous derivative moves by its slope (under 1e4 here) times that.
        for k in range(order + edge):
            assert jump(k) < 2e-5, k
        assert jump(order + edge) > 0.5


def test_random_targets_differ_by_seed_and_repeat():
    x = jnp.linspace(0, 1, 10).reshape(5, 2)
    one, same, other = (get_target("random", order=2, dim=2, seed=s)(x) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_one_point_or_many(name: str):
    target = get_target(name, order=2, dim=2)
    x = jnp.array([[0.2, 0.9], [0.4, 0.1]])
    # float32, a few units in the last place: one point and many are compiled differently.
    np.testing.assert_allclose(target(x)[1], target(x[1]), rtol=1e-5, atol=1e-7)
    assert target(x).dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "splines", "order": 1, "dim": 1}, "Did you mean 'spline'"),
        ({"name": "spline", "order": 0, "dim": 1}, "order=0"),
        ({"name": "spline", "order": 1, "dim": 0}, "dim=0"),
        ({"name": "random", "order": 1, "dim": 1, "seed": -1}, "seed=-1"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        get_target(**arguments)


def test_points_of_another_dimension_are_refused():
    with pytest.raises(InputError, match=r"last axis of 2"):
        get_target("waves", order=1, dim=2)(jnp.ones((3, 1)))
