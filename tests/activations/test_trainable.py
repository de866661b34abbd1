"""Learned element-wise functions far from zero, where a term of theirs overflows or cancels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax.activations.trainable import poly_tanh
from polycom_jax.table import get_activation

pytestmark = pytest.mark.usefixtures("strict_dtypes")

FAR = np.array([-3e38, -1e30, -1e10, -1e3, -20, -1.5, -0.0, 0, 0.5, 20, 1e3, 1e30, 1e36])


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_xatlu_does_not_cancel(alpha, dtype):
    largest = float(jnp.finfo(dtype).max)
    x = jnp.asarray(np.clip(FAR, -largest, largest), dtype)
    own, wide = {"alpha": jnp.float32(alpha)}, np.asarray(x, np.float64)
    apply = get_activation("xatlu").apply
    (y, dx), dalpha = jax.jit(
        lambda x: (
            jax.jvp(lambda x: apply(own, x), (x,), (jnp.ones_like(x),)),
            jax.jvp(lambda p: apply(p, x), (own,), ({"alpha": jnp.float32(1)},))[1],
        )
    )(x)
    gate = np.arctan2(1, -wide) / math.pi
    slope = np.where(wide < -1e4, 0, gate + wide / (1 + wide * wide) / math.pi)
    eps = float(jnp.finfo(dtype).eps)
    for found, exact in (
        (y, wide * (gate * (1 + 2 * alpha) - alpha)),
        (dx, slope * (1 + 2 * alpha) - alpha),
        (dalpha, wide * (2 * gate - 1)),
    ):
        held = np.abs(exact) < largest
        found = np.asarray(found, np.float64)
        np.testing.assert_allclose(found[held], exact[held], rtol=max(eps, 1e-6), atol=1e-7)


def test_xatlu_has_its_second_derivative_far_out():
    x = jnp.asarray(np.clip(FAR, -1e36, 1e36), jnp.float32)
    apply, own = get_activation("xatlu").apply, {"alpha": jnp.float32(0.25)}
    found = jax.jit(jax.vmap(jax.grad(jax.grad(lambda x: apply(own, x)))))(x)
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(found, 1.5 * 2 / math.pi / (1 + wide**2) ** 2, rtol=1e-5, atol=1e-8)


def test_a_term_of_series_that_overflows_downwards_is_zero():
    act, x = get_activation("series"), jnp.asarray([-3e38, -600.0, 3.0])
    own = {"a": jnp.asarray([2.0, 2.0]), "b": jnp.asarray([0.0, 1.0])}
    y, vjp = jax.vjp(act.apply, own, x)
    np.testing.assert_allclose(y, [0, 0, sum(u / (1 + math.exp(-u)) for u in (6, 7))], rtol=1e-6)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(vjp(jnp.ones(3))))


@pytest.mark.parametrize(
    ("name", "own", "x", "y"),
    [
        ("asqu", {"beta": [0.0]}, -1e20, 0.0),
        ("asqu", {"beta": [1e-10]}, -1e20, 1e30),
        ("xielu", {"alpha_p": -30.0, "alpha_n": 0.0}, 1e20, math.exp(-30) * 1e40),
        ("xiprelu", {"alpha_p": 0.0, "alpha_n": -30.0}, -1e20, math.exp(-30) * 1e40),
        (
            "xiep",
            {"alpha_p": -120.0, "alpha_n": 0.0, "alpha_3": -60.0},
            1e20,
            math.exp(-60) * 1e60,
        ),
    ],
)
def test_a_square_that_overflows_meets_a_small_factor(name, own, x, y):
    own = {key: jnp.asarray(value, jnp.float32) for key, value in own.items()}
    found = get_activation(name).apply(own, jnp.asarray([x], jnp.float32))
    np.testing.assert_allclose(found, [y], rtol=1e-5)


def test_powers_of_high_order_leave_low_ones_their_range():
    coeffs, alpha = jnp.ones(25) / 24, jnp.ones(24).at[0].set(0.05)
    x = jnp.asarray([-3e38, -20.0, 0.5, 20.0, 3e38])
    y, dx = jax.jit(
        lambda x: jax.jvp(lambda x: poly_tanh(x, coeffs, alpha), (x,), (jnp.ones_like(x),))
    )(x)
    wide = np.clip(np.asarray(x, np.float64), -1e4, 1e4)
    powers = np.stack([wide**i for i in range(1, 25)])
    wanted = (1 + np.tanh(powers * np.asarray(alpha)[:, None]).sum(0)) / 24
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    steep = 0.05 / np.cosh(1) ** 2 / 24
    np.testing.assert_allclose(dx[jnp.asarray([0, 1, 3, 4])], [0, steep, steep, 0], rtol=1e-5)
