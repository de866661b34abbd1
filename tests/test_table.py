"""The contract that every activation of the table keeps; a new row is taken up by itself.

The checks are those that `polycom_jax.testing` offers for a user's own activation. What a row has
to bring is its float64 evaluation in `oracles.ACTIVATIONS`.
"""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from polycom_jax import table
from polycom_jax.kernels.poly_norm import api as poly_norm_api
from polycom_jax.kernels.poly_relu import api as poly_relu_api
from polycom_jax.rows import BASELINES, POLYCOM
from polycom_jax.rows_polynomial import VARIANTS
from polycom_jax.rows_trainable import RIVALS
from polycom_jax.table import ACTIVATIONS, get_activation
from polycom_jax.testing import CHECKS, QUICK_CHECKS, check_activation

F32 = 2e-6  # the stated bound for float32, relative to the norm of the terms
SHAPE = (4, 16)

LARGEST = {"relu2_norm": 1e18, "swiglu_norm": 1e12}
"""What stands under a norm must be finite itself."""

SAMPLED = ("poly_relu", "poly_norm", "poly_norm_glu", "swiglu", "gelu_norm", "xielu", "asqu")
"""Rows that go through all checks in a quick run: one or two of each kind."""

OF_THE_RULE = ("always_finite", "one_rounding", "rows_stand_alone")
"""What rows of a kind have in common, as the sampled ones show."""

NEWEST = {**VARIANTS, **RIVALS}
CHEAP = ("shapes_and_roles", "elements_stand_alone", "flops_are_counted", "saves_its_arguments")
"""What compiles nothing: of the newest rows, which share rules with those above."""

each_row = pytest.mark.parametrize("name", ACTIVATIONS)
pytestmark = pytest.mark.usefixtures("strict_dtypes")


def cases():
    """(row, check): of most rows, the dear checks are among the exhaustive tests."""
    for name in ACTIVATIONS:
        for check in CHECKS:
            quick = name in SAMPLED or (check in QUICK_CHECKS and check not in OF_THE_RULE)
            quick = check in CHEAP if name in NEWEST else quick
            marks = () if quick else (pytest.mark.exhaustive,)
            yield pytest.param(name, check, marks=marks, id=f"{name}-{check}")


def arguments(name: str, dtype=jnp.float32, shape=SHAPE):
    """(row, parameters off their initial values, hidden arrays away from kinks, dy)."""
    row = get_activation(name)
    rng = np.random.default_rng(7)

    def draw(shape, least=0.0):
        values = rng.standard_normal(shape)
        return jnp.asarray(values + np.copysign(least, values), jnp.float32)

    params = {
        key: value + 0.1 * draw(value.shape) for key, value in row.init(jax.random.key(0)).items()
    }
    hidden = [draw(shape, least=0.05).astype(dtype) for _ in range(2 if row.gated else 1)]
    return row, params, hidden, draw(shape).astype(dtype)


def test_every_row_has_an_oracle_and_no_oracle_is_left_over():
    assert set(ACTIVATIONS) == set(oracles.ACTIVATIONS)


@pytest.mark.parametrize(("name", "check"), [*cases()])
def test_every_row_keeps_the_contract(name, check):
    exact, largest = oracles.ACTIVATIONS[name], LARGEST.get(name, float("inf"))
    check_activation(name, checks=[check], exact=exact, largest=largest)


@pytest.mark.parametrize("name", [*POLYCOM, *BASELINES])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_saved_for_backward_are_the_arguments_and_a_few_numbers_a_row(name, dtype):
    row, params, hidden, _ = arguments(name, dtype)
    _, vjp = jax.vjp(row.apply, params, *hidden)
    saved = jax.tree.leaves(vjp)
    of_rows = [leaf for leaf in saved if leaf.shape == (*hidden[0].shape[:-1], 1)]
    # The scale of a row, and a gain for each of three powers.
    normalised = ("poly_norm", "poly_norm_glu", "poly_relu_norm")
    assert len(of_rows) == (4 if name in normalised else 0)
    kept = [leaf for leaf in saved if not any(leaf is number for number in of_rows)]
    arrays = [*jax.tree.leaves(params), *hidden]
    assert sum(leaf.nbytes for leaf in kept) <= sum(array.nbytes for array in arrays)
    for leaf in kept:
        assert any(
            leaf.shape == array.shape and leaf.dtype == array.dtype and jnp.all(leaf == array)
            for array in arrays
        )


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if get_activation(n).is_polynomial])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_flops_of_a_polynomial_grow_with_its_order(name, order):
    check_activation(get_activation(name, order=order), checks=["flops_are_counted"])


@each_row
def test_parameters_are_coefficients_in_float32(name):
    for spec in get_activation(name).specs_at(64).values():
        assert (spec.role, spec.dtype) == ("coefficient", jnp.float32)


@each_row
def test_a_row_says_what_it_is_and_where_it_is_from(name):
    row = get_activation(name).row
    assert row.formula
    assert row.source
    assert (row.slopes is None) == row.over_rows


@pytest.mark.parametrize(
    ("name", "slopes"), [(n, s) for n in ACTIVATIONS if (s := get_activation(n).row.slopes)]
)
def test_stated_slopes_are_right_to_the_last_digit(name, slopes):
    row = get_activation(name)
    params = {
        key: np.asarray(value, np.float64) for key, value in row.init(jax.random.key(0), 8).items()
    }
    beside = [-2e-6, 2e-6]  # of kinks at 0
    x = np.concatenate([np.linspace(-40, 40, 40_001), np.linspace(-1e3, 1e3, 2_001), beside])
    x, step = np.repeat(x[:, None], 8, axis=1), 1e-6
    up = [np.ones_like(x)] * row.gated
    with np.errstate(over="ignore"):
        high, low = (oracles.ACTIVATIONS[name](params, x + s * step, *up) for s in (1, -1))
    slope = (high - low) / (2 * step)
    for stated, found in zip(slopes, (slope.min(), slope.max()), strict=True):
        assert np.isinf(stated) or found == pytest.approx(stated, abs=6e-6)


@each_row
def test_width_gives_equal_weights(name):
    row, d = get_activation(name), 2048
    matrices = 3 if row.gated else 2
    assert matrices * d * row.width(5504) == 3 * d * 5504
    assert row.width(5504) == (5504 if row.gated else 8256)


@pytest.mark.parametrize(
    ("options", "effective"),
    [
        ({"output_scale": 0.5}, lambda c: c / 2),
        ({"bound": 0.3}, lambda c: np.clip(c, -0.3, 0.3)),
        ({"sigmoid": True}, lambda c: np.append(c[:1], 1 / (1 + np.exp(-c[1:])))),
        (
            {"sigmoid": True, "bound": 0.5, "output_scale": 0.5},
            lambda c: np.clip(np.append(c[:1], 1 / (1 + np.exp(-c[1:]))), -0.5, 0.5) / 2,
        ),
    ],
)
@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if get_activation(n).is_polynomial])
def test_coefficients_can_be_held_in_bounds(name, options, effective):
    plain, params, hidden, _ = arguments(name)
    params["coeffs"] = jnp.array([-0.7, 0.2, -0.9, 0.4], jnp.float32)
    held = get_activation(name, **options).apply(params, *hidden)
    stated = effective(np.asarray(params["coeffs"], np.float64)).astype(np.float32)
    wanted = plain.apply(params | {"coeffs": jnp.asarray(stated)}, *hidden)
    np.testing.assert_allclose(held, wanted, rtol=F32, atol=F32 * float(jnp.max(jnp.abs(wanted))))


@pytest.mark.parametrize("module", [table, poly_norm_api, poly_relu_api])
def test_the_examples_in_the_docstrings_run(module):
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0
