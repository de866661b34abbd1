"""Sampling from a model with a key-value cache."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from polycom_jax._errors import require
from polycom_jax.models.config import ModelConfig
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
        prompt: token ids; row b's prompt is its first `lengths[b]`, what follows is filling.
        room: tokens a row that the cache has place for, T at least.
        lengths: 1 or more each; None: T.
        rules: how arrays are split over the mesh of `jax.set_mesh`; None: not stated.

    Returns:
        The logits behind each prompt, and the cache for `advance`.
    """
    x, _, cache = hidden(cfg, params, prompt, rules=rules, cache=init_cache(cfg, len(prompt), room))
    if lengths is None:
        return unembed(cfg, params, x[:, -1]), cache
    last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
    # No query sees the filling: it stands behind all of them, and new tokens replace it.
    return unembed(cfg, params, last), {**cache, "length": lengths}


def advance(
    cfg: ModelConfig,
    params: Params,
    token: Int[Array, " B"],
    cache: Any,
    *,
    rules: Rules | None = None,
) -> tuple[Float[Array, "B V"], Any]:
    """Appends one token a row to the cache: the logits behind it, and the longer cache."""
    x, _, cache = hidden(cfg, params, token[:, None], rules=rules, cache=cache)
    return unembed(cfg, params, x[:, 0]), cache


def sample(
    logits: Float[Array, "B V"],
    key: Key[Array, ""],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, " B"]:
    """Draws one token a row.

    `temperature` 0 is greedy. `top_k` keeps the k most probable tokens; `top_p` then keeps the
    fewest whose probabilities (at this temperature) add up to at least p (Holtzman et al. 2020).
    Of equally probable tokens both prefer the lower ids.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # The largest becomes 0 first: a tiny temperature must not turn several into infinity.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    if top_k is None and (top_p is None or top_p == 1):
        return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
    # Sorted, a cut is a cut by rank, and ties are no matter.
    ordered, ids = jax.lax.top_k(logits, min(top_k or logits.shape[-1], logits.shape[-1]))
    if top_p is not None and top_p < 1:
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        ordered = jnp.where(before < top_p, ordered, -jnp.inf)
    choice = jax.random.categorical(key, ordered, axis=-1)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises `InputError` for settings that no distribution fits."""
    require(
        0 <= temperature < float("inf"),
        f"temperature={temperature} must be 0 (greedy) or positive and finite.",
    )
    require(top_k is None or top_k >= 1, f"top_k={top_k} must be at least 1, or none.")
    require(top_p is None or 0 < top_p <= 1, f"top_p={top_p} must be in (0, 1], or none.")


def generate(
    cfg: ModelConfig,
    params: Params,
    prompt: Int[Array, "B T"],
    *,
    key: Key[Array, ""],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
) -> Int[Array, "B M"]:
    """Continues each prompt by `max_new_tokens` tokens; after `stop_token` a row repeats it.

    The cache holds prompt and continuation, so attention sees all of both. The token at a place
    depends on (key, place), not on `max_new_tokens`.

    Raises:
        InputError: an empty prompt, or sampling settings out of range.
    """
    check_sampling(temperature, top_k, top_p)
    require(prompt.ndim == 2 and prompt.shape[1] >= 1, "prompt must hold at least one token.")
    require(max_new_tokens >= 1, f"max_new_tokens={max_new_tokens} must be at least 1.")
    return _generate(
        cfg, max_new_tokens, temperature, top_k, top_p, stop_token, params, prompt, key
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _generate(
    cfg: ModelConfig,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop_token: int | None,
    params: Params,
    prompt: Int[Array, "B T"],
    key: Key[Array, ""],
) -> Int[Array, "B M"]:
    draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)
    logits, cache = prefill(cfg, params, prompt, room=prompt.shape[1] + max_new_tokens)
    first = draw(logits, jax.random.fold_in(key, 0))

    def step(carry: tuple, place: Array) -> tuple:
        token, cache = carry
        logits, cache = advance(cfg, params, token, cache)
        new = draw(logits, jax.random.fold_in(key, place))
        if stop_token is not None:
            new = jnp.where(token == stop_token, stop_token, new)
        return (new, cache), new

    _, rest = jax.lax.scan(step, (first, cache), jnp.arange(1, max_new_tokens))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
