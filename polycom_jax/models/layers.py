"""The parts of a transformer block as pure functions; shapes as in the annotations.

B batch, T sequence, D model, F hidden, H query heads, K kv heads, C head width. How a backend runs
them best is decided in `polycom_jax.kernels`.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax._errors import InputError
from polycom_jax.kernels import feed_forward as ff
from polycom_jax.kernels.attention import attention_with_cache
from polycom_jax.kernels.implementations import backend
from polycom_jax.kernels.projection import project
from polycom_jax.kernels.rope import SinCos, rope, sin_cos
from polycom_jax.models.config import ModelConfig
from polycom_jax.params import Initializer, ParamSpec, Specs
from polycom_jax.sharding import Rules, constrain


class Initializers(NamedTuple):
    """What draws initial values.

    Attributes:
        matrix: of ordinary matrices.
        output: of the two projections that add to the residual stream.
        table: of embedding, unembedding and router: the vocabulary and the experts do not grow with
            the width, so that under muP these values do not depend on it.
    """

    matrix: Initializer
    output: Initializer
    table: Initializer


def initializers(cfg: ModelConfig) -> Initializers:
    """Those of `cfg.init`; under muP the base model's, matrices divided by sqrt(m)."""
    normal, narrower = jax.nn.initializers.normal, cfg.width_multiple**0.5
    if cfg.init == "megatron":
        # run_pretrain_megatron_llama.sh of BryceZhuo/PolyCom: 0.013975424859373685 at D = 2048,
        # which is sqrt(2 / 5D), and Megatron's scaled initialisation of output projections.
        base = (2 / (5 * cfg.embed_dim / cfg.width_multiple)) ** 0.5
        std = base / narrower
        return Initializers(normal(std), normal(std / (2 * cfg.num_layers) ** 0.5), normal(base))
    # OLMoE-1B-7B-0924.yml of the same repository: every matrix, embeddings and router too.
    matrix = _truncated_normal(0.02 / narrower)
    return Initializers(matrix, matrix, _truncated_normal(0.02))


def _truncated_normal(std: float) -> Initializer:
    # `jax.nn.initializers.truncated_normal` widens the normal so that `std` is what the cut, at
    # three of it, leaves; PyTorch's `trunc_normal_`, which OLMoE uses, does not.
    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        draws = jax.random.truncated_normal(key, -3.0, 3.0, shape, dtype)
        return draws * jnp.asarray(std, dtype)

    return init


def norm_spec(width: int) -> ParamSpec:
    """The scale of an RMSNorm, one at the start."""
    return ParamSpec((width,), (None,), jax.nn.initializers.ones, "norm")


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis; float32 inside, x.dtype out.

    On accelerators the backward pass keeps x and scale alone: a scan over layers stacks what is
    kept, and in float32 the values between would take several times the memory of x. On CPUs JAX
    chooses: there a scan of few layers is unrolled and XLA shares these values between the passes.
    """
    return (_rms_norm if backend() == "cpu" else _lean_rms_norm)(x, scale, eps)


def _rms_norm(x: Array, scale: Array, eps: float) -> Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


_lean_rms_norm = jax.checkpoint(
    _rms_norm,
    policy=jax.checkpoint_policies.nothing_saveable,
    prevent_cse=False,
    static_argnums=2,
)


def final_norm(cfg: ModelConfig, params: Any, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """RMSNorm before the unembedding; under muP divided by m, and so are the logits."""
    scale = params["final_norm"]
    scale = scale if cfg.width_multiple == 1 else scale / cfg.width_multiple
    return rms_norm(x, scale, cfg.norm_eps)


def attention_specs(cfg: ModelConfig) -> Specs:
    """Parameters of one attention block."""
    ordinary, output, _ = initializers(cfg)
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


def activation_specs(cfg: ModelConfig) -> dict[str, ParamSpec]:
    """The activation's own parameters in one block."""
    try:
        specs = cfg.activation_fn.specs_at(cfg.hidden_width)
    except InputError as error:
        raise InputError(
            f"{error} It follows from gated_width={cfg.gated_width}, unless ffn_width says it."
        ) from error
    return {
        name: drawn_each(cfg.moe.num_experts, spec) if per_expert(cfg, name) else spec
        for name, spec in specs.items()
    }


def per_expert(cfg: ModelConfig, name: str) -> bool:
    """Whether each expert of a mixture has a parameter of this name of its activation."""
    parameter = cfg.activation_fn.parameters[name]
    return cfg.is_moe and (cfg.moe.coefficients == "expert" or parameter.per == "expert")


def drawn_each(experts: int, spec: ParamSpec) -> ParamSpec:
    """A parameter for each expert, with a key of its own and the values that it would have alone.

    The key of the first axis is split, so that an initialiser sees one expert's shape.
    """

    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        keys = jax.random.split(key, shape[0])
        return jax.vmap(lambda own: spec.init(own, shape[1:], dtype))(keys)

    axes = ("expert", *spec.axes)
    return replace(spec, shape=(experts, *spec.shape), axes=axes, init=init)


def ffn_specs(cfg: ModelConfig) -> Specs:
    """Parameters of one feed-forward block, the activation's own included."""
    ordinary, output, _ = initializers(cfg)
    d, f = cfg.embed_dim, cfg.hidden_width
    specs = {
        "norm": norm_spec(d),
        "w_up": ParamSpec((d, f), ("embed", "mlp"), ordinary, "matrix"),
        "w_down": ParamSpec((f, d), ("mlp", "embed"), output, "matrix"),
        "activation": activation_specs(cfg),
    }
    if cfg.activation_fn.gated:
        specs["w_gate"] = ParamSpec((d, f), ("embed", "mlp"), ordinary, "matrix")
    return specs


def rotary(cfg: ModelConfig, positions: Int[Array, "B T"]) -> SinCos:
    """The angles by which every layer's rotary embedding turns queries and keys."""
    with jax.named_scope("attention"):
        return sin_cos(positions, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)


def attention(
    cfg: ModelConfig,
    params: Any,
    x: Float[Array, "B T D"],
    sin_cos: SinCos,
    segment_ids: Int[Array, "B T"] | None,
    cache: Any,
    rules: Rules | None,
) -> tuple[Float[Array, "B T D"], Any]:
    """Pre-norm causal self-attention, and the cache with the new keys and values.

    `sin_cos` is from `rotary`; `cache` as in `kernels.attention.attention_with_cache`, or None.
    """
    q, k, v = queries_keys_values(cfg, params, x, sin_cos, rules)
    masks: Any = {"segment_ids": segment_ids, "window": cfg.attention_window}
    out, cache = attention_with_cache(
        q, k, v, cache, **masks, rules=rules, implementation=cfg.attention
    )
    with jax.named_scope("attention_out"):
        out = project(out, params["w_o"])
    return constrain(out, rules, "batch", "seq", "residual"), cache


def queries_keys_values(
    cfg: ModelConfig,
    params: Any,
    x: Float[Array, "B T D"],
    sin_cos: SinCos,
    rules: Rules | None,
) -> tuple[Float[Array, "B T H C"], Float[Array, "B T K C"], Float[Array, "B T K C"]]:
    """What `attention` compares and adds up, x normalised; queries and keys are turned by RoPE."""
    y = rms_norm(x, params["norm"], cfg.norm_eps)

    def heads(name: str, axis: str) -> Array:
        return constrain(project(y, params[name]), rules, "batch", "seq", axis, "head_dim")

    with jax.named_scope("qkv"):
        q, k, v = heads("w_q", "heads"), heads("w_k", "kv_heads"), heads("w_v", "kv_heads")
        q, k = _qk_norm(cfg, params, "q_norm", q), _qk_norm(cfg, params, "k_norm", k)
        return rope(q, sin_cos), rope(k, sin_cos), v


def _qk_norm(cfg: ModelConfig, params: Any, name: str, x: Float[Array, "B T H C"]) -> Array:
    """RMSNorm of each head, of all heads together ("full"), or none."""
    if cfg.qk_norm == "none":
        return x
    y = x.reshape(*x.shape[:2], -1) if cfg.qk_norm == "full" else x
    return rms_norm(y, params[name], cfg.norm_eps).reshape(x.shape)


def ffn(
    cfg: ModelConfig, params: Any, x: Float[Array, "B T D"], rules: Rules | None
) -> Float[Array, "B T D"]:
    """Pre-norm feed-forward: act(x W_up) W_down, or act(x W_gate, x W_up) W_down if gated."""
    y = rms_norm(x, params["norm"], cfg.norm_eps)
    out = ff.feed_forward(cfg.activation_fn, params, y, rules=rules, remat=cfg.remat)
    return constrain(out, rules, "batch", "seq", "residual")


def pre_activations(
    cfg: ModelConfig, params: Any, x: Float[Array, "B T D"], rules: Rules | None
) -> list[Float[Array, "*N F"]]:
    """What `ffn` applies the activation to: x W_up, or x W_gate and x W_up, x normalised."""
    y = rms_norm(x, params["norm"], cfg.norm_eps)
    return ff.pre_activations(cfg.activation_fn, params, y, rules=rules)


def flat(x: Float[Array, "B T D"]) -> Float[Array, "BT D"]:
    """All tokens in one dimension."""
    return x.reshape(-1, x.shape[-1])
