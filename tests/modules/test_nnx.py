"""The NNX modules add no arithmetic: they are the functions, with parameters of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import polycom_jax as pc
from polycom_jax.modules.nnx import Activation, FeedForward, PolyNorm, PolyReLU
from polycom_jax.table import ACTIVATIONS, ActivationOptions, get_activation

X = jax.random.normal(jax.random.key(0), (2, 3, 16))


def test_poly_norm_is_the_function():
    module = PolyNorm(4, eps=1e-2)
    np.testing.assert_array_equal(module.coeffs[...], pc.init_coeffs(4))
    module.coeffs[...] += 0.1
    wanted = pc.poly_norm(X, pc.init_coeffs(4) + 0.1, eps=1e-2)
    np.testing.assert_array_equal(module(X), wanted)


def test_poly_relu_is_the_function():
    wanted = pc.poly_relu(X, pc.init_coeffs(2))
    np.testing.assert_array_equal(nnx.jit(PolyReLU(2))(X), wanted)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_row_is_the_row(name):
    row = get_activation(name)
    wide = jnp.tile(X, 4)  # some read groups of channels
    hidden = [wide, 2 * wide][: 2 if row.gated else 1]
    module = Activation(name, features=wide.shape[-1], rngs=nnx.Rngs(0))
    params = row.init(jax.random.key(0), wide.shape[-1])
    assert set(nnx.to_pure_dict(nnx.state(module, nnx.Param))) == set(params)
    np.testing.assert_array_equal(module(*hidden), row.apply(params, *hidden))


@pytest.mark.parametrize("name", ["poly_norm", "poly_prelu", "relu", "swiglu", "poly_norm_glu"])
def test_feed_forward_is_its_two_or_three_products_and_works_split(name):
    block = FeedForward(16, 24, activation=name, rngs=nnx.Rngs(1))
    row = get_activation(name)
    layers = [block.gate, block.up] if row.gated else [block.up]
    hidden = [X @ layer.kernel[...] for layer in layers]
    params = {n: getattr(block.activation, n)[...] for n in row.specs}
    wanted = row.apply(params, *hidden) @ block.down.kernel[...]
    graph, state = nnx.split(block)
    y = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, X)
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_coefficients_stay_float32_and_learn_in_a_bfloat16_block():
    options = ActivationOptions(order=2)
    block = FeedForward(16, 24, options=options, dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    gradient = nnx.grad(lambda m: jnp.sum(m(X).astype(jnp.float32) ** 2))(block)
    coeffs = gradient["activation"]["coeffs"][...]
    assert (coeffs.shape, coeffs.dtype) == ((3,), jnp.float32)
    assert bool(jnp.all(coeffs != 0))
    assert block(X).dtype == jnp.bfloat16


def test_another_activation_leaves_the_kernels_and_what_is_built_next_as_they_were():
    def build(name):
        rngs = nnx.Rngs(5)
        blocks = [FeedForward(16, 24, activation=name, rngs=rngs) for _ in range(2)]
        return [layer.kernel[...] for block in blocks for layer in (block.up, block.down)]

    first, *others = (build(name) for name in ("poly_norm", "relu", "swiglu"))
    for other in others:
        assert all(map(jnp.array_equal, first, other))
    assert not jnp.array_equal(first[0], first[2])


def test_kernels_start_as_they_are_asked_to_and_differ():
    block = FeedForward(16, 24, activation="swiglu", rngs=nnx.Rngs(0))
    assert not jnp.array_equal(block.gate.kernel[...], block.up.kernel[...])
    ones = nnx.initializers.ones
    block = FeedForward(16, 24, activation="swiglu", kernel_init=ones, rngs=nnx.Rngs(0))
    for layer in (block.gate, block.up, block.down):
        np.testing.assert_array_equal(layer.kernel[...], 1)


def test_parameters_of_one_activation_are_drawn_apart():
    normal = pc.Parameter(jax.nn.initializers.normal(1.0), shape=(8,))
    act = pc.activation(lambda x, a, b: x * (a @ b), {"a": normal, "b": normal}, name="own")
    module: Any = Activation(act, rngs=nnx.Rngs(0))
    assert not jnp.array_equal(module.a[...], module.b[...])


@pytest.mark.parametrize("make", [PolyNorm, PolyReLU])
def test_the_implementation_asked_for_is_the_one_that_runs(make):
    with pytest.raises(pc.InputError, match="'fastest'"):
        make(implementation="fastest")(X)


def test_linen_and_nnx_agree():
    from polycom_jax.modules import linen

    module = linen.PolyNorm(order=2)
    variables = module.init(jax.random.key(0), X)
    np.testing.assert_array_equal(module.apply(variables, X), PolyNorm(2)(X))


MODULES: tuple[Any, ...] = (PolyNorm, PolyReLU, Activation)


def test_every_module_takes_rngs():
    for make in MODULES:
        module = make(rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(module.coeffs[...], pc.init_coeffs(3))


def test_parameters_take_the_dtype_asked_for():
    for make in MODULES:
        module = make(param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        assert module.coeffs[...].dtype == jnp.bfloat16
    block = FeedForward(16, 24, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {block.up.kernel[...].dtype, block.down.kernel[...].dtype} == {jnp.dtype(jnp.bfloat16)}
    state = nnx.state(block.activation, nnx.Param)
    assert state["coeffs"][...].dtype == jnp.float32


def test_precision_and_dot_general_reach_every_product():
    asked = []

    def dot_general(*args, precision=None, **options):
        asked.append(precision)
        return jax.lax.dot_general(*args, precision=precision, **options)

    more = {"precision": jax.lax.Precision.HIGHEST, "dot_general": dot_general}
    block = FeedForward(16, 24, activation="swiglu", **more, rngs=nnx.Rngs(0))
    wanted = FeedForward(16, 24, activation="swiglu", rngs=nnx.Rngs(0))(X)
    np.testing.assert_array_equal(block(X), wanted)
    assert asked == [more["precision"]] * 3


def test_kernel_axes_fit_both_matrices():
    axes = ("embed", "mlp")
    mesh = jax.make_mesh((2, 4), axes, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):  # flax places annotated parameters when they are made
        block = FeedForward(16, 24, kernel_axes=axes, rngs=nnx.Rngs(0))
    assert block.up.kernel[...].sharding == jax.NamedSharding(mesh, jax.P(*axes))
    assert block.down.kernel[...].sharding == jax.NamedSharding(mesh, jax.P(*axes[::-1]))
