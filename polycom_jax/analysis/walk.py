"""A model run layer by layer, with what is inside handed out: one layer in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax import params as pm
from polycom_jax.kernels.feed_forward import inward_names
from polycom_jax.kernels.rope import SinCos
from polycom_jax.models import ModelConfig, layers
from polycom_jax.models.ids import check_tokens, lookup
from polycom_jax.models.moe import moe, route
from polycom_jax.models.transformer import layer_specs
from polycom_jax.params import Params
from polycom_jax.training.loss import Batch, documents


@dataclass(frozen=True)
class LayerView:
    """What one layer sees and does. N = B T tokens, R rows: N, or N K of a mixture of experts.

    Attributes:
        index: of the layer.
        before: residual stream that enters it, [N, D].
        after: that leaves it, [N, D].
        queries: as attention compares them with keys, normalised and rotated, [B, T, H, C].
        keys: the same, [B, T, K, C].
        inputs: of the activation: (x,), or (gate, up); each [R, F].
        hidden: the activation's output, [R, F].
        activation: its parameters; of what each expert has, the mean.
    """

    index: int
    before: Float[Array, "N D"]
    after: Float[Array, "N D"]
    queries: Float[Array, "B T H C"]
    keys: Float[Array, "B T K C"]
    inputs: tuple[Float[Array, "R F"], ...]
    hidden: Float[Array, "R F"]
    activation: Params


def walk(cfg: ModelConfig, params: Params, batch: Batch) -> Iterator[LayerView]:
    """The layers in order, on one device, in `cfg.dtype`.

    Attention stops at document boundaries iff `cfg.document_mask`, as in the training loss. The
    `after` of the last layer is what the final norm is applied to.

    Args:
        cfg: the model.
        params: its parameters, on one device.
        batch: `tokens`, `positions` and `segment_ids`, int32 [B, T] each.

    Yields:
        A view of each layer, its arrays in `cfg.dtype`.

    Raises:
        InputError: no tokens, or ids outside the vocabulary.
    """
    x, sin_cos, segment_ids = embedded(cfg, params, batch)
    for index, own in enumerate(layer_params(params)):
        after, queries, keys, inputs, hidden = _layer(cfg, own, x, sin_cos, segment_ids)
        block = own["moe" if cfg.is_moe else "ffn"]["activation"]
        block = {
            name: jnp.mean(leaf, axis=0) if layers.per_expert(cfg, name) else leaf
            for name, leaf in block.items()
        }
        before = layers.flat(x)
        yield LayerView(index, before, layers.flat(after), queries, keys, inputs, hidden, block)
        x = after


def embedded(
    cfg: ModelConfig, params: Params, batch: Batch
) -> tuple[Float[Array, "B T D"], SinCos, Array | None]:
    """What enters the first layer, and what every layer is given beside it: angles, segments."""
    tokens = check_tokens(cfg.vocab_size, batch["tokens"])
    x = lookup(cfg.vocab_size, params["embed"], tokens).astype(cfg.dtype)
    positions, segment_ids = documents(cfg, batch)
    return x, layers.rotary(cfg, positions), segment_ids


def layer_params(params: Params) -> Iterator[Params]:
    """The parameters of each layer, in order."""
    for group in params["layers"]:
        for i in range(len(jax.tree.leaves(group)[0])):
            yield jax.tree.map(lambda leaf: leaf[i], group)  # noqa: B023


@partial(jax.jit, static_argnums=0)
def _layer(
    cfg: ModelConfig, params: Any, x: Array, sin_cos: SinCos, segment_ids: Array | None
) -> tuple[Array, Array, Array, tuple[Array, ...], Array]:
    params = pm.cast(layer_specs(cfg), params, cfg.dtype)
    q, k, _ = layers.queries_keys_values(cfg, params["attention"], x, sin_cos, None)
    out, _ = layers.attention(cfg, params["attention"], x, sin_cos, segment_ids, None, None)
    x = x + out
    if cfg.is_moe:
        inputs, hidden = _expert_inputs(cfg, params["moe"], x)
        return x + moe(cfg, params["moe"], x, None)[0], q, k, inputs, hidden
    inputs = tuple(map(layers.flat, layers.pre_activations(cfg, params["ffn"], x, None)))
    hidden = cfg.activation_fn.apply(params["ffn"]["activation"], *inputs)
    return x + layers.ffn(cfg, params["ffn"], x, None), q, k, inputs, hidden


def _expert_inputs(
    cfg: ModelConfig, params: Any, x: Float[Array, "B T D"]
) -> tuple[tuple[Array, ...], Array]:
    """Of each token and each of its experts: what the expert's activation sees, and makes of it.

    Every expert runs on every token, one at a time, and what was not chosen is thrown away.
    """
    y = layers.flat(layers.rms_norm(x, params["norm"], cfg.norm_eps))
    chosen = route(cfg, params["router"], y).chosen
    names = inward_names(cfg.activation_fn)
    shared = params["activation"]

    def one(expert: Array) -> tuple[tuple[Array, ...], Array]:
        coefficients = {
            name: leaf[expert] if layers.per_expert(cfg, name) else leaf
            for name, leaf in shared.items()
        }
        inputs = tuple(jnp.dot(y, params[name][expert]) for name in names)
        return inputs, cfg.activation_fn.apply(coefficients, *inputs)

    def add(kept: Any, expert: Array) -> tuple[Any, None]:
        mine = (chosen == expert)[:, :, None]
        found = one(expert)
        return jax.tree.map(lambda a, b: jnp.where(mine, b[:, None, :], a), kept, found), None

    shape = (*chosen.shape, cfg.hidden_width)
    zeros = jnp.zeros(shape, y.dtype)
    start = (tuple(zeros for _ in names), zeros)
    experts = jnp.arange(cfg.moe.num_experts, dtype=chosen.dtype)
    kept, _ = jax.lax.scan(add, start, experts)
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), kept)
