"""Norms of the loss's gradient, parameter by parameter and layer by layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from polycom_jax import params as pm
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params
from polycom_jax.training.loss import Batch, batch_nats
from polycom_jax.training.loss_scale import at_largest_scale


def gradient_norms(
    cfg: ModelConfig, params: Params, batch: Batch
) -> dict[str, Float[np.ndarray, " L"]]:
    """Euclidean norm of d (mean nats a token) / d parameter, an entry a layer; others have one.

    A mixture's auxiliary losses are left out. Names are those of `params.path_name`; groups of
    layers follow each other. In float16 the loss is scaled while it is differentiated.
    """
    found: dict[str, list[np.ndarray]] = {}
    each = at_largest_scale(partial(_norms, cfg, params, batch), cfg.dtype)
    for path, norms in jax.tree_util.tree_flatten_with_path(each)[0]:
        found.setdefault(pm.path_name(path), []).append(np.atleast_1d(np.asarray(norms)))
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}


@partial(jax.jit, static_argnums=0)
def _norms(cfg: ModelConfig, params: Params, batch: Batch, scale: float | Array) -> Any:
    def loss(params: Params) -> Array:
        count = jnp.sum(batch["mask"], dtype=jnp.float32)
        return batch_nats(cfg, params, batch)[0] / count * scale

    def norm(path: tuple[Any, ...], gradient: Array) -> Array:
        stacked = pm.path_name(path).startswith("layers/")
        axes = tuple(range(int(stacked), gradient.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(gradient), axis=axes)) / scale

    return jax.tree_util.tree_map_with_path(norm, jax.grad(loss)(params))
