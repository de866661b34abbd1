"""What kernels cannot differentiate, they say."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from polycom_jax import InputError
from polycom_jax.kernels.attention import splash
from polycom_jax.kernels.poly_norm import pallas_tpu as norm_kernels
from polycom_jax.kernels.poly_relu import pallas_tpu as relu_kernels
from polycom_jax.kernels.restrictions import reverse_only

X = jax.random.normal(jax.random.key(0), (4, 128))
COEFFS = jnp.asarray([0.1, 0.3, -0.2, 0.4])


def attention(x):
    q = x.reshape(1, 128, 1, 4)
    return splash.attention(q, q, q, interpret=True)


KERNELS = {
    "splash": attention,
    "poly_norm": lambda x: norm_kernels.poly_norm(x, COEFFS, eps=1e-6, interpret=True),
    "poly_relu": lambda x: relu_kernels.poly_relu(x, COEFFS, interpret=True),
}


def loss(f, x):
    return jnp.sum(jnp.sin(f(x)))


WAYS = {
    "forward": lambda f: jax.jvp(f, (X,), (X,)),
    "forward, compiled": lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(X),
    "forward over reverse": lambda f: jax.jvp(jax.grad(f), (X,), (X,)),
    "reverse over reverse": lambda f: jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(f)(x))))(X),
    "reverse over forward": lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (x,))[1])(X),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_all_but_a_first_derivative_in_reverse_mode_is_refused(kernel, way):
    with pytest.raises(InputError, match='in reverse mode only; implementation="xla" has every'):
        WAYS[way](partial(loss, KERNELS[kernel]))


def test_the_way_in_changes_nothing_else():
    def f(x):
        return jnp.sum(jnp.sin(reverse_only("an operation", "kernel", x)[0]))

    plain = lambda x: jnp.sum(jnp.sin(x))  # noqa: E731
    for transform in (jax.grad, jax.value_and_grad, lambda f: jax.vmap(jax.grad(f))):
        got, wanted = (jax.tree.leaves(jax.jit(transform(g))(X)) for g in (f, plain))
        assert all(jnp.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
    deep = jax.checkpoint(lambda x: jnp.sin(f(x) * x))
    many = lambda x: jnp.sum(jax.lax.scan(lambda c, _: (deep(c), None), x, None, length=2)[0])  # noqa: E731
    assert jnp.all(jnp.isfinite(jax.grad(many)(X)))
    assert "sine" in jax.jit(f).lower(X).as_text()
