"""Options of activations: what they change, where training starts, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from polycom_jax._errors import InputError
from polycom_jax.table import (
    ACTIVATIONS,
    Activation,
    ActivationOptions,
    get_activation,
)

F32 = 2e-6  # the stated bound for float32, relative to the norm of the terms


pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_initial_values_are_those_of_the_paper():
    params = get_activation("poly_prelu", order=4).init(jax.random.key(3))
    np.testing.assert_array_equal(params["coeffs"], [0, 0.25, 0.25, 0.25, 0.25])
    assert params["slope"] == 0.25


def test_initial_values_can_be_chosen():
    row = get_activation("poly_relu", order=2, initial=(1.0, 0.5, -0.25))
    np.testing.assert_array_equal(row.init(jax.random.key(0))["coeffs"], [1.0, 0.5, -0.25])


def test_a_fractional_width_names_the_neighbours():
    with pytest.raises(InputError, match="nearest: 340 or 342"):
        get_activation("poly_norm").width(341)
    assert get_activation("swiglu").width(341) == 341


def test_activations_are_hashable_values():
    assert get_activation("poly_norm") == Activation("poly_norm")
    assert len({get_activation("poly_norm", order=n) for n in (3, 3, 4)}) == 2


@pytest.mark.parametrize(
    ("options", "effective"),
    [
        ({"sigmoid": True}, [0, 1 / 3, 1 / 3, 1 / 3]),
        ({"sigmoid": True, "order": 2, "bound": 0.5}, [0, 1 / 2, 1 / 2]),
        ({"sigmoid": True, "initial": (-0.4, 0.9, 0.5, 0.01)}, [-0.4, 0.9, 0.5, 0.01]),
        ({"bound": 0.5, "output_scale": 0.5}, [0, 1 / 6, 1 / 6, 1 / 6]),
    ],
)
@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if get_activation(n).is_polynomial])
def test_the_initial_coefficients_are_those_that_the_polynomial_has(name, options, effective):
    row = get_activation(name, **options)
    params = row.init(jax.random.key(0))
    order = len(effective) - 1
    hidden = [jnp.linspace(-1, 2, 8, dtype=jnp.float32)] * (2 if row.gated else 1)
    plain = get_activation(name, order=order)
    wanted = plain.apply(params | {"coeffs": jnp.array(effective, jnp.float32)}, *hidden)
    np.testing.assert_allclose(row.apply(params, *hidden), wanted, rtol=F32, atol=F32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmoid": True, "order": 1}, "with sigmoid a_1 and the others must lie between 0 and 1"),
        ({"bound": 0.3}, "must be within bound=0.3"),
    ],
)
def test_a_start_that_the_options_do_not_allow_is_refused(options, message):
    row = get_activation("poly_norm", **options)  # trained coefficients may still be given
    with pytest.raises(InputError, match=message):
        row.init(jax.random.key(0))


def test_what_is_clipped_has_no_gradient():
    row = get_activation("poly_norm", bound=0.3)
    coeffs = jnp.array([0.0, 0.2, -0.9, 0.4], jnp.float32)
    x = jnp.linspace(-1, 2, 8, dtype=jnp.float32)
    gradient = jax.grad(lambda c: jnp.sum(row.apply({"coeffs": c}, x)))(coeffs)
    np.testing.assert_array_equal(gradient == 0, [False, False, True, True])


def test_what_starts_at_the_bound_has_its_whole_gradient():
    x = jnp.linspace(-1, 2, 8, dtype=jnp.float32)

    def gradient(**options):
        row = get_activation("poly_norm", order=2, **options)
        return jax.grad(lambda p: jnp.sum(row.apply(p, x)))(row.init(jax.random.key(0)))

    jax.tree.map(np.testing.assert_array_equal, gradient(bound=0.5), gradient())


def test_options_reach_the_function():
    x = jnp.float32([[1e-3, -2e-3]])
    for eps in (1e-6, 1e-2):
        row = get_activation("poly_norm", eps=eps, implementation="reference")
        params = row.init(jax.random.key(0))
        wanted, _ = oracles.poly_norm(x, params["coeffs"], eps)
        np.testing.assert_allclose(row.apply(params, x), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_activation("polynorm"), "Did you mean 'poly_norm'"),
        (lambda: get_activation("poly_norm", ordr=4), "Did you mean 'order'"),
        (lambda: get_activation("relu", order=4), "'relu' does not read this option"),
        (
            lambda: get_activation("poly_relu", eps=1e-5),
            "reads order, sigmoid, bound, output_scale, initial, implementation",
        ),
        (lambda: ActivationOptions(order=0), "order=0 must be"),
        (lambda: ActivationOptions(eps=0.0), "eps=0.0 must be"),
        (lambda: ActivationOptions(bound=0.0), "bound=0.0 must be positive"),
        (lambda: ActivationOptions(output_scale=float("nan")), "output_scale=nan must be positive"),
        (lambda: get_activation("poly_norm", initial=(0.0, 1.0)), "initial=.* must be order"),
        (lambda: get_activation("poly_relu", order=1, initial=(0, 2), bound=1), "within bound=1"),
        (
            lambda: get_activation("poly_relu", order=1, initial=(0, 1.0), sigmoid=True),
            "must lie between 0 and 1",
        ),
        (lambda: get_activation("relu2", bound=1.0), "does not read this option"),
        (lambda: get_activation("poly_norm", implementation="xl"), "Did you mean 'xla'"),
        (lambda: get_activation("swiglu").apply({}, jnp.ones(3)), "gate, up"),
        (lambda: get_activation("relu").apply({"coeffs": 0}, jnp.ones(3)), "came {'coeffs'"),
        (lambda: get_activation("poly_norm").apply({}, jnp.ones(3)), "came {}"),
        (
            lambda: get_activation("poly_norm").apply({"coeffs": jnp.ones(5)}, jnp.ones(3)),
            r"\(4,\)}, came {'coeffs': \(5,\)}",
        ),
    ],
)
def test_misuse_is_told_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as told:
        call()
    assert "\n" not in str(told.value)
