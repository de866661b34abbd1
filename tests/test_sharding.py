"""Which devices a mesh takes, in which order, and what it says where sizes do not fit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from polycom_jax import InputError, aot
from polycom_jax.aot.compiler import ENVIRONMENT
from polycom_jax.sharding import make_mesh


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
    mesh = make_mesh(data=2, fsdp=32, devices=aot.devices("v5p", "4x4x4"))
    hosts = [device.process_index for device in mesh.devices.flat]
    # So hosts have no consecutive rows of a batch: `training.batch_rows` says which they have.
    assert hosts != sorted(hosts)
