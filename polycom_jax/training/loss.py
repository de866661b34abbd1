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
from polycom_jax.models.transformer import softcapped
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


def cross_entropy(logits: Float[Array, "... V"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """-log softmax(logits)[target], in float32 whatever the logits' dtype.

    Confident tokens keep their small loss and slope, both with float32's relative error: the
    probability of all other tokens is summed as such, and is not what 1 - p leaves. A target that
    is none of the V tokens gives NaN, in the slope too.

    Raises:
        InputError: targets that are not one for each row of logits.
    """
    wanted, found = jnp.shape(logits)[:-1], jnp.shape(targets)
    require(
        jnp.ndim(logits) >= 1 and found == wanted,
        f"targets of shape {found} must be one for each row of logits {jnp.shape(logits)}: of shape"
        f" {wanted}.",
    )
    return _cross_entropy(logits, targets)


@jax.custom_jvp
def _cross_entropy(logits: Float[Array, "... V"], targets: Int[Array, "..."]) -> Array:
    return _nats_and_slope(logits, targets)[0]


@_cross_entropy.defjvp
def _cross_entropy_rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
    nats, _, slope = _nats_and_slope(*primals)
    return nats, jnp.sum(slope * tangents[0].astype(jnp.float32), axis=-1)


def _nats_and_slope(
    logits: Float[Array, "... V"], targets: Int[Array, "..."], z_loss: float = 0.0
) -> tuple[Float[Array, "..."], Float[Array, "..."] | None, Float[Array, "... V"]]:
    """`cross_entropy`, the z-loss if there is one, and the derivative of what they add up to.

    That is p - one_hot(target) + 2 z_loss log(sum(exp(logits))) p, where p is the softmax.
    """
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
    if not z_loss:
        return nats[..., 0], None, slope
    log_sum = top + jnp.log1p(rest)
    slope = slope + 2 * z_loss * log_sum * powers / (1 + rest)
    return nats[..., 0], z_loss * jnp.square(log_sum)[..., 0], slope


def batch_nats(
    cfg: ModelConfig,
    params: Params,
    batch: Batch,
    rules: Rules | None = None,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum of `cross_entropy` over the batch's unmasked targets, and the model's `aux`.

    With `z_loss`, each target counts as cross_entropy + z_loss log(sum(exp(logits)))^2, and `aux`
    has the mean of the second term over them as `z_loss`, without a derivative.

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
    nats, *z = _hidden_sums(cfg, params, x, batch, rules, z_loss)
    if z:
        aux = {**aux, "z_loss": z[0] / jnp.maximum(count_targets(batch), 1.0)}
    return nats, aux


def documents(cfg: ModelConfig, batch: Batch) -> tuple[Array, Array | None]:
    """Positions and segment ids: the batch's iff `cfg.document_mask`, else 0 ... T-1 and none."""
    if cfg.document_mask:
        return batch["positions"], batch["segment_ids"]
    shape = batch["tokens"].shape
    return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape), None


def hidden_nats(
    cfg: ModelConfig, params: Params, x: Float[Array, "B T D"], batch: Batch
) -> Float[Array, ""]:
    """`batch_nats` from final hidden states on; of `params` it reads the unembedding alone."""
    return _hidden_sums(cfg, params, x, batch, None, 0.0)[0]


def _hidden_sums(
    cfg: ModelConfig,
    params: Params,
    x: Float[Array, "B T D"],
    batch: Batch,
    rules: Rules | None,
    z_loss: float,
) -> tuple[Float[Array, ""], ...]:
    """What is minimised and, with `z_loss`, the part of it that is the z-loss, both summed."""
    rules = rules_here(rules)
    with jax.named_scope("loss"):
        mask = counted(batch)
        # Of a masked token nothing is read, and so no NaN: neither its loss nor its slope.
        targets = jnp.where(mask, inside(cfg.vocab_size, batch["targets"], -1), 0)
        if cfg.loss_chunk is not None:
            table = params["embed"] if cfg.tie_embeddings else params["unembed"]
            parts = _by_device((x, targets, mask), cfg.loss_chunk, rules)
            return _chunked_sums(cfg, rules, z_loss, table, *parts)
        logits = models.unembed(cfg, params, x, padded=True)
        logits = constrain(logits, rules, "batch", "seq", "vocab")
        nats = cross_entropy(logits, targets)
        if not z_loss:
            return _sums((nats, None), mask)
        z = z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
        total, part = _sums((nats, z), mask)
        return total, jax.lax.stop_gradient(part)


def _sums(terms: tuple[Array, Array | None], mask: Array) -> tuple[Array, ...]:
    """Those of nats and, with a z-loss, of nats plus z and of z, over unmasked targets."""
    nats, z = terms
    each = (nats,) if z is None else (nats + z, z)
    return tuple(jnp.sum(jnp.where(mask, term, 0.0)) for term in each)


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

_Z_LOSS_ROOM = 2.0**-3
"""A z-loss makes slopes larger than 1, for which the factor leaves so much room."""


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _chunked_sums(
    cfg: ModelConfig,
    rules: Rules | None,
    z_loss: float,
    table: Float[Array, "V D"],
    x: Float[Array, "N G C D"],
    targets: Int[Array, "N G C"],
    mask: Bool[Array, "N G C"],
) -> tuple[Float[Array, ""], ...]:
    """`_hidden_sums` over chunks (N) of tokens (C) of every device (G); the first has a
    derivative."""
    gathered = _gathered(cfg, rules, table)

    def add(totals: tuple[Array, ...], part: Any) -> tuple[tuple[Array, ...], None]:
        x, targets, mask = part
        nats, z, _ = _nats_and_slope(_logits(cfg, rules, gathered, x)[0], targets, z_loss)
        return _added(totals, _sums((nats, z), mask)), None

    return jax.lax.scan(add, _zeros(z_loss), (x, targets, mask))[0]


def _zeros(z_loss: float) -> tuple[Array, ...]:
    return tuple(jnp.zeros((), jnp.float32) for _ in range(2 if z_loss else 1))


def _added(totals: tuple[Array, ...], more: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(total + one for total, one in zip(totals, more, strict=True))


def _sums_and_gradients(
    cfg: ModelConfig,
    rules: Rules | None,
    z_loss: float,
    table: Array,
    x: Array,
    targets: Array,
    mask: Array,
) -> tuple[Array, ...]:
    """The gradients of the first sum by table and x, and the sums: while a chunk's logits are
    there, so is all that these need.

    Three products a chunk; recomputing the logits in the backward pass would be a fourth.
    """
    gathered, factor = _gathered(cfg, rules, table), _SLOPE_FACTORS.get(cfg.dtype, 1.0)
    if z_loss and factor != 1:
        factor *= _Z_LOSS_ROOM

    def add(carry: tuple[Any, Array], part: Any) -> tuple[tuple[Any, Array], Array]:
        totals, d_table = carry
        x, targets, mask = part
        logits, steepness = _logits(cfg, rules, gathered, x)
        nats, z, slope = _nats_and_slope(logits, targets, z_loss)
        # A masked token counts as zero; in the model's dtype the products run at full speed.
        slope = jnp.where(mask[..., None], slope, 0.0)
        slope = slope if steepness is None else slope * steepness
        slope = (slope * factor).astype(x.dtype) if factor != 1 else slope.astype(x.dtype)
        dx = jnp.einsum("gcv,vd->gcd", slope, gathered, preferred_element_type=jnp.float32)
        # Each device adds up its own tokens; the devices' sums are added once, in the end.
        own = jnp.einsum("gcv,gcd->gvd", slope, x, preferred_element_type=jnp.float32)
        if factor != 1:
            dx, own = dx / factor, own / factor
        d_table = constrain(d_table + own, rules, "batch", "vocab", None)
        totals = _added(totals, _sums((nats, z), mask))
        return (totals, d_table), dx.astype(x.dtype)

    zeros = constrain(jnp.zeros((x.shape[1], *table.shape)), rules, "batch", "vocab", None)
    (totals, d_table), dx = jax.lax.scan(add, (_zeros(z_loss), zeros), (x, targets, mask))
    d_table = constrain(jnp.sum(d_table, axis=0), rules, "vocab", "embed")
    return d_table.astype(table.dtype), dx, *totals


@_chunked_sums.defjvp
def _chunked_sums_rule(
    cfg: ModelConfig, rules: Rules | None, z_loss: float, primals: Any, tangents: Any
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    both = partial(_sums_and_gradients, cfg, rules, z_loss)
    d_table, dx, total, *z = opaque_call(both, *primals)
    change = linear_map(_along, _times, (d_table, dx), tangents[:2], total)
    return (total, *z), (change, *map(jnp.zeros_like, z))


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
) -> tuple[Float[Array, "G C V"], Float[Array, "G C V"] | None]:
    """As `models.unembed` with padding columns; and the derivative of a soft cap, if any."""
    logits = jnp.einsum("gcd,vd->gcv", x, table, preferred_element_type=jnp.float32)
    cap, steepness = cfg.logit_softcap, None
    if cap is not None:
        logits = softcapped(cfg, logits)
        steepness = (1 - logits / cap) * (1 + logits / cap)
    real = jnp.arange(table.shape[0])[None, None, :] < cfg.vocab_size
    logits = jnp.where(real, logits, jnp.finfo(jnp.float32).min)
    return constrain(logits, rules, "batch", None, "vocab"), steepness
