"""PolyNorm and its relatives against float64 NumPy: accuracy, edges, derivatives, meshes."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmark.arg_specs import make_arguments, select
from polycom_jax._errors import InputError
from polycom_jax.kernels.poly_norm import poly_norm, poly_norm_glu, poly_relu_norm
from polycom_jax.sharding import make_mesh

F32 = 2e-6
# Inputs and powers under the smallest normal number count as 0, times a gain of up to 1/sqrt(eps).
FLOOR = 1.2e-38 * 2e3

IMPLEMENTATIONS = ["reference", "xla", "cpu", "tpu"]
each_implementation = pytest.mark.parametrize(
    "implementation", [*IMPLEMENTATIONS, pytest.param("gpu", marks=pytest.mark.slow)]
)
pytestmark = pytest.mark.usefixtures("strict_dtypes")


@jax.jit(static_argnames="implementation")
def run(x, coeffs, dy, implementation=None):
    y, vjp = jax.vjp(lambda x, c: poly_norm(x, c, implementation=implementation), x, coeffs)
    return y, *vjp(dy)


def assert_accurate(got, wanted, terms, floor=FLOOR):
    """Within 2e-6 of the terms' sum, each element; in half precision within one rounding more."""
    half_step = float(jnp.finfo(got.dtype).eps) / 2 if got.dtype != jnp.float32 else 0.0
    step = float(jnp.finfo(got.dtype).smallest_subnormal) if half_step else 0.0
    (got,) = oracles.float64(got)
    excess = np.abs(got - wanted) - (F32 * terms + half_step * np.abs(wanted) + step + floor)
    assert np.all(excess <= 0), f"off by {np.max(np.abs(got - wanted) / (terms + 1e-30)):.2e}"


def assert_value_and_gradients(x, coeffs, dy, implementation):
    y, dx, dcoeffs = run(x, coeffs, dy, implementation=implementation)
    assert (y.dtype, dx.dtype, dcoeffs.dtype) == (x.dtype, x.dtype, coeffs.dtype)
    assert_accurate(y, *oracles.poly_norm(x, coeffs))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, coeffs, dy)
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dcoeffs, exact_dc, dc_terms, floor=FLOOR * x.size)


@each_implementation
@pytest.mark.parametrize("spec", select("ci"), ids=lambda spec: spec.name)
def test_value_and_gradients_are_those_of_float64(spec, implementation):
    x, coeffs, dy = make_arguments(spec, jax.random.key(1))
    assert_value_and_gradients(x, coeffs, dy, implementation)


def edge_rows(dtype, size: float, width: int = 24):
    """Rows at the edge of what a dtype holds, about `size`."""
    rng = np.random.default_rng(3)
    lone, mixed = np.zeros(width), np.ones(width)
    lone[5] = -size
    mixed[::3], mixed[1::3] = size, size / 1e4
    rows = [
        np.full(width, size),
        np.where(np.arange(width) % 2, size, -size),
        np.clip(rng.standard_normal(width), -1, 1) * size,
        lone,
        mixed,
        np.zeros(width),
    ]
    return jnp.asarray(np.stack(rows).astype(np.float32)).astype(dtype)


LARGEST = {dtype: float(jnp.finfo(dtype).max) for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)}
EDGES = [
    (jnp.float32, (0.0, 1e-40, 1e-20, 1e-3, 6.4, 6e4, 1e6, 1e19, 1e30, LARGEST[jnp.float32])),
    (jnp.bfloat16, (1e-40, 1e-20, 6.4, 1e6, 1e30, LARGEST[jnp.bfloat16])),
    (jnp.float16, (6e-8, 1e-5, 6.4, 6e4, LARGEST[jnp.float16])),
]


@each_implementation
@pytest.mark.parametrize(
    ("dtype", "sizes"), EDGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_edge_of_the_dtype_is_accurate(dtype, sizes, implementation):
    x = jnp.concatenate([edge_rows(dtype, size) for size in sizes])
    dy = jnp.asarray(np.random.default_rng(5).standard_normal(x.shape), jnp.float32).astype(dtype)
    assert_value_and_gradients(x, jnp.asarray([0.2, 0.5, -0.3, 0.4]), dy, implementation)


# The largest that is promised, beside rows that need no scale for a sum of their own, and others.
LARGE_COTANGENT = 1e24
BESIDE_IT = (1e-3, 10.0, 1e3, 9e3, 1e5, 1e30)


@each_implementation
def test_gradients_along_large_cotangents_are_accurate(implementation):
    x = jnp.concatenate([edge_rows(jnp.float32, size) for size in BESIDE_IT])
    dy = LARGE_COTANGENT * jax.random.normal(jax.random.key(4), x.shape)
    assert_value_and_gradients(x, jnp.asarray([0.2, 0.5, -0.3, 0.4]), dy, implementation)


@each_implementation
@pytest.mark.parametrize("size", [1.0, LARGE_COTANGENT])
def test_gradients_of_the_gated_relative_are_those_of_float64(size, implementation):
    gate = jnp.concatenate([edge_rows(jnp.float32, size) for size in BESIDE_IT])
    up, dy = (jax.random.normal(jax.random.key(i), gate.shape) for i in (4, 5))
    up, coeffs = size * up, jnp.asarray([0.2, 0.5, -0.3, 0.4])

    @jax.jit
    def gradients(*inputs):
        glu = partial(poly_norm_glu, implementation=implementation)
        return jax.vjp(glu, *inputs)[1](dy)

    value, value_terms = oracles.poly_norm(gate, coeffs)
    g = np.prod(oracles.float64(dy, up), axis=0)
    (dgate, dcoeffs), terms = oracles.poly_norm_gradients(gate, coeffs, g)
    (own_dy,) = oracles.float64(dy)
    wanted = (dgate, own_dy * value, dcoeffs), (terms[0], np.abs(own_dy) * value_terms, terms[1])
    for got, exact, size_of_terms in zip(gradients(gate, up, coeffs), *wanted, strict=True):
        assert_accurate(got, exact, size_of_terms, floor=FLOOR * gate.size)


@each_implementation
@pytest.mark.parametrize("order", [3, 24])
def test_the_largest_float32_is_finite_at_high_orders_and_the_widest_rows(order, implementation):
    x = jnp.full((1, 65_536), LARGEST[jnp.float32])
    coeffs = jnp.full(order + 1, 1 / order)
    y, dx, dcoeffs = run(x, coeffs, jnp.ones_like(x), implementation=implementation)
    np.testing.assert_allclose(y, 1 + 1 / order, rtol=F32)
    np.testing.assert_allclose(dcoeffs, float(x.size), rtol=F32)
    assert np.all(np.abs(dx) < 1e-37)


@each_implementation
def test_an_infinity_or_nan_stays_in_its_row(implementation):
    x = jnp.asarray([[1.0, jnp.inf], [1.0, jnp.nan], [1.0, 2.0]])
    y = poly_norm(x, jnp.ones(4), implementation=implementation)
    assert bool(jnp.isnan(y[:2]).any(axis=-1).all())
    assert bool(jnp.isfinite(y[2]).all())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float64_is_computed_in_float64(implementation):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((4, 33)) * np.array([[1e-3], [1.0], [1e5], [1e300]]))
        coeffs, dy = jnp.asarray([0.1, 0.3, 0.2, 0.4]), jnp.asarray(rng.standard_normal(x.shape))
        y, dx, dcoeffs = run(x, coeffs, dy, implementation=implementation)
        assert y.dtype == dx.dtype == dcoeffs.dtype == jnp.float64
        (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, coeffs, dy)
        exact, terms = oracles.poly_norm(x, coeffs)
        assert np.all(np.abs(y - exact) <= 1e-14 * terms)
        assert np.all(np.abs(dx - exact_dx) <= 1e-14 * dx_terms)
        assert np.all(np.abs(dcoeffs - exact_dc) <= 1e-14 * dc_terms)


def test_the_official_formula_is_matched_when_its_weights_are_reversed():
    # BryceZhuo/PolyCom, dense_model: weight[0] is the cubic coefficient.
    x = np.random.default_rng(1).standard_normal((5, 40))
    weight, bias = np.array([0.2, -0.5, 0.9]), 0.1

    def norm(u):
        return u / np.sqrt(np.mean(u**2, axis=-1, keepdims=True) + 1e-6)

    official = weight[0] * norm(x**3) + weight[1] * norm(x**2) + weight[2] * norm(x) + bias
    coeffs = np.concatenate([[bias], weight[::-1]])
    ours = poly_norm(jnp.asarray(x, jnp.float32), jnp.asarray(coeffs, jnp.float32))
    np.testing.assert_allclose(ours, official, atol=F32 * 5)


def test_the_size_of_a_row_does_not_matter_and_the_gradient_is_orthogonal_to_it():
    x = jax.random.normal(jax.random.key(0), (6, 100))
    coeffs, dy = jnp.asarray([0.1, 0.3, -0.2, 0.4]), jax.random.normal(jax.random.key(1), x.shape)
    y, dx, _ = run(x * 100, coeffs, dy)
    np.testing.assert_allclose(poly_norm(x * 3e20, coeffs), y, atol=1e-5)
    along = jnp.sum(x * dx, axis=-1)
    assert np.all(np.abs(along) <= 1e-5 * np.sum(np.abs(x * dx), axis=-1))


def test_a_small_eps_is_used_and_stays_finite():
    x = jnp.asarray([[1e-12, -2e-12, 3e-13], [1e-3, 2e-3, 0.0], [0.0, 0.0, 0.0]])
    coeffs, dy = jnp.asarray([0.0, 1.0, 1.0, 1.0]), jnp.ones_like(x)
    for eps in (1e-30, 1e-12, 1e-2, 1e30):
        y, vjp = jax.vjp(lambda x, c: poly_norm(x, c, eps=eps), x, coeffs)  # noqa: B023
        exact, terms = oracles.poly_norm(x, coeffs, eps)
        assert np.all(np.abs(y - exact) <= F32 * terms + 1e-30)
        chex.assert_tree_all_finite(vjp(dy))


@each_implementation
def test_hessian_vector_products_are_those_of_float64(implementation):
    rng = np.random.default_rng(2)
    x, v, dy = (rng.standard_normal((3, 20)) * np.array([[1e-3], [1.0], [50.0]]) for _ in range(3))
    c, dc = np.array([0.1, 0.3, -0.2, 0.4]), np.array([1.0, -1.0, 0.5, 0.2])

    def gradient(step):
        return oracles.poly_norm_gradients(x + step * v, c + step * dc, dy)[0]

    near, far = ([(a - b) / (2 * h) for a, b in zip(gradient(h), gradient(-h), strict=True)]
                 for h in (1e-4, 2e-4))  # fmt: skip
    wanted = [(4 * a - b) / 3 for a, b in zip(near, far, strict=True)]

    def loss(x, c):
        return jnp.vdot(
            jnp.asarray(dy, jnp.float32), poly_norm(x, c, implementation=implementation)
        )

    f32 = [jnp.asarray(a, jnp.float32) for a in (x, c, v, dc)]
    got = jax.jit(lambda x, c, v, dc: jax.jvp(jax.grad(loss, (0, 1)), (x, c), (v, dc))[1])(*f32)
    for a, b in zip(got, wanted, strict=True):
        scale = np.max(np.abs(b), axis=-1, keepdims=True)
        assert np.all(np.abs(a - b) <= 2e-5 * scale)


@each_implementation
def test_second_derivatives_of_rows_whose_powers_overflow(implementation):
    x, v, dy = jax.random.normal(jax.random.key(2), (3, 2, 20))
    coeffs = jnp.asarray([0.1, 0.3, -0.2, 0.4])

    @jax.jit
    def products(x, v):
        def loss(x):
            y = poly_norm(x, coeffs, eps=1e-30, implementation=implementation)
            return jnp.vdot(dy, y)

        forward = jax.jvp(jax.grad(loss), (x,), (v,))[1]
        return forward, jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), v))(x)

    # PolyNorm of a row is that of the row times any number; one of the two rows is enlarged.
    size = jnp.asarray([[1.0], [2.0**66]])
    for large, plain in zip(products(size * x, size * v), products(x, v), strict=True):
        scale = jnp.max(jnp.abs(plain), axis=-1, keepdims=True)
        assert jnp.all(jnp.abs(size * large - plain) <= 2e-5 * scale)


def test_a_gradient_of_a_gradient_in_reverse_mode_works_under_scan_and_checkpoint():
    x, coeffs = jax.random.normal(jax.random.key(0), (2, 16)), jnp.asarray([0.1, 0.3, -0.2, 0.4])

    def deep(x, many):
        body = jax.checkpoint(lambda h, c: (poly_norm(h, c), None))
        return jnp.sum(jnp.sin(jax.lax.scan(body, x, many)[0]))

    def flat(x, many):
        for c in many:
            x = poly_norm(x, c, implementation="reference")
        return jnp.sum(jnp.sin(x))

    def second(f):
        return jax.jit(jax.grad(lambda x, c: jnp.sum(jax.grad(f)(x, c) ** 2), (0, 1)))

    many = jnp.stack([coeffs, coeffs + 1])
    chex.assert_trees_all_close(second(deep)(x, many), second(flat)(x, many), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("implementation", [None, "gpu"])
def test_a_row_split_over_devices_is_scaled_by_its_largest_element_wherever_that_is(implementation):
    x = jnp.zeros((2, 64)).at[0, 40].set(3e30).at[0, 3].set(1e28).at[1].set(0.5)
    coeffs, dy = jnp.asarray([0.1, 0.3, -0.2, 0.4]), jnp.ones_like(x)
    split = NamedSharding(make_mesh(tensor=8), PartitionSpec(None, "tensor"))
    got = run(jax.device_put(x, split), coeffs, jax.device_put(dy, split), implementation)
    assert got[0].sharding.is_equivalent_to(split, 2)
    chex.assert_trees_all_close(got, run(x, coeffs, dy), rtol=F32, atol=1e-6)


@each_implementation
def test_the_gate_is_multiplied_before_the_one_rounding(implementation):
    gate, up = (jax.random.normal(jax.random.key(i), (8, 256), jnp.bfloat16) for i in (0, 1))
    coeffs = jnp.asarray([0.1, 0.3, 0.4, 0.2])
    y = poly_norm_glu(gate, up, coeffs, implementation=implementation)
    exact = oracles.poly_norm(gate, coeffs)[0] * oracles.float64(up)[0]
    error = np.abs(oracles.float64(y)[0] - exact)
    assert np.all(error <= 1.001 * 2.0**-8 * np.abs(exact) + F32)
    twice = oracles.float64(poly_norm(gate, coeffs) * up)[0]
    assert np.max(np.abs(twice - exact) / (np.abs(exact) + 1e-3)) > 1.3 * 2.0**-8


@each_implementation
def test_poly_relu_norm_is_poly_norm_of_the_rectified_row(implementation):
    x = jax.random.normal(jax.random.key(0), (4, 32)).at[0].set(-1.0).at[1, 0].set(1e30)
    coeffs = jnp.asarray([0.1, 0.3, 0.4, 0.2])
    y = poly_relu_norm(x, coeffs, implementation=implementation)
    np.testing.assert_allclose(y, poly_norm(jax.nn.relu(x), coeffs), rtol=F32)
    slope = jax.grad(lambda x: jnp.sum(poly_relu_norm(x, coeffs, implementation=implementation)))(x)
    assert bool(jnp.all(jnp.isfinite(slope)))
    assert bool(jnp.all(slope[x <= 0] == 0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: poly_norm(jnp.ones(()), jnp.ones(4)), r"shape \(\) must have a last axis"),
        (lambda: poly_norm(jnp.ones((3, 0)), jnp.ones(4)), r"shape \(3, 0\)"),
        (lambda: poly_norm(jnp.ones(3, jnp.int32), jnp.ones(4)), "dtype int32 must be floating"),
        (lambda: poly_norm(jnp.ones(3), jnp.ones(1)), r"order \+ 1 >= 2"),
        (lambda: poly_norm(jnp.ones(3), jnp.ones((2, 4))), "jax.vmap"),
        (lambda: poly_norm(jnp.ones(3), jnp.ones(4), eps=0), "eps=0 must be"),
        (lambda: poly_norm(jnp.ones(3), jnp.ones(4), eps=float("nan")), "eps=nan must be"),
        (lambda: poly_norm(jnp.ones(3), jnp.ones(4), implementation="xl"), "Did you mean 'xla'"),  # pyright: ignore
        (lambda: poly_norm_glu(jnp.ones(3), jnp.ones(4), jnp.ones(4)), "must agree in shape"),
    ],
)
def test_misuse_is_told_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
