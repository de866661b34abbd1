"""The parts of a transformer block as pure functions; shapes as in the annotations.

B batch, T sequence, S keys, D model, F hidden, H query heads, K kv heads, C head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.attention import attention as attend
from polycom_jax.kernels.checkpoint_names import checkpoint_as, save_only
from polycom_jax.kernels.dispatch import backend
from polycom_jax.kernels.rope import SinCos, rope, sin_cos
from polycom_jax.kernels.sharded import (
    features_are_sharded,
    hidden_axes,
    over_mesh,
    rows_are_local,
    unsharded_features,
)
from polycom_jax.kernels.split_cotangent import split_cotangent
from polycom_jax.models.config import ModelConfig
from polycom_jax.params import Initializer, ParamSpec, Specs
from polycom_jax.sharding import Rules, constrain

CACHE_AXES = ("layers", "batch", "kv_heads", "seq", "head_dim")
"""Logical axes of cached keys and values: heads first, as attention's products read them."""


def initializers(cfg: ModelConfig) -> tuple[Initializer, Initializer]:
    """Initialisers of ordinary matrices and of the two projections that add to the residual."""
    normal = jax.nn.initializers.normal
    if cfg.init == "megatron":
        # run_pretrain_megatron_llama.sh of BryceZhuo/PolyCom: 0.013975424859373685 at D = 2048,
        # which is sqrt(2 / 5D), and Megatron's scaled initialisation of output projections.
        std = (2 / (5 * cfg.embed_dim)) ** 0.5
        return normal(std), normal(std / (2 * cfg.num_layers) ** 0.5)
    # OLMoE-1B-7B-0924.yml of the same repository: every matrix, embeddings and router too.
    truncated = _truncated_normal(0.02, cut=3.0)
    return truncated, truncated


def _truncated_normal(std: float, cut: float) -> Initializer:
    # `jax.nn.initializers.truncated_normal` widens the normal so that `std` is what the cut leaves;
    # PyTorch's `trunc_normal_`, which OLMoE uses, does not.
    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        draws = jax.random.truncated_normal(key, -cut, cut, shape, dtype)
        return draws * jnp.asarray(std, dtype)

    return init


def norm_spec(width: int, axis: str | None = None) -> ParamSpec:
    """The scale of an RMSNorm, one at the start."""
    return ParamSpec((width,), (axis,), jax.nn.initializers.ones, "norm")


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis; float32 inside, x.dtype out."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def attention_specs(cfg: ModelConfig) -> Specs:
    """Parameters of one attention block."""
    ordinary, output = initializers(cfg)
    d, h, k, c = cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    specs = {
        "norm": norm_spec(d),
        "w_q": ParamSpec((d, h, c), ("embed", "heads", "head_dim"), ordinary, "matrix"),
        "w_k": ParamSpec((d, k, c), ("embed", "kv_heads", "head_dim"), ordinary, "matrix"),
        "w_v": ParamSpec((d, k, c), ("embed", "kv_heads", "head_dim"), ordinary, "matrix"),
        "w_o": ParamSpec((h, c, d), ("heads", "head_dim", "embed"), output, "matrix"),
    }
    if cfg.qk_norm != "none":
        full = cfg.qk_norm == "full"
        specs["q_norm"] = norm_spec(h * c if full else c)
        specs["k_norm"] = norm_spec(k * c if full else c)
    return specs


def rotary(cfg: ModelConfig, positions: Int[Array, "B T"]) -> SinCos:
    """What the rotary embedding of every layer turns queries and keys by."""
    with jax.named_scope("attention"):
        return sin_cos(positions, cfg.head_dim, cfg.rope_theta)


def attention(
    cfg: ModelConfig,
    params: Any,
    x: Float[Array, "B T D"],
    sin_cos: SinCos,
    segment_ids: Int[Array, "B T"] | None,
    cache: Any,
    rules: Rules | None,
) -> tuple[Float[Array, "B T D"], Any]:
    """Pre-norm causal self-attention; with a cache, over the keys and values that it holds too.

    `around` is from `rotary`. A cache is that of all layers (`CACHE_AXES`), with the number of the
    `layer` that this is, and each row's `length`; it comes back with the new keys and values.
    """
    batch, length, _ = x.shape
    y = for_products(rms_norm(x, params["norm"], cfg.norm_eps))

    def project(name: str, logical: str) -> Array:
        w = params[name]
        heads = jnp.dot(y, w.reshape(w.shape[0], -1)).reshape(batch, length, *w.shape[1:])
        return constrain(heads, rules, "batch", "seq", logical, "head_dim")

    with jax.named_scope("qkv"):
        q, k, v = project("w_q", "heads"), project("w_k", "kv_heads"), project("w_v", "kv_heads")
        if cfg.qk_norm != "none":
            q = _qk_norm(cfg, q, params["q_norm"])
            k = _qk_norm(cfg, k, params["k_norm"])
        q, k = rope(q, sin_cos), rope(k, sin_cos)
    start, implementation = None, cfg.attention
    if cache is not None:
        start, implementation = cache["length"], "xla"
        k, v, cache = _behind_cached(cache, k, v, rules)
    out = attend(
        q,
        k,
        v,
        start=start,
        segment_ids=segment_ids,
        rules=rules,
        implementation=implementation,
    )
    with jax.named_scope("attention_out"):
        w_o = params["w_o"]
        out = jnp.dot(out.reshape(*y.shape[:-1], -1), w_o.reshape(-1, w_o.shape[-1]))
    return constrain(out.reshape(x.shape), rules, "batch", "seq", "residual"), cache


def flat(x: Float[Array, "B T D"]) -> Float[Array, "BT D"]:
    """All tokens in one dimension."""
    return x.reshape(-1, x.shape[-1])


def for_products(x: Float[Array, "B T D"]) -> Float[Array, "*N D"]:
    """x as products with matrices run fastest: flat, but for a TPU as it is.

    XLA's CPU backend takes 1.6 times as long for the gradient of a product with three-dimensional
    operands. Its TPU backend fuses an activation into the product behind it, and a product into the
    stack of what layers keep, but not over a reshape: at dense-1b on a v5p that would be two copies
    of 0.54 ms each beside products of 2.50 ms a layer (libtpu 0.0.50.1, its own estimate).
    """
    return x if backend() == "tpu" else flat(x)


def _qk_norm(cfg: ModelConfig, x: Float[Array, "B T H C"], scale: Array) -> Array:
    if cfg.qk_norm == "head":
        return rms_norm(x, scale, cfg.norm_eps)
    return rms_norm(x.reshape(*x.shape[:2], -1), scale, cfg.norm_eps).reshape(x.shape)


def _behind_cached(
    cache: Any, k: Float[Array, "B T K C"], v: Float[Array, "B T K C"], rules: Rules | None
) -> tuple[Float[Array, "B S K C"], Float[Array, "B S K C"], Any]:
    """This layer's keys and values, cached ones first, and the cache of all layers with them."""
    layer, extended = cache["layer"], {}
    for name, new in (("k", k), ("v", v)):
        held = _append(cache[name], new, layer, cache["length"])
        extended[name] = constrain(held, rules, *CACHE_AXES)
    own = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in extended.values())
    k, v = (jnp.swapaxes(x, 1, 2) for x in own)
    return k, v, extended


def _append(
    cached: Float[Array, "L B K S C"],
    new: Float[Array, "B T K C"],
    layer: Int[Array, ""],
    start: Int[Array, " B"],
) -> Float[Array, "L B K S C"]:
    """Writes row b's T new entries of one layer behind its first start[b], or none without room.

    A scatter of whole windows: XLA does it in place, where `jax.vmap` of a dynamic update would
    move the batch to the front, which is a copy, and shift what does not fit over what is there.
    """
    return jax.lax.scatter(
        cached,
        jnp.stack([jnp.broadcast_to(layer, start.shape), start], axis=1),
        jnp.swapaxes(new, 1, 2).astype(cached.dtype),
        jax.lax.ScatterDimensionNumbers(
            update_window_dims=(1, 2, 3),
            inserted_window_dims=(0,),
            scatter_dims_to_operand_dims=(0, 3),
            operand_batching_dims=(1,),
            scatter_indices_batching_dims=(0,),
        ),
        unique_indices=True,
        mode="drop",
    )


def ffn_specs(cfg: ModelConfig) -> Specs:
    """Parameters of one feed-forward block, the activation's own included."""
    ordinary, output = initializers(cfg)
    d, f = cfg.embed_dim, cfg.hidden_width
    specs = {
        "norm": norm_spec(d),
        "w_up": ParamSpec((d, f), ("embed", "mlp"), ordinary, "matrix"),
        "w_down": ParamSpec((f, d), ("mlp", "embed"), output, "matrix"),
        "activation": dict(cfg.row.specs),
    }
    if cfg.row.gated:
        specs["w_gate"] = ParamSpec((d, f), ("embed", "mlp"), ordinary, "matrix")
    return specs


def pre_activations(
    cfg: ModelConfig, params: Any, x: Float[Array, "B T D"], rules: Rules | None
) -> list[Float[Array, "*N F"]]:
    """What the activation is applied to: x W_up, or x W_gate and x W_up if gated, x normalised."""
    y = for_products(rms_norm(x, params["norm"], cfg.norm_eps))
    return [checkpoint_as("product", _product(rules, y, params[name])) for name in _inward(cfg)]


def _inward(cfg: ModelConfig) -> tuple[str, ...]:
    """The matrices whose products the activation is applied to."""
    return ("w_gate", "w_up") if cfg.row.gated else ("w_up",)


def _product(
    rules: Rules | None, y: Float[Array, "*N D"], w: Float[Array, "D F"]
) -> Float[Array, "*N F"]:
    with jax.named_scope("ffn_up"):
        x = jnp.dot(y, w)
        return constrain(x, rules, *hidden_axes(x))


def ffn(
    cfg: ModelConfig, params: Any, x: Float[Array, "B T D"], rules: Rules | None
) -> Float[Array, "B T D"]:
    """Pre-norm feed-forward: act(x W_up) W_down, or act(x W_gate, x W_up) W_down if gated."""
    act: Callable[..., Array] = partial(_activate, cfg, rules)
    if _forms_gradient_twice(cfg):
        # XLA forms y again in the gradient of w_up. Written before it instead (a barrier), the
        # block by itself takes 2.94 ms in place of 3.30 on v6e and 7.69 in place of 7.75 on v4
        # (relu2's 2.89 and 6.81), but 4.19 in place of 4.12 on v5p; and whole steps take 0.6 %
        # longer on v6e, on v4 0.4 % longer with remat: none and 0.3 % less with dots (libtpu
        # 0.0.50.1).
        y = for_products(rms_norm(x, params["norm"], cfg.norm_eps))
        inputs = y, *(params[name] for name in _inward(cfg))
        act = partial(_activate_split, cfg, rules)
    else:
        inputs = pre_activations(cfg, params, x, rules)

    def down(activation: Any, w_down: Array, *inputs: Array) -> Array:
        h = act(activation, *inputs)
        with jax.named_scope("ffn_down"):
            return jnp.dot(h, w_down)

    if cfg.remat == "none":
        # The pre-activations are kept and h is not: the gradient of w_down computes it again, from
        # what PolyNorm knows of each row.
        down = jax.checkpoint(down, policy=save_only("product", "row"), prevent_cse=False)
    out = down(params["activation"], params["w_down"], *inputs).reshape(x.shape)
    return constrain(out, rules, "batch", "seq", "residual")


def _forms_gradient_twice(cfg: ModelConfig) -> bool:
    """Whether `apart` pays: XLA fuses it on a TPU, and it is no kernel of its own."""
    return backend() == "tpu" and _learned_means(cfg) and not _kernel(cfg)


def _learned_means(cfg: ModelConfig) -> bool:
    """Whether the activation is PolyNorm or one of its relatives."""
    return cfg.row.over_rows and "coeffs" in cfg.row.specs


def _kernel(cfg: ModelConfig) -> bool:
    return cfg.row.options.implementation == "pallas_tpu"


def _activate_split(
    cfg: ModelConfig,
    rules: Rules | None,
    params: Any,
    y: Float[Array, "*N D"],
    *ws: Float[Array, "D F"],
) -> Float[Array, "*N F"]:
    return split_cotangent(partial(_activate, cfg, rules), partial(_product, rules), params, y, ws)


def _activate(
    cfg: ModelConfig, rules: Rules | None, params: Any, *xs: Float[Array, "*N F"]
) -> Float[Array, "*N F"]:
    apply = cfg.row.apply
    # Whether rows have to be scaled is a question to each device. Of GSPMD's programs all devices
    # answer it together, in every layer, over the network between slices too; that is left to rows
    # that lie on several devices.
    if _kernel(cfg) or (_learned_means(cfg) and rows_are_local(rules, xs[0])):
        apply = partial(over_mesh, apply, rules)
    with jax.named_scope("activation"), unsharded_features(not features_are_sharded(rules)):
        h = apply(params, *xs)
        return constrain(h, rules, *hidden_axes(h))
