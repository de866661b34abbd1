"""TPUs and GPUs that can be compiled for: one table, with the source of every number."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar

from polycom_jax._errors import unknown

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What a JAX device is on one kind of accelerator; numbers are a device's.

    Attributes:
        name: as in the names of slices and machines, "v5e", "h100".
        device_kind: what `jax.Device.device_kind` says.
        chips_per_host: of slices of several hosts; GPUs of one machine.
        peak_flops: dense products of 16-bit numbers, a second.
        hbm_bytes: memory that programs and arrays may take.
        hbm_bandwidth: bytes a second.
        link_bandwidth: bytes a second that leave it for others of its slice or machine, over all of
            its links, one direction.
        clock: cycles a second; on TPUs, of what the compiler estimates.
        compute_capability: of GPUs, "9.0"; None of TPUs.
        compiler_options: XLA's, that make training blocks faster by its own estimate; never taken
            by itself: hand them to `compile`.
        devices_per_chip: so many share the numbers that are published for a chip.
    """

    platform: ClassVar[str]

    name: str
    device_kind: str
    chips_per_host: int
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    clock: float
    compute_capability: str | None = None
    compiler_options: Mapping[str, str] = field(default_factory=dict[str, str])
    devices_per_chip: int = 1


@dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A device of one generation of TPUs.

    That is a whole chip, both cores of v4 and v5p together (megacore), but half a chip of TPU7x.

    Attributes:
        dimensions: of its torus, 2 or 3.
        smallest: a topology of a single host, "2x2".
        tensor_cores: of a device.
        matrix_unit: rows, and columns, of a matrix unit.
        topology_options: what else `get_topology_desc` wants.
    """

    platform: ClassVar[str] = "tpu"

    dimensions: int
    smallest: str
    tensor_cores: int
    matrix_unit: int
    topology_options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """One card of NVIDIA's.

    Attributes:
        peaks: dense products a second by the type that they multiply, in XLA's names; "f32" by
            TF32 where the card has it, "highest" without; "f8" and "s8" for all of 8 bits. Where
            "f8" is not listed, XLA multiplies as float16; other types as float32.
        link: what `link_bandwidth` is of.
        unverified: what no public source confirms, in words; empty if all is.
    """

    platform: ClassVar[str] = "gpu"

    peaks: Mapping[str, float]
    link: str
    unverified: str = ""

    @property
    def target_config(self) -> str:
        """XLA's description of the card, a `GpuTargetConfigProto` in text form."""
        folder = resources.files("polycom_jax.compile_ahead") / "gpu_targets"
        return (folder / f"{self.name}.txtpb").read_text(encoding="utf-8")

    def peak(self, dtype: str) -> float:
        """Dense products a second of numbers of that type."""
        if dtype.startswith("f8"):
            return self.peaks.get("f8", self.peaks["f16"])
        dtype = {"u8": "s8"}.get(dtype, dtype)
        return self.peaks.get(dtype, self.peaks["f32"])


PRODUCT_BACKENDS: Mapping[str, Mapping[str, bool]] = {
    "Triton": {"xla_gpu_enable_triton_gemm": True},
    "cuBLAS": {"xla_gpu_enable_triton_gemm": False},
}
"""XLA options for what computes matrix products on a GPU. On a card XLA times both, product by
product; without one it cannot, so a program is compiled once with each."""


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
# estimates it is 4 (same page). Units of 256 on TPU7x: as MaxText's guides have it.
# TPU7x: page "TPU7x (Ironwood)" of the same documentation; half of a chip's numbers. Memory is what
# libtpu lets a program take of 96 GiB.
_TPUS = (
    Tpu(
        name="v4",
        device_kind="TPU v4",
        dimensions=3,
        smallest="2x2x1",
        chips_per_host=4,
        tensor_cores=2,
        matrix_unit=128,
        peak_flops=275e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1.2e12,
        link_bandwidth=300e9,
        clock=1.05e9,
        # Otherwise each core would be a device of its own, as JAX on a real v4 never shows it.
        topology_options={"chip_config_name": "megacore"},
    ),
    Tpu(
        name="v5e",
        device_kind="TPU v5 lite",
        dimensions=2,
        smallest="2x2",
        chips_per_host=4,
        tensor_cores=1,
        matrix_unit=128,
        peak_flops=197e12,
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819e9,
        link_bandwidth=200e9,
        clock=1.5e9,
        compiler_options=_MORE_VMEM,
    ),
    Tpu(
        name="v5p",
        device_kind="TPU v5",
        dimensions=3,
        smallest="2x2x1",
        chips_per_host=4,
        tensor_cores=2,
        matrix_unit=128,
        peak_flops=459e12,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2.765e12,
        link_bandwidth=600e9,
        clock=1.75e9,
        compiler_options=_MORE_VMEM,
    ),
    Tpu(
        name="v6e",
        device_kind="TPU v6 lite",
        dimensions=2,
        smallest="2x2",
        chips_per_host=4,
        tensor_cores=1,
        matrix_unit=256,
        peak_flops=918e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1.64e12,
        link_bandwidth=400e9,
        clock=1.75e9,
    ),
    Tpu(
        name="tpu7x",
        device_kind="TPU7x",
        dimensions=3,
        smallest="2x2x1",
        chips_per_host=4,
        tensor_cores=1,
        matrix_unit=256,
        peak_flops=1153.5e12,
        hbm_bytes=round(94.74 * GIB),
        hbm_bandwidth=3.69e12,
        link_bandwidth=300e9,
        clock=2.2e9,
        devices_per_chip=2,
    ),
)

# Peaks: NVIDIA's data sheets "A100 80GB" (SXM), "H100" (SXM), "H200" (SXM), "HGX B200", "L4" and
# "T4", read November 2026; where they give sparse products, half of it. Links: the same pages,
# which give both directions, so half of it. Capability, memory and bandwidth of A100, H100 and
# B200, and H200's bandwidth: XLA's descriptions (xla/backends/gpu/target_config/specs). H200's
# memory: what CUDA reports in public logs; XLA's description has the 141 GiB of its name. L4: a
# public report of CUDA's deviceQuery. T4: the same, and the memory of Colab's under newer drivers.
_HOPPER: Mapping[str, float] = {
    **{"bf16": 989e12, "f16": 989e12, "f32": 494e12, "highest": 67e12},
    **{"f8": 1979e12, "s8": 1979e12},
}

_GPUS = (
    Gpu(
        name="a100",
        device_kind="NVIDIA A100-SXM4-80GB",
        compute_capability="8.0",
        chips_per_host=8,
        peak_flops=312e12,
        peaks={"bf16": 312e12, "f16": 312e12, "f32": 156e12, "highest": 19.5e12, "s8": 624e12},
        hbm_bytes=85_100_068_864,
        hbm_bandwidth=2.039e12,
        link_bandwidth=300e9,
        link="NVLink 3",
        clock=1.41e9,
    ),
    Gpu(
        name="h100",
        device_kind="NVIDIA H100 80GB HBM3",
        compute_capability="9.0",
        chips_per_host=8,
        peak_flops=989e12,
        peaks=_HOPPER,
        hbm_bytes=84_942_979_072,
        hbm_bandwidth=3.352e12,
        link_bandwidth=450e9,
        link="NVLink 4",
        clock=1.98e9,
    ),
    Gpu(
        name="h200",
        device_kind="NVIDIA H200",
        compute_capability="9.0",
        chips_per_host=8,
        peak_flops=989e12,
        peaks=_HOPPER,
        hbm_bytes=round(139.8 * GIB),
        hbm_bandwidth=4.8e12,
        link_bandwidth=450e9,
        link="NVLink 4",
        clock=1.98e9,
    ),
    Gpu(
        name="b200",
        device_kind="NVIDIA B200",
        compute_capability="10.0",
        chips_per_host=8,
        peak_flops=2250e12,
        peaks={
            **{"bf16": 2250e12, "f16": 2250e12, "f32": 1100e12, "highest": 75e12},
            **{"f8": 4500e12, "s8": 4500e12},
        },
        hbm_bytes=191_514_411_008,
        hbm_bandwidth=7.672e12,
        link_bandwidth=900e9,
        link="NVLink 5",
        clock=1.965e9,
        unverified="float32 products without TF32: sources give 75 and 80 TFLOP/s",
    ),
    Gpu(
        name="l4",
        device_kind="NVIDIA L4",
        compute_capability="8.9",
        chips_per_host=8,
        peak_flops=121e12,
        peaks={
            **{"bf16": 121e12, "f16": 121e12, "f32": 60e12, "highest": 30.3e12},
            **{"f8": 242e12, "s8": 242e12},
        },
        hbm_bytes=23_612_293_120,
        hbm_bandwidth=300e9,
        link_bandwidth=32e9,
        link="PCIe 4",
        clock=2.04e9,
    ),
    Gpu(
        name="t4",
        device_kind="Tesla T4",
        compute_capability="7.5",
        chips_per_host=4,
        peak_flops=65e12,
        # Neither bfloat16 nor TF32: XLA multiplies both as float32, without tensor cores.
        peaks={"f16": 65e12, "f32": 8.1e12, "highest": 8.1e12, "s8": 130e12},
        hbm_bytes=15_637_086_208,
        hbm_bandwidth=320e9,
        link_bandwidth=16e9,
        link="PCIe 3",
        clock=1.59e9,
    ),
)

TPUS: Mapping[str, Tpu] = {chip.name: chip for chip in _TPUS}
"""The generations of TPUs, by name."""

GPUS: Mapping[str, Gpu] = {chip.name: chip for chip in _GPUS}
"""The cards, by name."""

CHIPS: Mapping[str, Chip] = {**TPUS, **GPUS}
"""All that can be compiled for, by name."""


def chip_named(name: str) -> Chip:
    """The chip of that name; raises `InputError` where there is none."""
    if name not in CHIPS:
        raise unknown("TPU or GPU", name, CHIPS)
    return CHIPS[name]


def chip_of_kind(device_kind: str) -> Chip:
    """The chip behind `jax.Device.device_kind`; raises `InputError` where there is none."""
    for chip in CHIPS.values():
        if chip.device_kind == device_kind:
            return chip
    kinds = (chip.device_kind for chip in CHIPS.values())
    raise unknown("TPU or GPU device kind", device_kind, kinds)
