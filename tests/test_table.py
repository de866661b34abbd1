"""The contract that every activation of the table keeps; a new row is taken up by itself.

What it has to bring is its float64 evaluation in `oracles.ACTIVATIONS`.
"""

import doctest

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from absl.testing import parameterized
from jax.sharding import NamedSharding, PartitionSpec

from polycom_jax import table
from polycom_jax.kernels.poly_norm import api as poly_norm_api
from polycom_jax.kernels.poly_relu import api as poly_relu_api
from polycom_jax.sharding import make_mesh
from polycom_jax.table import (
    ACTIVATIONS,
    get_activation,
)

F32 = 2e-6  # the stated bound for float32, relative to the norm of the terms
SHAPE = (4, 16)

each_row = pytest.mark.parametrize("name", ACTIVATIONS)
pytestmark = pytest.mark.usefixtures("strict_dtypes")


def arguments(name: str, dtype=jnp.float32, shape=SHAPE):
    """(row, parameters off their initial values, hidden arrays away from kinks, dy)."""
    row = get_activation(name)
    rng = np.random.default_rng(7)

    def draw(shape, least=0.0):
        values = rng.standard_normal(shape)
        return jnp.asarray(values + np.copysign(least, values), jnp.float32)

    params = {
        key: value + 0.1 * draw(value.shape) for key, value in row.init(jax.random.key(0)).items()
    }
    hidden = [draw(shape, least=0.05).astype(dtype) for _ in range(2 if row.gated else 1)]
    return row, params, hidden, draw(shape).astype(dtype)


def value_and_gradients(row, params, hidden, dy):
    y, vjp = jax.vjp(row.apply, params, *hidden)
    return y, vjp(dy)


run = jax.jit(value_and_gradients, static_argnums=0)


def exact(name, params, hidden, dy):
    """The same by `oracles`: float64 values and numeric derivatives."""
    f, names = oracles.ACTIVATIONS[name], list(params)
    leaves = oracles.float64(*params.values(), *hidden)
    (dy,) = oracles.float64(dy)

    def loss(*leaves):
        return np.sum(dy * f(dict(zip(names, leaves, strict=False)), *leaves[len(names) :]))

    y = f(dict(zip(names, leaves, strict=False)), *leaves[len(names) :])
    gradients = oracles.numeric_gradients(loss, leaves)
    return y, (dict(zip(names, gradients, strict=False)), *gradients[len(names) :])


def assert_close(got, wanted, tolerance):
    """Each leaf within `tolerance` of the largest entry of its own."""

    def check(a, b):
        np.testing.assert_allclose(
            *oracles.float64(a, b), rtol=0, atol=tolerance * max(1e-3, np.max(np.abs(b)))
        )

    chex.assert_trees_all_equal_structs(got, wanted)
    jax.tree.map(check, got, wanted)


def test_every_row_has_an_oracle_and_no_oracle_is_left_over():
    assert set(ACTIVATIONS) == set(oracles.ACTIVATIONS)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    @parameterized.named_parameters(*((name, name) for name in ACTIVATIONS))
    def test_value_and_gradients_equal_float64_numpy(self, name):
        row, params, hidden, dy = arguments(name)
        got = self.variant(lambda p, h, dy: value_and_gradients(row, p, h, dy))(params, hidden, dy)
        assert_close(got, exact(name, params, hidden, dy), F32)


@each_row
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_and_is_one_rounding_of_the_float32_result(name, dtype):
    row, params, hidden, dy = arguments(name, dtype, shape=(8, 256))
    wide = [h.astype(jnp.float32) for h in hidden]
    y, (dparams, *dhidden) = run(row, params, hidden, dy)
    chex.assert_type([y, *dhidden], dtype)
    chex.assert_type(jax.tree.leaves(dparams), jnp.float32)
    wide_y, (_, *dwide) = run(row, params, wide, dy.astype(jnp.float32))
    info = jnp.finfo(dtype)
    for got, wanted in zip([y, *dhidden], [wide_y, *dwide], strict=True):
        got, wanted = oracles.float64(got, wanted)
        half_step = float(info.eps) / 2 * np.abs(wanted)
        float32_noise = F32 * np.max(np.abs(wanted))
        subnormal_step = float(info.tiny) * float(info.eps)
        assert np.all(np.abs(got - wanted) <= half_step + float32_noise + subnormal_step)


@each_row
def test_jit_equals_eager(name):
    row, params, hidden, dy = arguments(name)
    eager = value_and_gradients(row, params, hidden, dy)
    assert_close(run(row, params, hidden, dy), eager, 4e-7)


@each_row
def test_vmap_equals_a_loop_over_rows_and_over_parameters(name):
    row, params, hidden, _ = arguments(name)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p, p + 1]), params)
    mapped = jax.vmap(row.apply)(many, *hidden)
    looped = [
        row.apply(jax.tree.map(lambda p: p[i], many), *(h[i] for h in hidden))  # noqa: B023
        for i in range(SHAPE[0])
    ]
    assert_close(mapped, jnp.stack(looped), 4e-7)


@each_row
def test_checkpoint_and_scan_change_nothing(name):
    row, params, hidden, dy = arguments(name)
    plain = run(row, params, hidden, dy)

    def scanned(params, *hidden):
        step = jax.checkpoint(lambda _, h: (None, row.apply(params, *h)))
        return jax.lax.scan(step, None, hidden)[1]

    @jax.jit
    def run_scanned(params, hidden, dy):
        y, vjp = jax.vjp(scanned, params, *hidden)
        return y, vjp(dy)

    assert_close(run_scanned(params, hidden, dy), plain, F32)


@each_row
def test_forward_mode_agrees_with_reverse_mode_and_second_derivatives_exist(name):
    row, params, hidden, dy = arguments(name)
    tangents = jax.tree.map(lambda a: jnp.sin(3 * a), (params, *hidden))
    dy_forward = jax.jit(lambda p, t: jax.jvp(row.apply, p, t)[1])((params, *hidden), tangents)
    _, gradients = run(row, params, hidden, dy)
    forward = jnp.vdot(dy, dy_forward)
    reverse = sum(map(jnp.vdot, jax.tree.leaves(gradients), jax.tree.leaves(tangents)))
    np.testing.assert_allclose(forward, reverse, rtol=1e-5, atol=1e-5)

    def loss(*args):
        return jnp.sum(jnp.square(row.apply(*args)) * dy)

    def hessian_product(*args):
        return jax.jvp(jax.grad(loss, range(len(args))), args, tangents)[1]

    chex.assert_tree_all_finite(jax.jit(hessian_product)(params, *hidden))


@each_row
def test_sharded_over_eight_devices_by_rows_and_width_equals_unsharded(name):
    row, params, hidden, dy = arguments(name, shape=(8, 64))
    mesh = make_mesh(data=2, tensor=4)
    split = NamedSharding(mesh, PartitionSpec("data", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    wanted = run(row, params, hidden, dy)
    got = run(
        row, jax.device_put(params, whole), jax.device_put(hidden, split), jax.device_put(dy, split)
    )
    assert got[0].sharding.is_equivalent_to(split, 2)
    # Sums of 512 terms of either sign, in two orders.
    assert_close(got, wanted, 5e-6)


@each_row
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_saved_for_backward_are_the_arguments_and_a_few_numbers_a_row(name, dtype):
    row, params, hidden, _ = arguments(name, dtype)
    _, vjp = jax.vjp(row.apply, params, *hidden)
    saved = jax.tree.leaves(vjp)
    of_rows = [leaf for leaf in saved if leaf.shape == (*hidden[0].shape[:-1], 1)]
    # The scale of a row, and a gain for each of three powers.
    normalised = ("poly_norm", "poly_norm_glu", "poly_relu_norm")
    assert len(of_rows) == (4 if name in normalised else 0)
    kept = [leaf for leaf in saved if not any(leaf is number for number in of_rows)]
    arrays = [*jax.tree.leaves(params), *hidden]
    assert sum(leaf.nbytes for leaf in kept) <= sum(array.nbytes for array in arrays)
    for leaf in kept:
        assert any(
            leaf.shape == array.shape and leaf.dtype == array.dtype and jnp.all(leaf == array)
            for array in arrays
        )


# Large enough to overflow a square, cube or sixth power, small enough for the true value to exist.
SIZES = jnp.float32([[0.0], [1e-40], [1e-20], [1e-5], [6.4], [60.0], [1e6], [1e12]])


@each_row
def test_no_value_or_gradient_is_infinite_or_nan_without_need(name):
    row, params, hidden, dy = arguments(name, shape=(len(SIZES), 16))
    spread = [h * jnp.broadcast_to(SIZES, h.shape) for h in hidden]
    chex.assert_tree_all_finite(run(row, params, spread, dy))


# What counts as no operation on the hidden array: moving, casting and wrapping.
FREE = {
    "broadcast_in_dim", "reshape", "convert_element_type", "slice", "squeeze", "split", "unstack",
    "stop_gradient", "bitcast_convert_type", "copy",
}  # fmt: skip


def operations(jaxpr, size: int) -> list[str]:
    """The primitives in a jaxpr, sub-programs included, that touch an array of `size` elements."""
    found = []
    for eqn in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for p in eqn.params.values()]
        inner = [p for p in inner if hasattr(p, "eqns")]
        for program in inner:
            found += operations(program, size)
        touched = any(v.aval.size == size for v in (*eqn.invars, *eqn.outvars))
        if touched and not inner and eqn.primitive.name not in FREE:
            found.append(eqn.primitive.name)
    return found


@each_row
def test_flops_count_the_operations_of_the_traced_program(name):
    polynomial = "coeffs" in get_activation(name).specs
    options = [{"order": r, "implementation": "xla"} for r in (1, 2, 3, 5)] if polynomial else [{}]
    for chosen in options:
        row = get_activation(name, **chosen)
        x = jnp.ones(SHAPE)
        traced = jax.make_jaxpr(row.apply)(row.init(jax.random.key(0)), *[x] * (1 + row.gated))
        assert row.flops == len(operations(traced.jaxpr, x.size))


@each_row
def test_parameters_are_coefficients_in_float32(name):
    row = get_activation(name)
    for spec in row.specs.values():
        assert (spec.role, spec.dtype) == ("coefficient", jnp.float32)
    params = row.init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes(
        params, {k: jnp.zeros(s.shape) for k, s in row.specs.items()}
    )


@each_row
def test_width_gives_equal_weights(name):
    row, d = get_activation(name), 2048
    matrices = 3 if row.gated else 2
    assert matrices * d * row.width(5504) == 3 * d * 5504
    assert row.width(5504) == (5504 if row.gated else 8256)


@pytest.mark.parametrize(
    ("options", "effective"),
    [
        ({"output_scale": 0.5}, lambda c: c / 2),
        ({"bound": 0.3}, lambda c: np.clip(c, -0.3, 0.3)),
        ({"sigmoid": True}, lambda c: np.append(c[:1], 1 / (1 + np.exp(-c[1:])))),
        (
            {"sigmoid": True, "bound": 0.5, "output_scale": 0.5},
            lambda c: np.clip(np.append(c[:1], 1 / (1 + np.exp(-c[1:]))), -0.5, 0.5) / 2,
        ),
    ],
)
@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if "coeffs" in get_activation(n).specs])
def test_coefficients_can_be_held_in_bounds(name, options, effective):
    plain, params, hidden, _ = arguments(name)
    params["coeffs"] = jnp.array([-0.7, 0.2, -0.9, 0.4], jnp.float32)
    held = get_activation(name, **options).apply(params, *hidden)
    stated = effective(np.asarray(params["coeffs"], np.float64)).astype(np.float32)
    wanted = plain.apply(params | {"coeffs": jnp.asarray(stated)}, *hidden)
    np.testing.assert_allclose(held, wanted, rtol=F32, atol=F32 * float(jnp.max(jnp.abs(wanted))))


@pytest.mark.parametrize("module", [table, poly_norm_api, poly_relu_api])
def test_the_examples_in_the_docstrings_run(module):
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0
