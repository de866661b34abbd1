"""A window of attention in every version, against float64 NumPy; through the model, the cache and
a mesh."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from shapes import TINY

from polycom_jax import InputError, analysis, models
from polycom_jax.kernels.attention import attention, blocks, cudnn, splash
from polycom_jax.models.decode import advance, prefill
from polycom_jax.sharding import Rules, make_mesh


def arguments(length: int, dtype: Any = jnp.float32, width: int = 8) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(length), 3)
    shapes = [(2, length, heads, width) for heads in (4, 2, 2)]
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def documents(length: int) -> jax.Array:
    """Two rows of documents, some shorter than a window and some longer."""
    cuts = np.array([[length // 3, length // 3 + 2], [0, length // 2]])
    return jnp.asarray((np.arange(length)[None, :, None] >= cuts[:, None]).sum(-1), jnp.int32)


def oracle(q: Any, k: Any, v: Any, ids: Any, window: int) -> np.ndarray:
    """Query by query, the keys of its own document in the window and no others."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, ids = np.empty_like(q), np.zeros(q.shape[:2]) if ids is None else np.asarray(ids)
    for b, t, h in np.ndindex(q.shape[:3]):
        own = [s for s in range(max(0, t - window + 1), t + 1) if ids[b, s] == ids[b, t]]
        scores = k[b, own, h // 2] @ q[b, t, h] / np.sqrt(q.shape[3])
        p = np.exp(scores - scores.max())
        out[b, t, h] = p @ v[b, own, h // 2] / p.sum()
    return out


def value_and_gradients(*qkv: Any, ids: Any, window: int | None, implementation: Any) -> Any:
    def f(*qkv: jax.Array) -> jax.Array:
        if implementation == "splash":
            return splash.attention(*qkv, segment_ids=ids, window=window, interpret=True)
        return attention(*qkv, segment_ids=ids, window=window, implementation=implementation)

    out, pull = jax.vjp(f, *qkv)
    return out, *pull(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


run = jax.jit(value_and_gradients, static_argnames=("window", "implementation"))


# One block of a length of 70, three of 150; within a block, over two, and all but the first key.
@pytest.mark.parametrize(
    ("length", "window", "packed"), [(70, 1, False), (70, 69, True), (150, 66, True)]
)
def test_each_query_sees_its_window_and_gradients_agree(length: int, window: int, packed: bool):
    arrays, ids = arguments(length), documents(length) if packed else None
    expected = oracle(*arrays, ids=ids, window=window)
    plain = run(*arrays, ids=ids, window=window, implementation="xla")
    blocked = run(*arrays, ids=ids, window=window, implementation="blocks")
    np.testing.assert_allclose(plain[0], expected, atol=4e-6)
    for a, b in zip(blocked, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_blocks_do_the_products_of_the_window_alone():
    row, number = (jax.ShapeDtypeStruct((1, 1024, 1, 1, *w), jnp.float32) for w in ((8,), ()))

    def flops(window: int | None) -> float:
        forward = jax.jit(blocks._forward_tile, static_argnums=0)
        backward = jax.jit(blocks._backward_tile, static_argnums=0)
        lowered = (
            forward.lower(window, row, row, row, None),
            backward.lower(window, row, row, row, row, number, row, None),
        )
        return sum(found["flops"] for f in lowered if (found := f.cost_analysis()) is not None)

    # Blocks of 256 queries meet 256 and at most 256 keys before them: 7 of 10 pairs of blocks.
    assert 0.5 * flops(None) < flops(257) < 0.75 * flops(None)


@pytest.mark.parametrize("window", [pytest.param(1, marks=pytest.mark.slow), 129])
def test_splash_kernels_have_the_same_window(window: int):
    arrays = [x[:1, :, :2] for x in arguments(256)]
    ids = documents(256)[:1]
    plain = run(*arrays, ids=ids, window=window, implementation="xla")
    fused = run(*arrays, ids=ids, window=window, implementation="splash")
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


def test_cudnn_is_asked_for_the_same_keys(monkeypatch: pytest.MonkeyPatch):
    """JAX computes what cuDNN is asked for: `local_window_size` counts keys before the query's."""
    plainly = jax.nn.dot_product_attention
    asked: dict[str, Any] = {}

    def plain(*qkv: Any, implementation: str, **options: Any) -> jax.Array:
        asked.update(options, implementation=implementation)
        return plainly(*qkv, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    arrays = arguments(20)
    for ids in (None, documents(20)):
        got = cudnn.attention(*arrays, segment_ids=ids, window=5)
        np.testing.assert_allclose(got, oracle(*arrays, ids=ids, window=5), atol=4e-6)
        assert asked["implementation"] == "cudnn"
        # With a mask for documents the window stands in it: older cuDNN takes one of the two.
        assert asked["local_window_size"] == ((4, 0) if ids is None else None)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [1, 100])
def test_cudnn_agrees_with_the_plain_operations(packed: bool, window: int):
    arrays = arguments(256, jnp.bfloat16, width=64)
    ids = documents(256) if packed else None
    exact = [x.astype(jnp.float32) for x in arrays]
    expected = run(*exact, ids=ids, window=window, implementation="xla")
    got = run(*arrays, ids=ids, window=window, implementation="cudnn")
    for a, b in zip(got, expected, strict=True):
        error = jnp.linalg.norm(a.astype(jnp.float32) - b)
        assert float(error) <= 2**-6 * float(jnp.linalg.norm(b)) + 1e-6


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_a_window_that_hides_nothing_is_no_window(implementation: Any):
    arrays, ids = arguments(16), documents(16)

    def program(window: int | None) -> str:
        f = lambda *qkv: attention(  # noqa: E731
            *qkv, segment_ids=ids, window=window, implementation=implementation
        )
        return str(jax.make_jaxpr(f)(*arrays))

    assert program(16) == program(17) == program(None)
    assert program(15) != program(None)


def test_devices_of_a_mesh_see_the_same_window():
    arrays, ids, rules = arguments(70), documents(70), Rules()
    expected = run(*arrays, ids=ids, window=9, implementation="xla")
    mesh = make_mesh(data=2, tensor=2, fsdp=2)
    arrays = [jnp.concatenate([x, x]) for x in arrays]
    ids = jnp.concatenate([ids, ids])
    names = [("batch", "seq", heads, "head_dim") for heads in ("heads", "kv_heads", "kv_heads")]

    def f(*qkv: jax.Array, ids: jax.Array, implementation: Any) -> jax.Array:
        return attention(
            *qkv, segment_ids=ids, window=9, rules=rules, implementation=implementation
        )

    with jax.set_mesh(mesh):
        placed = jax.device_put(arrays, [NamedSharding(mesh, rules.partition(n)) for n in names])
        ids = jax.device_put(ids, NamedSharding(mesh, rules.partition(("batch", "seq"))))
        for implementation in ("xla", "blocks"):
            on_mesh = jax.jit(f, static_argnames="implementation")
            got = on_mesh(*placed, ids=ids, implementation=implementation)
            np.testing.assert_allclose(got[:2], expected[0], atol=4e-6)
            np.testing.assert_allclose(got[2:], expected[0], atol=4e-6)


MODEL = replace(TINY, num_layers=2, attention_window=3, context_length=12)
whole = jax.jit(partial(models.forward, MODEL))
start = jax.jit(partial(models.init, MODEL))


def test_decoding_sees_the_window_of_forward():
    params = start(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, MODEL.vocab_size, jnp.int32)
    expected = whole(params, tokens)
    read = jax.jit(lambda t, lengths: prefill(MODEL, params, t, room=12, lengths=lengths))
    logits, cache = read(tokens[:, :6], jnp.array([6, 4]))
    np.testing.assert_allclose(logits, [expected[0, 5], expected[1, 3]], atol=1e-5)
    step = jax.jit(lambda t, c: advance(MODEL, params, t, c))
    for i in range(5):
        logits, cache = step(jnp.stack([tokens[0, 6 + i], tokens[1, 4 + i]]), cache)
        np.testing.assert_allclose(logits, [expected[0, 6 + i], expected[1, 4 + i]], atol=1e-5)


def test_what_lies_behind_all_layers_windows_changes_nothing():
    params = start(jax.random.key(0))
    tokens = jnp.arange(12, dtype=jnp.int32)
    # Two layers of three tokens: the last one reaches back to the fifth from the end.
    rows = jnp.stack([tokens, tokens.at[-5].set(39), tokens.at[-6].set(39)])
    own, reached, behind = whole(params, rows)[:, -1]
    assert float(jnp.abs(own - reached).max()) > 1e-6
    np.testing.assert_array_equal(own, behind)


def test_the_largest_logit_is_one_that_is_seen():
    q = jnp.ones((1, 4, 1, 2)).at[0, 0].set(100.0)
    assert analysis.largest_logits(q, q, window=1) == pytest.approx([2e4 / np.sqrt(2)])
    late = jnp.arange(4)[None] == 3
    everything, last = (analysis.largest_logits(q, q, mask=late, window=w)[0] for w in (None, 3))
    assert (everything, last) == pytest.approx((200 / np.sqrt(2), 2 / np.sqrt(2)))


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_without_a_token_is_refused(window: int):
    with pytest.raises(InputError, match=f"attention_window={window} must be at least 1"):
        replace(TINY, attention_window=window)
    with pytest.raises(InputError, match=f"window={window} must be at least 1"):
        attention(*arguments(4), window=window)
