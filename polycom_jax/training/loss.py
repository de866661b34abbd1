"""Cross entropy of the next token, as a sum: the caller divides by the global number of targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax import models
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, constrain

Batch = dict[str, Array]
"""`tokens`, `targets`, `segment_ids`, `positions`: int32 [B, T]; `mask`: bool [B, T], False where
there is no target."""


def token_nats(logits: Float[Array, "... V"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """-log softmax(logits)[target], in float32 whatever the logits' dtype.

    The target is picked by comparison, not by a gather, which would collect a vocabulary that is
    split over devices.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    ids = jax.lax.broadcasted_iota(targets.dtype, logp.shape, logp.ndim - 1)
    return -jnp.sum(jnp.where(ids == targets[..., None], logp, 0.0), axis=-1)


def batch_nats(
    cfg: ModelConfig, params: Params, batch: Batch, rules: Rules | None = None
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum of `token_nats` over the batch's unmasked targets, and the model's `aux`.

    Attention stops at document boundaries, and positions restart there, iff `cfg.document_mask`.
    """
    documents = {}
    if cfg.document_mask:
        documents = {name: batch[name] for name in ("segment_ids", "positions")}
    x, aux, _ = models.hidden(cfg, params, batch["tokens"], rules=rules, **documents)
    with jax.named_scope("loss"):
        logits = models.unembed(cfg, params, x, padded=True)
        logits = constrain(logits, rules, "batch", "seq", "vocab")
        nats = token_nats(logits, batch["targets"])
        return jnp.sum(jnp.where(batch["mask"], nats, 0.0)), aux
