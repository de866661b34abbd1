"""What a device can do at best: the denominators of MFU."""

import re
import time

import jax
import jax.numpy as jnp

from experiments.benchmark.harness import Clock
from polycom_jax.compile_ahead.chips import CHIPS, Gpu

# bfloat16 products with float32 sums, dense, a second. NVIDIA's data sheets: A100 (2020), H100 and
# H200 (2023, 2024; the SXM boards; of H100, the PCIe one is 756 and the NVL one 835), B200 (2024).
_GPU_PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(dtype: str, clock: Clock = time.perf_counter) -> tuple[float | None, str]:
    """(FLOP/s of the device in use, where the number is from); None where nothing is known.

    A table has it for accelerators and bfloat16. For a CPU it is measured by `clock`, which times
    what is compared with it: the best of some large products in this process.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        rate = product_rate(dtype, clock)
        return rate, f"MFU is of {rate / 1e9:.1f} GFLOP/s, measured: a product of {SIZE}^3, {dtype}"
    peak = _listed(device.device_kind) if dtype == "bfloat16" else None
    if peak is None:
        return None, f"no MFU: the peak of {device.device_kind} in {dtype} is not known here"
    return peak, f"MFU is of {peak / 1e12:.0f} TFLOP/s: {device.device_kind}'s data sheet, bfloat16"


def _listed(kind: str) -> float | None:
    for chip in CHIPS.values():
        if chip.device_kind == kind:  # T4 has no bfloat16
            return chip.peaks.get("bf16") if isinstance(chip, Gpu) else chip.peak_flops
    # GB200 is no B200, and A1000 no A100.
    names = (name for name in _GPU_PEAKS if re.search(rf"\b{name}\b", kind))
    return next((_GPU_PEAKS[name] for name in names), None)


SIZE = 2048
_TRIES = 8


def product_rate(dtype: str, clock: Clock) -> float:
    """FLOP/s of the fastest of some products of two SIZE x SIZE matrices."""
    a, b = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE), jnp.float32).astype(dtype)
    product = jax.jit(jnp.dot)
    product(a, b).block_until_ready()
    times = []
    for _ in range(_TRIES):
        began = clock()
        product(a, b).block_until_ready()
        times.append(clock() - began)
    return 2 * SIZE**3 / min(times)
