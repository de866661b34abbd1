"""Checksums of a tree's values that depend neither on the mesh nor on vocabulary padding."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


def leaf_names(tree: Any) -> dict[str, Any]:
    """The leaves by dotted path, `params.layers.0.ffn.w_up` for instance, as Orbax names them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def checksums(tree: Any) -> dict[str, int]:
    """One number a leaf: sum of word_k (2 k + 1) modulo 2^32, k running over its 32-bit words.

    TensorStore notices damage to its own metadata, but not to the values. A change
    of one word always changes the sum, since its factor is odd. Rows of zeros at the end add
    nothing, so a padded vocabulary has the sum of the unpadded one; and sums over shards add up.
    """
    names = leaf_names(tree)
    sums = _jitted(tuple(names.values()))
    return {name: int(value) for name, value in zip(names, jax.device_get(sums), strict=True)}


def _checksum(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    words = _words(x)
    # The index is built along the dimensions that are there: a flattened array would be gathered.
    index = jnp.zeros((1,) * words.ndim, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(
            jnp.uint32, tuple(n if i == axis else 1 for i, n in enumerate(words.shape)), axis
        )
        index = index + along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


def _words(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of x, with a last axis where a value has several words."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    # An item takes a whole byte also where its bits are fewer, as of int4.
    about = jnp.iinfo if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo
    word = jnp.dtype(f"uint{min(about(x.dtype).bits, 32)}")
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)


_jitted = jax.jit(lambda leaves: [_checksum(leaf) for leaf in leaves])
