"""Fixed element-wise functions where their terms are large: second derivatives, and products."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from polycom_jax.activations import fixed, trainable

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_mish_has_the_second_derivatives_of_float64():
    x = np.concatenate([np.linspace(-30, 30, 601), [-1e36, -100.0, 0.0, 100.0, 1e36]])
    x = x.astype(np.float32).astype(np.float64)
    near = np.abs(x) < 100

    def second(at: np.ndarray) -> np.ndarray:
        f, step = oracles.ACTIVATIONS["mish"], 1e-3
        values = [f({}, at + shift * step) for shift in (-2, -1, 0, 1, 2)]
        return np.tensordot([-1, 16, -30, 16, -1], values, 1) / (12 * step**2)

    wanted = np.where(near, second(np.where(near, x, 0)), 0)
    single = jnp.asarray(x, jnp.float32)
    for f in (fixed.mish, lambda x: trainable.parametric_mish(x, jnp.float32(1))):
        found = jax.jit(jax.vmap(jax.grad(jax.grad(f))))(single)
        np.testing.assert_allclose(found, wanted, atol=2e-6)
        # The relative error, too, is small far out, where nothing else of it is left.
        far = (x > 5) & (x < 12)
        exact = -8 * (x[far] - 1) * np.exp(-2 * x[far])
        np.testing.assert_allclose(found[far], exact, rtol=0.1)


@pytest.mark.parametrize("f", [fixed.relu2_glu, fixed.silu2_glu])
def test_a_square_that_overflows_meets_a_small_up(f):
    gate, up = jnp.array([1e20, 1e20, 3e19]), jnp.array([0.0, 1e-20, -1e-10])
    np.testing.assert_allclose(f(gate, up), [0, 1e20, -9e28], rtol=1e-6)
    slopes = jax.vmap(jax.grad(f))(gate, up)
    np.testing.assert_allclose(slopes, [0, 2, -6e9], rtol=1e-6)
