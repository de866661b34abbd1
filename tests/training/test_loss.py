import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError, models
from polycom_jax import params as pm
from polycom_jax.sharding import Rules
from polycom_jax.training import model_loss, put_batch
from polycom_jax.training.loss import (
    IGNORED,
    _by_device,
    _chunked_sums,
    batch_nats,
    count_targets,
    counted,
    cross_entropy,
    documents,
)

nats_of = jax.jit(batch_nats, static_argnums=0)
logits_of = jax.jit(models.forward, static_argnums=0)


def reference(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return -np.take_along_axis(logp, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cross_entropy_agree_with_float64(scale, dtype):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(scale * rng.normal(size=(4, 5, 37)), dtype)
    targets = rng.integers(0, 37, (4, 5))
    nats = cross_entropy(logits, jnp.asarray(targets))
    assert nats.dtype == jnp.float32
    expected = reference(np.asarray(logits, np.float64), targets)
    # The difference from the largest logit, at most 8 scale, is rounded once.
    np.testing.assert_allclose(nats, expected, rtol=1e-6, atol=8 * scale * 2**-23)


@pytest.mark.parametrize("margin", [20.0, 50.0, 80.0])
def test_confident_tokens_keep_their_small_loss_and_slope(margin):
    logits = jnp.array([[margin, 0.0, 0.0]])

    def total(logits):
        return cross_entropy(logits, jnp.array([0])).sum()

    nats, slope = jax.value_and_grad(total)(logits)
    other = np.exp(-margin)
    np.testing.assert_allclose(nats, np.log1p(2 * other), rtol=2**-20)
    expected = np.array([[-2 * other, other, other]]) / (1 + 2 * other)
    np.testing.assert_allclose(slope, expected, rtol=2**-20)


def test_second_derivatives_are_those_of_the_softmax():
    logits = jnp.array([0.5, 2.0, -1.0, 0.0])
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    for target in range(4):
        hessian = jax.hessian(lambda z, t=target: cross_entropy(z, jnp.array(t)))(logits)
        np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), atol=1e-6)


def test_padding_columns_change_nothing_and_get_no_gradient():
    rng = np.random.default_rng(1)
    real = jnp.asarray(rng.normal(size=(6, 30)), jnp.float32)
    padding = jnp.full((6, 10), jnp.finfo(jnp.float32).min)
    targets = jnp.asarray(rng.integers(0, 30, 6))

    def total(logits):
        return cross_entropy(logits, targets).sum()

    plain, slope = jax.value_and_grad(total)(real)
    padded, padded_slope = jax.value_and_grad(total)(jnp.concatenate([real, padding], 1))
    np.testing.assert_allclose(padded, plain, rtol=1e-6)
    np.testing.assert_allclose(padded_slope[:, :30], slope, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(padded_slope[:, 30:], 0)


def test_only_unmasked_targets_count(model, make_batch, initial):
    cfg, batch = model(), make_batch()
    params = initial("one device").params
    nats, aux = nats_of(cfg, params, batch)
    logits = logits_of(
        cfg,
        params,
        batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
    )
    expected = reference(np.asarray(logits), batch["targets"])[batch["mask"]].sum()
    assert float(nats) == pytest.approx(expected, rel=1e-5)
    assert aux == {}
    hidden_targets = np.where(batch["mask"], batch["targets"], 0)
    again, _ = nats_of(cfg, params, batch | {"targets": hidden_targets})
    assert float(again) == float(nats)


@pytest.mark.parametrize("document_mask", [True, False])
def test_document_boundaries_count_iff_the_model_says_so(model, make_batch, initial, document_mask):
    cfg, batch = model(document_mask=document_mask), make_batch()
    params = jax.tree.map(lambda x: x, initial("one device").params)  # its own dicts
    # At initialisation attention hardly matters: make it matter.
    params["layers"][0]["attention"]["w_v"] *= 20
    params["layers"][0]["attention"]["w_o"] *= 20
    whole = batch | {
        "segment_ids": np.ones_like(batch["segment_ids"]),
        "positions": np.broadcast_to(np.arange(8, dtype=np.int32)[None], (16, 8)),
    }
    assert (documents(cfg, batch)[1] is None) != document_mask
    np.testing.assert_array_equal(
        documents(cfg, batch)[0], (batch if document_mask else whole)["positions"]
    )
    split, _ = nats_of(cfg, params, batch)
    joined, _ = nats_of(cfg, params, whole)
    assert (float(split) != float(joined)) == document_mask


def test_a_mixture_reports_what_a_batch_in_parts_adds_up_to_and_of_targets_alone(model, make_batch):
    cfg, rng = model(moe=models.MoEConfig(num_experts=4, top_k=2)), np.random.default_rng(0)
    params = pm.map_specs(
        lambda spec: rng.normal(size=spec.shape).astype(np.float32) / 4, models.specs(cfg)
    )
    loss = model_loss(cfg)
    part = jax.jit(loss.part)

    def metrics(*batches: Any) -> Any:
        targets = sum(loss.normalizer(batch) for batch in batches)
        sums = [part(params, batch, targets)[1] for batch in batches]
        return loss.finish(jax.tree.map(lambda *each: sum(each), *sums), len(batches))

    whole, first = make_batch(), np.arange(16)[:, None] < 8
    halves = [{**whole, "mask": whole["mask"] & rows} for rows in (first, ~first)]
    # Rows without targets may be anything: no statistic is of them.
    others = {**halves[1], "tokens": np.where(first, 1, whole["tokens"])}
    apart = [metrics(batch) for batch in (*halves, others)]
    jax.tree.map(np.testing.assert_array_equal, apart[1], apart[2])
    one, parts = metrics(whole), metrics(*halves)
    assert "layers" not in one
    for name, value in one.items():
        np.testing.assert_allclose(parts[name], value, rtol=4e-6, err_msg=name)
    assert abs(float(apart[0]["load_balance_loss"] - apart[1]["load_balance_loss"])) > 1e-3


@functools.partial(jax.jit, static_argnums=(0, 3))
def total_and_gradients(cfg, params, batch, rules=None):
    """The sum over the batch, and its gradient for all parameters."""

    def total(params, batch):
        return batch_nats(cfg, params, batch, rules)[0]

    return jax.value_and_grad(total)(params, batch)


def largest_relative_error(got, expected) -> float:
    def error(a, b):
        return np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / np.linalg.norm(b)

    return max(jax.tree.leaves(jax.tree.map(error, jax.device_get(got), jax.device_get(expected))))


# 128 tokens: three chunks of 43, and one.
@pytest.mark.parametrize(("chunk", "tied"), [(43, True), (1000, False)])
def test_chunks_change_neither_loss_nor_gradients(model, make_batch, initial, chunk, tied):
    whole, batch = model(tie_embeddings=tied), make_batch()
    params = dict(initial("one device").params)
    if tied:
        del params["unembed"]
    expected = total_and_gradients(whole, params, batch)
    got = total_and_gradients(model(tie_embeddings=tied, loss_chunk=chunk), params, batch)
    # Sums in another order, as between meshes: some twenty roundings of 2^-24.
    assert largest_relative_error(got, expected) < 20 * 2**-24


def test_chunks_of_a_mesh_take_tokens_of_every_device(model, meshes, initial, make_batch):
    mesh, batch, rules = "data 2, fsdp 2, tensor 2", make_batch(), Rules()
    expected = total_and_gradients(model(), initial("one device").params, batch)
    with jax.set_mesh(meshes[mesh]):
        placed = put_batch(batch, meshes[mesh])
        params = initial(mesh).params
        got = total_and_gradients(model(loss_chunk=5), params, placed, rules)

        def loss(x, table):
            parts = _by_device((x, placed["targets"], placed["mask"]), 5, rules)
            return _chunked_sums(model(), rules, 0.0, table, *parts)[0]

        x = jax.device_put(np.ones((16, 8, 16), np.float32), placed["mask"].sharding)
        table = params["unembed"]
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, table).compile()
    got_rows = jax.tree.map(lambda a, b: a[: b.shape[0]], got[1]["unembed"], expected[1]["unembed"])
    np.testing.assert_allclose(got_rows, expected[1]["unembed"], atol=2e-5)
    assert float(got[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    layers = (got[1]["layers"], expected[1]["layers"])
    assert largest_relative_error(*layers) < 20 * 2**-24
    for moved in ("all-to-all", "collective-permute"):
        assert moved not in str(compiled.as_text())


def test_the_gradient_of_a_bfloat16_model_is_added_up_in_float32(model):
    # 4,096 equal tokens: in bfloat16 a running sum of equal terms stops after 256 of them.
    cfg = model(dtype="bfloat16", tie_embeddings=False)
    table = jax.random.normal(jax.random.key(0), (128, 16)) / 4
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (16,)), (4096, 1, 1, 16))
    targets = jnp.zeros((4096, 1, 1), jnp.int32)
    mask = jnp.ones((4096, 1, 1), bool)

    def gradient(x, table, cfg):
        def total(table):
            return _chunked_sums(cfg, None, 0.0, table, x, targets, mask)[0]

        return jax.grad(total)(table)

    got = jax.jit(gradient, static_argnums=2)(x.astype(jnp.bfloat16), table, cfg)
    assert got.dtype == jnp.float32
    one = jax.jit(gradient, static_argnums=2)(x.astype(jnp.bfloat16), table, model())
    np.testing.assert_allclose(got, one, rtol=2**-6, atol=2**-8 * float(jnp.abs(one).max()))


def test_logits_of_one_chunk_are_in_memory_at_a_time(model):
    shape = {"vocab_size": 4096, "context_length": 512}
    ids = jax.ShapeDtypeStruct((8, 512), jnp.int32)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {**dict.fromkeys(names, ids), "mask": jax.ShapeDtypeStruct((8, 512), jnp.bool_)}
    logits = 4 * 8 * 512 * 4096

    def temporaries(cfg) -> int:
        params = pm.abstract(models.specs(cfg))
        step = jax.grad(lambda params, batch: batch_nats(cfg, params, batch)[0])
        compiled = jax.jit(step).lower(params, batch).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(model(**shape)) > logits
    # Logits and slope of 128 tokens, and what the layer needs.
    assert temporaries(model(**shape, loss_chunk=128)) < logits / 4


WRONG = [-100, -1, 100, 127, 128, 2**31 - 1]
"""Ids that are none of the vocabulary's 100; from there to 127 are rows of padding."""


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("chunk", [None, 24])
def test_a_target_outside_the_vocabulary_is_no_number_unless_it_is_masked(
    model, make_batch, initial, wrong, chunk
):
    cfg, batch = model(loss_chunk=chunk), make_batch()
    params = initial("one device").params
    sums = functools.partial(total_and_gradients, cfg, params)
    right = sums(batch)
    masked = np.where(batch["mask"], batch["targets"], wrong)
    jax.tree.map(np.testing.assert_array_equal, sums(batch | {"targets": masked}), right)
    spoilt = np.array(batch["targets"])
    spoilt[tuple(np.argwhere(batch["mask"])[0])] = wrong
    nats, grads = sums(batch | {"targets": spoilt})
    assert np.isnan(nats)
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads))
    with pytest.raises(InputError, match=f"targets: {wrong}, which is not from 0 to 99"):
        batch_nats(cfg, params, batch | {"targets": spoilt})


def test_cross_entropy_of_what_is_no_token_are_no_number():
    logits = jnp.zeros((4, 5))
    nats, slope = jax.value_and_grad(lambda z: cross_entropy(z, jnp.array([-1, 5, 0, 4])).sum())(
        logits
    )
    assert np.isnan(nats)
    np.testing.assert_array_equal(np.isnan(slope).any(1), [True, True, False, False])


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (1, 3), (4, 3, 1), (4, 4)])
def test_targets_that_are_not_one_for_each_row_are_refused(shape):
    logits, targets = jnp.zeros((4, 3, 5)), jnp.zeros(shape, jnp.int32)
    with pytest.raises(InputError, match=r"one for each row of logits \(4, 3, 5\): of shape"):
        cross_entropy(logits, targets)


def test_without_a_mask_ignored_targets_are_those_of_pytorch(model, make_batch, initial):
    cfg, batch = model(), make_batch()
    params = initial("one device").params
    targets = np.where(batch["mask"], batch["targets"], IGNORED)
    unmasked: Any = {name: x for name, x in batch.items() if name != "mask"} | {"targets": targets}
    nats, other = nats_of(cfg, params, batch)[0], nats_of(cfg, params, unmasked)[0]
    assert float(nats) == float(other)
    assert count_targets(unmasked) == batch["mask"].sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": None}, "the batch has no 'targets', only 'tokens'"),
        ({"segment_ids": None}, "the batch has no 'segment_ids'"),
        ({"targets": np.zeros((16, 7), np.int32)}, r"targets of shape \(16, 7\) must have"),
        ({"mask": np.ones((16, 9), bool)}, r"mask of shape \(16, 9\) must have"),
        ({"mask": np.ones((16, 8), np.float32)}, "mask of dtype float32 must be bool"),
        (
            {name: np.zeros((0, 8), np.int32) for name in ("tokens", "targets", "mask")},
            "tokens of shape .* hold no token",
        ),
        ({"tokens": np.full((16, 8), 100, np.int32)}, "tokens: 100, and 127 more ids not from"),
        ({"tokens": np.zeros((16, 8))}, r"tokens float\d\d\[16, 8\] must be integers"),
    ],
)
def test_a_batch_that_is_none_is_refused_in_one_line(model, make_batch, initial, change, message):
    batch = {name: x for name, x in (make_batch() | change).items() if x is not None}
    with pytest.raises(InputError, match=message) as told:
        batch_nats(model(), initial("one device").params, batch)
    assert "\n" not in str(told.value)


def test_no_target_is_ignored_since_a_narrow_dtype_makes_it_look_so():
    targets = jnp.array([[156, 1]], jnp.uint8)  # -100 in eight bits
    np.testing.assert_array_equal(counted({"targets": targets}), [[True, True]])
