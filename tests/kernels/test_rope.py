"""The rotary embedding, and that its form for TPUs is the same map."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.rope import RopeScaling, rope, sin_cos

POSITIONS = np.array([[0, 1, 2, 5, 9, 70]], np.int32)
THETA = 10_000.0


def turned(x: jax.Array, backend: str) -> jax.Array:
    with compiling_for(backend):
        return rope(x, sin_cos(jnp.asarray(POSITIONS), x.shape[-1], THETA))


def draw(seed: int, dtype: Any = np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(1, 6, 2, 8)), dtype)


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_it_turns_complex_numbers(backend: str):
    x = draw(0)
    z = np.asarray(x[..., :4] + 1j * x[..., 4:], np.complex128)
    z = z * np.exp(1j * POSITIONS[..., None, None] * THETA ** (-np.arange(4) / 4))
    expected = np.concatenate([z.real, z.imag], axis=-1)
    # An angle of 70 radians has 4e-6 of float32 rounding.
    np.testing.assert_allclose(turned(x, backend), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_forms_agree_with_all_derivatives(dtype: Any):
    x, dx = draw(0, dtype), draw(1, dtype)

    def everything(backend: str) -> Any:
        f = lambda x: turned(x, backend)  # noqa: E731
        return f(x), jax.jvp(f, (x,), (dx,))[1], jax.vjp(f, x)[1](dx)[0], jax.vmap(f)(x[None])

    # The same products, added in another order; in bfloat16 a last bit may fall differently.
    rounding = float(jnp.finfo(dtype).eps)
    for plain, product in zip(everything("cpu"), everything("tpu"), strict=True):
        assert plain.dtype == product.dtype == dtype
        wide = np.asarray(plain, np.float64), np.asarray(product, np.float64)
        np.testing.assert_allclose(wide[1], wide[0], rtol=rounding, atol=4 * rounding)


def test_rescaling_keeps_fast_turns_and_divides_slow_ones():
    scaling = RopeScaling(8.0, 1.0, 4.0, 128)
    turns = np.array([100.0, 4.0, 2.5, 1.0, 0.5])  # within the original context
    frequency = 2 * np.pi * turns / 128
    expected = frequency * np.array([1, 1, (1 + 1 / 8) / 2, 1 / 8, 1 / 8])
    found = scaling.rescaled(jnp.asarray(frequency, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_rescaled_angles_are_positions_times_rescaled_frequencies(backend: str):
    scaling, positions = RopeScaling(4.0, 1.0, 2.0, 64), jnp.asarray(POSITIONS)
    with compiling_for(backend):
        sin, cos = sin_cos(positions, 8, THETA, scaling)
    plain = jnp.asarray(THETA ** (-np.arange(4) / 4), jnp.float32)
    angle = POSITIONS[..., None] * np.asarray(scaling.rescaled(plain), np.float64)
    np.testing.assert_allclose(sin[0, :, 0, -4:], np.sin(angle[0]), atol=2e-5)
    np.testing.assert_allclose(cos[0, :, 0, -4:], np.cos(angle[0]), atol=2e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factor": 0.5}, r"rope_scaling.factor=0.5 must be at least 1"),
        ({"factor": float("nan")}, r"rope_scaling.factor=nan must be"),
        ({"factor": 2.0, "low_freq_factor": 4.0}, r"low_freq_factor=4.0 must be less than"),
        ({"factor": 2.0, "low_freq_factor": 0.0}, r"low_freq_factor=0.0 must be positive"),
        ({"factor": 2.0, "original_context_length": 0}, r"original_context_length=0 must be"),
        ({"original_context_length": 4096}, r"original_context_length=4096 with .*factor=1"),
        ({"factor": "8"}, r"rope_scaling.factor='8' must be a number"),
    ],
)
def test_a_rescaling_out_of_range_is_refused_by_field(values: Any, message: str):
    with pytest.raises(InputError, match=message):
        RopeScaling(**values)
