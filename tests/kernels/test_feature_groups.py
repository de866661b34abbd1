"""Activations over groups of features, in both layouts: one result, and the backend's choice."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from polycom_jax.activations.group_layouts import InColumns, InRows
from polycom_jax.custom import row_reading_row
from polycom_jax.kernels.feature_groups import EVONORM_S0, GDN
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.rows_trainable import RIVALS
from polycom_jax.table import Activation, get_activation
from polycom_jax.testing import CHECKS, check_activation

OPERATIONS = {"evonorm_s0": EVONORM_S0, "gdn": GDN}
WIDTH = 256

pytestmark = pytest.mark.usefixtures("strict_dtypes")
each_name = pytest.mark.parametrize("name", OPERATIONS)


def arguments(name: str, *shape: int):
    """(x of another size at each token, parameters off their start), as the function reads them."""
    rng, act = np.random.default_rng(5), get_activation(name)
    sizes = 10.0 ** rng.integers(-30, 30, (*shape, 1))
    x = jnp.asarray(rng.standard_normal((*shape, WIDTH)) * sizes, jnp.float32)
    params = {
        key: value + 0.1 * jnp.asarray(rng.standard_normal(value.shape), jnp.float32)
        for key, value in act.init(jax.random.key(0), WIDTH).items()
    }
    return x, *act.arguments(params, x)


@each_name
@pytest.mark.parametrize("shape", [(), (2, 3), (0,)], ids=str)
def test_both_layouts_give_one_result_with_one_derivative(name, shape):
    def both(run, *arrays):
        y, pull = jax.vjp(run, *arrays)
        return y, *pull(jnp.cos(y))

    found = [
        jax.jit(partial(both, OPERATIONS[name].versions[version].run))(*arguments(name, *shape))
        for version in ("xla", "tpu")
    ]
    for rows, columns in zip(*found, strict=True):
        assert rows.shape == columns.shape
        scale = float(jnp.max(jnp.abs(rows), initial=0))
        np.testing.assert_allclose(columns, rows, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.parametrize("layout", [InRows, InColumns])
def test_a_layout_gives_back_what_it_was_given(layout):
    x = jnp.arange(2 * 3 * 16.0).reshape(2, 3, 16)
    lay = layout(x, 4)
    np.testing.assert_array_equal(lay.restored(lay.hidden(x)), x)
    total, squares = lay.two_sums(lay.hidden(x), lay.hidden(x) ** 2)
    np.testing.assert_array_equal(
        lay.restored(lay.repeated(total) + 0 * lay.hidden(x)),
        jnp.repeat(x.reshape(2, 3, 4, 4).sum(-1), 4, axis=-1),
    )
    np.testing.assert_array_equal(
        lay.restored(lay.repeated(squares) + 0 * lay.hidden(x)),
        jnp.repeat((x**2).reshape(2, 3, 4, 4).sum(-1), 4, axis=-1),
    )


@each_name
def test_on_a_tpu_no_group_lies_along_the_last_axis(name):
    x, *learned = arguments(name, 3, 5)
    size = WIDTH // (32 if name == "evonorm_s0" else WIDTH // 8)

    def lasts(platform: str) -> set[int]:
        with compiling_for(platform):
            program = jax.make_jaxpr(lambda *a: OPERATIONS[name](*a, axis_name=None))(x, *learned)
        made: list[Any] = [v.aval for eqn in program.jaxpr.eqns for v in eqn.outvars]
        return {aval.shape[-1] for aval in made if aval.size == x.size and aval.ndim > 1}

    assert size in lasts("cpu")
    assert size not in lasts("tpu")


def of_tpu(name: str) -> Activation:
    """The row with the version that is chosen on a TPU."""
    params: Any = dict(RIVALS[name].params)
    run = OPERATIONS[name].versions["tpu"].run
    return Activation(name, row=row_reading_row(run, params, formula=RIVALS[name].formula))


@pytest.mark.exhaustive
@each_name
@pytest.mark.parametrize("check", CHECKS)
def test_columns_keep_the_contract(name, check):
    check_activation(of_tpu(name), checks=[check], exact=oracles.ACTIVATIONS[name])
