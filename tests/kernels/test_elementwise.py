"""The rule of element-wise activations in forward mode, and of empty arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax.kernels.elementwise import elementwise
from polycom_jax.kernels.sharded import unsharded_features
from polycom_jax.table import get_activation

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LARGE = 2.5e19  # its square is infinite

rectified_square = elementwise(
    lambda x, p, n: jnp.where(x > 0, p * (x * x), n * (x * x)), by_channel=(False, False)
)


def test_along_one_argument_the_others_add_no_zero_times_infinity():
    x, p, n = jnp.array([LARGE, -LARGE]), jnp.float32(0.5), jnp.float32(0.25)
    along_x = jax.jvp(lambda x: rectified_square(x, p, n), (x,), (jnp.ones(2),))[1]
    np.testing.assert_allclose(along_x, [LARGE, -LARGE / 2], rtol=1e-6)
    np.testing.assert_allclose(
        jax.jacfwd(lambda x: rectified_square(x, p, n))(x).diagonal(), along_x
    )

    def curvature(x):
        return jax.jvp(
            lambda x: jax.jvp(lambda x: rectified_square(x, p, n), (x,), (jnp.ones(2),))[1],
            (x,),
            (jnp.ones(2),),
        )[1]

    np.testing.assert_allclose(curvature(x), [1, 0.5], rtol=1e-6)


def test_gradients_of_some_arguments_are_those_of_all():
    x = jnp.linspace(-2.0, 2.0, 8).reshape(2, 4)
    at = (x, jnp.float32(0.5), jnp.float32(0.25))

    def loss(*at):
        return jnp.sum(jnp.sin(rectified_square(*at)))

    wanted = jax.grad(loss, (0, 1, 2))(*at)
    for some in ((0,), (1,), (2, 0)):
        found = jax.grad(loss, some)(*at)
        for i, each in zip(some, found, strict=True):
            np.testing.assert_allclose(each, wanted[i], rtol=1e-6)
            forward = jax.jacfwd(loss, i)(*at)
            np.testing.assert_allclose(forward, wanted[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["relu2_glu", "xielu"])
def test_forward_mode_is_finite_where_reverse_mode_is(name):
    act = get_activation(name)
    own, x = act.init(jax.random.key(0), 2), jnp.array([LARGE, -LARGE])
    others = [jnp.full(2, 0.7)] * act.gated
    along = jax.jvp(lambda x: act.apply(own, x, *others), (x,), (jnp.ones(2),))[1]
    wanted = jax.grad(lambda x: act.apply(own, x, *others).sum())(x)
    np.testing.assert_allclose(along, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["swish", "asqu", "dyt"])
@pytest.mark.parametrize("shape", [(3, 0), (0,)])
def test_an_empty_array_stays_empty(name, shape):
    act = get_activation(name)
    own, x = act.init(jax.random.key(0), 0), jnp.ones(shape)
    with unsharded_features(True):  # sums over rows are their own then
        y, vjp = jax.vjp(act.apply, own, x)
        own_slopes, dx = vjp(y)
    assert y.shape == dx.shape == shape
    assert all(not slope.any() for slope in own_slopes.values())
