"""TPU kernels, interpreted on a CPU: against float64, and the bytes that their blocks move."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from test_poly_norm import EDGES, FLOOR, assert_accurate, edge_rows

from polycom_jax._errors import InputError
from polycom_jax.activations.polynomial import scale_row
from polycom_jax.kernels import tpu_blocks
from polycom_jax.kernels.poly_norm import moments, pallas_tpu, poly_norm
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.tpu_plan import Plan
from polycom_jax.kernels.poly_relu import pallas_tpu as relu_tpu
from polycom_jax.kernels.poly_relu import poly_relu
from polycom_jax.kernels.tpu_call import Operand, TpuCall
from polycom_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("strict_dtypes")

EPS = oracles.EPS
COEFFS = np.array([0.2, 0.5, -0.3, 0.4], np.float32)


def normal(shape, dtype, seed=0):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def run(f, x, dy, coeffs: Any = COEFFS):
    y, vjp = jax.vjp(f, x, jnp.asarray(coeffs))
    dx, dcoeffs = vjp(dy)
    assert (y.dtype, dx.dtype, dcoeffs.dtype) == (x.dtype, x.dtype, jnp.float32)
    return y, dx, dcoeffs


def assert_poly_norm(x, dy, coeffs=COEFFS):
    y, dx, dcoeffs = run(partial(pallas_tpu.poly_norm, eps=EPS, interpret=True), x, dy, coeffs)
    assert_accurate(y, *oracles.poly_norm(x, coeffs))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, coeffs, dy)
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dcoeffs, exact_dc, dc_terms, floor=FLOOR * x.size)


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows that fit no block: float32 ones are cut into tiles of 128 lanes."""

    def forget() -> None:
        for function in (pallas_tpu._compiled, relu_tpu._compiled):
            function.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(tpu_blocks, "VMEM_BUDGET", 0)
    monkeypatch.setattr(tpu_blocks, "BLOCK_BYTES", 32 * 128 * 4)
    forget()
    yield
    forget()


SHAPES = [
    ((1, 1), jnp.float32),
    ((2, 3, 123), jnp.float32),
    ((513, 7), jnp.float32),
    ((2, 1000), jnp.float32),
    ((33, 250), jnp.bfloat16),
    pytest.param((2, 1500), jnp.bfloat16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shape", "dtype"), SHAPES)
def test_value_and_gradients_are_those_of_float64(shape, dtype):
    assert_poly_norm(normal(shape, dtype), normal(shape, dtype, 1))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((33, 300), jnp.float32), pytest.param((40, 600), jnp.bfloat16, marks=pytest.mark.slow)],
)
def test_rows_cut_into_tiles_give_the_same(shape, dtype):
    plan = Plan(Form(3, EPS), shape[0], shape[1], dtype)
    assert plan.whole_forward() is None
    assert plan.part_forward().grid == (2, 3)
    assert_poly_norm(normal(shape, dtype).at[0, :100].multiply(1e4), normal(shape, dtype, 1))


@pytest.mark.parametrize("order", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_any_order(order):
    coeffs = np.asarray(normal((order + 1,), jnp.float32, 2))
    assert_poly_norm(normal((4, 64), jnp.float32), normal((4, 64), jnp.float32, 1), coeffs)


@pytest.mark.slow
def test_the_widest_rows_are_summed_as_accurately_even_where_rounding_is_one_sided():
    x = jnp.full((1, 65_536), 1.1)
    assert_poly_norm(x, jnp.full_like(x, 0.7))
    assert_poly_norm(jnp.full_like(x, jnp.finfo(jnp.float32).max), x)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_every_edge_of_the_dtype_is_accurate(dtype):
    x = jnp.concatenate([edge_rows(dtype, size) for size in dict(EDGES)[dtype]])
    assert_poly_norm(x, normal(x.shape, dtype, 1))


@pytest.mark.parametrize("tiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gated_and_rectified_relatives(tiles, request):
    if tiles:
        request.getfixturevalue("small_blocks")
    x, up, dy = (np.asarray(normal((33, 130), jnp.float32, seed)) for seed in range(3))
    c = jnp.asarray(COEFFS)
    y, vjp = jax.vjp(partial(pallas_tpu.poly_norm_glu, eps=EPS, interpret=True), x, up, c)
    value, terms = oracles.poly_norm(x, COEFFS)
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, COEFFS, dy * up)
    dx, dup, dc = vjp(jnp.asarray(dy))
    assert_accurate(y, value * up, terms * np.abs(up))
    assert_accurate(dup, value * dy, terms * np.abs(dy))
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dc, exact_dc, dc_terms)

    positive = np.maximum(x, 0)
    f = partial(pallas_tpu.poly_relu_norm, eps=EPS, interpret=True)
    y, dx, dc = run(f, jnp.asarray(x), jnp.asarray(dy))
    assert_accurate(y, *oracles.poly_norm(positive, COEFFS))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(positive, COEFFS, dy)
    assert_accurate(dx, exact_dx * (x > 0), dx_terms)
    assert_accurate(dc, exact_dc, dc_terms)


@pytest.mark.parametrize(
    ("shape", "dtype", "tiles"),
    [
        ((), jnp.float32, False),
        ((256,), jnp.bfloat16, False),
        pytest.param((2, 17, 150), jnp.float32, False, marks=pytest.mark.slow),
        ((35, 150), jnp.float32, True),
    ],
)
def test_poly_relu_is_that_of_float64(shape, dtype, tiles, request):
    if tiles:
        request.getfixturevalue("small_blocks")
    x, dy = normal(shape, dtype), normal(shape, dtype, 1)
    y, dx, dcoeffs = run(partial(relu_tpu.poly_relu, interpret=True), x, dy)
    assert_accurate(y, *oracles.poly_relu(x, COEFFS))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_relu_gradients(x, COEFFS, dy)
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dcoeffs, exact_dc, dc_terms)


def test_poly_relu_meets_no_infinity_where_a_coefficient_or_cotangent_is_zero():
    x = jnp.asarray([1e30, 2.0, -1e30, 0.0])
    coeffs, dy = np.array([0.5, 1, 0, 0], np.float32), jnp.asarray([0.0, 1.0, 1.0, 1.0])
    y, dx, dcoeffs = run(partial(relu_tpu.poly_relu, interpret=True), x, dy, coeffs)
    np.testing.assert_array_equal(y, jnp.where(x > 0, x + 0.5, 0.5))
    np.testing.assert_array_equal(dx, [0, 1, 0, 0])
    np.testing.assert_array_equal(dcoeffs, [3, 2, 4, 8])


def test_no_rows_are_no_rows():
    x = jnp.zeros((0, 16))
    for f in (partial(pallas_tpu.poly_norm, eps=EPS), relu_tpu.poly_relu):
        y, dx, dcoeffs = run(partial(f, interpret=True), x, x)
        assert y.shape == dx.shape == (0, 16)
        np.testing.assert_array_equal(dcoeffs, 0)


def test_experts_with_coefficients_of_their_own_are_mapped():
    x, dy = normal((3, 5, 40), jnp.float32), normal((3, 5, 40), jnp.float32, 1)
    coeffs = normal((3, 4), jnp.float32, 2)
    f = partial(pallas_tpu.poly_norm, eps=EPS, interpret=True)
    y, dx, dcoeffs = jax.vmap(partial(run, f))(x, dy, coeffs)
    for e in range(3):
        assert_accurate(y[e], *oracles.poly_norm(x[e], coeffs[e]))
        exact, terms = oracles.poly_norm_gradients(x[e], coeffs[e], dy[e])
        assert_accurate(dx[e], exact[0], terms[0])
        assert_accurate(dcoeffs[e], exact[1], terms[1])


def test_only_the_inputs_are_saved():
    x, c = normal((3, 40), jnp.float32), jnp.asarray(COEFFS)
    for inputs, f in (
        ((x, c), partial(pallas_tpu.poly_norm, eps=EPS, interpret=True)),
        ((x, x + 1, c), partial(pallas_tpu.poly_norm_glu, eps=EPS, interpret=True)),
        ((x, c), partial(relu_tpu.poly_relu, interpret=True)),
    ):
        _, vjp = jax.vjp(f, *inputs)
        saved = [leaf.shape for leaf in jax.tree.leaves(vjp)]
        assert sorted(saved) == sorted(array.shape for array in inputs)


def test_the_scale_is_that_of_the_definition_for_every_exponent():
    largest = jnp.asarray(2.0 ** np.arange(-126.0, 128.0), jnp.float32)
    largest = jnp.concatenate([jnp.zeros(1), largest, largest * 1.99, largest * 1.01])
    np.testing.assert_array_equal(moments.scale_of(largest), scale_row(largest[:, None])[1][:, 0])


def bytes_moved(*calls: TpuCall) -> int:
    """Bytes between HBM and VMEM, from the blocks and the grids alone."""
    return sum(moved(array, call.grid) for call in calls for array in call.inputs + call.outputs)


def moved(array: Operand, grid: tuple[int, ...]) -> int:
    """A block is copied whenever its index differs from that of the step before, and the part of it
    that lies outside the array is not."""
    steps = itertools.product(*map(range, grid))  # the last axis runs fastest
    copied = (at for at, _ in itertools.groupby(array.index(*step) for step in steps))
    inside = (np.minimum(array.block, array.shape - np.multiply(array.block, at)) for at in copied)
    return sum(int(sizes.prod()) for sizes in inside) * jnp.dtype(array.dtype).itemsize


WIDTHS = (128, 2048, 8192, 16_384, 65_536)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_whole_rows_move_what_they_must(width, dtype):
    # Forward: read x (and up), write y; backward: read dy and x (and up), write dx (and dup).
    size = 2048 * width * jnp.dtype(dtype).itemsize
    for form in (Form(3, EPS), Form(3, EPS, gated=True)):
        plan = Plan(form, 2048, width, dtype)
        forward, backward = plan.whole_forward(), plan.whole_backward()
        assert forward is not None
        assert bytes_moved(forward) <= 1.1 * size * (plan.inputs + 1)
        if (form.gated, width, dtype) == (True, 65_536, jnp.float32):
            # Five blocks of the lowest height are too much; see the next test.
            assert backward is None
            continue
        assert backward is not None
        assert bytes_moved(backward) <= 1.1 * size * (2 * plan.inputs + 1)
    relu = relu_tpu.Plan(4, 2048, width, dtype)
    assert bytes_moved(relu.forward()) <= 1.1 * size * 2
    assert bytes_moved(relu.backward()) <= 1.1 * size * 3


@pytest.mark.parametrize("width", [65_536, 262_144])
def test_rows_in_parts_read_their_inputs_twice(width):
    size = 2048 * width * 4
    plan = Plan(Form(3, EPS), 2048, width, jnp.float32)
    forward = bytes_moved(plan.part_sums(backward=False), plan.part_forward())
    backward = bytes_moved(plan.part_sums(backward=True), plan.part_backward())
    assert 3 * size < forward <= 1.02 * 3 * size
    assert 5 * size < backward <= 1.02 * 5 * size


def test_a_block_is_counted_when_its_index_changes_and_only_what_lies_inside():
    by_row = Operand((10, 6), jnp.float32, (8, 3), lambda i, j: (i, 0))
    by_both = Operand((10, 6), jnp.float32, (8, 3), lambda i, j: (i, j))
    back_and_forth = Operand((10, 6), jnp.float32, (8, 3), lambda i, j: (0, j))
    assert moved(by_row, (2, 2)) == (8 + 2) * 3 * 4
    assert moved(by_both, (2, 2)) == 10 * 6 * 4
    assert moved(back_and_forth, (2, 2)) == 2 * 8 * 6 * 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("count", [1, 24, 513, 8192])
@pytest.mark.parametrize("width", [1, 1000, 8256, 65_536, 1_000_000])
def test_blocks_fit_their_budget(count, width, dtype):
    itemsize = jnp.dtype(dtype).itemsize
    row = -(-width // 128) * 128 * itemsize
    for arrays in (2, 3, 5):
        height = tpu_blocks.whole_row_block(count, width, dtype, arrays)
        if height is not None:
            assert height % 8 == 0
            assert height <= 32 or height % 32 == 0
            assert 2 * arrays * height * row <= tpu_blocks.VMEM_BUDGET
    height, columns = tpu_blocks.tile(count, width, dtype)
    assert columns == width or columns % 128 == 0
    tile_bytes = height * -(-columns // 128) * 128 * itemsize
    assert 2 * (5 * tile_bytes + height * 128 * 4) <= tpu_blocks.VMEM_BUDGET


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, c: poly_norm(x, c, implementation="pallas_tpu"), "cannot be compiled for cpu"),
        (lambda x, c: poly_relu(x, c, implementation="pallas_tpu"), "cannot be compiled for cpu"),
        (
            lambda x, c: poly_norm(x.astype(jnp.float16), c, implementation="pallas_tpu"),
            "bfloat16 and float32, not float16",
        ),
    ],
)
def test_where_a_kernel_cannot_run_it_says_why(call, message):
    x, c = jnp.ones((2, 8)), jnp.asarray(COEFFS)
    with pytest.raises(InputError, match=message):
        jax.jit(call)(x, c)
    with pytest.raises(InputError, match=message):
        call(x, c)


def test_a_kernel_in_a_program_split_by_gspmd_says_what_to_do():
    with (
        jax.set_mesh(make_mesh(data=8)),
        pytest.raises(InputError, match=r"over data.*over_mesh"),
    ):
        poly_norm(jnp.ones((8, 8)), jnp.asarray(COEFFS), implementation="pallas_tpu")
