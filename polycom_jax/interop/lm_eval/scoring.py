"""Log-likelihoods of continuations, many requests at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from polycom_jax import models
from polycom_jax._errors import require
from polycom_jax.interop.lm_eval.buckets import batches, bucket, filled
from polycom_jax.models import ModelConfig
from polycom_jax.models.ids import inside
from polycom_jax.models.moe import dropless
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, constrain, fetch, own_mesh
from polycom_jax.training import batch_rows, put_batch
from polycom_jax.training.evaluate import on_mesh, one_behind
from polycom_jax.training.loss import Batch, cross_entropy
from polycom_jax.training.step import OnMesh

PLACES = 32
"""Positions whose logits are in memory at once; longer continuations score the rows in full."""


class Pair(NamedTuple):
    """Token ids of a context, one at least, and of what is to be scored behind it."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """The sum of log p over a continuation, and whether each token is the most probable one."""

    log_likelihood: float
    is_greedy: bool


def make_score_step(cfg: ModelConfig, mesh: Mesh) -> OnMesh:
    """Builds `score_step(params, batch) -> (log-likelihood [B], is greedy [B])`.

    The batch, from `put_batch`: `tokens` [B, T]; `places` [B, S], which of them are scored, S a
    multiple of `PLACES`; `targets` [B, S], the tokens behind these; `mask` [B, S], which count.
    Experts run without a capacity: a request's score depends neither on others nor on filling.
    """
    rules = Rules()
    mesh = own_mesh(mesh, rules)
    # What the model was trained with may want lengths that buckets do not have.
    cfg = replace(dropless(cfg), attention=None)

    def pieces(x: Array) -> Array:
        """[B, S, ...] -> [S / PLACES, B, PLACES, ...]."""
        return x.reshape(len(x), -1, PLACES, *x.shape[2:]).swapaxes(0, 1)

    def score_step(params: Params, batch: Batch) -> tuple[Array, Array]:
        x, _, _ = models.hidden(cfg, params, batch["tokens"], rules=rules)
        x = jnp.take_along_axis(x, batch["places"][:, :, None], axis=1)

        def piece(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            x, targets, mask = part
            logits = models.unembed(cfg, params, x, padded=True)
            logits = constrain(logits, rules, "batch", None, "vocab")
            targets = inside(cfg.vocab_size, targets, -1)
            nats = jnp.where(mask, cross_entropy(logits, targets), 0.0)
            best = jnp.argmax(logits, axis=-1) == targets
            return jnp.sum(nats, axis=1), jnp.all(best | ~mask, axis=1)

        parts = tuple(map(pieces, (x, batch["targets"], batch["mask"])))
        nats, greedy = jax.lax.map(piece, parts)
        return -jnp.sum(nats, axis=0), jnp.all(greedy, axis=0)

    return on_mesh(score_step, cfg, mesh, rules)


class Scorer:
    """One model's log-likelihoods; a program is compiled for each shape that comes up."""

    def __init__(
        self, cfg: ModelConfig, params: Params, mesh: Mesh, *, batch_size: int, max_length: int
    ) -> None:
        self._params, self._mesh = params, mesh
        self._size, self._max_length = batch_size, max_length
        self._rows = batch_rows(batch_size, mesh)
        self._step = make_score_step(cfg, mesh)

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Score]]:
        """Yields (index, score) of each pair, longest first.

        Of context and continuation together the last `max_length` + 1 tokens are taken; the very
        last is predicted and not read.

        Raises:
            InputError: an empty context or continuation, or a continuation of more than
                `max_length` tokens.
        """
        for context, continuation in pairs:
            require(
                len(context) >= 1 and 1 <= len(continuation) <= self._max_length,
                f"A continuation of {len(continuation)} tokens behind {len(context)}: there must be"
                f" 1 to {self._max_length} (the model's context) behind at least 1.",
            )

        def scored(indices: list[int]) -> tuple[list[int], Any]:
            batch = self._batch([pairs[i] for i in indices], *self._shape(pairs[indices[0]]))
            return indices, self._step(self._params, batch)

        groups = batches([self._shape(pair) for pair in pairs], self._size)
        for indices, found in one_behind(map(scored, groups)):
            yield from _read(indices, found)

    def _shape(self, pair: Pair) -> tuple[int, int]:
        """The tokens of a row, and how many of its places are scored."""
        length = min(len(pair.context) + len(pair.continuation) - 1, self._max_length)
        tokens = bucket(length, self._max_length)
        places = 1 if len(pair.continuation) <= PLACES else -(-tokens // PLACES)
        return tokens, places * PLACES

    def _batch(self, pairs: list[Pair], tokens: int, places: int) -> Batch:
        read, ends, targets = [], [], []
        for context, continuation in pairs:
            whole = [*context, *continuation][-(self._max_length + 1) :]
            read.append(whole[:-1])
            ends.append(range(len(whole) - 1 - len(continuation), len(whole) - 1))
            targets.append(continuation)
        shape = (self._size, places)
        counts = np.zeros((self._size, 1), np.int32)
        counts[: len(pairs), 0] = [len(one) for one in targets]
        batch = {
            "tokens": filled(read, (self._size, tokens)),
            "places": filled(ends, shape),
            "targets": filled(targets, shape),
            "mask": np.arange(places, dtype=np.int32)[None, :] < counts,
        }
        own = {name: rows[self._rows] for name, rows in batch.items()}
        return put_batch(own, self._mesh, batch_size=self._size)


def _read(indices: list[int], found: tuple[Array, Array]) -> Iterator[tuple[int, Score]]:
    sums, greedy = fetch(found)
    for row, index in enumerate(indices):
        require(
            math.isfinite(sums[row]),
            f"A log-likelihood is {sums[row]}: the model gives no numbers, so no score of it means"
            " anything; its weights are damaged, or its training went wrong.",
        )
        yield index, Score(float(sums[row]), bool(greedy[row]))
