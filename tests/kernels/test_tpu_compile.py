"""TPU kernels through the TPU's own compiler, for chips that are not there."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmark.arg_specs import select
from polycom_jax import compile_ahead
from polycom_jax._errors import InputError
from polycom_jax.kernels.grouped_matmul import grouped_matmul, megablox
from polycom_jax.kernels.poly_norm import poly_norm, poly_norm_glu, poly_relu_norm
from polycom_jax.kernels.poly_relu import poly_relu
from polycom_jax.sharding import make_mesh

pytestmark = pytest.mark.tpu_backend

CHIPS = ("v4", "v5e", "v5p", "v6e")
NORM = partial(poly_norm, implementation="pallas_tpu")
RELU = partial(poly_relu, implementation="pallas_tpu")
GLU = partial(poly_norm_glu, implementation="pallas_tpu")
RELU_NORM = partial(poly_relu_norm, implementation="pallas_tpu")


@pytest.fixture(scope="module", autouse=True)
def _no_tpu_here():
    compile_ahead.without_tpu()


def program(f, *arguments) -> str:
    """The text of the compiled program."""
    text = compile_ahead.compile(jax.jit(f), *arguments).as_text()
    assert text is not None
    return text


def both_ways(f, chip, shape, dtype, inputs=1) -> str:
    """Forward and backward in one program."""

    def both(dy, coeffs, *hidden):
        y, vjp = jax.vjp(f, *hidden, coeffs)
        return y, vjp(dy)

    x, coeffs = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((4,), jnp.float32)
    arguments = compile_ahead.place((x, coeffs, *[x] * inputs), compile_ahead.devices(chip)[0])
    return program(both, *arguments)


def large_instructions(text: str, size: int) -> list[str]:
    """What the entry computation makes of at least `size` bytes by other means than kernels."""
    entry = text[text.index("ENTRY ") :]
    found = []
    for line in entry.splitlines():
        match = re.match(r"\s+(?:ROOT )?%?[\w.-]+ = (\(?.*?\)?) ([\w-]+)\(", line)
        if match is None or match[2] in ("parameter", "custom-call", "tuple", "get-tuple-element"):
            continue
        made = sum(
            math.prod(int(n) for n in dims.split(",") if n) * {"bf16": 2, "f32": 4}[dtype]
            for dtype, dims in re.findall(r"(bf16|f32)\[([\d,]*)\]", match[1])
        )
        # Into VMEM ahead of time, for kernels that then need not read HBM.
        prefetch = match[2] in ("copy-start", "copy-done") and "S(1)" in match[1]
        if made >= size and match[2] != "bitcast" and not prefetch:
            found.append(line.strip())
    return found


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("spec", select("tpu"), ids=lambda spec: spec.name)
def test_poly_norm_compiles_both_ways(chip, spec):
    text = both_ways(NORM, chip, spec.shape, spec.dtype)
    assert "poly_norm_forward" in text
    assert "poly_norm_backward" in text
    if spec.shape[-1] % 128 == 0:
        # No copy of a large array round the kernels: what they move is all that moves.
        assert large_instructions(text, spec.bytes) == []


@pytest.mark.parametrize(
    ("f", "chip", "shape", "dtype", "inputs"),
    [
        (NORM, "v4", (1001, 1000), jnp.float32, 1),
        (NORM, "v5e", (3, 7), jnp.bfloat16, 1),
        (NORM, "v5p", (64, 65_536), jnp.float32, 1),
        (NORM, "v4", (64, 200_000), jnp.bfloat16, 1),
        (GLU, "v4", (512, 8256), jnp.bfloat16, 2),
        (GLU, "v6e", (64, 65_536), jnp.float32, 2),
        (RELU_NORM, "v5e", (512, 2048), jnp.float32, 1),
        (RELU, "v4", (512, 8256), jnp.bfloat16, 1),
        (RELU, "v5e", (2, 3, 100), jnp.float32, 1),
        (RELU, "v5p", (64, 65_536), jnp.bfloat16, 1),
        (RELU, "v6e", (4096,), jnp.float32, 1),
    ],
)
def test_other_shapes_dtypes_and_relatives_compile(f, chip, shape, dtype, inputs):
    text = both_ways(f, chip, shape, dtype, inputs)
    assert text.count('custom_call_target="tpu_custom_call"') in (2, 3, 4)


@pytest.mark.parametrize(
    ("chip", "k", "n", "dtype"),
    [
        *((chip, 2048, 1536, jnp.bfloat16) for chip in CHIPS),
        ("v4", 4096, 1000, jnp.float32),
        ("v5e", 8192, 1000, jnp.bfloat16),
    ],
)
def test_grouped_products_compile_both_ways(chip, k, n, dtype):
    rows, groups = 131_072, 64  # too large for fast memory, into which XLA copies what fits

    def both(x, w, sizes, dy):
        f = partial(grouped_matmul, sizes=sizes, implementation="megablox")
        y, vjp = jax.vjp(f, x, w)
        return y, vjp(dy)

    shapes = ((rows, k), dtype), ((groups, k, n), dtype), ((groups,), jnp.int32), ((rows, n), dtype)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    text = program(both, *compile_ahead.place(arguments, compile_ahead.devices(chip)[0]))
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    if n % 128 == 0:
        # Each gradient takes matrices, or rows, as they lie.
        assert large_instructions(text, rows * n * jnp.dtype(dtype).itemsize) == []


@pytest.mark.parametrize("chip", CHIPS)
def test_tiles_are_for_as_many_cores_as_the_meshs_devices_have(chip, monkeypatch):
    asked = []

    def tiles(*sizes, **how):
        asked.append(how["cores"])
        return tiles_of_a_kernel(*sizes, **how)

    tiles_of_a_kernel = megablox.tiles
    monkeypatch.setattr(megablox, "tiles", tiles)
    shapes = ((256, 8), jnp.float32), ((2, 8, 8), jnp.float32), ((2,), jnp.int32)

    def product(x, w, sizes):
        return jnp.sum(megablox.grouped_matmul(x, w, sizes))

    with jax.set_mesh(make_mesh(devices=compile_ahead.devices(chip))):
        jax.make_jaxpr(jax.grad(product, (0, 1)))(*(jax.ShapeDtypeStruct(*s) for s in shapes))
    assert asked == [compile_ahead.TPUS[chip].tensor_cores] * 3


def test_experts_with_coefficients_of_their_own_compile():
    x, c = jax.ShapeDtypeStruct((4, 100, 1536), jnp.bfloat16), jnp.zeros((4, 4), jnp.float32)

    def loss(x, c):
        return jnp.sum(jax.vmap(NORM)(x, c).astype(jnp.float32))

    arguments = compile_ahead.place((x, c), compile_ahead.devices("v5e")[0])
    assert "tpu_custom_call" in program(jax.grad(loss, (0, 1)), *arguments)


@pytest.mark.parametrize("check", [True, False])
def test_split_rows_compile_over_a_mesh(check):
    mesh = make_mesh(data=2, tensor=2, devices=compile_ahead.devices("v5e"))
    spec = P("data", "tensor")
    f = jax.shard_map(
        partial(NORM, axis_name="tensor"),
        mesh=mesh, in_specs=(spec, P()), out_specs=spec, check_vma=check,
    )  # fmt: skip

    def loss(x, c):
        return jnp.sum(f(x, c).astype(jnp.float32) ** 2)

    x = jax.ShapeDtypeStruct((1024, 8192), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    c = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, P()))
    text = program(jax.grad(loss, (0, 1)), x, c)
    assert "poly_norm_sums" in text
    assert "poly_norm_apply_transposed" in text
    assert "all-gather" in text


def test_a_program_split_without_shard_map_is_refused_by_its_name():
    mesh = make_mesh(data=4, devices=compile_ahead.devices("v5e"))
    x = jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16, sharding=NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh), pytest.raises(InputError, match="over_mesh"):
        jax.jit(lambda x: NORM(x, jnp.ones(4))).lower(x)
