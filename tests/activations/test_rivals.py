"""Rows of several numbers: where they start, what must not stand still, and rows that are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from polycom_jax._errors import InputError
from polycom_jax.activations.bases import from_powers, to_powers
from polycom_jax.activations.grouped import EVONORM_EPS, GDN_FLOOR, evonorm_s0, gdn
from polycom_jax.activations.rational import rational
from polycom_jax.activations.trainable import combination, dyt
from polycom_jax.kernels.elementwise import elementwise
from polycom_jax.rows_polynomial import VARIANTS
from polycom_jax.rows_trainable import RIVALS
from polycom_jax.sharding import make_mesh
from polycom_jax.table import get_activation

BASES = ("chebyshev", "hermite", "bernstein")
QUICK = ("poly_norm_l2", "evonorm_s0")
SPLIT = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive)
    for name, row in {**VARIANTS, **RIVALS}.items()
    if row.over_rows
]

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def start(name: str):
    act = get_activation(name)
    return act, act.init(jax.random.key(0), 64)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_basis_is_the_one_of_that_name(basis, order):
    polynomial = np.polynomial
    x = np.linspace(-1, 1, 7)
    for k in range(order + 1):
        unit = np.eye(order + 1)[k]
        named = {
            "chebyshev": lambda u: polynomial.chebyshev.chebval(x, u),
            "hermite": lambda u: polynomial.hermite_e.hermeval(x, u),
            "bernstein": lambda u: sum(
                c
                * x**i
                * (1 - x) ** (order - i)
                * np.prod(np.arange(order, order - i, -1))
                / np.prod(np.arange(1, i + 1))
                for i, c in enumerate(u)
            ),
        }[basis](unit)
        own = polynomial.polynomial.polyval(x, to_powers(basis, order) @ unit)
        np.testing.assert_allclose(own, named, atol=1e-12)


def test_there_and_back():
    coeffs = np.array([0.5, -1.0, 2.0, 0.25])
    for basis in BASES:
        np.testing.assert_allclose(to_powers(basis, 3) @ from_powers(basis, coeffs), coeffs)
    with pytest.raises(InputError, match="Did you mean 'hermite'"):
        to_powers("hermit", 3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("basis", BASES)
def test_all_bases_start_as_poly_norm(basis):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64)), jnp.float32)
    plain, own = start("poly_norm")
    wanted = plain.apply(own, x)
    act, params = start(f"poly_norm_{basis}")
    np.testing.assert_allclose(act.apply(params, x), wanted, atol=3e-6)


@pytest.mark.parametrize(
    ("name", "like", "up_to", "within"),
    [("rational_a_5_4", "silu", 3, 2e-4), ("rational_b_3_2", "relu", 1, 0.06)],
)
def test_rational_functions_start_near_what_they_say(name, like, up_to, within):
    x = jnp.linspace(-up_to, up_to, 600).reshape(1, -1)
    (act, params), (other, _) = start(name), start(like)
    off = jnp.abs(act.apply(params, x) - other.apply({}, x))
    assert float(jnp.max(off)) < within


@pytest.mark.parametrize("name", [n for n in RIVALS if n.startswith("rational")])
def test_no_coefficient_of_a_rational_function_stands_still(name):
    act, params = start(name)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 64)), jnp.float32)
    slopes = jax.grad(lambda p: jnp.sum(act.apply(p, x) ** 2))(params)
    assert all(bool(jnp.all(slope != 0)) for slope in slopes.values())


@pytest.mark.parametrize("name", ["rational_a_3_2", "rational_a_5_4_groups"])
def test_form_a_takes_magnitudes_of_its_denominator(name):
    act, params = start(name)
    params["denominator"] = params["denominator"] + 0.25
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 64)), jnp.float32)

    def both(params):
        return act.apply(params, x), jax.grad(lambda p: jnp.sum(act.apply(p, x) ** 2))(params)

    value, slopes = both(params)
    mirrored, mirrored_slopes = both({**params, "denominator": -params["denominator"]})
    np.testing.assert_array_equal(mirrored, value)
    np.testing.assert_array_equal(mirrored_slopes["denominator"], -slopes["denominator"])
    np.testing.assert_array_equal(mirrored_slopes["numerator"], slopes["numerator"])


def test_entries_in_a_list_have_the_derivatives_of_a_vector():
    x, dy = np.random.default_rng(2).standard_normal((2, 3, 8)).astype(np.float32)
    c = jnp.array([0.1, 0.2, -0.3, 0.4])
    found = []
    for listed in (False, True):
        f = elementwise(combination, by_channel=(False,), listed=listed)
        found.append(jax.vjp(f, jnp.asarray(x), c)[1](jnp.asarray(dy)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_rational_function_and_its_derivatives_divide_twice():
    x, top, below = jnp.ones((2, 8)), jnp.ones(6), jnp.ones(4)

    def both(x, top, below):
        def value(x, top, below):
            return rational(x, list(top), list(below), form="a")

        return jax.jvp(value, (x, top, below), (x, top, below))

    assert str(jax.make_jaxpr(both)(x, top, below)).count(" div ") == 2


def test_the_third_derivative_of_dyt_is_tanh_s_at_zero():
    def value(x: jax.Array) -> jax.Array:
        one = jnp.ones((1,))
        return dyt(x, jnp.float32(1), one, one)[0]

    third = jax.grad(lambda x: jax.grad(lambda x: jax.grad(lambda x: value(x[None]))(x))(x))(
        jnp.float32(0)
    )
    assert third == pytest.approx(-2, rel=1e-5)


def test_one_outlier_in_a_group_costs_evonorm_no_digit():
    rng = np.random.default_rng(0)
    x = 1e-2 * rng.standard_normal(8192)
    x[::256] = 1.0
    ones = np.ones(8192)
    single, one, zero = (jnp.asarray(a, jnp.float32) for a in (x, ones, 0 * ones))
    got = evonorm_s0(single, one, one, zero)
    variance = x.reshape(32, 256).var(axis=-1).repeat(256)
    wanted = x / (1 + np.exp(-x)) / np.sqrt(variance + EVONORM_EPS)
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


@pytest.mark.parametrize("width", [448, 960])
def test_equal_numbers_in_a_group_are_no_nan_to_evonorm(width: int):
    # 14 and 30 in a group: their mean is rounded, and what is left varies by less than nothing.
    row = get_activation("evonorm_s0")
    params = row.init(jax.random.key(0), width)

    def rows(values):
        x = jnp.broadcast_to(values[:, None], (values.size, width))
        return jax.value_and_grad(lambda x: row.apply(params, x).sum())(x)

    total, slopes = jax.jit(rows)(jnp.asarray(np.geomspace(1e7, 1e9, 500), jnp.float32))
    assert jnp.isfinite(total)
    assert jnp.isfinite(slopes).all()


def test_gdn_s_constant_counts_beside_large_inputs_that_weigh_nothing():
    x, zeros = np.full(8, 1e18, np.float32), np.zeros((8, 8), np.float32)
    got = gdn(jnp.asarray(x), jnp.ones(8), jnp.asarray(zeros))
    np.testing.assert_allclose(got, x / np.sqrt(1 + GDN_FLOOR), rtol=2e-6)


def test_groups_of_one_channel_are_refused_and_so_are_parts_of_groups():
    with pytest.raises(InputError, match="must divide the hidden width 96; nearest width: 128"):
        get_activation("evonorm_s0").init(jax.random.key(0), 96)
    ones = jnp.ones((1, 64))

    def split(x):
        return evonorm_s0(x, ones, ones, ones, axis_name="row")

    with pytest.raises(InputError, match="the 3 parts of a row must divide its 32 groups"):
        jax.vmap(split, axis_name="row")(jnp.ones((3, 1, 64)))
    with pytest.raises(InputError, match=r"gdn: 12 channels, .* must be whole groups of 8"):
        gdn(jnp.ones((1, 12)), jnp.ones(12), jnp.ones((8, 12)))


@pytest.mark.parametrize("name", SPLIT)
def test_rows_split_over_a_mesh_axis_are_those_of_whole_rows(name):
    act, width = get_activation(name), 256
    params = act.init(jax.random.key(0), width)
    rng = np.random.default_rng(3)
    hidden = [
        jnp.asarray(rng.standard_normal((4, width)), jnp.float32).at[0, :64].multiply(1e3)
        for _ in range(1 + act.gated)
    ]
    dy = jnp.asarray(rng.standard_normal((4, width)), jnp.float32)
    specs = act.specs_at(width)
    split = jax.shard_map(
        lambda p, *h: act.apply(p, *h, axis_name="tensor"),
        mesh=make_mesh(data=2, tensor=4),
        in_specs=(
            {n: P(*("tensor" if a == "mlp" else None for a in s.axes)) for n, s in specs.items()},
            *[P("data", "tensor")] * len(hidden),
        ),
        out_specs=P("data", "tensor"),
        check_vma=False,
    )
    y, vjp = jax.vjp(jax.jit(split), params, *hidden)
    wanted, whole_vjp = jax.vjp(act.apply, params, *hidden)
    scale = float(jnp.max(jnp.abs(wanted)))
    np.testing.assert_allclose(y, wanted, rtol=5e-6, atol=5e-6 * scale)
    for got, exact in zip(jax.tree.leaves(vjp(dy)), jax.tree.leaves(whole_vjp(dy)), strict=True):
        largest = float(jnp.max(jnp.abs(exact)))
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=5e-6 * max(largest, 1e-3))


def test_an_eps_that_a_width_makes_too_small_is_told():
    act = get_activation("poly_norm_l2", eps=1e-30)
    with pytest.raises(InputError, match="eps=1e-30 must be at least 8e-30 beside rows of width 8"):
        act.apply({"coeffs": jnp.ones(4)}, jnp.ones(8))
