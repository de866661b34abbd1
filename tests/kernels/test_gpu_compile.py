"""GPU kernels through XLA's compiler for GPUs, for cards that are not there."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from polycom_jax import compile_ahead as aot
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.poly_norm import poly_norm, poly_norm_glu, poly_relu_norm
from polycom_jax.kernels.sharded import unsharded_features
from polycom_jax.sharding import make_mesh

pytestmark = pytest.mark.gpu_backend

CARDS = ("l4", "a100", "h100", "h200")
WIDTHS = (1024, 4096, 8256, 14_336, 16_384, 32_768, 65_536)
COEFFS = jax.ShapeDtypeStruct((4,), jnp.float32)


def passes(f: Any, inputs: int, card: str, shape: tuple[int, int], dtype: Any) -> list[Any]:
    """(reads, writes) of x, forward and backward."""
    x = jax.ShapeDtypeStruct(shape, dtype)
    device, capability = aot.devices(card)[0], aot.GPUS[card].compute_capability
    found = []
    with compiling_for("gpu", capability), unsharded_features(True):
        arguments = (*[x] * inputs, COEFFS)
        y, pull = jax.eval_shape(lambda *a: jax.vjp(f, *a), *arguments)
        for g, given in ((lambda *a: f(*a), arguments), (lambda pull, dy: pull(dy), (pull, y))):
            prediction = aot.predict(aot.compile(g, *aot.place(given, device)))
            size = x.size * x.dtype.itemsize
            found.append((prediction.bytes_read / size, prediction.bytes_written / size))
    return found


def assert_floor(found: list[Any], inputs: int) -> None:
    floor = (inputs, 1), (inputs + 1, inputs)
    for (reads, writes), (least_reads, least_writes) in zip(found, floor, strict=True):
        assert least_reads <= reads < least_reads + 0.05
        assert least_writes <= writes < least_writes + 0.05


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_poly_norm_moves_what_it_must_on_every_card(card: str, dtype: Any):
    assert_floor(passes(poly_norm, 1, card, (1024, 8256), dtype), 1)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_so_does_each_operation_at_every_width(width: int, dtype: Any):
    for f, inputs in ((poly_norm, 1), (poly_relu_norm, 1), (poly_norm_glu, 2)):
        assert_floor(passes(f, inputs, "h100", (1024, width), dtype), inputs)


SPILLS = """
import jax, jax.numpy as jnp, sys
from functools import partial
from polycom_jax import compile_ahead as aot
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.kernels.poly_norm import poly_norm, poly_norm_glu
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.gpu_product import activated_product

aot.without_gpu()
x, c = jax.ShapeDtypeStruct((64, int(sys.argv[1])), jnp.bfloat16), jnp.ones(4)
with compiling_for("gpu", "9.0"):
    for f, inputs in ((poly_norm, 1), (poly_norm_glu, 2)):
        f = partial(f, implementation="pallas_gpu")
        both = lambda dy, c, *x: jax.vjp(f, *x, c)[1](dy)
        aot.compile(both, *aot.place((x, c, *[x] * inputs), aot.devices("h100")[0]))
        through = partial(activated_product, Form(3, 1e-6, gated=inputs == 2), None)
        both = lambda w, c, *x: jax.vjp(through, w, c, *x)[1](x[0][:, :64])
        w = jax.ShapeDtypeStruct((x.shape[1], 64), jnp.bfloat16)
        aot.compile(both, *aot.place((w, c, *[x] * inputs), aot.devices("h100")[0]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_no_kernel_spills(width: int, tmp_path: Path):
    flags = f"--xla_dump_to={tmp_path} --xla_dump_emitter_re=.*ptx.*"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SPILLS, str(width)], env=environment, check=True)
    notes = [
        subprocess.run(
            [ptxas(), "-v", "-arch=sm_90a", file, "-o", os.devnull],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
        for file in tmp_path.glob("*.ptx")
    ]
    kernels = [note for note in notes if "Used" in note]
    assert len(kernels) >= 8
    assert all(set(re.findall(r"(\d+) bytes spill", note)) <= {"0"} for note in kernels)


def ptxas() -> str:
    """NVIDIA's assembler, of its wheel or installed."""
    found = next(Path(jax.__file__).parents[1].glob("nvidia/**/bin/ptxas"), None)
    return str(found or shutil.which("ptxas"))


@pytest.mark.parametrize(("shape", "dtype"), [((3, 7), jnp.float32), ((5, 1001), jnp.bfloat16)])
def test_odd_shapes_compile(shape: tuple[int, int], dtype: Any):
    assert len(passes(poly_norm, 1, "a100", shape, dtype)) == 2


def test_experts_with_coefficients_of_their_own_compile():
    x = jax.ShapeDtypeStruct((4, 100, 1536), jnp.bfloat16)
    coeffs = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def loss(x: Any, c: Any) -> Any:
        return jnp.sum(jax.vmap(poly_norm)(x, c).astype(jnp.float32))

    with compiling_for("gpu", "9.0"), unsharded_features(True):
        arguments = aot.place((x, coeffs), aot.devices("h100")[0])
        text = aot.compile(jax.grad(loss, (0, 1)), *arguments).as_text() or ""
    assert "poly_norm_forward" in text
    assert "poly_norm_backward" in text


@pytest.mark.parametrize("check", [True, False])
def test_rows_of_each_device_compile_over_a_mesh(check: bool):
    mesh = make_mesh(data=4, devices=aot.devices("h100", "4"))
    f = jax.shard_map(
        poly_norm, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=check
    )

    def loss(x: Any, c: Any) -> Any:
        return jnp.sum(f(x, c).astype(jnp.float32) ** 2)

    x = jax.ShapeDtypeStruct((1024, 8192), jnp.bfloat16, sharding=NamedSharding(mesh, P("data")))
    c = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, P()))
    with compiling_for("gpu", "9.0"):
        text = aot.compile(jax.grad(loss, (0, 1)), x, c).as_text() or ""
    assert "poly_norm_backward" in text
    assert "all-gather" not in text


def test_rows_split_over_devices_take_two_passes_and_four():
    mesh = make_mesh(tensor=4, devices=aot.devices("h100", "4"))
    spec = P(None, "tensor")
    f = jax.shard_map(
        partial(poly_norm, axis_name="tensor"), mesh=mesh, in_specs=(spec, P()), out_specs=spec
    )
    x = jax.ShapeDtypeStruct((2048, 16_384), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    c = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, P()))

    def both(x: Any, c: Any, dy: Any) -> Any:
        y, pull = jax.vjp(f, x, c)
        return y, pull(dy)

    with compiling_for("gpu", "9.0"):
        prediction = aot.predict(aot.compile(both, x, c, x))
    part = x.size * 2 / 4
    assert prediction.bytes_read / part < 2 + 4 + 0.1
    assert prediction.bytes_written / part < 1 + 1 + 0.1
