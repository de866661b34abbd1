"""A mixture of experts in the place of a feed-forward block: parameters, router, losses.

Where the experts lie and how tokens get to them stands in `experts.py`. B batch, T sequence,
N = B T tokens, D model, F hidden width of an expert, E experts, K choices of a token.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from polycom_jax.models.config import ModelConfig
from polycom_jax.models.experts import run_experts
from polycom_jax.models.layers import ffn_specs, flat, initializers, rms_norm
from polycom_jax.params import ParamSpec, Specs
from polycom_jax.sharding import Rules, constrain


class Routing(NamedTuple):
    """Where each token goes, and what follows for the losses.

    Attributes:
        weights: of the chosen experts' outputs, float32.
        chosen: their indices, the most probable first.
        statistics: float32 numbers of the layer, see `summary`.
    """

    weights: Float[Array, "N K"]
    chosen: Int[Array, "N K"]
    statistics: dict[str, Array]


def moe_specs(cfg: ModelConfig) -> Specs:
    """Parameters of one layer's experts and their router."""
    experts, specs = cfg.moe.num_experts, ffn_specs(cfg)
    for name in specs.keys() & {"w_gate", "w_up", "w_down"}:
        specs[name] = _one_each(experts, specs[name])
    shape, axes = (cfg.embed_dim, experts), ("embed", None)
    return {**specs, "router": ParamSpec(shape, axes, initializers(cfg).table, "router")}


def _one_each(experts: int, spec: ParamSpec) -> ParamSpec:
    return replace(spec, shape=(experts, *spec.shape), axes=("expert", *spec.axes))


def moe(
    cfg: ModelConfig,
    params: Any,
    x: Float[Array, "B T D"],
    rules: Rules | None,
    loss_mask: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """Pre-norm mixture: sum over the K experts of a token of its weight times their output.

    Returns:
        What is added to the residual stream, and the layer's statistics, of the tokens of
        `loss_mask`.
    """
    y = flat(rms_norm(x, params["norm"], cfg.norm_eps))
    counted = None if loss_mask is None else loss_mask.reshape(-1)
    with jax.named_scope("router"):
        routing = route(cfg, params["router"], y, counted)
    experts = {name: params[name] for name in params if name not in ("norm", "router")}
    out, dropped = run_experts(
        cfg, experts, y, routing.weights, routing.chosen, rules, first=counted
    )
    share = dropped.astype(jnp.float32) / (_token_count(y, counted) * cfg.moe.top_k)
    out = constrain(out.reshape(x.shape), rules, "batch", "seq", "residual")
    return out, {**routing.statistics, "dropped": share}


def route(
    cfg: ModelConfig,
    router: Float[Array, "D E"],
    y: Float[Array, "N D"],
    counted: Bool[Array, " N"] | None = None,
) -> Routing:
    """The K experts of the greatest softmax(y router), with these probabilities as weights.

    All in float32; under muP the logits are divided by m, as those of the vocabulary.

    Losses as in OLMoE (Muennighoff et al. 2024, section 2): load balance, E times
    the sum over experts of (share of all choices) x (mean probability), which is 1 where either is
    even (Shazeer et al. 2017; shares as in megablocks, not HF's K times as much), and the z-loss,
    the mean square of logsumexp (Zoph et al. 2022). Means run over the `counted` tokens (None: all)
    of the (micro-)batch, over all devices.
    """
    experts, k = cfg.moe.num_experts, cfg.moe.top_k
    # Three passes of bfloat16 on a TPU: its default of one would let the choice of experts depend
    # on rounding.
    logits = jnp.dot(y.astype(jnp.float32), router, precision=jax.lax.Precision.HIGH)
    if cfg.width_multiple != 1:
        logits = logits / cfg.width_multiple
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    weights, chosen = jax.lax.top_k(p, k)
    if cfg.moe.normalize_top_k:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    ids = jnp.arange(experts, dtype=chosen.dtype)
    hits = chosen[:, :, None] == ids[None, None, :]
    if counted is not None:
        hits = hits & counted[:, None, None]
    counts = jnp.sum(hits, axis=(0, 1), dtype=jnp.int32)
    tokens = _token_count(y, counted)

    def mean(x: Float[Array, "N ..."]) -> Float[Array, "..."]:
        if counted is not None:
            x = jnp.where(counted.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        return jnp.sum(x, axis=0) / tokens

    load, probability = counts.astype(jnp.float32) * (experts / (tokens * k)), mean(p)
    statistics = {
        "load": load,
        "probability": probability,
        "load_balance_loss": jnp.sum(load * probability),
        "router_z_loss": mean(jnp.square(jax.nn.logsumexp(logits, axis=-1))),
        "entropy": jax.lax.stop_gradient(-mean(jnp.sum(p * log_p, axis=-1))),
    }
    return Routing(weights, chosen, statistics)


def _token_count(y: Float[Array, "N D"], counted: Bool[Array, " N"] | None) -> Any:
    """How many tokens count; 1 if none does, when all sums are 0."""
    if counted is None:
        return len(y)
    return jnp.maximum(jnp.sum(counted, dtype=jnp.float32), 1)


def dropless(cfg: ModelConfig) -> ModelConfig:
    """The same model without a capacity: what it makes of a row depends on that row alone."""
    return replace(cfg, moe=replace(cfg.moe, capacity_factor=None))


def of_whole_batch(cfg: ModelConfig, aux: dict[str, Any]) -> dict[str, Any]:
    """The `aux` of a batch from the sum over its parts, each weighted by its share of the tokens.

    The load-balance loss is a product of two means, which is not the mean of products over parts:
    it is computed again, from the means over the whole batch.
    """
    if "layers" not in aux:
        return aux
    layers = aux["layers"]
    balance = jnp.sum(layers["load"] * layers["probability"], axis=-1)
    return aux | summary(cfg, {**layers, "load_balance_loss": balance})


def summary(cfg: ModelConfig, layers: dict[str, Float[Array, "L ..."]]) -> dict[str, Any]:
    """The model's `aux` from its layers' statistics.

    Returns:
        `auxiliary_loss`, the weighted sum of `load_balance_loss` and `router_z_loss`, both means
        over layers; `router_entropy` in nats, at most log E; `expert_load` [E], the mean over
        layers of each expert's share of the choices times E, and `expert_load_min` and
        `expert_load_max` over all experts of all layers; `dropped_share` of all choices; and
        `layers`, what it was given.
    """
    load = layers["load"]
    balance, z = jnp.mean(layers["load_balance_loss"]), jnp.mean(layers["router_z_loss"])
    return {
        "auxiliary_loss": cfg.moe.load_balance_weight * balance + cfg.moe.router_z_weight * z,
        "load_balance_loss": balance,
        "router_z_loss": z,
        "router_entropy": jnp.mean(layers["entropy"]),
        "expert_load": jnp.mean(load, axis=0),
        "expert_load_min": jnp.min(load),
        "expert_load_max": jnp.max(load),
        "dropped_share": jnp.mean(layers["dropped"]),
        "layers": layers,
    }
