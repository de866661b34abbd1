"""Sums of several arrays over rows, in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax.kernels.row_sums import row_sums

# Below and at the cuts of row_sums, with and without a rest, and where lanes are cut again.
WIDTHS = (1, 7, 64, 65, 123, 512, 4096, 4100, 65_536)


@pytest.mark.parametrize("width", WIDTHS)
def test_sums_are_those_of_float64(width):
    rows = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
    sums = row_sums([jnp.asarray(rows**2), jnp.asarray(rows)])
    for got, terms in zip(
        sums, (rows.astype(np.float64) ** 2, rows.astype(np.float64)), strict=True
    ):
        # An addition errs by 2^-24 of its result; 600 in a row at most, mostly cancelling.
        bound = 2**-24 * np.sqrt(600) * np.abs(terms).sum(-1, keepdims=True)
        assert got.shape == (3, 1)
        assert np.all(np.abs(got - terms.sum(-1, keepdims=True)) <= bound)


def test_no_term_is_written_to_memory():
    x = jnp.ones((64, 4096))
    compiled = jax.jit(lambda x: row_sums([x * x, x * x * x, x])).lower(x).compile()
    used = compiled.memory_analysis()
    assert used is not None
    assert used.temp_size_in_bytes < x.nbytes


def test_derivatives_of_both_modes_and_orders():
    x = jax.random.normal(jax.random.key(0), (2, 130))

    def f(x):
        once, cubed = row_sums([x, x**3])
        return jnp.sum(once**2) + jnp.sum(cubed**2)

    def plain(x):
        return jnp.sum(jnp.sum(x, axis=-1) ** 2) + jnp.sum(jnp.sum(x**3, axis=-1) ** 2)

    def close(got, wanted):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)

    close(jax.grad(f)(x), jax.grad(plain)(x))
    close(jax.jvp(f, (x,), (x,))[1], jax.jvp(plain, (x,), (x,))[1])
    close(jax.hessian(f)(x[:, :3]), jax.hessian(plain)(x[:, :3]))
    close(jax.vmap(f)(x[None])[0], f(x))
