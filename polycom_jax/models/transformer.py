"""The transformer: `specs` declares it, `hidden` and `unembed` run it.

Dense or a mixture of experts (`moe.py`). All are pure functions of (config, parameters, tokens).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from polycom_jax import params as pm
from polycom_jax._concrete import concrete
from polycom_jax._errors import require
from polycom_jax._fields import check_value
from polycom_jax.kernels.attention import CACHE_AXES
from polycom_jax.kernels.checkpoint_names import checkpoint_as, remat_block
from polycom_jax.kernels.implementations import backend
from polycom_jax.kernels.rope import SinCos
from polycom_jax.models import layers
from polycom_jax.models.config import ModelConfig
from polycom_jax.models.ids import check_tokens, lookup
from polycom_jax.models.moe import moe, moe_specs, summary
from polycom_jax.params import Params, ParamSpec, Specs
from polycom_jax.sharding import Rules, check_not_explicit, constrain, rules_here

VOCAB_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this (times the tensor axis): a TPU's tile width."""

UNROLLED_ON_CPU = 8
"""Up to so many layers are unrolled on CPUs: compiling takes longer with each."""


def layer_specs(cfg: ModelConfig) -> Specs:
    """Parameters of one block."""
    ffn = {"moe": moe_specs(cfg)} if cfg.is_moe else {"ffn": layers.ffn_specs(cfg)}
    return {"attention": layers.attention_specs(cfg), **ffn}


def specs(cfg: ModelConfig, *, tensor: int = 1) -> Specs:
    """The declaration of every parameter: shape, logical axes, initialiser and role.

    Args:
        cfg: the model.
        tensor: size of that mesh axis; the vocabulary is padded to a multiple of 128 x tensor.

    Returns:
        A tree of `ParamSpec`, all float32: `embed` and, unless tied, `unembed` [padded V, D];
        `final_norm` [D]; and `layers`, a list of one group whose arrays have a leading axis of
        `num_layers`: `attention` (`w_q` [L, D, H, C] ...) and `ffn` (`w_up` [L, D, F], `w_down`,
        `w_gate` if gated, `activation`), or `moe` with a further axis of experts.
    """
    multiple = VOCAB_MULTIPLE * tensor
    padded = -(-cfg.vocab_size // multiple) * multiple
    table = ParamSpec(
        (padded, cfg.embed_dim),
        ("vocab", "embed"),
        layers.initializers(cfg).table,
        "embedding",
        rows=cfg.vocab_size,
    )
    tree = {
        "embed": table,
        "layers": [pm.stack(layer_specs(cfg), cfg.num_layers)],
        "final_norm": layers.norm_spec(cfg.embed_dim),
    }
    if not cfg.tie_embeddings:
        tree["unembed"] = table
    return pm.widened(tree, cfg.width_multiple)


def init(cfg: ModelConfig, key: Key[Array, ""], *, tensor: int = 1) -> Params:
    """Initial parameters, a tree of float32 arrays as `specs` declares them.

    A value depends on key, name, layer and unpadded shape alone: two models that differ in the
    activation start alike wherever name and shape agree. It may be jitted with `out_shardings`.

    Args:
        cfg: the model.
        key: from `jax.random.key`.
        tensor: as in `specs`.
    """
    return pm.init(specs(cfg, tensor=tensor), key)


def count_params(cfg: ModelConfig) -> int:
    """Number of parameters, vocabulary padding not counted."""
    return pm.count(specs(cfg))


def count_active_params(cfg: ModelConfig) -> int:
    """Number of parameters that one token meets: of a layer's experts those that it goes to."""
    idle = 0
    if cfg.is_moe:
        each = {
            name: spec for name, spec in moe_specs(cfg).items() if name not in ("norm", "router")
        }
        own = each["activation"]
        each["activation"] = {n: spec for n, spec in own.items() if layers.per_expert(cfg, n)}
        share = pm.count(each) // cfg.moe.num_experts
        idle = cfg.num_layers * (cfg.moe.num_experts - cfg.moe.top_k) * share
    return count_params(cfg) - idle


def init_cache(cfg: ModelConfig, batch: int, length: int, *, rules: Rules | None = None) -> Any:
    """An empty key-value cache for sequences of `length` tokens, and its own `length` [B], 0.

    With `rules` it is split over the mesh of `jax.set_mesh`: the batch, and `kv_heads`.

    Raises:
        InputError: no room for a token, rules without a mesh, or a batch or heads that do not
            divide over it.
    """
    check_value("length", length, int)
    require(length >= 1, f"length={length}: a cache must have room for a token at least.")
    shape = (cfg.num_layers, batch, cfg.num_kv_heads, length, cfg.head_dim)
    rules = rules_here(rules)
    if rules is not None:
        rules.check_divides("cache", shape, CACHE_AXES, jax.sharding.get_abstract_mesh())
    kv = {name: constrain(jnp.zeros(shape, cfg.dtype), rules, *CACHE_AXES) for name in ("k", "v")}
    return {"layers": [kv], "length": jnp.zeros((batch,), jnp.int32)}


def cache_room(cache: Any) -> int:
    """Tokens of a sequence that a cache has room for."""
    return cache["layers"][0]["k"].shape[CACHE_AXES.index("seq")]


def hidden(
    cfg: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    loss_mask: Bool[Array, "B T"] | None = None,
    rules: Rules | None = None,
    cache: Any = None,
) -> tuple[Float[Array, "B T D"], dict[str, Any], Any]:
    """Runs all blocks and the final norm.

    Args:
        cfg: the model.
        params: its parameters, as from `init`.
        tokens: token ids below `cfg.vocab_size`. In a traced function others are embedded as NaN,
            and attention makes NaN of their whole sequence.
        positions: position of each token for RoPE; default 0..T-1, behind what is cached.
        segment_ids: document of each token; attention is confined to equal ids. Not with a cache.
        loss_mask: tokens whose targets count. Of a mixture of experts, router losses and statistics
            are over these alone, and none of the others is computed in the place of one of them
            where experts' capacity is short. They are still read by later tokens. None: all.
        rules: how activations are split over the mesh of `jax.set_mesh`; None: not stated.
        cache: from `init_cache`, or returned by an earlier call: these tokens are appended to it.
            A sequence without room for all of them stays as it is, with hidden states of NaN.

    Returns:
        The final hidden states in `cfg.dtype`, a dict of losses and statistics (see `moe.summary`;
        empty for a dense model), and the extended cache (None without one).

    Raises:
        InputError: no tokens, ids outside the vocabulary, arrays of another shape than theirs,
            `segment_ids` together with a cache, more tokens than it has room for, as far as its
            length is known (not while tracing), or a mesh of explicit axes.
    """
    tokens, rules = check_tokens(cfg.vocab_size, tokens), rules_here(rules)
    check_not_explicit(tokens, params)
    _check_arguments(tokens, positions, segment_ids, loss_mask, cache)
    batch, length = tokens.shape
    index = jnp.arange(length, dtype=jnp.int32)
    start = jnp.zeros((batch,), jnp.int32) if cache is None else cache["length"]
    steps = start[:, None] + index[None, :]
    sin_cos = layers.rotary(cfg, steps if positions is None else positions)

    with jax.named_scope("embed"):
        # Gathered over fsdp before the look-up: from rows split along `embed`, GSPMD reaches the
        # batch's sharding only through a full copy.
        table = constrain(params["embed"], rules, "vocab", None)
        x = lookup(cfg.vocab_size, table, tokens).astype(cfg.dtype)
        x = constrain(x, rules, "batch", "seq", "residual")
    new_groups, statistics = [], []
    for group, stacked in enumerate(params["layers"]):
        group_cache = None if cache is None else cache["layers"][group]
        x, (group_cache, group_statistics) = _run_group(
            cfg, stacked, x, sin_cos, segment_ids, loss_mask, start, group_cache, rules
        )
        new_groups.append(group_cache)
        statistics.append(group_statistics)
    x = layers.final_norm(cfg, params, x)
    if cache is not None:
        fits = start + length <= cache_room(cache)
        x = jnp.where(fits[:, None, None], x, jnp.nan)
        cache = {"layers": new_groups, "length": start + length}
    aux: dict[str, Any] = {}
    if cfg.is_moe:
        aux = summary(cfg, jax.tree.map(lambda *groups: jnp.concatenate(groups), *statistics))
    return x, aux, cache


def _check_arguments(
    tokens: Array, positions: Any, segment_ids: Any, loss_mask: Any, cache: Any
) -> None:
    given = {"positions": positions, "segment_ids": segment_ids, "loss_mask": loss_mask}
    for name, array in given.items():
        shape = tokens.shape if array is None else jnp.shape(array)
        require(
            shape == tokens.shape,
            f"{name} of shape {shape} must have that of tokens, {tokens.shape}.",
        )
    require(
        loss_mask is None or not jnp.issubdtype(jnp.result_type(loss_mask), jnp.inexact),
        "loss_mask must be bool: True where a target counts, which all do alike.",
    )
    if cache is not None:
        _check_room(cache, tokens.shape[1])
        require(segment_ids is None, "segment_ids with a cache: decode one document a row instead.")


def _check_room(cache: Any, length: int) -> None:
    room, lengths = cache_room(cache), concrete(cache["length"])
    cached = 0 if lengths is None else int(lengths.max(initial=0))
    require(
        cached + length <= room,
        f"{length} tokens do not fit a cache for {room} that holds {cached}; make a longer one.",
    )


def _run_group(
    cfg: ModelConfig,
    stacked: Params,
    x: Float[Array, "B T D"],
    sin_cos: SinCos,
    segment_ids: Int[Array, "B T"] | None,
    loss_mask: Bool[Array, "B T"] | None,
    start: Int[Array, " B"],
    cache: Any,
    rules: Rules | None,
) -> tuple[Float[Array, "B T D"], Any]:
    """Scans the blocks of one stacked group; the cache goes from one to the next, written in place.

    Returns the residual stream, and a pair: the cache, and the statistics of a mixture of experts.
    """
    declared = layer_specs(cfg)

    def block(carry: Any, layer: Any) -> tuple[Any, Any]:
        (x, kv), (params, index) = carry, layer
        params = pm.cast(declared, params, cfg.dtype)
        if kv is not None:
            kv = {**kv, "length": start, "layer": index}
        with jax.named_scope("attention"):
            out, kv = layers.attention(cfg, params["attention"], x, sin_cos, segment_ids, kv, rules)
            x = checkpoint_as("product", x + out)
        statistics = None
        if cfg.is_moe:
            with jax.named_scope("moe"):
                out, statistics = moe(cfg, params["moe"], x, rules, loss_mask)
        else:
            with jax.named_scope("ffn"):
                out = layers.ffn(cfg, params["ffn"], x, rules)
        return (x + out, kv), statistics

    unroll = _unroll(cfg)
    block = remat_block(block, cfg.remat, looped=unroll < cfg.num_layers)
    indices = None if cache is None else jnp.arange(len(cache["k"]), dtype=jnp.int32)
    (x, cache), statistics = jax.lax.scan(block, (x, cache), (stacked, indices), unroll=unroll)
    return x, (cache, statistics)


def _unroll(cfg: ModelConfig) -> int:
    """Layers a step of the scan: XLA's CPU backend runs a loop's element-wise work on one core."""
    if cfg.unroll is not None:
        return min(cfg.unroll, cfg.num_layers)
    few = cfg.num_layers <= UNROLLED_ON_CPU
    return cfg.num_layers if few and backend() == "cpu" else 1


def softcapped(cfg: ModelConfig, logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """c tanh(logits / c) with c = `cfg.logit_softcap`; the logits themselves where it is None."""
    cap = cfg.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def unembed(
    cfg: ModelConfig, params: Params, x: Float[Array, "... D"], *, padded: bool = False
) -> Float[Array, "... V"]:
    """Logits: x times the unembedding's transpose, summed in float32, and `softcapped`.

    Args:
        cfg: the model.
        params: its parameters; `unembed` is read, or `embed` where they are tied.
        x: final hidden states, as from `hidden`, in `cfg.dtype`.
        padded: leave the padding columns of the vocabulary in, at the least finite float32: for
            losses over a split vocabulary, where a softmax gives them exactly zero.

    Returns:
        float32 [..., vocab_size], or [..., padded vocabulary].
    """
    table = params["embed"] if cfg.tie_embeddings else params["unembed"]
    flat = x.reshape(-1, x.shape[-1])
    logits = jnp.dot(flat, table.astype(cfg.dtype).T, preferred_element_type=jnp.float32)
    logits = softcapped(cfg, logits.reshape(*x.shape[:-1], table.shape[0]))
    if not padded:
        return logits[..., : cfg.vocab_size]
    real = jnp.arange(table.shape[0]) < cfg.vocab_size
    real = real.reshape((1,) * (logits.ndim - 1) + (-1,))
    return jnp.where(real, logits, jnp.finfo(jnp.float32).min)


def forward(
    cfg: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T V"]:
    """Logits of the next token at every position: `unembed` of `hidden`.

    Args:
        cfg: the model.
        params: its parameters, as from `init`.
        tokens: token ids below `cfg.vocab_size`, integers of any width.
        positions: of each token, for RoPE; None: 0 ... T-1.
        segment_ids: document of each token; attention is confined to equal ids. None: one document.

    Returns:
        float32 [batch, seq, vocab_size].

    Raises:
        InputError: as `hidden`.

        >>> from polycom_jax import models
        >>> cfg = models.preset("tiny", num_layers=1)
        >>> params = models.init(cfg, jax.random.key(0))
        >>> models.forward(cfg, params, jnp.array([[1, 2, 3]])).shape
        (1, 3, 2048)
    """
    x, _, _ = hidden(cfg, params, tokens, positions=positions, segment_ids=segment_ids)
    return unembed(cfg, params, x)
