"""The contract, offered to users: what each check finds, and how it says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycom_jax as pc
from polycom_jax.testing import CHECKS, QUICK_CHECKS, ContractError, check_activation


@jax.custom_vjp
def reverse_only(x):
    return jnp.tanh(x)


reverse_only.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


@jax.custom_jvp
def wrong_slope(x):
    return jnp.tanh(x)


wrong_slope.defjvps(lambda t, y, x: t * (1 - y))


@jax.custom_jvp
def clipped_slope(x):
    return x * x


clipped_slope.defjvps(lambda t, y, x: t * jnp.clip(2 * x, -10, 10))


def by_place(x):
    """Its slopes are those of a whole row, not of a part of one."""
    return x * jnp.broadcast_to(jnp.linspace(0.1, 1, x.shape[-1]), x.shape)


def own_mean(x, axis_name=None):
    del axis_name
    return x - jnp.mean(x, axis=-1, keepdims=True)


def whole_mean(x, axis_name=None):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    return x - (mean if axis_name is None else jax.lax.pmean(mean, axis_name))


def rows(x):
    return x - jnp.mean(x, axis=-1, keepdims=True)


def past(x):
    """Reads the row before, in a way that cannot be seen in its program."""
    return jax.lax.fori_loop(1, x.shape[0], lambda i, y: y.at[i].set(x[i] + x[i - 1]), x)


@pytest.mark.parametrize("name", ["a sound one", "one over rows", "one told of parts"])
def test_a_sound_activation_passes_every_check(name: str):
    def leaky(x, beta, slope):
        return jnp.where(x > 0, x * jax.nn.sigmoid(beta * x), slope * x)

    learned = {"beta": 1.0, "slope": pc.Parameter(0.25, per="channel")}
    found = {"one over rows": rows, "one told of parts": whole_mean}
    act = pc.activation(found[name]) if name in found else pc.activation(leaky, learned)
    check_activation(act)


@pytest.mark.parametrize(
    ("function", "about", "check", "message"),
    [
        (
            lambda x: x * jnp.exp(x) / (1 + jnp.exp(x)),
            {},
            "always_finite",
            r"naive: finite: in float32 the value is (nan|inf) and should be .* at x = ",
        ),
        (wrong_slope, {}, "values_and_gradients", "the gradient of x is .* expected .* at x = "),
        (reverse_only, {}, "forward_equals_reverse", "it has no forward derivative"),
        (clipped_slope, {}, "values_far_out", "the gradient of x is .* expected .* at x = "),
        (
            lambda x: clipped_slope(x) - jnp.mean(x, -1, keepdims=True),
            {},
            "values_far_out",
            "values and gradients far out against float64: the gradient of x is .* expected",
        ),
        (
            lambda gate, up: gate * clipped_slope(up),
            {"gated": True},
            "values_far_out",
            "the gradient of up is .* expected .* at gate, up = ",
        ),
        (by_place, {}, "parts_make_the_whole", "two parts of the channels.* the value is .* at x"),
        (own_mean, {}, "parts_make_the_whole", "two parts of the channels.* the value is "),
        (
            lambda x: x * jnp.sqrt(100 - x * x),
            {},
            "always_finite",
            "the value is NaN in float64, too at x = .* must have a number for every finite",
        ),
        (jnp.sqrt, {}, "values_and_gradients", "where NaN is expected: .* no number at x = -"),
        (
            lambda x: x * ((1 + jnp.exp(x)) ** 2 - 1) / ((1 + jnp.exp(x)) ** 2 + 1),
            {},
            "second_derivatives",
            "second derivative of x is .* at x = [0-9.]+ ",
        ),
        (
            lambda gate, up: gate * gate * up,
            {"gated": True},
            "always_finite",
            "the value is nan and should be -?0 at gate, up = ",
        ),
        (past, {}, "rows_stand_alone", r"a change of row \[0, 0\] .* changes the result at \[1, 0"),
        (jax.nn.sigmoid, {"slopes": (0, 0.2502)}, "stated_slopes", "goes only from .* to 0.25"),
        (jnp.tanh, {"flops": 3}, "flops_are_counted", "stated are 3 operations.*its program has 1"),
        (
            lambda x: jnp.mean(jnp.tanh(x[..., :, None] - x[..., None, :]), axis=-1),
            {},
            "flops_are_counted",
            "counted are 16 operations .*, and 49 at width 16: .* grow with the width, state flops",
        ),
        (
            lambda x: jnp.exp(x * x),
            {},
            "values_far_out",
            "the value is inf, expected 4.2.*e.296 .* at x = .* float32 does not hold .* largest=",
        ),
        (jnp.tanh, {"slopes": (0, 0.5)}, "stated_slopes", "the derivative goes from .* to 1 "),
        (jnp.tanh, {"slopes": (-1, 1)}, "stated_slopes", "stated are -1 to 1, and the derivative"),
        (
            lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
            {},
            "values_and_gradients",
            "against float64: the gradient of x is .* expected",
        ),
    ],
)
def test_what_is_broken_is_named_with_its_input(function, about, check, message):
    act = pc.activation(function, name="naive", **about)
    with pytest.raises(ContractError, match=message) as told:
        check_activation(act, checks=[check])
    assert "\n" not in str(told.value)


def test_an_own_float64_formula_finds_a_wrong_one():
    act = pc.activation(lambda x: 2 * jnp.tanh(x), name="twice")
    with pytest.raises(ContractError, match="twice: values and gradients, eager, against float64"):
        check_activation(act, checks=QUICK_CHECKS, exact=lambda params, x: np.tanh(x))


def test_an_own_float64_formula_finds_what_is_wrong_far_out():
    act = pc.activation(lambda x: x * jax.nn.sigmoid(jnp.clip(x, -4, 4)), name="capped")

    def silu(params, x):
        return x / (1 + np.exp(-x))

    check_activation(act, checks=["values_and_gradients"], exact=silu)
    with pytest.raises(ContractError, match="capped: values and gradients far out"):
        check_activation(act, checks=["values_far_out"], exact=silu)
    check_activation(act, checks=["values_far_out"], exact=silu, largest=4)


def test_a_check_that_there_is_not_is_told():
    with pytest.raises(pc.InputError, match="Unknown check 'jit'"):
        check_activation("gelu", checks=["jit"])
    assert set(QUICK_CHECKS) < set(CHECKS)
