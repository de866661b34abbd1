"""The Linen modules add no arithmetic: they are the functions, with parameters of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import polycom_jax as pc
from polycom_jax.modules.linen import Activation, FeedForward, PolyNorm, PolyReLU
from polycom_jax.table import ACTIVATIONS, ActivationOptions, get_activation

X = jax.random.normal(jax.random.key(0), (2, 3, 16))


def init(module, *inputs, seed=1) -> Any:
    return module.init(jax.random.key(seed), *inputs).get("params", {})


def apply(module, params, *inputs) -> Any:
    return jax.jit(module.apply)({"params": params}, *inputs)


def test_poly_norm_is_the_function():
    module = PolyNorm(order=4, eps=1e-2)
    params = init(module, X)
    np.testing.assert_array_equal(params["coeffs"], pc.init_coeffs(4))
    coeffs = params["coeffs"] + 0.1
    wanted = pc.poly_norm(X, coeffs, eps=1e-2)
    np.testing.assert_array_equal(module.apply({"params": {"coeffs": coeffs}}, X), wanted)


def test_poly_relu_is_the_function():
    module = PolyReLU(order=2)
    wanted = pc.poly_relu(X, pc.init_coeffs(2))
    np.testing.assert_array_equal(apply(module, init(module, X), X), wanted)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_row_is_the_row(name):
    row = get_activation(name)
    wide = jnp.tile(X, 4)  # some read groups of channels
    hidden = [wide, 2 * wide][: 2 if row.gated else 1]
    module = Activation(name)
    params = row.init(jax.random.key(0), wide.shape[-1])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, init(module, *hidden), params))
    got = module.apply({"params": params}, *hidden)
    np.testing.assert_array_equal(got, row.apply(params, *hidden))


@pytest.mark.parametrize("name", ["poly_norm", "poly_prelu", "relu", "swiglu", "poly_norm_glu"])
def test_feed_forward_is_its_two_or_three_products(name):
    row = get_activation(name)
    block = FeedForward(24, activation=name)
    params = init(block, X)
    names = ("gate", "up") if row.gated else ("up",)
    assert set(params) == {*names, "down"} | ({"activation"} if row.specs else set())
    hidden = [X @ params[name]["kernel"] for name in names]
    wanted = row.apply(params.get("activation", {}), *hidden) @ params["down"]["kernel"]
    np.testing.assert_allclose(apply(block, params, X), wanted, atol=1e-5)


def test_coefficients_stay_float32_and_learn_in_a_bfloat16_block():
    block = FeedForward(24, options=ActivationOptions(order=2), dtype=jnp.bfloat16)
    params = init(block, X)
    assert apply(block, params, X).dtype == jnp.bfloat16
    gradient = jax.grad(lambda p: jnp.sum(apply(block, p, X).astype(jnp.float32) ** 2))(params)
    coeffs = gradient["activation"]["coeffs"]
    assert (coeffs.shape, coeffs.dtype) == ((3,), jnp.float32)
    assert bool(jnp.all(coeffs != 0))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return FeedForward(24, name="ffn")(x), None


def test_scanned_layers_have_a_row_of_coefficients_each():
    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    params = init(scanned, X, None)
    assert params["ffn"]["activation"]["coeffs"].shape == (3, 4)
    y = X
    for i in range(3):
        y = apply(FeedForward(24), jax.tree.map(lambda p: p[i], params["ffn"]), y)  # noqa: B023
    np.testing.assert_allclose(apply(scanned, params, X, None)[0], y, atol=1e-5)


def test_another_activation_leaves_the_kernels_as_they_were():
    def kernels(activation):
        params = init(FeedForward(24, activation=activation), X)
        return [params[name]["kernel"] for name in ("up", "down")]

    for name in ("relu", "swiglu", "poly_norm_glu"):
        assert all(map(jnp.array_equal, kernels(name), kernels("poly_norm")))


def test_parameters_take_the_dtype_asked_for():
    assert init(PolyNorm(param_dtype=jnp.bfloat16), X)["coeffs"].dtype == jnp.bfloat16
    assert init(PolyReLU(param_dtype=jnp.bfloat16), X)["coeffs"].dtype == jnp.bfloat16
    learned = init(Activation("poly_prelu", param_dtype=jnp.bfloat16), X)
    assert learned["slope"].dtype == jnp.bfloat16
    params = init(FeedForward(24, param_dtype=jnp.bfloat16), X)
    assert {params[name]["kernel"].dtype for name in ("up", "down")} == {jnp.dtype(jnp.bfloat16)}
    assert params["activation"]["coeffs"].dtype == jnp.float32


def test_kernels_start_as_they_are_asked_to():
    params = init(FeedForward(24, activation="swiglu", kernel_init=nn.initializers.ones), X)
    assert all(bool(jnp.all(params[name]["kernel"] == 1)) for name in ("gate", "up", "down"))


@pytest.mark.parametrize("make", [PolyNorm, PolyReLU])
def test_the_implementation_asked_for_is_the_one_that_runs(make):
    with pytest.raises(pc.InputError, match="'fastest'"):
        init(make(implementation="fastest"), X)


def test_precision_and_dot_general_reach_every_product():
    asked = []

    def dot_general(*args, precision=None, **options):
        asked.append(precision)
        return jax.lax.dot_general(*args, precision=precision, **options)

    precision = jax.lax.Precision.HIGHEST
    block = FeedForward(24, activation="swiglu", precision=precision, dot_general=dot_general)
    params = init(block, X)
    asked.clear()
    wanted = FeedForward(24, activation="swiglu").apply({"params": params}, X)
    np.testing.assert_array_equal(block.apply({"params": params}, X), wanted)
    assert asked == [precision] * 3


def test_kernel_axes_fit_both_matrices():
    block = FeedForward(24, activation="swiglu", kernel_axes=("embed", "mlp"))
    specs = nn.get_partition_spec(block.init(jax.random.key(0), X))["params"]
    axes = {name: specs[name]["kernel"] for name in ("gate", "up", "down")}
    up, down = jax.P("embed", "mlp"), jax.P("mlp", "embed")
    assert axes == {"gate": up, "up": up, "down": down}
