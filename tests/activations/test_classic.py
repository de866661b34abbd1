"""What the contract of `tests/test_table.py` does not say about the baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax._errors import InputError
from polycom_jax.activations import classic
from polycom_jax.table import get_activation

pytestmark = pytest.mark.usefixtures("strict_dtypes")
ELEMENTWISE = ["relu", "relu2", "gelu", "gelu_tanh", "silu", "tanh"]
GATED = ["swiglu", "geglu", "reglu"]


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_slopes_at_the_far_ends_are_the_limits(name, dtype):
    f = getattr(classic, name)
    far = jnp.asarray([-3e38, -1e30, 1e18, 1e12], dtype)
    slope = jax.grad(lambda x: jnp.sum(f(x)))(far).astype(jnp.float32)
    left, right = {"tanh": (0, 0), "relu2": (0, 2)}.get(name, (0, 1))
    right = right * (far[2:].astype(jnp.float32) if name == "relu2" else 1)
    np.testing.assert_allclose(slope[:2], left, atol=1e-30)
    np.testing.assert_allclose(slope[2:], right, rtol=1e-2)
    value = f(far[:2]).astype(jnp.float32)
    np.testing.assert_array_equal(value, -1 if name == "tanh" else 0)


@pytest.mark.parametrize("name", ["relu", "relu2", "reglu"])
def test_the_derivative_of_a_rectifier_at_zero_is_zero(name):
    arrays = [jnp.zeros(2), jnp.ones(2)][: 2 if name in GATED else 1]
    np.testing.assert_array_equal(jax.grad(lambda *a: getattr(classic, name)(*a).sum())(*arrays), 0)


def test_the_two_gelus_differ_as_published():
    x = jnp.linspace(-5.0, 5.0, 1001)
    difference = float(jnp.max(jnp.abs(classic.gelu(x) - classic.gelu_tanh(x))))
    assert 1e-4 < difference < 1e-3


@pytest.mark.parametrize("name", GATED)
def test_gate_and_up_must_agree(name):
    f = getattr(classic, name)
    with pytest.raises(InputError, match=r"gate float32\[3\] and up float32\[1\] must agree"):
        f(jnp.ones(3), jnp.ones(1))
    with pytest.raises(InputError, match=r"gate float32\[3\] and up bfloat16\[3\]"):
        f(jnp.ones(3), jnp.ones(3, jnp.bfloat16))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_integers_are_refused(name):
    with pytest.raises(InputError, match=r"x\.astype\(jnp\.float32\)"):
        getattr(classic, name)(jnp.arange(3))


@pytest.mark.parametrize("name", ["relu", "relu2", "reglu", "poly_relu", "poly_relu_norm"])
def test_rectifiers_select_by_no_mask(name: str):
    # XLA's TPU backend would write it to memory.
    row = get_activation(name, implementation="xla") if "poly" in name else get_activation(name)
    x = jnp.ones((2, 8))
    hidden = (x, x) if row.gated else (x,)
    params = row.init(jax.random.key(0))
    gradients = jax.grad(lambda *xs: jnp.sum(row.apply(params, *xs)), range(len(hidden)))
    assert "select_n" not in str(jax.make_jaxpr(gradients)(*hidden))
