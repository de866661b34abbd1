"""Sampling from a model with a key-value cache."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from polycom_jax._concrete import concrete
from polycom_jax._errors import require
from polycom_jax._fields import check_value
from polycom_jax.models.config import ModelConfig
from polycom_jax.models.ids import check_range, inside
from polycom_jax.models.sampling import (
    NO_TOKEN,
    Settings,
    as_settings,
    check_drawn,
    check_sampling,
    draw,
)
from polycom_jax.models.transformer import hidden, init_cache, unembed
from polycom_jax.params import Params
from polycom_jax.sharding import Rules


def prefill(
    cfg: ModelConfig,
    params: Params,
    prompt: Int[Array, "B T"],
    *,
    room: int,
    lengths: Int[Array, " B"] | None = None,
    rules: Rules | None = None,
) -> tuple[Float[Array, "B V"], Any]:
    """Reads prompts into a new cache.

    Args:
        cfg: the model.
        params: its parameters.
        prompt: token ids; prompt b is its first `lengths[b]`, what follows is padding.
        room: tokens of a sequence that the cache has room for, T at least.
        lengths: from 1 to T each; None: T.
        rules: how arrays and the cache are split over the mesh of `jax.set_mesh`; None: not stated.

    Returns:
        The logits behind each prompt, and the cache for `advance`. While tracing nothing can be
        refused: logits behind a prompt of another length, or with other ids, are NaN.

    Raises:
        InputError: a prompt without a token, longer than `room`, or with ids outside the
            vocabulary; lengths that are none.
    """
    lengths, last = _lengths(lengths, jnp.shape(prompt)), jnp.shape(prompt)[-1]
    # Padding may hold any id.
    is_prompt = jnp.arange(last)[None, :] < lengths[:, None]
    ids = _token_ids(cfg, "prompt", prompt, "[batch, tokens]", is_prompt)
    prompt = jnp.where(is_prompt, ids, 0)
    check_value("room", room, int)
    require(room >= last, f"room={room} must hold the {last} tokens of the prompt.")
    cache = init_cache(cfg, len(prompt), room, rules=rules)
    x, _, cache = hidden(cfg, params, prompt, loss_mask=is_prompt, rules=rules, cache=cache)
    x = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
    good = (lengths >= 1) & (lengths <= last) & jnp.all(_in_vocabulary(cfg, prompt), axis=1)
    # No query sees the padding: it stands behind all of them, and new tokens replace it.
    return _logits(cfg, params, x, good), {**cache, "length": lengths}


def advance(
    cfg: ModelConfig,
    params: Params,
    token: Int[Array, " B"],
    cache: Any,
    *,
    rules: Rules | None = None,
) -> tuple[Float[Array, "B V"], Any]:
    """Appends one token a sequence to the cache: the logits behind it, and the extended cache.

    Donated to a jitted function (`donate_argnums`), the cache is written in place. While tracing
    nothing can be refused: of a sequence whose cache is full, or whose token is outside the
    vocabulary, the logits are NaN, and a full cache stays as it is.

    Raises:
        InputError: a full cache, or ids outside the vocabulary.
    """
    token = _token_ids(cfg, "token", token, "[batch]")
    x, _, cache = hidden(cfg, params, token[:, None], rules=rules, cache=cache)
    return _logits(cfg, params, x[:, 0], _in_vocabulary(cfg, token)), cache


def generate(
    cfg: ModelConfig,
    params: Params,
    prompt: Int[Array, "B T"],
    *,
    key: Key[Array, ""],
    max_new_tokens: int,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] | None = None,
    top_p: float | Float[Array, ""] | None = None,
    stop_token: int | None = None,
    rules: Rules | None = None,
) -> Int[Array, "B M"]:
    """Continues each prompt by `max_new_tokens` tokens; after `stop_token` a sequence repeats it.

    Decoding ends with the last sequence. The cache holds prompt and continuation, so attention sees
    all of both, also beyond `cfg.context_length`, for which no model is trained. The token at
    a place depends on (key, place), not on `max_new_tokens`. A program is compiled for each shape
    of the prompt and `max_new_tokens`, and for nothing else.

    Args:
        cfg: the model.
        params: its parameters.
        prompt: token ids.
        key: of all draws.
        max_new_tokens: M, 1 at least.
        temperature: as in `sample`.
        top_k: as in `sample`.
        top_p: as in `sample`.
        stop_token: ends a sequence; None: nothing does.
        rules: how arrays and the cache are split over the mesh of `jax.set_mesh`; None: not stated.

    Returns:
        int32 ids. Traced values cannot be refused: in the place of what is an error below stands
        -1, which is no token, to the end.

    Raises:
        InputError: a prompt without a token, ids outside the vocabulary, settings out of range,
            `rules` without a mesh or with one that the batch or the heads do not divide over, or a
            model whose logits are no numbers.
    """
    check_sampling(temperature, top_k, top_p)
    prompt = _token_ids(cfg, "prompt", prompt, "[batch, tokens]")
    check_value("max_new_tokens", max_new_tokens, int)
    require(max_new_tokens >= 1, f"max_new_tokens={max_new_tokens} must be at least 1.")
    check_value("stop_token", stop_token, int | None)
    require(
        stop_token is None or 0 <= stop_token < cfg.vocab_size,
        f"stop_token={stop_token} must be an id of the model, from 0 to {cfg.vocab_size - 1}.",
    )
    require(
        rules is None or not jax.sharding.get_abstract_mesh().empty,
        "rules are given, and no mesh: call it inside `with jax.set_mesh(mesh):`.",
    )
    settings = as_settings(temperature, top_k, top_p)
    stop = jnp.asarray(NO_TOKEN if stop_token is None else stop_token, jnp.int32)
    new = _generate(cfg, rules, int(max_new_tokens), params, prompt, key, settings, stop)
    check_drawn(
        new,
        "The model's logits are NaN or infinite, and no token can be drawn: look for NaN in its"
        " parameters.",
    )
    return new


Decoding = tuple[Array, Array, Any, Array]
"""The place of the next token, the last one of each row, the cache, and all new tokens."""


@partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    cfg: ModelConfig,
    rules: Rules | None,
    max_new_tokens: int,
    params: Params,
    prompt: Int[Array, "B T"],
    key: Key[Array, ""],
    settings: Settings,
    stop: Int[Array, ""],
) -> Int[Array, "B M"]:
    def drawn(logits: Array, place: Any) -> Array:
        return draw(logits, jax.random.fold_in(key, place), settings)

    def ended(token: Array) -> Array:
        return (token == stop) | (token == NO_TOKEN)

    def continues(state: Decoding) -> Array:
        place, token, _, _ = state
        return (place < max_new_tokens) & ~jnp.all(ended(token))

    def step(state: Decoding) -> Decoding:
        place, token, cache, new = state
        logits, cache = advance(cfg, params, token, cache, rules=rules)
        token = jnp.where(ended(token), token, drawn(logits, place))
        return place + 1, token, cache, new.at[:, place].set(token)

    batch, length = prompt.shape
    logits, cache = prefill(cfg, params, prompt, room=length + max_new_tokens, rules=rules)
    first = drawn(logits, 0)
    new = jnp.zeros((batch, max_new_tokens), jnp.int32).at[:, 0].set(first)
    place, last, _, new = jax.lax.while_loop(continues, step, (jnp.int32(1), first, cache, new))
    return jnp.where(jnp.arange(max_new_tokens)[None, :] < place, new, last[:, None])


def _token_ids(
    cfg: ModelConfig, name: str, ids: Any, form: str, real: Any = True
) -> Int[Array, "..."]:
    """The ids as an array of that form; those that are `real` are checked unless traced."""
    shape = jnp.shape(ids)
    require(
        len(shape) == len(form.split()) and 0 not in shape,
        f"{name} of shape {list(shape)} must be {form}, and hold at least one token.",
    )
    check_range(name, cfg.vocab_size, ids, real)
    array = jnp.asarray(ids)
    require(
        jnp.issubdtype(array.dtype, jnp.integer), f"{name} holds {array.dtype}, not integer ids."
    )
    return inside(cfg.vocab_size, array, NO_TOKEN)  # in a narrow dtype, the size itself may wrap


def _lengths(lengths: Any, shape: tuple[int, ...]) -> Int[Array, " B"]:
    """The prompts' lengths; those of `shape` where none are given."""
    require(len(shape) == 2, f"prompt of shape {list(shape)} must be [batch, tokens].")
    if lengths is None:
        return jnp.full(shape[:1], shape[1], jnp.int32)
    lengths = jnp.asarray(lengths)
    require(
        lengths.shape == shape[:1] and jnp.issubdtype(lengths.dtype, jnp.integer),
        f"lengths {lengths.dtype}{list(lengths.shape)} must be integers, one a row of the prompt"
        f" ({shape[0]}).",
    )
    values = concrete(lengths)
    require(
        values is None or bool(np.all((values >= 1) & (values <= shape[1]))),
        f"lengths must be from 1 to {shape[1]}, the prompt's tokens a row; they are {values}.",
    )
    return lengths.astype(jnp.int32)


def _logits(
    cfg: ModelConfig, params: Params, x: Float[Array, "B D"], good: Bool[Array, " B"]
) -> Float[Array, "B V"]:
    """Of the good rows; NaN in the others."""
    return jnp.where(good[:, None], unembed(cfg, params, x), jnp.nan)


def _in_vocabulary(cfg: ModelConfig, ids: Int[Array, "..."]) -> Bool[Array, "..."]:
    return (ids >= 0) & (ids < cfg.vocab_size)
