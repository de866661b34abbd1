"""Calls that JAX does not split."""

import jax
import jax.numpy as jnp
import numpy as np

from polycom_jax.kernels.opaque_call import opaque_call

X = jax.random.normal(jax.random.key(0), (4,))


def plain(x, n):
    """A loop with something that does not change in it."""
    steps = jax.lax.scan(lambda c, _: (jnp.sin(c) + jnp.cumsum(x) * n, c), x, None, length=3)
    return steps[0], jnp.sum(steps[1])


def kept_whole(x, n):
    return opaque_call(plain, x, n)


def results(f):
    loss = lambda x: sum(jnp.sum(y**2) for y in f(x, jnp.int32(2)))  # noqa: E731
    many = jnp.stack([X, 2 * X])
    return (
        f(X, jnp.int32(2)),
        jax.jit(f)(X, jnp.int32(2)),
        jax.grad(loss)(X),
        jax.hessian(loss)(X),
        jax.vmap(f, (0, None))(many, jnp.int32(2)),
    )


def test_they_are_differentiated_and_batched_as_what_they_call():
    got, wanted = jax.tree.leaves(results(kept_whole)), jax.tree.leaves(results(plain))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_nothing_moves_out_of_their_loops():
    @jax.custom_jvp
    def f(x):
        return plain(x, 2)[1]

    @f.defjvp
    def rule(primals, tangents):
        return kept_whole(primals[0], jnp.int32(2))[1], tangents[0][0]

    text = str(jax.make_jaxpr(jax.grad(f))(X))
    assert "opaque_call" in text
    assert "cumsum" not in text.split("opaque_call")[0]
