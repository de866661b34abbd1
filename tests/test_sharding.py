"""Which devices a mesh takes, in which order, and what it says where sizes do not fit."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from polycom_jax import InputError, compile_ahead
from polycom_jax.compile_ahead.platforms import ENVIRONMENT
from polycom_jax.sharding import (
    Rules,
    check_not_explicit,
    constrain,
    make_mesh,
    own_mesh,
    rules_here,
)


@dataclass(frozen=True)
class Device:
    """As much of a device as a mesh looks at."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


SLICES: list[Any] = [Device(i, slice_index=i % 2) for i in range(8)]  # in no order


def test_slices_hold_replicas_of_the_model():
    mesh = make_mesh(data=4, fsdp=2, devices=SLICES)
    assert mesh.shape["data"] == 4
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert slices.reshape(4, 2).tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


def test_a_model_split_over_slices_is_refused():
    with pytest.raises(InputError, match="data=1 must be a multiple of 2, the number of slices"):
        make_mesh(data=1, fsdp=8, devices=SLICES)


@pytest.mark.parametrize(
    ("sizes", "nearest"),
    [
        ({"data": 3}, "data=8"),
        ({"data": 1}, "data=8 or fsdp=8"),
        ({"data": -1, "tensor": 3}, "tensor=4 or tensor=2"),
        ({"data": 2, "expert": 3}, "expert=4"),
        ({"data": 3, "fsdp": 3}, "data=2, fsdp=4 or data=4, fsdp=2"),
    ],
)
def test_the_nearest_sizes_that_work_are_named(sizes: dict[str, Any], nearest: str):
    with pytest.raises(InputError, match=f"nearest: {nearest}\\.$"):
        make_mesh(**sizes)


@pytest.mark.tpu_backend
def test_an_axis_may_take_a_part_of_a_torus(monkeypatch: pytest.MonkeyPatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    mesh = make_mesh(data=2, fsdp=32, devices=compile_ahead.devices("v5p", "4x4x4"))
    hosts = [device.process_index for device in mesh.devices.flat]
    # So hosts have no consecutive rows of a batch: `training.batch_rows` says which they have.
    assert hosts != sorted(hosts)


def test_a_users_own_mesh_gets_the_axes_that_it_lacks():
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    mesh = own_mesh(explicit, Rules())
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "expert": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert own_mesh(mesh, Rules()) == mesh
    rules = Rules(batch="x", embed="x", mlp="y", heads="y", kv_heads="y", vocab="y", expert=None)
    named = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    assert own_mesh(named, rules) == named
    with pytest.raises(InputError, match="mesh axis 'x' of size 4: the rules split nothing over"):
        own_mesh(named, Rules())


def test_rules_leave_out_the_axes_that_the_mesh_in_force_lacks():
    x = jnp.zeros((8, 4))
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
        rules = rules_here(Rules())
        assert rules is not None
        assert rules.partition(("batch", "vocab")) == P(("data",), None)
        split = jax.jit(lambda x: constrain(x, rules, "batch", "mlp"))(x)
        assert len({shard.device for shard in split.addressable_shards}) == 8
        assert split.addressable_shards[0].data.shape == (1, 4)
        alone = constrain(x, rules, "batch", "mlp")  # outside of a trace, too
        assert alone.sharding.is_equivalent_to(split.sharding, 2)
        closed = jax.jit(lambda y: y + constrain(x, rules, "batch", "mlp"))(x)
        np.testing.assert_array_equal(closed, x)
        slope = jax.grad(lambda y: jnp.sum(y * constrain(x + 3, rules, "batch", "mlp")))(x)
        np.testing.assert_array_equal(slope, x + 3)
        whole: Any = np.ones((8, 4))
        jax.jit(lambda: constrain(whole, rules, "batch", "mlp"))()
    with jax.set_mesh(make_mesh()):
        assert rules_here(Rules()) == Rules()
    assert rules_here(None) is None
    with pytest.raises(InputError, match="and there is none; set one or leave rules out"):
        rules_here(Rules())


def test_explicit_axes_of_the_mesh_in_force_are_refused_where_something_is_split_over_them():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        with pytest.raises(InputError, match=r"AxisType\.Explicit.*sharding\.make_mesh"):
            rules_here(Rules())
        check_not_explicit(jnp.zeros(8))
        with pytest.raises(InputError, match=r"AxisType\.Explicit"):
            check_not_explicit(jax.device_put(jnp.zeros(8), NamedSharding(mesh, P("data"))))


def test_a_users_own_axes_stand_beside_those_of_the_library():
    rules = Rules(extra={"state": "tensor", "conv": None})
    assert rules.partition(("batch", "state", "conv")) == P(
        ("data", "fsdp", "expert"), "tensor", None
    )
    assert hash(rules) == hash(Rules(extra={"conv": None, "state": "tensor"}))
    assert Rules(mlp=None, extra={"state": "own"}).mesh_axes[-1] == "own"
    with pytest.raises(InputError, match=r"logical axis 'stat'.*state"):
        rules.partition(("stat",))
    with pytest.raises(InputError, match="'batch', which Rules has as a field of its own"):
        Rules(extra={"batch": "data"})
    with pytest.raises(InputError, match=r"extra\['state'\]=3 must be a mesh axis"):
        Rules(extra={"state": 3})  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"dimension 'state' of size 3 .* nearest sizes: 2 or 4"):
        rules.check_divides("kernel", (3,), ("state",), make_mesh(data=4, tensor=2))
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
        here = rules_here(rules)
        assert here is not None
        assert here.partition(("batch", "state")) == P(("data",), None)
