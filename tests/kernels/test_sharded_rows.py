"""Rows split over a mesh axis: value and every gradient are those of the whole rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P
from test_poly_norm import FLOOR, assert_accurate

from polycom_jax._errors import InputError
from polycom_jax.kernels.poly_norm import (
    pallas_tpu,
    poly_norm,
    poly_norm_glu,
    poly_relu_norm,
)
from polycom_jax.kernels.sharded import features_are_unsharded, over_mesh, unsharded_features
from polycom_jax.sharding import Rules, make_mesh

pytestmark = pytest.mark.usefixtures("strict_dtypes")

EPS = oracles.EPS
COEFFS = jnp.asarray([0.2, 0.5, -0.3, 0.4])


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, tensor=4)


def rows():
    """Rows whose shards differ in size by as much as float32 allows."""
    x = jax.random.normal(jax.random.key(0), (8, 64))
    x = x.at[0, :16].multiply(1e38 / 4).at[1, 20].set(-1e30).at[2].set(0.0)
    return x.at[3, 16:].multiply(1e-30).at[4].multiply(1e-20).at[5, 48:].multiply(1e5)


def split(f, mesh, hidden=1, check=True, axis=("tensor",)):
    """f of (hidden arrays, coeffs), tokens over data and the hidden axis over tensor."""
    specs = (*[P("data", "tensor")] * hidden, P())
    f = partial(f, axis_name=axis)
    return jax.shard_map(
        f, mesh=mesh, in_specs=specs, out_specs=P("data", "tensor"), check_vma=check
    )


VERSIONS = {
    "xla": (partial(poly_norm, implementation="xla"), True),
    "xla, unchecked": (partial(poly_norm, implementation="xla"), False),
    "gpu": (partial(poly_norm, implementation="gpu"), True),
    # Interpreted kernels do not pass the check; compiled ones do (`test_tpu_compile.py`).
    "pallas_tpu": (partial(pallas_tpu.poly_norm, eps=EPS, interpret=True), False),
}


@pytest.mark.parametrize(
    "version",
    ["xla", pytest.param("xla, unchecked", marks=pytest.mark.slow), "gpu", "pallas_tpu"],
)
def test_value_and_gradients_are_those_of_whole_rows(version, mesh):
    f, check = VERSIONS[version]
    x, dy = rows(), jax.random.normal(jax.random.key(1), (8, 64))
    y, vjp = jax.vjp(jax.jit(split(f, mesh, check=check)), x, COEFFS)
    dx, dcoeffs = vjp(dy)
    assert_accurate(y, *oracles.poly_norm(x, COEFFS))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, COEFFS, dy)
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dcoeffs, exact_dc, dc_terms, floor=FLOOR * x.size)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [False, True])
def test_relatives_too(kernel, mesh):
    x, up, dy = (jax.random.normal(jax.random.key(seed), (4, 48)) for seed in range(3))
    for name, whole, hidden in (
        ("poly_relu_norm", poly_relu_norm, (x,)),
        ("poly_norm_glu", poly_norm_glu, (x, up)),
    ):
        f = partial(getattr(pallas_tpu, name), eps=EPS, interpret=True) if kernel else whole
        parted = split(f, mesh, len(hidden), check=not kernel)
        y, vjp = jax.vjp(jax.jit(parted), *hidden, COEFFS)
        wanted, wanted_vjp = jax.vjp(whole, *hidden, COEFFS)
        for a, b in zip((y, *vjp(dy)), (wanted, *wanted_vjp(dy)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_a_gradient_taken_inside_is_that_of_the_shard(mesh):
    x = rows()[4:]

    def total(x, c):
        return jnp.sum(poly_norm(x, c) * jnp.sin(x))

    def part(x, c):
        def own(x, c):
            y = poly_norm(x, c, axis_name="tensor", implementation="xla")
            return jax.lax.psum(jnp.sum(y * jnp.sin(x)), ("data", "tensor"))

        return jax.grad(own, (0, 1))(x, c)

    inside = jax.shard_map(
        part, mesh=mesh, in_specs=(P("data", "tensor"), P()), out_specs=(P("data", "tensor"), P())
    )
    for a, b in zip(jax.jit(inside)(x, COEFFS), jax.grad(total, (0, 1))(x, COEFFS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))


def test_forward_mode_works_over_shards(mesh):
    x, t = (jax.random.normal(jax.random.key(seed), (4, 48)) for seed in range(2))
    f = split(partial(poly_norm, implementation="xla"), mesh)
    got = jax.jit(lambda x, t: jax.jvp(lambda x: f(x, COEFFS), (x,), (t,))[1])(x, t)
    wanted = jax.jvp(lambda x: poly_norm(x, COEFFS), (x,), (t,))[1]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_only_the_inputs_and_a_few_numbers_a_row_are_saved(mesh):
    x = rows()
    for f, check in VERSIONS.values():
        _, vjp = jax.vjp(split(f, mesh, check=check), x, COEFFS)
        shapes = [leaf.shape for leaf in jax.tree.leaves(vjp)]
        # A kernel's input comes out of the shards stacked by device, the same numbers.
        stacked = (mesh.size * x.shape[0] // 2, x.shape[1] // 4)
        assert sum(shape in (x.shape, stacked) for shape in shapes) == 1
        # Each device keeps the coefficients, which are one array as long as it knows them to be.
        a_number_a_row = (stacked[0], 1)
        assert shapes.count(a_number_a_row) in (0, COEFFS.size)  # scale, and a gain for each power
        others = [shape for shape in shapes if shape not in (x.shape, stacked, a_number_a_row)]
        assert all(shape in (COEFFS.shape, (mesh.size * COEFFS.size,)) for shape in others), others


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "tensor": 4},
        pytest.param({"data": 4, "fsdp": 2}, marks=pytest.mark.slow),
    ],
)
def test_over_mesh_is_the_plain_call_whatever_the_mesh(sizes):
    x, dy = rows(), jax.random.normal(jax.random.key(1), (8, 64))
    rules = Rules()
    seen = []

    def activation(params, x, *, axis_name):
        seen.append(axis_name)
        return pallas_tpu.poly_norm(x, params["c"], eps=EPS, axis_name=axis_name, interpret=True)

    def value_and_gradients(params, x, dy):
        y, vjp = jax.vjp(partial(over_mesh, activation, rules), params, x)
        return y, vjp(dy)

    params = {"c": COEFFS}
    with jax.set_mesh(make_mesh(**sizes)):
        y, (dparams, dx) = jax.jit(value_and_gradients)(params, x, dy)
    assert seen[0] == (("tensor",) if "tensor" in sizes else None)
    assert_accurate(y, *oracles.poly_norm(x, COEFFS))
    (exact_dx, exact_dc), (dx_terms, dc_terms) = oracles.poly_norm_gradients(x, COEFFS, dy)
    assert_accurate(dx, exact_dx, dx_terms)
    assert_accurate(dparams["c"], exact_dc, dc_terms, floor=FLOOR * x.size)
    assert over_mesh(activation, None, params, x).shape == x.shape
    assert seen[-1] is None


def test_over_mesh_names_what_does_not_divide():
    with (
        jax.set_mesh(make_mesh(data=2, tensor=4)),
        pytest.raises(InputError, match="'mlp' of size 63 does not divide over mesh axis tensor"),
    ):
        over_mesh(lambda p, x, axis_name: x, Rules(), {}, jnp.ones((8, 63)))


def test_an_axis_that_is_not_there_and_a_version_without_shards_are_told(mesh):
    x = jnp.ones((2, 8))
    with pytest.raises(InputError, match="axis_name='tensor' is no axis here"):
        poly_norm(x, COEFFS, axis_name="tensor")
    with pytest.raises(InputError, match=r"poly_norm over shards 'reference'.*pallas_tpu, xla"):
        split(partial(poly_norm, implementation="reference"), mesh)(x, COEFFS)


def test_rows_are_known_to_be_whole_inside_a_shard_map_or_where_it_is_said():
    mesh, told = make_mesh(data=4, tensor=2), []

    def look(x):
        told.append(features_are_unsharded())
        return x

    x = jnp.ones((8, 4))
    manual = partial(jax.shard_map, look, in_specs=P("data"), out_specs=P("data"))
    with jax.set_mesh(mesh):
        jax.eval_shape(look, x)
        jax.eval_shape(manual(), x)
        # GSPMD may still split rows over the axis that is left to it.
        jax.eval_shape(manual(axis_names={"data"}), x)
    with unsharded_features(True):
        jax.eval_shape(look, x)
    assert told == [False, True, False, True]
