"""One token a sequence from logits: greedy, or drawn from the most probable ones."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from polycom_jax._errors import InputError, require
from polycom_jax._fields import LARGEST, check_value

NO_TOKEN = -1
"""Stands where there is no distribution to draw from, and nothing could be refused."""

TINY = float(jnp.finfo(jnp.float32).tiny)
"""Lower temperatures are 0 to processors that flush subnormal numbers."""

ALL = LARGEST
"""The `top_k` that keeps every token."""

FEW = 128
"""The largest `top_k` whose tokens are found without sorting the vocabulary."""

Settings = tuple[Float[Array, ""], Int[Array, ""], Float[Array, ""]]
"""Temperature, top-k and top-p as arrays, so that other values need no other program."""


def sample(
    logits: Float[Array, "B V"],
    key: Key[Array, ""],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Int[Array, " B"]:
    """Draws one token of each row of logits, in float32; settings may be traced.

    Args:
        logits: -inf for what is not to be drawn; at least one of a row is finite.
        key: of the draw.
        temperature: logits are divided by it. 0 is greedy (the lowest id of the most probable), and
            so is what float32 does not hold as a normal number, below 1.2e-38.
        top_k: keeps the k most probable tokens; None, or more than V: all.
        top_p: then keeps the fewest whose probabilities (at this temperature) add up to at least p
            (Holtzman et al. 2020); None: all. Of equally probable tokens both prefer lower ids.

    Returns:
        int32 ids. Traced values cannot be refused: in the place of what is an error below stands
        -1, which is no token.

    Raises:
        InputError: a setting out of range, or a row of logits with NaN or infinity in it, or with
            nothing but -inf.
    """
    check_sampling(temperature, top_k, top_p)
    shape = jnp.shape(logits)
    require(
        len(shape) == 2 and shape[-1] >= 1,
        f"logits of shape {list(shape)} must be [batch, vocabulary], with a token at least.",
    )
    tokens = draw(jnp.asarray(logits), key, as_settings(temperature, top_k, top_p))
    check_drawn(tokens, "logits have a row that is no distribution: NaN, infinite, or all -inf.")
    return tokens


def greedy(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The most probable token of each row, the lowest id of several; -1 as in `sample`."""
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), best, NO_TOKEN)


def check_sampling(temperature: Any, top_k: Any, top_p: Any) -> None:
    """Raises `InputError` for settings that no distribution fits; traced ones are passed over."""
    finite = "0 (greedy) or positive and finite"
    _check("temperature", temperature, float, lambda t: 0 <= t < math.inf, finite)
    _check("top_k", top_k, int | None, lambda k: k >= 1, "at least 1, or none")
    _check("top_p", top_p, float | None, lambda p: 0 < p <= 1, "in (0, 1], or none")


def _check(name: str, value: Any, kind: Any, fits: Callable[[Any], bool], rule: str) -> None:
    if isinstance(value, Tracer):
        require(value.ndim == 0, f"{name} of shape {list(value.shape)} must be one number.")
        return
    number = _number(value)
    check_value(name, number, kind)
    require(number is None or fits(number), f"{name}={number} must be {rule}.")


def check_drawn(tokens: Int[Array, "..."], problem: str) -> None:
    """Raises `InputError` where one is -1; not while tracing."""
    if not isinstance(tokens, Tracer) and bool(jnp.any(tokens == NO_TOKEN)):
        raise InputError(problem)


def as_settings(temperature: Any, top_k: Any, top_p: Any) -> Settings:
    """Settings that `check_sampling` has passed; None becomes what keeps all."""
    if top_p is None:
        top_p = 1
    elif not isinstance(top_p, Tracer):
        top_p = max(_number(top_p), TINY)  # float32 must not make it 0
    return (
        jnp.asarray(temperature, jnp.float32),
        jnp.asarray(ALL if top_k is None else top_k, jnp.int32),
        jnp.asarray(top_p, jnp.float32),
    )


def _number(value: Any) -> Any:
    """What an array of one number holds; everything else as it is."""
    return value.item() if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 else value


@jax.jit
def draw(logits: Float[Array, "B V"], key: Key[Array, ""], settings: Settings) -> Int[Array, " B"]:
    """`sample` of settings as arrays; it refuses nothing."""
    temperature, top_k, top_p = settings
    logits, vocab = logits.astype(jnp.float32), logits.shape[1]
    best = jnp.max(logits, axis=-1, keepdims=True)
    # The largest becomes 0 first: a low temperature must not turn several into infinity.
    # Its reciprocal must not be a subnormal number either: XLA may multiply by that.
    scaled = (logits - best) / jnp.clip(temperature, TINY, 1 / TINY)
    methods = [
        lambda: greedy(logits),
        lambda: jax.random.categorical(key, scaled, axis=-1).astype(jnp.int32),
        lambda: _draw_kept(scaled, key, top_k, top_p, min(FEW, vocab)),
    ]
    if vocab > FEW:
        methods.append(lambda: _draw_kept(scaled, key, top_k, top_p, vocab))
    conditions = [temperature < TINY, (top_k == ALL) & (top_p == 1), top_k <= FEW]
    tokens = jax.lax.switch(jnp.select(conditions, [0, 1, 2], len(methods) - 1), methods)
    fits = (temperature >= 0) & (temperature < jnp.inf) & (top_k >= 1) & (top_p > 0) & (top_p <= 1)
    return jnp.where(fits & jnp.isfinite(best[:, 0]), tokens, NO_TOKEN)


def _draw_kept(
    scaled: Float[Array, "B V"],
    key: Key[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    size: int,
) -> Int[Array, " B"]:
    """One of the tokens that top_k, then top_p, keeps; they are among the `size` most probable."""
    # Sorted, a cut is a cut by rank, and ties are no matter.
    ordered, ids = jax.lax.top_k(scaled, size)
    rank = jnp.arange(size)[None, :]
    ordered = jnp.where(rank < top_k, ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    ordered = jnp.where((before < top_p) | (top_p == 1), ordered, -jnp.inf)
    # As `jax.random.categorical` of the k kept alone: its noise for row b and rank i stands at
    # b k + i, whatever `size` is.
    row = jnp.arange(len(scaled))[:, None]
    noise = jax.random.gumbel(key, (len(scaled) * size,))[row * jnp.minimum(top_k, size) + rank]
    choice = jnp.argmax(ordered + noise, axis=-1)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
