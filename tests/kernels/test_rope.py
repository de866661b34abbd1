"""The rotary embedding, and that its form for TPUs is the same map."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.rope import rope, sin_cos

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
