"""Grouped products against a loop in float64: any sizes, both versions, all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.kernels.grouped_matmul import cpu, grouped_matmul

VERSIONS = ("cpu", "xla")
SIZES = {
    "uneven": [100, 3, 0, 47],
    "all in one": [0, 0, 150, 0],
    "none": [0, 0, 0, 0],
    "blocks filled exactly": [32, 64, 32, 22],
    "room behind": [1, 0, 5, 2],
    "one group": [150],
}
ROWS, K, M = 150, 5, 7


def problem(sizes: list[int], dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((ROWS, K)), rng.standard_normal((ROWS, M))
    w = rng.standard_normal((len(sizes), K, M))
    return *(jnp.asarray(a, dtype) for a in (x, w, dy)), jnp.array(sizes, jnp.int32)


def loop(x, w, dy, sizes):
    """Value, and gradients of sum(dy * value), in float64."""
    x, w, dy = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, w, dy))
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(w)
    start = 0
    for group, size in enumerate(np.asarray(sizes)):
        at = slice(start, start + size)
        y[at], dx[at] = x[at] @ w[group], dy[at] @ w[group].T
        dw[group] = x[at].T @ dy[at]
        start += size
    return y, dx, dw


def ours(version, x, w, dy, sizes):
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, implementation=version), x, w)
    return y, *pull(dy)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("version", VERSIONS)
def test_value_and_gradients_are_those_of_a_loop(version, name):
    x, w, dy, sizes = problem(SIZES[name])
    used = int(sizes.sum())
    got, wanted = ours(version, x, w, dy, sizes), loop(x, w, dy, sizes)
    for a, b, rows in zip(got, wanted, (used, used, None), strict=True):
        # Sums of at most 150 products of normal numbers, in float32.
        np.testing.assert_allclose(a[:rows], b[:rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_bfloat16_is_summed_in_float32(version):
    x, w, dy, sizes = problem(SIZES["uneven"], jnp.bfloat16)
    for a, b in zip(ours(version, x, w, dy, sizes), loop(x, w, dy, sizes), strict=True):
        assert a.dtype == jnp.bfloat16
        # One rounding to eight bits; sums lose some float32 digits, which shows near zero alone.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-4)


def test_what_stands_behind_the_last_group_reaches_nothing():
    x, w, dy, sizes = problem(SIZES["room behind"])
    dirty = [a.at[8:].set(jnp.nan) for a in (x, dy)]
    clean = ours("cpu", x.at[8:].set(0), w, dy.at[8:].set(0), sizes)
    for a, b in zip(ours("cpu", dirty[0], w, dirty[1], sizes), clean, strict=True):
        np.testing.assert_array_equal(a, b)


def test_work_does_not_grow_with_groups_times_rows():
    x, w = jnp.zeros((4096, 16)), jnp.zeros((64, 16, 16))
    sizes = jnp.full(64, 64, jnp.int32)
    f = jax.jit(lambda x, w, s: grouped_matmul(x, w, s, implementation="cpu"))
    text = f.lower(x, w, sizes).as_text()
    blocks = (4096 + 64 * 63) // 64
    assert f"tensor<{blocks}xi32>" in text
    assert "tensor<64x4096" not in text


@pytest.mark.parametrize(("rows", "groups", "block"), [(4096, 8, 128), (4096, 64, 64), (10, 8, 32)])
def test_blocks_are_about_as_long_as_groups(rows, groups, block):
    assert cpu.block_rows(rows, groups) == block


@pytest.mark.parametrize("version", VERSIONS)
def test_forward_over_reverse_mode_works(version):
    x, w, dy, sizes = problem(SIZES["uneven"])

    def loss(w):
        return jnp.sum(dy * jnp.square(grouped_matmul(x, w, sizes, implementation=version)))

    slope = jax.grad(loss)
    _, product = jax.jvp(slope, (w,), (w,))
    np.testing.assert_allclose(product, slope(w), rtol=1e-5, atol=1e-4)  # quadratic in w


def test_misfits_are_told():
    x, w, _, sizes = problem(SIZES["uneven"])
    with pytest.raises(InputError, match=r"came \(150, 5\), \(4, 5, 7\) and \(3,\)"):
        grouped_matmul(x, w, sizes[:3])
    with pytest.raises(InputError, match="came bfloat16, float32"):
        grouped_matmul(x.astype(jnp.bfloat16), w, sizes)
    with pytest.raises(InputError, match="implementation of grouped_matmul"):
        grouped_matmul(x, w, sizes, implementation="pallas_tpu")
