"""PPL-p% sparsity: how few neurons a model can do with before its perplexity rises by p %.

After Luo et al. 2024 (arXiv 2411.02335) and their code. A neuron's output at a token is a_j w_j,
a_j the activation's output and w_j row j of W_down; the neuron is active where |a_j| |w_j| is above
the layer's threshold, so the measure fits activations that are never exactly zero, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from polycom_jax import params as pm
from polycom_jax._errors import require
from polycom_jax.analysis.walk import embedded, layer_params
from polycom_jax.kernels.rope import SinCos
from polycom_jax.models import ModelConfig, layers
from polycom_jax.models.transformer import layer_specs
from polycom_jax.params import Params
from polycom_jax.training.loss import Batch, count_targets, counted, hidden_nats

PERPLEXITY_RISE = 0.01
"""p of PPL-p%, as a share."""
THRESHOLDS = 16
"""A layer's error is computed at so many thresholds above 0, and is linear between them."""
BISECTIONS = 10
"""Of CETT: it is found to a thousandth, as in the authors' code."""
NONE_IDLE = -1.0
"""A threshold that every neuron is above."""


@dataclass(frozen=True)
class Sparsity:
    """Which neurons are active at PPL-p%.

    Attributes:
        active_share: of a layer's neurons, mean over tokens, a layer each.
        thresholds: of |a_j| |w_j|, a layer each; infinite where none is active.
        cett: the error that all layers have at their thresholds ("cumulative errors of tail
            truncation"): mean over tokens of |sum of idle neurons' outputs| / |sum of all|.
        perplexity_rise: exp(mean loss without idle neurons - mean loss) - 1.
    """

    active_share: Float[np.ndarray, " L"]
    thresholds: Float[np.ndarray, " L"]
    cett: float
    perplexity_rise: float


def perplexity_sparsity(
    cfg: ModelConfig, params: Params, batch: Batch, rise: float = PERPLEXITY_RISE
) -> Sparsity:
    """The largest CETT, one for all layers, at which perplexity rises by no more than `rise`.

    At a CETT each layer has the largest threshold whose error is at most that. Errors are those of
    the whole model, where no neuron is left out: once a layer, at `THRESHOLDS` quantiles. What is
    left out is left out of all layers at once, and the model is run so for each CETT tried.

    Args:
        cfg: a dense model.
        params: its parameters, on one device.
        batch: as for `batch_nats`; tokens without a target are not counted.
        rise: p of PPL-p%, as a share.

    Raises:
        InputError: a mixture of experts, or a rise that is not positive.
    """
    require(not cfg.is_moe, "PPL-p% sparsity is defined for dense models; this is a mixture.")
    require(rise > 0, f"rise={rise} must be positive.")
    keep = jnp.asarray(counted(batch)).reshape(-1)
    require(bool(keep.any()), "No token of the batch has a target, so it has no perplexity.")
    whole, curves = _whole(cfg, params, batch, keep)

    def at(cett: float) -> Sparsity:
        thresholds = [threshold_at(cett, *curve) for curve in curves]
        nats, active = _thinned(cfg, params, batch, keep, thresholds)
        return Sparsity(active, np.array(thresholds), cett, _expm1(nats - whole))

    def allowed(found: Sparsity) -> bool:
        return found.perplexity_rise <= rise

    best, low, high = at(1.0), 0.0, 1.0
    if allowed(best):
        return best
    best = at(0.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = at(middle)
        if allowed(found):
            best, low = found, middle
        else:
            high = middle
    return best


def threshold_at(
    cett: float, thresholds: Float[np.ndarray, " G"], errors: Float[np.ndarray, " G"]
) -> float:
    """The largest threshold whose error is at most `cett`, linear between those given.

    Idle neurons' outputs may cancel, so errors need not rise everywhere: the last crossing counts.
    Infinite from the last error on, at which all are idle.
    """
    later = np.minimum.accumulate(errors[::-1])[::-1]
    return math.inf if cett >= later[-1] else float(np.interp(cett, later, thresholds))


@jax.jit
def dropped_errors(
    hidden: Float[Array, "N F"],
    w_down: Float[Array, "F D"],
    thresholds: Float[Array, " G"],
    keep: Bool[Array, " N"],
) -> Float[Array, " G"]:
    """Mean over kept tokens of |sum_j idle a_j w_j| / |sum_j a_j w_j|, for each threshold; 0 / 0 is
    0. In float32."""
    hidden, w_down = hidden.astype(jnp.float32), w_down.astype(jnp.float32)
    sizes = neuron_sizes(hidden, w_down)
    whole = jnp.linalg.norm(hidden @ w_down, axis=-1)

    def error(threshold: Array) -> Array:
        idle = jnp.linalg.norm(jnp.where(sizes <= threshold, hidden, 0) @ w_down, axis=-1)
        ratio = jnp.where(whole > 0, idle / jnp.where(whole > 0, whole, 1), 0)
        return jnp.mean(ratio, where=keep)

    return jax.lax.map(error, thresholds)


def neuron_sizes(hidden: Float[Array, "N F"], w_down: Float[Array, "F D"]) -> Float[Array, "N F"]:
    """|a_j| |w_j|: the norm of what each neuron adds to the residual stream, in float32."""
    rows = jnp.linalg.norm(w_down.astype(jnp.float32), axis=-1)
    return jnp.abs(hidden.astype(jnp.float32)) * rows[None, :]


def _expm1(nats: float) -> float:
    return math.expm1(min(nats, 700.0))  # not much more is a float64


def _whole(
    cfg: ModelConfig, params: Params, batch: Batch, keep: Array
) -> tuple[float, list[tuple[np.ndarray, np.ndarray]]]:
    """The mean loss of the whole model, and each layer's thresholds and errors."""
    x, *beside = embedded(cfg, params, batch)
    levels, curves = np.arange(1, THRESHOLDS + 1) / THRESHOLDS, []
    for own in layer_params(params):
        x, hidden, sizes, _ = _layer(cfg, own, x, *beside, keep, NONE_IDLE)
        quantiles = np.quantile(np.asarray(sizes)[np.asarray(keep)], levels)
        thresholds = np.concatenate([[0.0], quantiles]).astype(np.float32)
        errors = dropped_errors(hidden, own["ffn"]["w_down"], thresholds, keep)
        curves.append((thresholds, np.asarray(errors)))
    return _mean_nats(cfg, params, x, batch), curves


def _thinned(
    cfg: ModelConfig, params: Params, batch: Batch, keep: Array, thresholds: Sequence[float]
) -> tuple[float, Float[np.ndarray, " L"]]:
    """The mean loss with active neurons alone, and their share in each layer."""
    (x, *beside), shares = embedded(cfg, params, batch), []
    for own, threshold in zip(layer_params(params), thresholds, strict=True):
        x, _, _, share = _layer(cfg, own, x, *beside, keep, threshold)
        shares.append(float(share))
    return _mean_nats(cfg, params, x, batch), np.array(shares)


@partial(jax.jit, static_argnums=0)
def _layer(
    cfg: ModelConfig,
    params: Any,
    x: Array,
    sin_cos: SinCos,
    segment_ids: Array | None,
    keep: Array,
    threshold: float | Array,
) -> tuple[Array, Array, Array, Array]:
    """A layer without its idle neurons; the activation's output, sizes, and the active share."""
    params = pm.cast(layer_specs(cfg), params, cfg.dtype)
    out, _ = layers.attention(cfg, params["attention"], x, sin_cos, segment_ids, None, None)
    x, block = x + out, params["ffn"]
    inputs = map(layers.flat, layers.pre_activations(cfg, block, x, None))
    hidden = cfg.activation_fn.apply(block["activation"], *inputs)
    sizes = neuron_sizes(hidden, block["w_down"])
    active = sizes > threshold
    out = jnp.dot(jnp.where(active, hidden, 0), block["w_down"])
    share = jnp.mean(jnp.mean(active, axis=-1), where=keep)
    return x + out.reshape(x.shape), hidden, sizes, share


def _mean_nats(cfg: ModelConfig, params: Params, x: Array, batch: Batch) -> float:
    return float(_nats(cfg, params, x, batch)) / float(count_targets(batch))


@partial(jax.jit, static_argnums=0)
def _nats(cfg: ModelConfig, params: Params, x: Array, batch: Batch) -> Array:
    x = layers.final_norm(cfg, params, x)
    return hidden_nats(cfg, params, x, batch)
