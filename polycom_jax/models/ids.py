"""Token ids: one outside the vocabulary is an error, or NaN; never a number that looks right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from polycom_jax._concrete import concrete
from polycom_jax._errors import InputError, require


def check_tokens(vocab_size: int, tokens: Any) -> Int[Array, "B T"]:
    """The tokens as an array.

    Raises:
        InputError: no integers [batch, seq], none at all, or ids outside the vocabulary. While a
            function is traced ids are not known; those outside are embedded as NaN.
    """
    array = tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
    require(
        0 not in array.shape,
        f"tokens of shape {list(array.shape)} hold no token; leave out empty batches.",
    )
    require(
        array.ndim == 2 and jnp.issubdtype(array.dtype, jnp.integer),
        f"tokens {array.dtype}{list(array.shape)} must be integers [batch, seq].",
    )
    check_range("tokens", vocab_size, array)
    return jnp.asarray(array)


def check_range(name: str, vocab_size: int, ids: Any, counted: Any = True) -> None:
    """Raises `InputError` where ids that count are outside the vocabulary, if both are known now:
    not while a function is traced, nor of what other processes hold.
    """
    values, counted = concrete(ids), concrete(counted)
    if values is None or counted is None:
        return
    outside = values[((values < 0) | (values >= vocab_size)) & counted]
    if outside.size:
        more = f", and {outside.size - 1} more ids" if outside.size > 1 else ", which is"
        raise InputError(
            f"{name}: {outside[0]}{more} not from 0 to {vocab_size - 1}: the model has"
            f" vocab_size={vocab_size}. Take the tokenizer that it was trained with; what is to be"
            " left out is said by the mask."
        )


def inside(vocab_size: int, ids: Int[Array, "..."], other: int) -> Int[Array, "..."]:
    """The ids, int32, with `other` in the place of those outside the vocabulary."""
    narrow = ids.astype(jnp.int32)
    # What int32 cannot hold is outside as well; in 8 or 16 bits, the size itself may not fit.
    same = narrow.astype(ids.dtype) == ids
    return jnp.where(same & (narrow >= 0) & (narrow < vocab_size), narrow, other)


def lookup(vocab_size: int, table: Array, ids: Int[Array, "..."]) -> Array:
    """The rows of `table` [at least V, D], NaN for ids outside the vocabulary."""
    # Behind the table's end, `take` gives NaN; negative ids would count from there.
    return jnp.take(table, inside(vocab_size, ids, table.shape[0]), axis=0, mode="fill")


__all__ = ["check_range", "check_tokens", "inside", "lookup"]
