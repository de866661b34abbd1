"""Cross entropy of the next token, as a sum: the caller divides by the global number of targets."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polycom_jax import models
from polycom_jax._errors import require
from polycom_jax.kernels.linear import linear_map
from polycom_jax.kernels.opaque_call import opaque_call
from polycom_jax.models import ModelConfig
from polycom_jax.models.ids import check_range, inside
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, constrain, num_parts, rules_here

Batch = dict[str, Array]
"""`tokens`, `targets`, `segment_ids`, `positions`: int32 [B, T]; `mask`: bool [B, T], False where
there is no target. Without a mask, targets of `IGNORED` are none."""

IGNORED = -100
"""How PyTorch, and data made for it, mark a target that does not count (`ignore_index`)."""


def counted(batch: Batch) -> Bool[Array, "B T"]:
    """Which targets count: the batch's `mask`, or those that are not `IGNORED`.

    Raises:
        InputError: a mask of floating numbers: weights are not taken.
    """
    if "mask" not in batch:
        return batch["targets"].astype(jnp.int32) != IGNORED
    mask = batch["mask"]
    require(
        not jnp.issubdtype(mask.dtype, jnp.inexact),
        f"mask of dtype {mask.dtype} must be bool: True where a target counts, which all do alike.",
    )
    return mask.astype(bool)


def count_targets(batch: Batch) -> Float[Array, ""]:
    """The number of targets that count."""
    return jnp.sum(counted(batch), dtype=jnp.float32)


@jax.custom_jvp
def cross_entropy(logits: Float[Array, "... V"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """-log softmax(logits)[target], in float32 whatever the logits' dtype.

    Confident tokens keep their small loss and slope, both with float32's relative error: the
    probability of all other tokens is summed as such, and is not what 1 - p leaves. A target that
    is none of the V tokens gives NaN, in the slope too.
    """
    return _nats_and_slope(logits, targets)[0]


@cross_entropy.defjvp
def _cross_entropy_rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
    nats, slope = _nats_and_slope(*primals)
    return nats, jnp.sum(slope * tangents[0].astype(jnp.float32), axis=-1)


def _nats_and_slope(
    logits: Float[Array, "... V"], targets: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "... V"]]:
    """`cross_entropy`, and its derivative softmax(logits) - one_hot(target)."""
    logits = logits.astype(jnp.float32)
    # The target is picked by comparison, not by a gather, which would collect a vocabulary that is
    # split over devices.
    targets = inside(logits.shape[-1], targets, -1)
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    chosen = ids == targets[..., None]
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    powers = jnp.exp(logits - top)
    others = jnp.sum(jnp.where(chosen, 0.0, powers), axis=-1, keepdims=True)
    gap = top - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1, keepdims=True)
    # The sum of powers less one: where the target is the largest, its own power is that one.
    rest = others + jnp.expm1(-gap)
    rest = jnp.where(targets[..., None] < 0, jnp.nan, rest)
    nats = gap + jnp.log1p(rest)
    slope = jnp.where(chosen, -others, powers) / (1 + rest)
    return nats[..., 0], slope


def batch_nats(
    cfg: ModelConfig, params: Params, batch: Batch, rules: Rules | None = None
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum of `cross_entropy` over the batch's unmasked targets, and the model's `aux`.

    Attention stops at document boundaries, and positions restart there, iff `cfg.document_mask`.
    With `cfg.loss_chunk`, logits of that many tokens a device exist at a time. Masked targets may
    be anything; another one outside the vocabulary makes the sum NaN.

    Raises:
        InputError: no tokens, or an array that is missing or of another shape than theirs.
    """
    names = ("segment_ids", "positions") if cfg.document_mask else ()
    for name in ("tokens", "targets", *names):
        require(name in batch, f"the batch has no {name!r}, only {', '.join(map(repr, batch))}.")
    shape = jnp.shape(batch["tokens"])
    for name in ("targets", "mask"):
        found = jnp.shape(batch[name]) if name in batch else shape
        require(found == shape, f"{name} of shape {found} must have that of tokens, {shape}.")
    check_range("targets", cfg.vocab_size, batch["targets"], counted(batch))
    documents = {name: batch[name] for name in names}
    x, aux, _ = models.hidden(
        cfg, params, batch["tokens"], loss_mask=counted(batch), rules=rules, **documents
    )
    return hidden_nats(cfg, params, x, batch, rules), aux


def documents(cfg: ModelConfig, batch: Batch) -> tuple[Array, Array | None]:
    """Positions and segment ids: the batch's iff `cfg.document_mask`, else 0 ... T-1 and none."""
    if cfg.document_mask:
        return batch["positions"], batch["segment_ids"]
    shape = batch["tokens"].shape
    return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape), None


def hidden_nats(
    cfg: ModelConfig,
    params: Params,
    x: Float[Array, "B T D"],
    batch: Batch,
    rules: Rules | None = None,
) -> Float[Array, ""]:
    """`batch_nats` from final hidden states on; of `params` it reads the unembedding alone."""
    rules = rules_here(rules)
    with jax.named_scope("loss"):
        mask = counted(batch)
        # Of a masked token nothing is read, and so no NaN: neither its loss nor its slope.
        targets = jnp.where(mask, inside(cfg.vocab_size, batch["targets"], -1), 0)
        if cfg.loss_chunk is not None:
            table = params["embed"] if cfg.tie_embeddings else params["unembed"]
            parts = _by_device((x, targets, mask), cfg.loss_chunk, rules)
            return _chunked_nats(cfg, rules, table, *parts)
        logits = models.unembed(cfg, params, x, padded=True)
        logits = constrain(logits, rules, "batch", "seq", "vocab")
        nats = cross_entropy(logits, targets)
        return jnp.sum(jnp.where(mask, nats, 0.0))


def _by_device(arrays: tuple[Array, ...], chunk: int, rules: Rules | None) -> tuple[Array, ...]:
    """[B, T, ...] -> [chunks, devices, tokens, ...]: each chunk has tokens of every device.

    Consecutive tokens would lie on a few devices, and would have to travel. Chunks are of one size,
    at most `chunk`; the last is filled up with zeros, i.e. with masked tokens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1
    if rules is not None and not mesh.empty:
        devices = num_parts(rules.partition(("batch",))[0], mesh)
    tokens = arrays[0].shape[0] * arrays[0].shape[1] // devices
    chunks = -(-tokens // chunk)
    size = -(-tokens // chunks)

    def split(x: Array) -> Array:
        x = x.reshape(devices, tokens, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, chunks * size - tokens)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(devices, chunks, size, *x.shape[2:]).swapaxes(0, 1)
        return constrain(x, rules, None, "batch", *[None] * (x.ndim - 2))

    return tuple(map(split, arrays))


_SLOPE_FACTORS = {"float16": 2.0**15}
"""By the model's dtype, what slopes are multiplied by while products read them. They are at most 1,
and those of rare tokens are smaller than float16's smallest numbers."""


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _chunked_nats(
    cfg: ModelConfig,
    rules: Rules | None,
    table: Float[Array, "V D"],
    x: Float[Array, "N G C D"],
    targets: Int[Array, "N G C"],
    mask: Bool[Array, "N G C"],
) -> Float[Array, ""]:
    """The sum of `cross_entropy` over chunks (N) of tokens (C) of every device (G)."""
    gathered = _gathered(cfg, rules, table)

    def add(total: Array, part: Any) -> tuple[Array, None]:
        x, targets, mask = part
        nats = cross_entropy(_logits(cfg, rules, gathered, x), targets)
        return total + jnp.sum(jnp.where(mask, nats, 0.0)), None

    return jax.lax.scan(add, jnp.zeros((), jnp.float32), (x, targets, mask))[0]


def _sum_and_gradients(
    cfg: ModelConfig, rules: Rules | None, table: Array, x: Array, targets: Array, mask: Array
) -> tuple[Array, Array, Array]:
    """The sum and its gradients: while a chunk's logits are there, so is all that these need.

    Three products a chunk; recomputing the logits in the backward pass would be a fourth.
    """
    gathered, factor = _gathered(cfg, rules, table), _SLOPE_FACTORS.get(cfg.dtype, 1.0)

    def add(carry: tuple[Array, Array], part: Any) -> tuple[tuple[Array, Array], Array]:
        total, d_table = carry
        x, targets, mask = part
        nats, slope = _nats_and_slope(_logits(cfg, rules, gathered, x), targets)
        # A masked token counts as zero; in the model's dtype the products run at full speed.
        slope = jnp.where(mask[..., None], slope, 0.0)
        slope = (slope * factor).astype(x.dtype) if factor != 1 else slope.astype(x.dtype)
        dx = jnp.einsum("gcv,vd->gcd", slope, gathered, preferred_element_type=jnp.float32)
        # Each device adds up its own tokens; the devices' sums are added once, in the end.
        own = jnp.einsum("gcv,gcd->gvd", slope, x, preferred_element_type=jnp.float32)
        if factor != 1:
            dx, own = dx / factor, own / factor
        d_table = constrain(d_table + own, rules, "batch", "vocab", None)
        total = total + jnp.sum(jnp.where(mask, nats, 0.0))
        return (total, d_table), dx.astype(x.dtype)

    zeros = constrain(jnp.zeros((x.shape[1], *table.shape)), rules, "batch", "vocab", None)
    carry = (jnp.zeros((), jnp.float32), zeros)
    (total, d_table), dx = jax.lax.scan(add, carry, (x, targets, mask))
    d_table = constrain(jnp.sum(d_table, axis=0), rules, "vocab", "embed")
    return total, d_table.astype(table.dtype), dx


@_chunked_nats.defjvp
def _chunked_nats_rule(
    cfg: ModelConfig, rules: Rules | None, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    total, *gradients = opaque_call(partial(_sum_and_gradients, cfg, rules), *primals)
    return total, linear_map(_along, _times, gradients, tangents[:2], total)


def _along(gradients: Sequence[Array], changes: Sequence[Array]) -> Array:
    by_table, by_x = (
        jnp.sum(g * change, dtype=jnp.float32) for g, change in zip(gradients, changes, strict=True)
    )
    return by_table + by_x


def _times(gradients: Sequence[Array], weight: Array) -> Sequence[Array]:
    return [(g * weight).astype(g.dtype) for g in gradients]


def _gathered(cfg: ModelConfig, rules: Rules | None, table: Array) -> Array:
    # Once, before the loop over chunks.
    return constrain(table.astype(cfg.dtype), rules, "vocab", None)


def _logits(
    cfg: ModelConfig, rules: Rules | None, table: Float[Array, "V D"], x: Float[Array, "G C D"]
) -> Float[Array, "G C V"]:
    """As `models.unembed` with padding columns."""
    logits = jnp.einsum("gcd,vd->gcv", x, table, preferred_element_type=jnp.float32)
    real = jnp.arange(table.shape[0])[None, None, :] < cfg.vocab_size
    logits = jnp.where(real, logits, jnp.finfo(jnp.float32).min)
    return constrain(logits, rules, "batch", None, "vocab")
