"""Every version of attention against float64 NumPy; what is computed where; what is refused."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from polycom_jax import InputError, compile_ahead
from polycom_jax.kernels.attention import attention, blocks, cudnn, splash
from polycom_jax.kernels.attention.xla import masked_attention
from polycom_jax.kernels.implementations import compiling_for
from polycom_jax.models import ModelConfig
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.table import ActivationOptions
from polycom_jax.training import OptimConfig, abstract_state, make_model_step


def arguments(
    batch: int, length: int, heads: int, kv_heads: int, width: int = 8, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    key = jax.random.key(batch * length)
    shapes = [(batch, length, h, width) for h in (heads, kv_heads, kv_heads)]
    q, k, v = (jax.random.normal(jax.random.fold_in(key, i), s) for i, s in enumerate(shapes))
    return (2 * q).astype(dtype), k.astype(dtype), v.astype(dtype)


def documents(batch: int, length: int) -> jax.Array:
    """Two or three documents a row, at other places in each."""
    cuts = np.random.default_rng(length).integers(0, length, (batch, 2))
    places = np.arange(length)[None, :, None]
    return jnp.asarray(1 + (places >= cuts[:, None, :]).sum(-1), jnp.int32)


def oracle(q: Any, k: Any, v: Any, mask: np.ndarray) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    scores = np.einsum("bthc,bshc->bhts", q, k.repeat(group, axis=2)) / np.sqrt(q.shape[3])
    scores = np.where(mask[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("bhts,bshc->bthc", p, v.repeat(group, axis=2))


def visible(length: int, segment_ids: jax.Array | None) -> np.ndarray:
    seen = np.tril(np.ones((1, length, length), bool))
    if segment_ids is None:
        return seen
    ids = np.asarray(segment_ids)
    return seen & (ids[:, :, None] == ids[:, None, :])


run = jax.jit(attention, static_argnames=("implementation", "rules"))


def both(q: Any, k: Any, v: Any, segment_ids: Any = None, implementation: Any = None) -> Any:
    """The value, and the gradients of a sum of it with arbitrary weights."""

    def f(*qkv: jax.Array) -> jax.Array:
        return attention(*qkv, segment_ids=segment_ids, implementation=implementation)

    out, pull = jax.vjp(f, q, k, v)
    return out, *pull(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


both_ways = jax.jit(both, static_argnames="implementation")


# One query; less than a block; whole blocks and a shorter one.
CASES = [
    ((2, 1, 2, 2), False),
    ((3, 7, 4, 2), True),
    ((2, 150, 6, 2), True),
]


@pytest.mark.parametrize(("shape", "packed"), CASES, ids=str)
def test_values_agree_with_float64_and_gradients_with_each_other(shape: Any, packed: bool):
    q, k, v = arguments(*shape)
    ids = documents(*shape[:2]) if packed else None
    expected = oracle(q, k, v, visible(shape[1], ids))
    plain = both_ways(q, k, v, ids, "xla")
    blocked = both_ways(q, k, v, ids, "blocks")
    np.testing.assert_allclose(plain[0], expected, atol=4e-6)
    np.testing.assert_allclose(blocked[0], expected, atol=4e-6)
    for a, b in zip(blocked[1:], plain[1:], strict=True):
        # Up to 150 terms of order one are added in another order.
        np.testing.assert_allclose(a, b, atol=2e-5)


# A tile is: one head of a row; two heads of a row; two whole rows.
@pytest.mark.parametrize("tile_bytes", [1, 2 * 4 * 2 * 20 * 20, 2 * 4 * 8 * 20 * 20])
def test_the_size_of_a_tile_changes_nothing(monkeypatch: pytest.MonkeyPatch, tile_bytes: int):
    arrays, ids = arguments(4, 20, 8, 4), documents(4, 20)
    expected = both_ways(*arrays, ids, "xla")
    monkeypatch.setattr(blocks, "TILE_BYTES", tile_bytes)
    # A function of its own, which jit has not yet traced with another tile.
    got = jax.jit(lambda q, k, v, ids: both(q, k, v, ids, "blocks"))(*arrays, ids)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_splash_kernels_agree_with_the_plain_operations():
    arrays, ids = arguments(1, 128, 2, 1), documents(1, 128)
    expected = both_ways(*arrays, ids, "xla")

    def fused(*qkv: jax.Array) -> jax.Array:
        return splash.attention(*qkv, segment_ids=ids, interpret=True)

    out, pull = jax.vjp(fused, *arrays)
    cotangent = jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
    for a, b in zip((out, *pull(cotangent)), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_cached_rows_see_what_stands_before_them():
    q, k, v = arguments(2, 9, 4, 2)
    start = jnp.array([2, 5], jnp.int32)
    got = run(q[:, :4], k, v, start=start)
    mask = np.arange(9)[None, None, :] <= (np.array([2, 5])[:, None] + np.arange(4))[:, :, None]
    np.testing.assert_allclose(got, oracle(q[:, :4], k, v, mask), atol=4e-6)


def test_a_row_without_keys_gives_the_mean_of_the_values():
    q, k, v = arguments(1, 4, 1, 1)
    out = masked_attention(q, k, v, jnp.zeros((1, 4, 4), bool))
    np.testing.assert_allclose(out[0, 2], v[0].mean(0), rtol=1e-6)


def test_bfloat16_comes_back_rounded_once():
    q, k, v = arguments(2, 20, 4, 2, dtype=jnp.bfloat16)
    out, *grads = both_ways(q, k, v, None, "blocks")
    assert {x.dtype for x in (out, *grads)} == {jnp.dtype(jnp.bfloat16)}
    expected = oracle(q, k, v, visible(20, None))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)


def test_large_scores_stay_finite():
    q, k, v = arguments(2, 20, 4, 2)
    for got in both_ways(1e4 * q, k, v, None, "blocks"):
        assert np.all(np.isfinite(got))


@pytest.mark.parametrize("packed", [False, True])
def test_every_mode_of_differentiation_goes_through_blocks(packed: bool):
    arrays, ids = arguments(1, 20, 2, 1), documents(1, 20) if packed else None

    def modes(*qkv: jax.Array, implementation: Any) -> Any:
        def f(*qkv: jax.Array) -> jax.Array:
            return attention(*qkv, segment_ids=ids, implementation=implementation)

        def loss(*qkv: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(3 * f(*qkv)))

        def along(*qkv: jax.Array) -> jax.Array:
            return jax.jvp(loss, qkv, arrays)[1]

        def slope(*qkv: jax.Array) -> jax.Array:
            grads = jax.grad(loss, argnums=(0, 1, 2))(*qkv)
            return sum((jnp.vdot(g, a) for g, a in zip(grads, arrays, strict=True)), jnp.float32(0))

        return (
            jax.jvp(f, qkv, arrays)[1],
            jax.jvp(slope, qkv, arrays)[1],
            *(jax.grad(g, argnums=(0, 1, 2))(*qkv) for g in (along, slope)),
        )

    run = jax.jit(modes, static_argnames="implementation")
    got, wanted = (run(*arrays, implementation=name) for name in ("blocks", "xla"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        # Sums over up to 10^2 terms of float32, in another order.
        assert jnp.max(jnp.abs(a - b)) <= 2**-24 * 10**2 * jnp.max(jnp.abs(b))


def test_scores_are_never_all_in_memory():
    shapes = [jax.ShapeDtypeStruct((4, 1024, 8, 16), jnp.float32)] * 3
    scores = 4 * 4 * 8 * 1024 * 1024

    def temporaries(implementation: Any) -> int:
        compiled = both_ways.lower(*shapes, implementation=implementation).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries("xla") > scores
    assert temporaries("blocks") < scores / 6


def test_devices_of_a_mesh_keep_to_themselves():
    arrays, ids = arguments(4, 20, 4, 2), documents(4, 20)
    cotangent = jnp.cos(arrays[0])
    rules = Rules()

    @partial(jax.jit, static_argnames=("implementation", "rules"))
    def placed_ways(
        q: Any, k: Any, v: Any, ids: Any, ct: Any, implementation: Any, rules: Any
    ) -> Any:
        def f(*qkv: jax.Array) -> jax.Array:
            return attention(*qkv, segment_ids=ids, rules=rules, implementation=implementation)

        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(ct)

    expected = placed_ways(*arrays, ids, cotangent, "xla", None)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        queries, keys, rows = (
            NamedSharding(mesh, rules.partition(axes))
            for axes in (
                ("batch", "seq", "heads", "head_dim"),
                ("batch", "seq", "kv_heads", "head_dim"),
                ("batch", "seq"),
            )
        )
        placed = jax.device_put((*arrays, ids, cotangent), (queries, keys, keys, rows, queries))
        compiled = placed_ways.lower(*placed, "blocks", rules).compile()
        got = compiled(*placed)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in str(compiled.as_text())


def test_a_mesh_that_does_not_divide_falls_back_to_the_plain_operations():
    q, k, v = arguments(3, 20, 4, 2)
    with jax.set_mesh(make_mesh(data=4, tensor=2)):
        got = run(q, k, v, rules=Rules())
        with pytest.raises(InputError, match="'batch' of size 3 does not divide over 4 devices"):
            run(q, k, v, rules=Rules(), implementation="blocks")
    np.testing.assert_allclose(got, oracle(q, k, v, visible(20, None)), atol=4e-6)


@pytest.mark.parametrize(
    ("implementation", "message"),
    [
        ("block", "Did you mean 'blocks'"),
        ("splash", "sequence length 70 is no multiple of 128"),
        ("cudnn", "it needs a CUDA GPU"),
    ],
)
def test_what_cannot_run_says_why(implementation: Any, message: str):
    with pytest.raises(InputError, match=message):
        attention(*arguments(1, 70, 2, 2), implementation=implementation)


def test_what_is_compiled_for_says_whether_cudnn_runs(monkeypatch: pytest.MonkeyPatch):
    q, wide = (jnp.zeros((1, 256, 1, width), jnp.bfloat16) for width in (64, 256))
    installed: set[str] = set()
    monkeypatch.setattr(cudnn, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(cudnn, "find_library", lambda name: None)
    with compiling_for("gpu", "9.0"):
        assert "JAX's CUDA plugin" in (cudnn.unsupported_reason(q) or "")
        installed.add("jax_cuda13_plugin")
        assert "nvidia-cudnn-cu13" in (cudnn.unsupported_reason(q) or "")
        installed |= {"nvidia", "nvidia.cudnn"}
        assert cudnn.unsupported_reason(q) is None
        # JAX asks the device that is here whether it takes wider ones.
        assert "head width 256" in (cudnn.unsupported_reason(wide) or "")
    with compiling_for("gpu", "7.5"):
        assert cudnn.unsupported_reason(q) == "it needs a GPU of capability 8.0, not 7.5"
    with compiling_for("gpu"):
        assert "not another make" in (cudnn.unsupported_reason(q) or "")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with compiling_for("tpu"):
        assert cudnn.unsupported_reason(q) == "it needs a CUDA GPU"


@pytest.mark.parametrize(
    ("capability", "width", "reason"),
    [
        ("9.0", 256, None),
        ("10.0", 256, None),
        ("8.9", 128, None),
        ("8.9", 256, "head width 256 is no multiple of 8 up to 128"),
        ("9.0", 264, "head width 264 is no multiple of 8 up to 256"),
        ("7.5", 64, "it needs a GPU of capability 8.0, not 7.5"),
        ("gfx942", 64, "it needs a GPU of capability 8.0, not another make"),
    ],
)
def test_the_gpu_that_is_here_says_which_heads_cudnn_takes(
    monkeypatch: pytest.MonkeyPatch, capability: str, width: int, reason: str | None
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    card = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [card])
    assert cudnn.unsupported_reason(jnp.zeros((1, 256, 1, width), jnp.bfloat16)) == reason


def test_arguments_that_make_no_sense_are_refused():
    q, k, v = arguments(1, 6, 3, 2)
    with pytest.raises(InputError, match="3 query heads are no multiple of 2"):
        attention(q, k, v)
    with pytest.raises(InputError, match="4 queries and 6 keys"):
        attention(q[:, :4, :2], k, v)
    with pytest.raises(InputError, match="segment_ids with a cache"):
        attention(q[:, :, :2], k, v, start=jnp.zeros(1, jnp.int32), segment_ids=documents(1, 6))
    with pytest.raises(InputError, match="whole sequences, no cache"):
        attention(q[:, :, :2], k, v, start=jnp.zeros(1, jnp.int32), implementation="blocks")


@pytest.mark.tpu_backend
def test_splash_compiles_inside_a_model_split_over_data_and_tensor():
    compile_ahead.without_tpu()
    mesh = make_mesh(data=2, tensor=2, devices=compile_ahead.devices("v5e", "2x2"))
    cfg = ModelConfig(
        vocab_size=512,
        num_layers=2,
        embed_dim=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        gated_width=256,
        context_length=256,
        attention="splash",
        activation_options=ActivationOptions(implementation="xla"),  # the host is no TPU
        loss_chunk=128,
        dtype="bfloat16",
    )
    optim = OptimConfig()
    step = make_model_step(cfg, optim, 10, mesh)
    sharding = NamedSharding(mesh, Rules().partition(("batch", "seq")))
    batch = {
        name: jax.ShapeDtypeStruct((4, 256), dtype, sharding=sharding)
        for name, dtype in (
            *((n, jnp.int32) for n in ("tokens", "targets", "segment_ids", "positions")),
            ("mask", jnp.bool_),
        )
    }
    text = str(step.lower(abstract_state(cfg, optim, mesh), batch).compile().as_text())
    kernels = [line for line in text.splitlines() if "custom-call(" in line and "splash" in line]
    # Forward, dq and dkv, each on the device's own two query heads of two rows.
    assert len(kernels) >= 3
    assert any("bf16[2,2,256,64]" in line for line in kernels)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_agrees_with_the_plain_operations(packed: bool):
    arrays = arguments(2, 256, 4, 2, width=64, dtype=jnp.bfloat16)
    ids = documents(2, 256) if packed else None
    expected = both_ways(*(x.astype(jnp.float32) for x in arrays), ids, "xla")
    for a, b in zip(both_ways(*arrays, ids, "cudnn"), expected, strict=True):
        error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
        assert float(error) < 2**-6
