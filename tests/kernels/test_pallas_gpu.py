"""GPU kernels, interpreted on a CPU: against float64, and under JAX's transformations."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P
from test_poly_norm import EDGES, FLOOR, assert_accurate, edge_rows

from polycom_jax._errors import InputError
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.poly_norm import (
    gpu_plan,
    pallas_gpu,
    poly_norm,
    poly_norm_glu,
    poly_relu_norm,
)
from polycom_jax.kernels.poly_norm.gpu_plan import Plan
from polycom_jax.kernels.sharded import unsharded_features
from polycom_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("strict_dtypes")

EPS = oracles.EPS
COEFFS = np.array([0.2, 0.5, -0.3, 0.4], np.float32)
NORM = partial(pallas_gpu.poly_norm, eps=EPS, interpret=True)
RELU_NORM = partial(pallas_gpu.poly_relu_norm, eps=EPS, interpret=True)
GLU = partial(pallas_gpu.poly_norm_glu, eps=EPS, interpret=True)


def normal(shape, dtype, seed=0):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def assert_poly_norm(x, dy, coeffs=COEFFS):
    y, vjp = jax.vjp(NORM, x, jnp.asarray(coeffs))
    dx, dcoeffs = vjp(dy)
    assert (y.dtype, dx.dtype, dcoeffs.dtype) == (x.dtype, x.dtype, jnp.float32)
    assert_accurate(y, *oracles.poly_norm(x, coeffs))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, coeffs, dy)
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dcoeffs, exact_dc, dc_terms, floor=FLOOR * x.size)


@pytest.fixture
def no_row_is_held(monkeypatch):
    """Rows are read twice, in loops over pieces of 32 elements."""
    monkeypatch.setattr(gpu_plan, "HELD", 0)
    monkeypatch.setattr(gpu_plan, "LARGEST_PIECE", 32)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 123), jnp.float32),
        pytest.param((7,), jnp.float32, marks=pytest.mark.slow),
        pytest.param((1027, 5), jnp.float32, marks=pytest.mark.slow),
        pytest.param((1, 1), jnp.float32, marks=pytest.mark.slow),
        pytest.param((3, 1032), jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_value_and_gradients_are_those_of_float64(shape, dtype):
    assert_poly_norm(normal(shape, dtype), normal(shape, dtype, 1))


@pytest.mark.usefixtures("no_row_is_held")
@pytest.mark.slow
@pytest.mark.parametrize("width", [96, 123])
def test_rows_read_twice_give_the_same(width):
    x = normal((3, width), jnp.float32)
    sizes = jnp.asarray([1.0, 1e4, 1e30])[:, None]
    # The largest element comes first, last, or in between: sums move from scale to scale.
    assert_poly_norm((x * sizes).at[1, 80].set(1e8).at[2, 3].set(3e33), normal(x.shape, x.dtype, 1))


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 8])
def test_any_order_that_is_taken(order):
    coeffs = np.asarray(normal((order + 1,), jnp.float32, 2))
    assert_poly_norm(normal((4, 64), jnp.float32), normal((4, 64), jnp.float32, 1), coeffs)


@pytest.mark.slow
def test_the_widest_rows_are_summed_as_accurately_even_where_rounding_is_one_sided():
    x = jnp.full((1, 65_536), 1.1)
    assert_poly_norm(x, jnp.full_like(x, 0.7))
    assert_poly_norm(jnp.full_like(x, jnp.finfo(jnp.float32).max), x)


@pytest.mark.parametrize("held", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_every_edge_of_the_dtype_is_accurate(dtype, held, request):
    if not held:
        request.getfixturevalue("no_row_is_held")
    x = jnp.concatenate([edge_rows(dtype, size) for size in dict(EDGES)[dtype]])
    assert_poly_norm(x, normal(x.shape, dtype, 1))


@pytest.mark.parametrize("held", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_gated_relative(held, request):
    if not held:
        request.getfixturevalue("no_row_is_held")
    x, up, dy = (np.asarray(normal((5, 130), jnp.float32, seed)) for seed in range(3))
    c = jnp.asarray(COEFFS)
    y, vjp = jax.vjp(GLU, x, up, c)
    value, terms = oracles.poly_norm(x, COEFFS)
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, COEFFS, dy * up)
    dx, dup, dc = vjp(jnp.asarray(dy))
    assert_accurate(y, value * up, terms * np.abs(up))
    assert_accurate(dup, value * dy, terms * np.abs(dy))
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dc, exact_dc, dc_terms)


@pytest.mark.slow
@pytest.mark.parametrize("held", [True, False])
def test_the_rectified_relative(held, request):
    if not held:
        request.getfixturevalue("no_row_is_held")
    x, dy = (np.asarray(normal((5, 130), jnp.float32, seed)) for seed in (0, 2))
    c, positive = jnp.asarray(COEFFS), np.maximum(x, 0)
    y, vjp = jax.vjp(RELU_NORM, jnp.asarray(x), c)
    dx, dc = vjp(jnp.asarray(dy))
    assert_accurate(y, *oracles.poly_norm(positive, COEFFS))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(positive, COEFFS, dy)
    assert_accurate(dx, exact_dx * (x > 0), dx_terms)
    assert_accurate(dc, exact_dc, dc_terms)


FORMS = {
    "poly_norm": (NORM, partial(poly_norm, implementation="xla"), 1),
    "poly_relu_norm": (RELU_NORM, partial(poly_relu_norm, implementation="xla"), 1),
    "poly_norm_glu": (GLU, partial(poly_norm_glu, implementation="xla"), 2),
}


def loss(f, *arguments):
    return jnp.sum(jnp.sin(f(*arguments)))


def gradient(f):
    return lambda *a: jax.grad(partial(loss, f), tuple(range(len(a))))(*a)


def squared(f):
    return lambda *a: sum(jnp.sum(g**2) for g in gradient(f)(*a))


def along(f):
    return lambda *a: jax.jvp(f, a, tuple(jnp.cos(x) for x in a))


WAYS = {
    "forward": along,
    "forward over reverse": lambda f: along(gradient(f)),
    "reverse over reverse": lambda f: jax.grad(squared(f), 0),
    "reverse over forward": lambda f: jax.grad(lambda *a: jnp.sum(along(f)(*a)[1] ** 2), (0, 1)),
    "a mapped gradient": lambda f: (
        lambda *a: jax.vmap(gradient(f), (0,) * (len(a) - 1) + (None,))(*a)
    ),
}


QUICK = {("poly_norm", "forward over reverse")}


@pytest.mark.parametrize(
    ("form", "way"),
    [
        pytest.param(form, way, marks=() if (form, way) in QUICK else pytest.mark.slow)
        for form in FORMS
        for way in WAYS
    ],
)
def test_every_other_derivative_is_that_of_xla(form, way):
    kernel, plain, inputs = FORMS[form]
    arrays = [normal((3, 2, 24), jnp.float32, seed) for seed in range(inputs)]
    size = jnp.asarray([1e-3, 1.0, 50.0])[:, None, None]
    arguments = (arrays[0] * size, *arrays[1:], jnp.asarray(COEFFS))
    got, wanted = (jax.jit(WAYS[way](f))(*arguments) for f in (kernel, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        largest = jnp.max(jnp.abs(b), axis=-1, keepdims=True)
        assert jnp.all(jnp.abs(a - b) <= 2e-5 * largest)


@pytest.mark.slow
def test_experts_with_coefficients_of_their_own_are_mapped():
    x, dy = normal((3, 5, 40), jnp.float32), normal((3, 5, 40), jnp.float32, 1)
    coeffs = normal((3, 4), jnp.float32, 2)

    def both(x, dy, coeffs):
        y, vjp = jax.vjp(NORM, x, coeffs)
        return y, *vjp(dy)

    y, dx, dcoeffs = jax.vmap(both)(x, dy, coeffs)
    for e in range(3):
        assert_accurate(y[e], *oracles.poly_norm(x[e], coeffs[e]))
        exact, terms = oracles.poly_norm_gradients(x[e], coeffs[e], dy[e])
        assert_accurate(dx[e], exact[0], terms[0])
        assert_accurate(dcoeffs[e], exact[1], terms[1])
    mapped = jax.vmap(jax.vmap(NORM, (0, None)), (None, 0), 1)(x, coeffs)
    chex.assert_trees_all_close(mapped[:, 1], jax.vmap(NORM, (0, None))(x, coeffs[1]), rtol=2e-6)


def test_arguments_and_row_statistics_alone_are_saved():
    x, c = normal((3, 40), jnp.float32), jnp.asarray(COEFFS)
    for f, *inputs in ((NORM, x, c), (GLU, x, x + 1, c), (RELU_NORM, x, c)):
        _, vjp = jax.vjp(f, *inputs)
        saved = [leaf.shape for leaf in jax.tree.leaves(vjp)]
        assert sorted(saved) == sorted([*(array.shape for array in inputs), (3, 4)])


@pytest.mark.slow
def test_rows_split_over_devices_are_each_device_s_own():
    x, c = normal((8, 3, 40), jnp.bfloat16), jnp.asarray(COEFFS)
    mesh = make_mesh(data=8)
    split = jax.shard_map(
        NORM, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False
    )

    def total(f, x, c):
        return jnp.sum(jnp.sin(f(x, c).astype(jnp.float32)))

    got, wanted = (
        jax.jit(jax.value_and_grad(partial(total, f), (0, 1)))(x, c) for f in (split, NORM)
    )
    chex.assert_trees_all_close(got, wanted, rtol=2e-6)


WIDTHS = (1, 31, 250, 1024, 4096, 8256, 11_008, 14_336, 16_384, 32_768, 65_536, 1_000_000)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("arrays", [1, 2, 3])
def test_pieces_waste_little_and_fit_the_registers(width, arrays):
    plan = Plan(width, arrays)
    whole = plan.piece * plan.pieces
    assert width <= whole < width + plan.piece
    assert whole <= 1.125 * width or plan.piece <= 32
    assert plan.piece & (plan.piece - 1) == plan.warps & (plan.warps - 1) == 0
    if plan.held:
        assert whole * arrays <= 1.125 * 80 * 32 * plan.warps or width < 1024


@pytest.mark.parametrize(
    ("target", "x", "order", "message"),
    [
        (("gpu", "7.5"), ((2, 8), jnp.bfloat16), 3, "capability 8.0 or more, and this GPU has 7.5"),
        (("gpu", None), ((2, 8), jnp.bfloat16), 3, "tells no compute capability"),
        (("gpu", "9.0"), ((2, 8), jnp.float16), 3, "bfloat16 and float32, not float16"),
        (("gpu", "9.0"), ((0, 8), jnp.float32), 3, "there are no rows"),
        (("gpu", "9.0"), ((2, 8), jnp.float32), 9, "up to order 8, not 9"),
        (("tpu", None), ((2, 8), jnp.float32), 3, "NVIDIA's GPUs, and programs are traced for tpu"),
    ],
)
def test_where_a_kernel_cannot_run_it_says_why_and_xla_runs(target, x, order, message):
    with compiling_for(*target), unsharded_features(True):
        x, c = jnp.ones(*x), jnp.ones(order + 1)
        with pytest.raises(InputError, match=message):
            poly_norm(x, c, implementation="pallas_gpu")
        assert "gpu_kernel" not in str(jax.make_jaxpr(poly_norm)(x, c))


def test_kernels_are_taken_where_rows_are_whole():
    x, c = jnp.ones((8, 8)), jnp.asarray(COEFFS)

    def taken(f):
        return "gpu_kernel" in str(jax.make_jaxpr(f)(x, c))

    with compiling_for("gpu", "8.0"):
        assert not taken(poly_norm)  # eight devices: GSPMD may split the rows
        with pytest.raises(InputError, match="several devices, and nothing says"):
            poly_norm(x, c, implementation="pallas_gpu")
        with unsharded_features(True):
            assert taken(lambda x, c: poly_norm(x, c))
            with jax.set_mesh(make_mesh(data=8)):
                assert not taken(lambda x, c: poly_norm(x, c))
        mesh = make_mesh(data=8)
        split = jax.shard_map(poly_norm, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
        assert taken(split)


def test_compiled_for_anything_else_it_is_refused():
    x, c = jnp.ones((2, 8)), jnp.asarray(COEFFS)
    with compiling_for("gpu", "9.0"), unsharded_features(True):
        f = jax.jit(partial(poly_norm, implementation="pallas_gpu"))
        with pytest.raises(InputError, match="'pallas_gpu' cannot be compiled for cpu"):
            f.lower(x, c)
