"""Another activation in a trained dense model: coefficients by least squares on real activations.

For each layer, with phi_i(h) what the new activation gives for the i-th unit vector of
coefficients, and old(h) the present activation,

    coeffs = argmin sum over tokens and hidden units of (old(h) - sum_i coeffs[i] phi_i(h))^2,

h being what the layer's feed-forward block meets in the unchanged model. Every PolyCom is
linear in its coefficients, so this is the whole problem, and r + 1 numbers a layer solve it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polycom_jax._errors import InputError, require
from polycom_jax.kernels.feed_forward import inward_names
from polycom_jax.models import ModelConfig, layers
from polycom_jax.models.ids import lookup
from polycom_jax.params import Params, cast
from polycom_jax.table import Activation, ActivationOptions, get_activation
from polycom_jax.training.loss import Batch, count_targets, counted, documents

_GATED: Mapping[str, str] = {"poly_norm": "poly_norm_glu"}
"""Asked for in a gated block: the activation that applies it to the gate."""


@dataclass(frozen=True)
class Swapped:
    """A model with another activation.

    Attributes:
        cfg: of the new model; widths and matrices are the old one's.
        params: of the new model; all but the activation's are the old arrays.
        explained: of each layer, 1 - |old - new|^2 / |old|^2 on the activations fitted to.
    """

    cfg: ModelConfig
    params: Params
    explained: Float[np.ndarray, " L"]


def replacement(cfg: ModelConfig, name: str, options: ActivationOptions) -> Activation:
    """The activation that takes the place of the model's: of a gated model, one that is gated too.

    Raises:
        InputError: none fits, or its coefficients cannot be fitted; the likely one is named.
    """
    require(not cfg.is_moe, "moe: activations are replaced in dense models only.")
    new = get_activation(name, options)
    if cfg.activation_fn.gated and not new.gated:
        if name not in _GATED:
            raise InputError(
                f"activation={name!r} has no gated form to take the place of"
                f" {cfg.activation_name!r}; there are: {', '.join(_GATED.values())}."
            )
        new = get_activation(_GATED[name], options)
    require(
        cfg.activation_fn.gated or not new.gated,
        f"activation={name!r} wants a gate, and {cfg.activation_name!r} has none; take poly_norm.",
    )
    require(
        new.is_polynomial,
        f"activation={name!r} has no coefficients to fit; take poly_norm or another PolyCom.",
    )
    require(
        not options.sigmoid and options.bound is None,
        "activation_options: sigmoid and bound make the output non-linear in the coefficients;"
        " leave them out.",
    )
    return new


def swap(cfg: ModelConfig, params: Params, batches: Iterable[Batch], new: Activation) -> Swapped:
    """The model with `new` in place of its activation, fitted on all unmasked tokens of `batches`.

    A slope (`poly_prelu`) keeps its initial value. Sums are float32 within a batch and layer, and
    float64 over batches.

    Args:
        cfg: a dense model.
        params: its parameters.
        batches: as for training; a few thousand tokens will do for four coefficients. Without a
            mask, those with a target count.
        new: from `replacement`.

    Raises:
        InputError: no batches, none with an unmasked token, or activations that are not finite.
    """
    fresh = new.init(jax.random.key(0))
    totals: Any = None
    tokens = 0.0
    for batch in batches:
        tokens += float(count_targets(batch))
        sums = jax.device_get(_layer_sums(cfg, new, params, fresh, batch))
        sums = jax.tree.map(partial(np.asarray, dtype=np.float64), sums)
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    require(tokens > 0, "There is no text to fit the coefficients on: no token, or all are masked.")
    groups, explained = [], []
    for group, (gram, cross, power) in zip(params["layers"], totals, strict=True):
        require(
            bool(np.isfinite(gram).all() and np.isfinite(cross).all() and np.isfinite(power).all()),
            f"The activations of {cfg.activation_name!r}, or powers of what it is applied to, are"
            " not finite; nothing can be fitted to them.",
        )
        coeffs = np.stack([solve(*layer) for layer in zip(gram, cross, strict=True)])
        residual = power - 2 * np.einsum("li,li->l", coeffs, cross)
        residual += np.einsum("li,lij,lj->l", coeffs, gram, coeffs)
        # Of a layer that gives zeros nothing is left.
        explained.append(1 - np.divide(residual, power, out=np.zeros_like(power), where=power > 0))
        depth = len(coeffs)
        own = {name: jnp.tile(value, (depth, *[1] * value.ndim)) for name, value in fresh.items()}
        own["coeffs"] = jnp.asarray(coeffs, jnp.float32)
        groups.append({**group, "ffn": {**group["ffn"], "activation": own}})
    return Swapped(
        replace(cfg, activation=new.name, activation_options=new.options),
        {**params, "layers": groups},
        np.concatenate(explained),
    )


def solve(
    gram: Float[np.ndarray, "R+1 R+1"], cross: Float[np.ndarray, " R+1"]
) -> Float[np.ndarray, " R+1"]:
    """Coefficients from the normal equations gram coeffs = cross, with columns scaled to length 1:

        coeffs = S (S gram S)^+ S cross,   S = diag(gram)^(-1/2), and 0 for a column of zeros

    so that columns that others make up get the least coefficients that solve them.

    Args:
        gram: phi_i . phi_j, float64, symmetric.
        cross: phi_i . old, float64.

    Returns:
        float64, a_0 first.
    """
    length = np.sqrt(np.diag(gram))
    scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    scaled, *_ = np.linalg.lstsq(gram * np.outer(scale, scale), cross * scale, rcond=1e-12)
    return scaled * scale


@partial(jax.jit, static_argnums=(0, 1))
def _layer_sums(
    cfg: ModelConfig, new: Activation, params: Params, fresh: Params, batch: Batch
) -> list[tuple[Array, Array, Array]]:
    """For each group of layers: sums of phi_i phi_j, of old phi_i and of old^2, a layer each."""
    cfg = replace(cfg, attention="xla")  # the one that needs to know of no mesh
    tokens, mask = batch["tokens"], counted(batch).reshape(-1)
    positions, segments = documents(cfg, batch)
    around = layers.rotary(cfg, positions)
    units = jnp.eye(new.options.order + 1, dtype=jnp.float32)
    names = inward_names(cfg.activation_fn)
    declared = layers.ffn_specs(cfg), layers.attention_specs(cfg)

    def block(x: Array, layer: Params) -> tuple[Array, tuple[Array, Array, Array]]:
        ffn, attention = (
            cast(specs, layer[part], cfg.dtype)
            for specs, part in zip(declared, ("ffn", "attention"), strict=True)
        )
        x = x + layers.attention(cfg, attention, x, around, segments, None, None)[0]
        y = layers.flat(layers.rms_norm(x, ffn["norm"], cfg.norm_eps))
        hidden = [jnp.dot(y, ffn[name]).astype(jnp.float32) for name in names]

        def kept(values: Array) -> Array:
            return jnp.where(mask[:, None], values, 0.0)

        old = kept(cfg.activation_fn.apply(ffn["activation"], *hidden))
        basis = [kept(new.apply({**fresh, "coeffs": unit}, *hidden)) for unit in units]
        stacked = jnp.stack([*basis, old])
        products = jnp.einsum("inf,jnf->ij", stacked, stacked, precision="highest")
        sums = products[:-1, :-1], products[:-1, -1], products[-1, -1]
        return x + layers.ffn(cfg, ffn, x, None), sums

    x = lookup(cfg.vocab_size, params["embed"], tokens).astype(cfg.dtype)
    found = []
    for group in params["layers"]:
        x, sums = jax.lax.scan(block, x, group)
        found.append(sums)
    return found
