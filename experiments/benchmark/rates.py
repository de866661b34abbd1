"""What a device can do at best: the denominators of MFU."""

import time

import jax
import jax.numpy as jnp

# bfloat16 products with float32 sums, dense, a second. NVIDIA's data sheets: A100 (2020), H100 and
# H200 (2023, 2024; the SXM boards; the PCIe one is 756), B200 (2024).
_GPU_PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(dtype: str) -> tuple[float | None, str]:
    """(FLOP/s of the device in use, where the number is from); None where nothing is known.

    A table has it for accelerators and bfloat16. For a CPU it is measured: the best of some large
    products in this process.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        rate = product_rate(dtype)
        return rate, f"MFU is of {rate / 1e9:.1f} GFLOP/s, measured: a product of {SIZE}^3, {dtype}"
    peak = _listed(device.device_kind) if dtype == "bfloat16" else None
    if peak is None:
        return None, f"no MFU: the peak of {device.device_kind} in {dtype} is not known here"
    return peak, f"MFU is of {peak / 1e12:.0f} TFLOP/s: {device.device_kind}'s data sheet, bfloat16"


def _listed(kind: str) -> float | None:
    from polycom_jax.compile_ahead.chips import CHIPS

    chips = {chip.device_kind: chip.peak_flops for chip in CHIPS.values()}
    return chips.get(kind) or next((p for name, p in _GPU_PEAKS.items() if name in kind), None)


SIZE = 2048
_TRIES = 8


def product_rate(dtype: str) -> float:
    """FLOP/s of the fastest of some products of two SIZE x SIZE matrices."""
    a, b = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE), jnp.float32).astype(dtype)
    product = jax.jit(jnp.dot)
    product(a, b).block_until_ready()
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        product(a, b).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * SIZE**3 / min(times)
