"""Greedy continuations of prompts of different lengths, many at a time, with a key-value cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from polycom_jax import params as pm
from polycom_jax._errors import require
from polycom_jax._fields import check_value
from polycom_jax.interop.lm_eval.buckets import batches, bucket, filled
from polycom_jax.kernels.attention import CACHE_AXES
from polycom_jax.models import ModelConfig
from polycom_jax.models.decode import advance, prefill
from polycom_jax.models.moe import dropless
from polycom_jax.models.sampling import NO_TOKEN, greedy
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, fetch, own_mesh
from polycom_jax.training import batch_rows, put_batch
from polycom_jax.training.batches import batch_sharding
from polycom_jax.training.loss import Batch
from polycom_jax.training.state import model_specs
from polycom_jax.training.step import OnMesh

STEPS = 16
"""Tokens written between two looks at whether all rows have ended."""

End = Callable[[Sequence[int], int], int | None]
"""`Stop.end`."""


class Decoder:
    """One model's greedy continuations; programs are compiled for each shape that comes up."""

    def __init__(
        self, cfg: ModelConfig, params: Params, mesh: Mesh, *, batch_size: int, max_length: int
    ) -> None:
        self._params, self._mesh, self._vocab_size = params, mesh, cfg.vocab_size
        self._size, self._max_length = batch_size, max_length
        self._rows = batch_rows(batch_size, mesh)
        self._first, self._more = make_decode_steps(cfg, mesh)

    def __call__(
        self, prompts: Sequence[Sequence[int]], count: int, end: End
    ) -> Iterator[tuple[int, list[int]]]:
        """Yields (index, new tokens) of each prompt, longest first.

        Args:
            prompts: token ids, one at least each; of too many the last `max_length` - `count`.
            count: the most new tokens.
            end: how many of a row's new tokens are its text; what has ended it is the last.

        Raises:
            InputError: an empty prompt, ids outside the vocabulary, a context without room for
                `count` tokens behind a prompt, or a model whose logits are no numbers.
        """
        check_value("count", count, int)
        room = self._max_length - count
        require(
            count >= 1 and room >= 1,
            f"{count} tokens are to be written, and the context of {self._max_length} must hold at"
            " least one before them; ask for fewer (max_gen_toks).",
        )
        require(all(map(len, prompts)), "A prompt without a token: there is nothing to continue.")
        kept = [list(prompt[-room:]) for prompt in prompts]
        for one in kept:
            require(
                min(one) >= 0 and max(one) < self._vocab_size,
                f"A prompt holds ids from {min(one)} to {max(one)}, and the model's are below"
                f" {self._vocab_size}: take its own tokenizer.",
            )
        for indices in batches([bucket(len(prompt), room) for prompt in kept], self._size):
            yield from zip(
                indices, self._continued([kept[i] for i in indices], room, count, end), strict=True
            )

    def _continued(
        self, prompts: list[list[int]], room: int, count: int, end: End
    ) -> list[list[int]]:
        length = bucket(max(map(len, prompts)), room)
        batch = {
            "tokens": filled(prompts, (self._size, length)),
            "lengths": np.ones((self._size, 1), np.int32),
        }
        batch["lengths"][: len(prompts), 0] = list(map(len, prompts))
        own = {name: rows[self._rows] for name, rows in batch.items()}
        put = put_batch(own, self._mesh, batch_size=self._size)
        rounds = -(-(count - 1) // STEPS)
        token, cache = self._first(self._params, put, length + rounds * STEPS)
        new: list[list[int]] = _tokens(token[:, None], len(prompts))
        ends = [end(row, 0) for row in new]
        for _ in range(rounds):
            if None not in ends:
                break
            tokens, token, cache = self._more(self._params, token, cache)
            for i, more in enumerate(_tokens(tokens, len(prompts))):
                if ends[i] is None:
                    seen = len(new[i])
                    new[i] = (new[i] + more)[:count]
                    ends[i] = end(new[i], seen)
        return [row[:stop] for row, stop in zip(new, ends, strict=True)]


def _tokens(tokens: Array, rows: int) -> list[list[int]]:
    found = np.asarray(fetch(tokens))[:rows]
    require(
        NO_TOKEN not in found,
        "The model's logits are NaN or infinite, and no token is the most probable: look for NaN in"
        " its parameters.",
    )
    return found.tolist()


def make_decode_steps(cfg: ModelConfig, mesh: Mesh) -> tuple[OnMesh, OnMesh]:
    """Builds the two programs of greedy decoding.

    Returns:
        `first(params, batch, room) -> (token [B], cache)` for `tokens` [B, T] and `lengths` [B, 1]
        from `put_batch`, and `more(params, token, cache) -> (tokens [B, STEPS], token, cache)`,
        which donates the cache.
    """
    rules = Rules()
    mesh = own_mesh(mesh, rules)
    cfg = dropless(cfg)  # no row's text depends on the others of its batch
    replicated = NamedSharding(mesh, PartitionSpec())
    row = NamedSharding(mesh, rules.partition(("batch",)))
    keys = NamedSharding(mesh, rules.partition(CACHE_AXES))
    kept = {"layers": [{"k": keys, "v": keys}], "length": row}
    held = pm.shardings(model_specs(cfg, mesh, rules), mesh, rules)

    def first(params: Params, batch: Batch, room: int) -> tuple[Array, Any]:
        lengths = batch["lengths"][:, 0]
        logits, cache = prefill(
            cfg, params, batch["tokens"], lengths=lengths, room=room, rules=rules
        )
        return greedy(logits), cache

    def more(params: Params, token: Array, cache: Any) -> tuple[Array, Array, Any]:
        def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], Array]:
            token, cache = carry
            logits, cache = advance(cfg, params, token, cache, rules=rules)
            token = greedy(logits)
            return (token, cache), token

        (token, cache), tokens = jax.lax.scan(step, (token, cache), None, length=STEPS)
        return tokens.T, token, cache

    begun = jax.jit(
        first,
        static_argnums=2,
        in_shardings=(held, batch_sharding(mesh, rules)),
        out_shardings=(replicated, kept),
    )
    going = jax.jit(
        more,
        in_shardings=(held, replicated, kept),
        out_shardings=(replicated, replicated, kept),
        donate_argnums=2,
    )
    return OnMesh(begun, mesh), OnMesh(going, mesh)
