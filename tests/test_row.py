"""Parameters of channels and groups: on explicit axes of a mesh, and where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from polycom_jax._errors import InputError
from polycom_jax.row import Parameter
from polycom_jax.table import activation, get_activation

pytestmark = pytest.mark.usefixtures("strict_dtypes")

WIDTH = 256
QUICK = ("asqu", "own")
NAMES = (*QUICK, "dyt", "rational_a_3_2_groups", "srelu", "derf", "evonorm_s0", "gdn")
CASES = [
    pytest.param(
        name,
        kind,
        marks=() if name in QUICK and kind == AxisType.Explicit else pytest.mark.exhaustive,
    )
    for name in NAMES
    for kind in (AxisType.Explicit, AxisType.Auto)
]


def over_rows(x, w, axis_name=None):
    del axis_name
    return w * x / jnp.sqrt(1 + jnp.mean(x * x, axis=-1, keepdims=True))


def act_of(name):
    if name == "own":
        return activation(over_rows, {"w": Parameter(1.0, per="group", groups=8)}, name=name)
    return get_activation(name)


def both(act, own, x, dy):
    y, vjp = jax.vjp(act.apply, own, x)
    return y, *vjp(dy)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_split_parameters_of_channels_are_those_of_one_device(name, kind):
    act, rng = act_of(name), np.random.default_rng(0)
    own = {
        key: value + 0.1 * jnp.asarray(rng.standard_normal(value.shape), jnp.float32)
        for key, value in act.init(jax.random.key(0), WIDTH).items()
    }
    x, dy = jnp.asarray(rng.standard_normal((2, 8, WIDTH)), jnp.float32)
    wanted = jax.jit(both, static_argnums=0)(act, own, x, dy)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("data", "tensor"))
        parts = {
            key: P(*[None] * (value.ndim - 1), "tensor") if act.parameters[key].by_channel else P()
            for key, value in own.items()
        }
        placed = {key: jax.device_put(own[key], NamedSharding(mesh, parts[key])) for key in own}
        found = jax.jit(both, static_argnums=0)(
            act, placed, jax.device_put(x, rows), jax.device_put(dy, rows)
        )
    assert found[0].sharding.is_equivalent_to(rows, 2)
    for got, exact in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        size = max(1.0, float(jnp.max(jnp.abs(exact))))
        np.testing.assert_allclose(jax.device_get(got), exact, rtol=1e-5, atol=5e-6 * size)


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("evonorm_s0", 48, "groups=64 must divide the hidden width 48; nearest width: 64"),
        ("gdn", 12, "groups=8 must divide the hidden width 12"),
    ],
)
def test_a_width_that_groups_do_not_divide_is_told(name, width, message):
    act = get_activation(name)
    own = {key: jnp.ones((*each.shape, width)) for key, each in act.parameters.items()}
    with pytest.raises(InputError, match=message):
        act.apply(own, jnp.ones((2, width)))


def test_numbers_of_fewer_groups_are_those_of_another_activation():
    learned = {"a": Parameter(1.0, per="group", groups=8)}
    act = activation(lambda x, a: a * x, learned, name="scaled")
    x = jnp.ones((2, 16))
    with pytest.raises(InputError, match=r"scaled: expected .*\(8,\).*came .*\(4,\)"):
        act.apply({"a": jnp.ones(4)}, x)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    own, rows = {"a": jnp.arange(8.0)}, P(None, "tensor")
    split = jax.shard_map(act.apply, mesh=mesh, in_specs=({"a": P("tensor")}, rows), out_specs=rows)
    np.testing.assert_array_equal(split(own, x), act.apply(own, x))


@pytest.mark.parametrize("name", ["asqu", "dyt"])
def test_a_number_has_no_channels(name):
    act = get_activation(name)
    with pytest.raises(InputError, match=r"of shape \(\) has no channels"):
        act.apply(act.init(jax.random.key(0), 1), jnp.float32(1))
    assert get_activation("swish").apply({"beta": jnp.float32(1)}, jnp.float32(0)) == 0


def test_an_axis_that_is_none_is_told():
    with pytest.raises(InputError, match="axis_name='tensor' is no axis here"):
        get_activation("asqu").apply({"beta": jnp.ones(4)}, jnp.ones((2, 4)), axis_name="tensor")
