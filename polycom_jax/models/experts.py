"""Placeholder until the sharded version is here (one device)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.models.config import ModelConfig
from polycom_jax.sharding import Rules


def run_experts(
    cfg: ModelConfig, params: Any, y: Array, weights: Array, chosen: Array, rules: Rules | None
) -> tuple[Array, Array]:
    """Sorts, multiplies, combines."""
    k = chosen.shape[1]
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    sizes = jnp.bincount(chosen.reshape(-1), length=cfg.moe.num_experts).astype(jnp.int32)
    rows = y[order // k]
    names = ("w_gate", "w_up") if cfg.row.gated else ("w_up",)
    hidden = [jax.lax.ragged_dot(rows, params[n], sizes) for n in names]
    h = cfg.row.apply(params["activation"], *hidden)
    out = jax.lax.ragged_dot(h, params["w_down"], sizes)
    back = jnp.argsort(order)
    out = out[back].reshape(*chosen.shape, -1).astype(jnp.float32) * weights[:, :, None]
    return jnp.sum(out, axis=1).astype(y.dtype), jnp.zeros((), jnp.int32)
