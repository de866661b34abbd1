"""What the real compiler says; it needs the libtpu wheel, and no TPU."""

import math
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polycom_jax import compile_ahead as aot
from polycom_jax.compile_ahead.platforms import ENVIRONMENT

pytestmark = pytest.mark.tpu_backend


@pytest.fixture(scope="module", autouse=True)
def _environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


def predicted(chip, function, *shapes, dtype=jnp.bfloat16, **options):
    device = aot.devices(chip)[0]
    args = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return aot.predict(aot.compile(function, *aot.place(args, device), **options))


@pytest.mark.parametrize("name", aot.TPUS)
def test_devices_are_whole_chips_or_halves(name):
    chip = aot.TPUS[name]
    devices = aot.devices(name)
    assert len(devices) == 4 * chip.devices_per_chip
    assert {device.device_kind for device in devices} == {chip.device_kind}
    assert {device.num_cores for device in devices} == {chip.tensor_cores}


def test_no_program_goes_to_the_cache_that_could_not_be_read_again(tmp_path):
    """In a process of its own: JAX asks once whether there is a cache."""
    code = (
        "import jax, jax.numpy as jnp\n"
        "from polycom_jax import compile_ahead as aot\n"
        f"jax.config.update('jax_compilation_cache_dir', {str(tmp_path)!r})\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "x = aot.place(jax.ShapeDtypeStruct((256, 256), jnp.float32), aot.devices('v5e')[0])\n"
        "for _ in range(2):\n"
        "    aot.compile(jax.jit(lambda x: x @ x), x)\n"
        "assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT, timeout=300)
    assert list(tmp_path.iterdir()) == []


def test_larger_slices_have_several_hosts():
    devices = aot.devices("v5e", "4x4")
    assert len(devices) == 16
    assert len({device.process_index for device in devices}) == 16 // 4


@pytest.mark.parametrize("name", aot.TPUS)
def test_a_large_matrix_product_comes_near_the_peak(name):
    n = 4096
    prediction = predicted(name, jnp.dot, (n, n), (n, n))
    share = 2 * n**3 / prediction.chip.peak_flops / prediction.seconds
    assert 0.5 < share <= 1.0
    assert prediction.bytes_accessed >= 3 * n * n * 2
    assert prediction.compiler == f"libtpu {aot.libtpu_version()}"


@pytest.mark.parametrize("name", aot.TPUS)
def test_a_large_copy_comes_near_the_bandwidth(name):
    # The compiler expects passes over bfloat16 to reach half as much.
    prediction = predicted(name, lambda x: 2 * x + 1, (2**15, 4096), dtype=jnp.float32)
    floor = 2 * 2**15 * 4096 * 4
    assert prediction.bytes_accessed == floor
    assert 0.6 < floor / prediction.chip.hbm_bandwidth / prediction.seconds <= 1.0


def test_a_scan_takes_as_long_as_its_steps():
    def steps(n, x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=n)[0]

    once, often = (predicted("v5e", partial(steps, n), (1024, 1024), (1024, 1024)) for n in (2, 50))
    assert often.not_estimated == once.not_estimated
    assert 0.8 < often.seconds / once.seconds / 25 < 1.25


def test_a_scan_over_matrices_reads_each_once():
    def layers(x, w):
        return jax.lax.scan(lambda x, own: (jnp.tanh(x @ own), None), x, w)[0]

    stack = (8, 1024, 1024)
    prediction = predicted("v5e", layers, (256, 1024), stack)
    assert 1 <= prediction.bytes_read / (2 * math.prod(stack)) < 1.1


def test_gradients_of_split_matrices_are_scattered():
    devices = np.array(aot.devices("v5e"))
    split = NamedSharding(Mesh(devices, ("x",)), PartitionSpec("x"))
    shapes = (4096, 1024), (8192, 4096)
    w, x = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for shape in shapes)
    slope = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)), out_shardings=split)
    found = {each.opcode: each for each in aot.predict(aot.compile(slope, w, x)).collectives}
    assert "all-reduce" not in found
    # Each chip sends three quarters of the whole gradient, which libtpu pads.
    sent = 4 * math.prod(shapes[0]) * 3 / 4
    assert 1 <= found["reduce-scatter"].bytes / sent < 1.1


def test_a_kernel_counts_by_its_bytes():
    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def kernel(x):
        spec = pl.BlockSpec((256, 1024), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        call = pl.pallas_call(
            double, shape, grid=(x.shape[0] // 256,), in_specs=[spec], out_specs=spec
        )
        return call(x)

    prediction = predicted("v5e", kernel, (16_384, 1024), dtype=jnp.float32)
    moved = 2 * 16_384 * 1024 * 4
    assert prediction.kernel_seconds == pytest.approx(moved / prediction.chip.hbm_bandwidth)
    assert prediction.bytes_accessed == moved


def test_too_large_a_program_says_how_much_it_needs():
    with pytest.raises(aot.DoesNotFit) as caught:
        predicted("v5e", lambda x: jnp.sort(x @ x.T), (2**18, 1024), dtype=jnp.float32)
    error = caught.value
    assert error.memory == "HBM"
    assert error.needed is not None
    assert error.needed >= 2**36 * 4
    assert error.available is not None
    assert error.available == pytest.approx(aot.CHIPS["v5e"].hbm_bytes, rel=0.05)
    assert "RESOURCE_EXHAUSTED" in str(error.__cause__)


def test_too_large_a_block_says_how_much_it_needs():
    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    with pytest.raises(aot.DoesNotFit) as caught:
        predicted(
            "v5e",
            lambda x: pl.pallas_call(double, jax.ShapeDtypeStruct(x.shape, x.dtype))(x),
            (8192, 8192),
            dtype=jnp.float32,
        )
    assert caught.value.memory == "VMEM"
    assert caught.value.needed is not None
    assert caught.value.needed >= 8192 * 8192 * 4
