"""Linear maps with a transpose of their own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from polycom_jax.kernels.linear import bilinear_map, linear_map

CALLS = []


def forward(fixed, moved):
    (a, b), (da, db) = fixed, moved
    return jnp.cos(a) * da + b * db


def backward(fixed, cotangent):
    CALLS.append("backward")
    a, b = fixed
    return jnp.cos(a) * cotangent, jnp.sum(b * cotangent).reshape(b.shape)


@jax.custom_jvp
def f(a, b):
    """sin(a) + b^2 / 2, with b a scalar."""
    return jnp.sin(a) + b**2 / 2


@f.defjvp
def rule(primals, tangents):
    return f(*primals), linear_map(forward, backward, primals, tangents)


def plain(a, b):
    return jnp.sin(a) + b**2 / 2


A = jax.random.normal(jax.random.key(0), (5,))
B = jnp.float32(0.7)


def loss(f, a, b):
    return jnp.sum(f(a, b) ** 2)


TRANSFORMS = {
    "vjp": lambda f: jax.grad(partial(loss, f), argnums=(0, 1))(A, B),
    "one argument": lambda f: jax.grad(partial(loss, f), argnums=1)(A, B),
    "jvp": lambda f: jax.jvp(f, (A, B), (A, B)),
    "linearize": lambda f: jax.linearize(f, A, B)[1](A, B),
    "hessian": lambda f: jax.hessian(partial(loss, f), argnums=(0, 1))(A, B),
    "reverse twice": lambda f: jax.jacrev(jax.jacrev(partial(loss, f)))(A, B),
    "forward of reverse": lambda f: jax.jvp(jax.grad(partial(loss, f)), (A, B), (A, B)),
    "vmap over the first": lambda f: jax.vmap(
        jax.grad(partial(loss, f), argnums=(0, 1)), (0, None)
    )(jnp.stack([A, 2 * A]), B),
    "vmap over the second": lambda f: jax.vmap(
        jax.grad(partial(loss, f), argnums=(0, 1)), (None, 0)
    )(A, jnp.stack([B, 2 * B])),
    "gradient of vmap": lambda f: jax.grad(
        lambda a, b: jnp.sum(jax.vmap(f, (None, 0))(a, b) ** 2), argnums=(0, 1)
    )(A, jnp.stack([B, 2 * B])),
    "checkpoint": lambda f: jax.grad(partial(loss, jax.checkpoint(f)), argnums=(0, 1))(A, B),
    "jit": lambda f: jax.jit(jax.grad(partial(loss, f), argnums=(0, 1)))(A, B),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transformation_gives_what_the_plain_function_gives(name):
    transform = TRANSFORMS[name]
    for got, wanted in zip(
        jax.tree.leaves(transform(f)), jax.tree.leaves(transform(plain)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_reverse_mode_runs_the_given_transpose_once():
    CALLS.clear()
    jax.grad(partial(loss, f), argnums=(0, 1))(A, B)
    assert CALLS == ["backward"]


def test_gradients_of_what_shards_share_are_added_up():
    mesh = jax.make_mesh((5,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:5])
    spec = PartitionSpec("x")

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(spec, PartitionSpec()),
        out_specs=(spec, PartitionSpec()),
    )
    def grads(a, b):
        return jax.grad(partial(loss, f), argnums=(0, 1))(a, b)

    wanted = jax.grad(partial(loss, plain), argnums=(0, 1))(A, B)
    for got, value in zip(grads(A, B), wanted, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)


def cut(fixed, moved):
    (first,) = fixed
    return jax.lax.dynamic_slice(moved[0], (first,), (2,))


def paste(fixed, cotangent):
    return [jax.lax.dynamic_update_slice(jnp.zeros(5), cotangent, fixed)]


def test_a_result_may_have_another_shape_and_depend_on_integers():
    def f(a, first):
        like = jax.ShapeDtypeStruct((2,), a.dtype)
        return linear_map(cut, paste, (first,), (a,), like)

    first = jnp.int32(2)
    np.testing.assert_array_equal(f(A, first), A[2:4])
    np.testing.assert_array_equal(jax.jit(f)(A, first), A[2:4])
    np.testing.assert_array_equal(jax.jacfwd(f)(A, first), jnp.eye(5)[2:4])
    np.testing.assert_array_equal(jax.jacrev(f)(A, first), jnp.eye(5)[2:4])
    many = jax.vmap(jax.grad(lambda a, i: jnp.sum(f(a, i) ** 2)), (None, 0))(A, jnp.arange(3))
    for i, slope in enumerate(many):
        np.testing.assert_array_equal(slope[i : i + 2], 2 * A[i : i + 2])


dot = bilinear_map(jnp.dot, lambda b, y: dot(y, b.T), lambda a, y: dot(a.T, y))
LEFT, RIGHT = jax.random.normal(jax.random.key(1), (2, 3, 3))


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_a_bilinear_map_has_second_derivatives_in_every_mode(outer, inner):
    def second(f):
        return outer(inner(lambda a, b: jnp.sum(jnp.sin(f(a, b))), (0, 1)), (0, 1))(LEFT, RIGHT)

    for got, wanted in zip(
        jax.tree.leaves(second(dot)), jax.tree.leaves(second(jnp.dot)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
