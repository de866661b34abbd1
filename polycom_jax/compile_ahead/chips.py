"""The TPU generations: one table, with the source of every number."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polycom_jax._errors import unknown

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What a JAX device is on one generation of TPUs; numbers are a device's.

    That is a whole chip, both cores of v4 and v5p together (megacore), but half a chip of TPU7x.

    Attributes:
        name: as in topologies, "v5e".
        device_kind: what `jax.Device.device_kind` says.
        dimensions: of its torus, 2 or 3.
        smallest: a topology of a single host, "2x2".
        chips_per_host: of slices of several hosts.
        tensor_cores: of a device.
        peak_flops: bfloat16, a second.
        hbm_bytes: memory that programs and arrays may take.
        hbm_bandwidth: bytes a second.
        ici_bandwidth: bytes a second that leave it over all of its links, one direction.
        clock: cycles a second, of what the compiler estimates.
        topology_options: what else `get_topology_desc` wants.
        compiler_options: XLA's, that make training blocks faster by its own estimate; never taken
            by itself: hand them to `compile`.
        devices_per_chip: so many share the numbers that are published for a chip.
    """

    name: str
    device_kind: str
    dimensions: int
    smallest: str
    chips_per_host: int
    tensor_cores: int
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    clock: float
    topology_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    compiler_options: Mapping[str, str] = field(default_factory=dict[str, str])
    devices_per_chip: int = 1


# With the default of 16 MiB, matrix products with fused activations take small windows
# (experiments/results/speed/README.md, "Compiling for TPUs").
_MORE_VMEM: Mapping[str, str] = {"xla_tpu_scoped_vmem_limit_kib": "32768"}

# Peak, HBM, hosts and interconnect: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of
# docs.cloud.google.com/tpu/docs, read November 2026. They give the interconnect in both directions
# (v5e 400, v5p 1200, v6e 800 GB/s; older editions one direction in Gbit/s: v4 2400, v5e 1600,
# v5p 4800), so half of it stands here. HBM bandwidth of v5e and v6e has been given as 800 and 819,
# 1600 and 1640 GB/s; v4 as 1200.
# Clock: peak over the multiply-adds of a cycle, 2 x cores x 4 units x 128^2 for v4, v5e and v5p.
# v6e's documentation names 2 units of 256^2 in one edition and 4 in another; by the compiler's own
# estimates it is 4 (same page).
# TPU7x: page "TPU7x (Ironwood)" of the same documentation; half of a chip's numbers. Memory is what
# libtpu lets a program take of 96 GiB.
_CHIPS = (
    Chip(
        name="v4",
        device_kind="TPU v4",
        dimensions=3,
        smallest="2x2x1",
        chips_per_host=4,
        tensor_cores=2,
        peak_flops=275e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1.2e12,
        ici_bandwidth=300e9,
        clock=1.05e9,
        # Otherwise each core would be a device of its own, as JAX on a real v4 never shows it.
        topology_options={"chip_config_name": "megacore"},
    ),
    Chip(
        name="v5e",
        device_kind="TPU v5 lite",
        dimensions=2,
        smallest="2x2",
        chips_per_host=4,
        tensor_cores=1,
        peak_flops=197e12,
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819e9,
        ici_bandwidth=200e9,
        clock=1.5e9,
        compiler_options=_MORE_VMEM,
    ),
    Chip(
        name="v5p",
        device_kind="TPU v5",
        dimensions=3,
        smallest="2x2x1",
        chips_per_host=4,
        tensor_cores=2,
        peak_flops=459e12,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2.765e12,
        ici_bandwidth=600e9,
        clock=1.75e9,
        compiler_options=_MORE_VMEM,
    ),
    Chip(
        name="v6e",
        device_kind="TPU v6 lite",
        dimensions=2,
        smallest="2x2",
        chips_per_host=4,
        tensor_cores=1,
        peak_flops=918e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1.64e12,
        ici_bandwidth=400e9,
        clock=1.75e9,
    ),
    Chip(
        name="tpu7x",
        device_kind="TPU7x",
        dimensions=3,
        smallest="2x2x1",
        chips_per_host=4,
        tensor_cores=1,
        peak_flops=1153.5e12,
        hbm_bytes=round(94.74 * GIB),
        hbm_bandwidth=3.69e12,
        ici_bandwidth=300e9,
        clock=2.2e9,
        devices_per_chip=2,
    ),
)

CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in _CHIPS}
"""The generations that can be compiled for, by name."""


def chip_named(name: str) -> Chip:
    """The chip of that name; raises `InputError` where there is none."""
    if name not in CHIPS:
        raise unknown("TPU chip", name, CHIPS)
    return CHIPS[name]


def chip_of_kind(device_kind: str) -> Chip:
    """The chip behind `jax.Device.device_kind`; raises `InputError` where there is none."""
    for chip in _CHIPS:
        if chip.device_kind == device_kind:
            return chip
    raise unknown("TPU device kind", device_kind, (chip.device_kind for chip in _CHIPS))
