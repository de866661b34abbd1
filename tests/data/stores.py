"""Token stores of a few documents, and the documents of a store."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from polycom_jax.data.shard import ShardBuilder, shares_ends, token_dtype
from polycom_jax.data.store import TokenStore
from polycom_jax.data.tokenizers import Tokenizer


def in_memory(tokens: np.ndarray, eot: int, **about: Any) -> TokenStore:
    """A store of one shard, whose tokens are these, without the last end of text."""
    return TokenStore(np.array([len(tokens)], np.int64), lambda shard: tokens, eot, **about)


def store_of(
    raws: Iterable[bytes | None], tokenizer: Tokenizer, undecodable: str = "replace"
) -> tuple[TokenStore, Mapping[str, int]]:
    """A store of one shard, and its counts."""
    builder = ShardBuilder(tokenizer, undecodable)
    for index, raw in enumerate(raws):
        builder.add(f"Document {index + 1}", raw)
    shard = builder.finish()
    counts = shard.counts
    tokens = np.frombuffer(bytes(shard.tokens), token_dtype(tokenizer))
    store = in_memory(
        tokens,
        tokenizer.eot,
        num_documents=counts["documents"],
        num_bytes=counts["bytes"] - counts["replaced"] - counts["lost"],
        begin=() if shares_ends(tokenizer) else tokenizer.begin,
        lengths=shard.lengths,
    )
    return store, counts


def documents(store: TokenStore, tokenizer: Tokenizer) -> list[str]:
    """The texts of a store whose texts share their ends."""
    stream = store.tokens
    ends = np.flatnonzero(stream == store.eot)
    return [tokenizer.decode(stream[a + 1 : b]) for a, b in pairwise(ends)]
