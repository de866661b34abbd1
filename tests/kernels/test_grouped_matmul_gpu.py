"""The Triton version of grouped products: where it is taken, its numbers, and what cards get."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError, models
from polycom_jax import compile_ahead as aot
from polycom_jax.kernels import gpu_call
from polycom_jax.kernels.grouped_matmul import grouped_matmul, triton
from polycom_jax.kernels.grouped_matmul.row_blocks import block_count, row_blocks
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.sharding import make_mesh

SIZES = [50, 0, 33, 101, 0]
ROWS, K, M = 200, 130, 257
"""Several tiles each way, none of them full, and rows in no group."""


def problem(dtype: Any = jnp.float32) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    shapes = (ROWS, K), (len(SIZES), K, M), (ROWS, M)
    x, w, dy = (jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)
    return x, w, dy, jnp.array(SIZES, jnp.int32)


def chosen(platform: str, capability: str | None, *arguments: Any) -> str:
    """Which version is traced: by the primitives that each alone has."""
    with compiling_for(platform, capability):
        text = str(jax.make_jaxpr(lambda *a: grouped_matmul(*a))(*arguments))
    marks = {"triton": "gpu_call", "xla": "ragged_dot", "loop": "scan["}
    return next(name for name, mark in marks.items() if mark in text)


def test_numbers_are_those_of_float64_whatever_stands_behind_the_last_group():
    x, w, dy, sizes = problem(jnp.bfloat16)
    used = sum(SIZES)
    x, dy = (a.at[used:].set(jnp.nan) for a in (x, dy))

    @jax.jit
    def ours(x: Any, w: Any, dy: Any) -> Any:
        f = partial(triton.grouped_matmul, sizes=sizes, interpret=True)
        y, pull = jax.vjp(lambda x, w: f(x, w), x, w)
        return y, *pull(dy)

    got = [np.asarray(a, np.float64) for a in ours(x, w, dy)]
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    start = 0
    for group, size in enumerate(SIZES):
        at = slice(start, start + size)
        # One rounding to eight bits of a sum.
        close = partial(np.testing.assert_allclose, rtol=2**-8, atol=1e-4)
        close(got[0][at], x[at] @ w[group])
        close(got[1][at], dy[at] @ w[group].T)
        close(got[2][group], x[at].T @ dy[at])
        start += size


def test_blocks_hold_every_row_of_a_group_once():
    sizes = jnp.array([5, 0, 16, 17, 1])
    blocks = row_blocks(sizes, 64, 16)
    assert blocks.group.size == block_count(64, 5, 16)
    rows = [(int(g), int(f) + i) for g, f, n in zip(*blocks, strict=True) for i in range(int(n))]
    assert rows == list(zip(np.repeat(np.arange(5), sizes), range(39), strict=True))


@pytest.mark.parametrize(
    ("rows", "groups", "height"), [(65536, 8, 128), (4096, 64, 32), (8192, 64, 64), (7, 3, 32)]
)
def test_tiles_are_at_most_half_as_high_as_groups(rows: int, groups: int, height: int):
    assert triton.row_tile(rows, groups, 2).rows == height


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_the_smallest_card_s_shared_memory(itemsize: int):
    for tile in (triton.row_tile(10**6, 8, itemsize), triton.matrix_tile(itemsize)):
        step = (tile.rows + tile.columns) * tile.depth * itemsize
        assert step * triton.SCHEDULE.stages <= 99 * 2**10


def test_each_card_takes_what_it_can():
    x, w, _, sizes = problem(jnp.bfloat16)
    for capability, version in (("9.0", "triton"), ("8.0", "triton"), ("8.9", "triton")):
        assert chosen("gpu", capability, x, w, sizes) == version
    assert chosen("gpu", "7.5", x, w, sizes) == "loop"  # never all rows times every matrix
    assert chosen("gpu", None, x, w, sizes) == "loop"
    assert chosen("cpu", None, x, w, sizes) == "loop"
    half = [a.astype(jnp.float16) for a in (x, w)]
    assert chosen("gpu", "9.0", *half, sizes) == "triton"


def test_where_triton_cannot_run_it_says_so(monkeypatch: pytest.MonkeyPatch):
    x, w, _, sizes = problem()
    named = partial(grouped_matmul, implementation="triton")
    with compiling_for("gpu", "7.5"), pytest.raises(InputError, match=r"this GPU has 7\.5"):
        named(x, w, sizes)
    with pytest.raises(InputError, match="'triton' cannot be compiled for cpu"):
        jax.jit(named).lower(x, w, sizes)
    with pytest.raises(InputError, match="'triton' cannot be compiled for cpu"):
        named(x, w, sizes)
    with pytest.raises(InputError, match="is empty"):
        named(x[:0], w, sizes)
    strange = jax.sharding.AbstractDevice("NVIDIA GeForce RTX 3090", 82, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=strange)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(InputError, match="no mesh of NVIDIA"):
        named(x, w, sizes)
    with jax.set_mesh(make_mesh(data=8)), pytest.raises(InputError, match="splits the program"):
        named(x, w, sizes)
    monkeypatch.setattr(gpu_call, "_has_triton", lambda: False)
    with pytest.raises(InputError, match="this version of JAX has no Pallas-Triton"):
        named(x, w, sizes)


@pytest.mark.parametrize(("capability", "calls"), [("9.0", 2), ("7.5", 0)])
def test_no_mixture_multiplies_all_rows_with_all_experts(capability: str, calls: int):
    cfg = models.preset("moe-tiny")
    params = jax.eval_shape(lambda: models.init(cfg, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    with compiling_for("gpu", capability):
        text = str(jax.make_jaxpr(partial(models.forward, cfg))(params, tokens))
    assert text.count("gpu_call[") == calls  # up and down, in the body of the loop over layers
    assert "ragged_dot" not in text


def compiled(card: str, dtype: Any) -> tuple[aot.Prediction, str]:
    """Value and both gradients of 65,536 rows in eight groups."""
    rows, groups, k, m = 65536, 8, 2048, 1024
    shapes = (rows, m), (rows, k), (groups, k, m)
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    arrays.append(jax.ShapeDtypeStruct((groups,), jnp.int32))

    def both(dy: Any, x: Any, w: Any, sizes: Any) -> Any:
        y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)
        return y, pull(dy)

    with compiling_for("gpu", aot.GPUS[card].compute_capability):
        program = aot.compile(both, *aot.place(arrays, aot.devices(card)[0]))
    return aot.predict(program), program.as_text() or ""


@pytest.mark.gpu_backend
@pytest.mark.parametrize(
    ("card", "dtype"),
    [("h100", jnp.bfloat16), ("a100", jnp.bfloat16), ("l4", jnp.bfloat16), ("l4", jnp.float32)],
)
def test_a_card_does_the_flops_of_its_rows_and_keeps_no_array_of_all_experts(card: str, dtype: Any):
    prediction, text = compiled(card, dtype)
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 3
    ideal = 3 * 2 * 65536 * 2048 * 1024
    peak = aot.GPUS[card].peak("bf16" if dtype == jnp.bfloat16 else "f32")
    assert 1 <= prediction.seconds * peak / ideal <= 1.3
    assert prediction.temporary_bytes < 2**20
    assert "[8,65536," not in text
    assert "[65536,8," not in text


@pytest.mark.gpu_backend
def test_layers_are_scanned_recomputed_and_split_over_cards():
    cards = aot.devices("h100", "2")
    split, whole = (jax.sharding.PartitionSpec(*axes) for axes in (("fsdp",), ()))
    mesh = make_mesh(fsdp=2, devices=cards)
    product = jax.shard_map(
        lambda x, w, sizes: grouped_matmul(x, w, sizes),
        in_specs=(split, whole, split),
        out_specs=split,
        check_vma=False,
        mesh=mesh,
    )

    def loss(w: Any, x: Any, sizes: Any) -> Any:
        @jax.checkpoint
        def layer(x: Any, _: None) -> Any:
            return jnp.tanh(product(x, w, sizes)), None

        x, _ = jax.lax.scan(layer, x, None, length=3)
        return jnp.sum(x.astype(jnp.float32) ** 2)

    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, split))
        for shape, dtype in (
            ((8, 256, 256), jnp.bfloat16),
            ((4096, 256), jnp.bfloat16),
            ((16,), jnp.int32),
        )
    ]
    with compiling_for("gpu", "9.0"), jax.set_mesh(mesh):
        program = aot.compile(jax.jit(jax.value_and_grad(loss)), *arguments)
    text = program.as_text() or ""
    # Forward, its recomputation, and both gradients, each in the body of a loop.
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 4
    assert "dot(" not in text
