"""Grouped products against a loop in float64: any sizes, every version, all gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.kernels.grouped_matmul import grouped_matmul, megablox, triton
from polycom_jax.kernels.grouped_matmul import loop as row_loop
from polycom_jax.kernels.grouped_matmul.api import GROUPED_MATMUL
from polycom_jax.kernels.implementations import GROUPED_IMPLEMENTATIONS, compiling_for
from polycom_jax.sharding import make_mesh

VERSIONS = {
    "loop": partial(grouped_matmul, implementation="loop"),
    "xla": partial(grouped_matmul, implementation="xla"),
    "megablox": partial(megablox.grouped_matmul, interpret=True),
    "triton": partial(triton.grouped_matmul, interpret=True),
}
SIZES = {
    "uneven": [150, 3, 0, 103],
    "all in one": [0, 0, 256, 0],
    "none": [0, 0, 0, 0],
    "blocks filled exactly": [128, 64, 32, 32],
    "room behind": [1, 0, 5, 2],
    "one group": [256],
}
ROWS, K, M = 256, 5, 7
CASES = [
    # Interpreted kernels are slow to compile; odd sizes of them are in test_grouped_matmul_gpu.py.
    pytest.param(version, name, marks=[pytest.mark.slow] if long else [])
    for version in VERSIONS
    for name in SIZES
    for long in [version == "triton" and name not in ("uneven", "none")]
]


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
    y, pull = jax.vjp(lambda x, w: VERSIONS[version](x, w, sizes), x, w)
    return y, *pull(dy)


@pytest.mark.parametrize(("version", "name"), CASES)
def test_value_and_gradients_are_those_of_a_loop(version, name):
    x, w, dy, sizes = problem(SIZES[name])
    used = int(sizes.sum())
    got, wanted = ours(version, x, w, dy, sizes), loop(x, w, dy, sizes)
    for a, b, rows in zip(got, wanted, (used, used, None), strict=True):
        # Sums of at most 256 products of normal numbers, in float32.
        np.testing.assert_allclose(a[:rows], b[:rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_bfloat16_is_summed_in_float32(version):
    x, w, dy, sizes = problem(SIZES["uneven"], jnp.bfloat16)
    for a, b in zip(ours(version, x, w, dy, sizes), loop(x, w, dy, sizes), strict=True):
        assert a.dtype == jnp.bfloat16
        # One rounding to eight bits; sums lose some float32 digits, which shows near zero alone.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32])
@pytest.mark.parametrize("version", ["loop", "xla"])
def test_sizes_of_any_integer_dtype_are_those_numbers(version, dtype):
    x, w, dy, sizes = problem([100, 3, 53, 100])
    got = ours(version, x, w, dy, sizes.astype(dtype))
    jax.tree.map(np.testing.assert_array_equal, got, ours(version, x, w, dy, sizes))


@pytest.mark.parametrize("version", ["loop", "xla"])
def test_float64_is_summed_in_float64(version):
    with jax.enable_x64(True):
        x, w, dy, sizes = problem(SIZES["uneven"], jnp.float64)
        got = ours(version, x, w, dy, sizes)
        assert [a.dtype for a in got] == [jnp.float64] * 3
        for group, end in enumerate(np.cumsum(sizes)):
            at = slice(end - int(sizes[group]), end)
            np.testing.assert_allclose(got[0][at], x[at] @ w[group], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(got[2][group], x[at].T @ dy[at], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("version", ["loop", "megablox", "triton"])
def test_what_stands_behind_the_last_group_reaches_nothing(version):
    x, w, dy, sizes = problem(SIZES["room behind"])
    dirty = [a.at[8:].set(jnp.nan) for a in (x, dy)]
    clean = ours(version, x.at[8:].set(0), w, dy.at[8:].set(0), sizes)
    got = ours(version, dirty[0], w, dirty[1], sizes)
    for a, b, rows in zip(got, clean, (8, 8, None), strict=True):
        np.testing.assert_array_equal(a[:rows], b[:rows])


def test_every_named_version_is_tested():
    assert set(VERSIONS) == set(GROUPED_IMPLEMENTATIONS)


def test_work_does_not_grow_with_groups_times_rows():
    x, w = jnp.zeros((4096, 16)), jnp.zeros((64, 16, 16))
    sizes = jnp.full(64, 64, jnp.int32)
    f = jax.jit(lambda x, w, s: grouped_matmul(x, w, s, implementation="loop"))
    text = f.lower(x, w, sizes).as_text()
    blocks = (4096 + 64 * 63) // 64
    assert f"tensor<{blocks}xi32>" in text
    assert "tensor<64x4096" not in text


@pytest.mark.parametrize(("rows", "groups", "block"), [(4096, 8, 128), (4096, 64, 64), (10, 8, 32)])
def test_blocks_are_about_as_long_as_groups(rows, groups, block):
    assert row_loop.block_rows(rows, groups) == block


@pytest.mark.parametrize("version", VERSIONS)
def test_second_derivatives_exist_in_every_mode(version):
    x, w, dy, sizes = problem(SIZES["uneven"])
    group = np.repeat(np.arange(4), SIZES["uneven"])

    def plain(x, w):
        return jnp.einsum("rk,rkm->rm", x, w[group])

    def modes(f, x, w):
        def loss(x, w):
            return jnp.sum(dy * jnp.sin(f(x, w)))

        def along(x, w):
            return jax.jvp(loss, (x, w), (x, w))[1]

        def slope(x, w):
            gx, gw = jax.grad(loss, (0, 1))(x, w)
            return jnp.vdot(gx, x) + jnp.vdot(gw, w)

        return jax.jvp(slope, (x, w), (x, w)), *(jax.grad(g, (0, 1))(x, w) for g in (along, slope))

    ours = partial(VERSIONS[version], sizes=sizes)
    got, wanted = (jax.jit(partial(modes, f))(x, w) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        # Sums of up to 10^3 terms of float32, in another order.
        assert jnp.max(jnp.abs(a - b)) <= 2**-24 * 10**3 * jnp.max(jnp.abs(b))


def test_what_does_not_move_is_not_multiplied():
    x, w, _, sizes = problem(SIZES["uneven"])

    def products(*argnums):
        """Of forward mode, beside the value itself."""

        def f(*moved):
            both = dict(zip((0, 1), (x, w), strict=True)) | dict(zip(argnums, moved, strict=True))
            return grouped_matmul(both[0], both[1], sizes)

        moved = [(x, w)[i] for i in argnums]
        return str(jax.make_jaxpr(lambda *m: jax.jvp(f, m, m))(*moved)).count(" linear_map[")

    assert [products(0), products(1), products(0, 1)] == [1, 1, 2]


def test_misfits_are_told():
    x, w, _, sizes = problem(SIZES["uneven"])
    with pytest.raises(InputError, match=r"came \(256, 5\), \(4, 5, 7\) and \(3,\)"):
        grouped_matmul(x, w, sizes[:3])
    with pytest.raises(InputError, match="of a group or more, came"):
        grouped_matmul(x, w[:0], sizes[:0])
    with pytest.raises(InputError, match="came bfloat16, float32"):
        grouped_matmul(x.astype(jnp.bfloat16), w, sizes)
    with pytest.raises(InputError, match="implementation of grouped_matmul"):
        GROUPED_MATMUL(x, w, sizes, implementation="pallas_tpu")


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("k", "n"), [(2048, 1536), (100, 10), (8192, 7000), (1, 8192)])
def test_tiles_fit_vmem(k, n, itemsize, gradient, cores):
    k, n = (size * 2 // itemsize for size in (k, n))
    rows, tk, tn = megablox.tiles(k, n, itemsize, gradient=gradient, cores=cores)
    inputs = 2 * itemsize * (rows * tk + tk * tn + rows * tn)
    assert inputs + 4 * (tk if gradient else rows) * tn <= 15 * 2**20
    assert tn == n or tn % 128 == 0


def test_tiles_of_the_papers_mixture():
    assert megablox.tiles(2048, 1536, 2, cores=1) == (128, 2048, 1536)
    assert megablox.tiles(1536, 2048, 2, cores=1) == (128, 1536, 2048)
    for gradient, cores in ((False, 2), (True, 1), (True, 2)):
        more = {"gradient": gradient, "cores": cores}
        assert megablox.tiles(2048, 1536, 2, **more) == (128, 2048, 768)
        assert megablox.tiles(1536, 2048, 2, **more) == (128, 1536, 1024)
    assert megablox.tiles(2048, 4096, 2, cores=1)[2] == 1408  # three parts, which two cores
    assert megablox.tiles(2048, 4096, 2, cores=2)[2] == 1024  # would not share evenly: four


def test_matrices_in_several_tiles(monkeypatch):
    monkeypatch.setattr(megablox, "tiles", lambda *_, **__: (128, 128, 128))
    rng = np.random.default_rng(1)
    x, w, dy = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((ROWS, 200), (3, 200, 300), (ROWS, 300))
    )
    sizes = jnp.array([100, 0, 156])
    for a, b in zip(ours("megablox", x, w, dy, sizes), loop(x, w, dy, sizes), strict=True):
        # Sums of at most 300 products of normal numbers, in float32.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_where_megablox_cannot_run_it_says_so():
    x, w, _, sizes = problem(SIZES["uneven"])
    named = partial(grouped_matmul, implementation="megablox")
    with pytest.raises(InputError, match="250 rows are no multiple of 128"):
        named(x[:250], w, sizes)
    with pytest.raises(InputError, match="rows of 8193 bfloat16 are longer than 16384 bytes"):
        named(jnp.ones((128, 1), jnp.bfloat16), jnp.ones((1, 1, 8193), jnp.bfloat16), sizes[:1])
    with pytest.raises(InputError, match="not float16"):
        named(x.astype(jnp.float16), w.astype(jnp.float16), sizes)
    with pytest.raises(InputError, match="'megablox' cannot be compiled for cpu"):
        jax.jit(named).lower(x, w, sizes)


@pytest.mark.parametrize(("rows", "taken"), [(256, True), (250, False)])
def test_tpus_take_megablox_where_it_can(rows, taken):
    x, w, _, sizes = problem(SIZES["uneven"])
    with compiling_for("tpu"):
        assert megablox_in(grouped_matmul, x[:rows], w, sizes) == taken


@pytest.mark.parametrize("check", [True, False])
def test_a_shard_map_that_checks_what_varies_takes_xla(check):
    x, w, _, sizes = problem(SIZES["uneven"])
    spec = jax.sharding.PartitionSpec("data")
    with compiling_for("tpu"), jax.set_mesh(make_mesh(data=8)):
        f = jax.shard_map(
            grouped_matmul, in_specs=(spec, None, spec), out_specs=spec, check_vma=check
        )
        several = jnp.tile(x, (8, 1)), w, jnp.tile(sizes, 8)
        assert megablox_in(f, *several) == (not check)


def megablox_in(f, *arguments):
    text = str(jax.make_jaxpr(f)(*arguments))
    found = "pallas_call" in text
    assert found != ("ragged_dot" in text)
    return found
