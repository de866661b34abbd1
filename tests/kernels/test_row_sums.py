"""Sums of several arrays over rows, in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax.kernels.row_sums import TERMS, column_sums, row_sums, sums_in_parts

# Below and at the cuts of row_sums, with and without a rest, and where lanes are cut again.
WIDTHS = (1, 7, 64, 65, 123, 512, 4096, 4100, 65_536)


def of_parts(terms):
    """Both arrays as one, of which a part gives both."""
    return sums_in_parts(lambda both: list(both), jnp.stack(terms))


@pytest.mark.parametrize("add", [row_sums, of_parts])
@pytest.mark.parametrize("width", WIDTHS)
def test_sums_are_those_of_float64(add, width):
    rows = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
    sums = add([jnp.asarray(rows**2), jnp.asarray(rows)])
    for got, terms in zip(
        sums, (rows.astype(np.float64) ** 2, rows.astype(np.float64)), strict=True
    ):
        # An addition errs by 2^-24 of its result; 600 in a row at most, mostly cancelling.
        bound = 2**-24 * np.sqrt(600) * np.abs(terms).sum(-1, keepdims=True)
        assert got.shape == (3, 1)
        assert np.all(np.abs(got - terms.sum(-1, keepdims=True)) <= bound)


@pytest.mark.parametrize(
    ("width", "parts"), [(128, 1), (129, 2), (1536, 6), (8256, 8), (65_536, 8)]
)
def test_a_tpu_gets_a_few_parts_of_whole_registers(width, parts):
    x = jax.ShapeDtypeStruct((4, width), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x: sums_in_parts(lambda x: [x], x))(x)
    cuts = [eqn.params for eqn in jaxpr.eqns if eqn.primitive.name == "slice"]
    assert max(len(cuts), 1) == parts
    assert all(cut["start_indices"][1] % 128 == 0 for cut in cuts)


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


@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 16), (9, 7), (4,)])
@pytest.mark.parametrize("count", [1, TERMS, 2 * TERMS + 1])
def test_columns_are_summed_over_all_other_axes(shape, count):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    sums = column_sums([jnp.asarray(x) * i for i in range(count)])
    axes = tuple(range(len(shape) - 1))
    for i, got in enumerate(sums):
        np.testing.assert_allclose(got, i * x.sum(axes), rtol=1e-5, atol=1e-5)


def test_no_reduction_sums_more_terms_than_are_vectorised():
    def sums(x):
        return column_sums([x * i for i in range(2 * TERMS + 1)])

    program = jax.jit(sums).lower(jnp.ones((8, 16))).as_text()
    operands = [line.count("init:") for line in program.splitlines() if "stablehlo.reduce" in line]
    assert max(operands) == TERMS


def test_sums_of_columns_have_derivatives_of_both_modes_and_orders():
    x = jax.random.normal(jax.random.key(0), (5, 6))

    def f(x):
        once, cubed = column_sums([x, x**3])
        return jnp.sum(once**2) + jnp.sum(cubed**2)

    def plain(x):
        return jnp.sum(jnp.sum(x, axis=0) ** 2) + jnp.sum(jnp.sum(x**3, axis=0) ** 2)

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        np.testing.assert_allclose(derivative(f)(x), derivative(plain)(x), rtol=2e-4, atol=2e-3)
