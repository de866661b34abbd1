"""One derivative rule for all element-wise activations, whatever they learn.

With y = f(x, p) element by element, the Jacobian in x is diagonal: the gradient of x, and the terms
of all gradients of parameters, are the cotangent times forward derivatives of f, which XLA fuses
into one pass over x.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polycom_jax.kernels.implementations import backend
from polycom_jax.kernels.recompute import recomputed
from polycom_jax.kernels.row_sums import all_sums, column_sums
from polycom_jax.kernels.sharded import features_are_unsharded


def elementwise(
    f: Callable[..., Array],
    num_inputs: int = 1,
    by_channel: Sequence[bool] = (),
    listed: bool = False,
) -> Callable[..., Array]:
    """`f` with this rule, computed in the work dtype and rounded once.

    Args:
        f: f(*inputs, *parameters) -> array of the inputs' shape: plain JAX. An element of the
            result depends on the same element of the inputs alone.
        num_inputs: how many of the arguments are inputs.
        by_channel: of each parameter, whether it has a number for each element of the inputs' last
            axis: then its last axes broadcast against the inputs, as [1, ..., F].
        listed: whether f takes vectors of parameters as lists of their entries, too. Then one
            reverse pass gives the derivatives by all entries.

    Returns:
        The same function. Nothing but the arguments is kept for the backward pass, and derivatives
        of every order exist in every mode.
    """

    def gradient(primals: Sequence[Array], cotangent: Array) -> list[Array]:
        def along(index: int, direction: Array) -> Array:
            def of_one(value: Array) -> Array:
                return f(*primals[:index], value, *primals[index + 1 :])

            return jax.jvp(of_one, (primals[index],), (direction,))[1]

        # Times one first: a large cotangent times a large input may overflow before both meet zero.
        slopes = [along(index, jnp.ones_like(primals[index])) for index in range(num_inputs)]
        inputs = [cotangent * slope for slope in slopes]
        learned = [
            _Learned(value, channels, cotangent.ndim)
            for value, channels in zip(primals[num_inputs:], by_channel, strict=True)
        ]

        def slopes_by(at: int, own: _Learned) -> list[Array]:
            if listed and len(own.own) == 1:
                return _by_entries(f, primals, num_inputs + at)
            return [along(num_inputs + at, one) for one in own.directions()]

        terms = [
            [cotangent * slope for slope in slopes_by(at, own)] for at, own in enumerate(learned)
        ]
        return [*inputs, *_totals(learned, terms)]

    return recomputed(f, None, gradient)


def _by_entries(f: Callable[..., Array], primals: Sequence[Array], at: int) -> list[Array]:
    """The derivative of f by each entry of one argument, which f takes as a list.

    Each entry stands for an array of its own, so that one reverse pass, which shares what the
    derivatives have in common, gives them all.
    """
    x = primals[0]
    rows = [jnp.broadcast_to(entry, (*[1] * (x.ndim - 1), *x.shape[-1:])) for entry in primals[at]]
    if backend() == "cpu":
        # A loop over elements reads a row as vectors, and a number again for each element.
        rows = jax.lax.optimization_barrier(rows)
    entries = [jnp.broadcast_to(row, x.shape) for row in rows]

    def of_entries(*entries: Array) -> Array:
        return f(*primals[:at], list(entries), *primals[at + 1 :])

    y, pull = jax.vjp(of_entries, *entries)
    return list(pull(jnp.ones_like(y)))


class _Learned:
    """A parameter within the rule: `count` numbers, or as many rows of one a channel."""

    def __init__(self, value: Array, by_channel: bool, rank: int) -> None:
        self.shape, self.dtype, self.by_channel = value.shape, value.dtype, by_channel
        self.own = value.shape[: value.ndim - rank] if by_channel else value.shape

    def directions(self) -> list[Array]:
        """The directions in which each number, or each row, grows by one."""
        count = math.prod(self.own)
        ones = [1] * (len(self.shape) - len(self.own))
        units = jnp.eye(count, dtype=self.dtype).reshape(count, *self.own, *ones)
        return [jnp.broadcast_to(unit, self.shape) for unit in units]


def _totals(learned: Sequence[_Learned], terms: Sequence[Sequence[Array]]) -> list[Array]:
    """Each parameter's gradient: its terms, summed over all elements that share a number."""
    owners = [own for own, each in zip(learned, terms, strict=True) for _ in each]
    sums = iter(
        _sums([own.by_channel for own in owners], [term for each in terms for term in each])
    )
    return [
        jnp.stack([next(sums) for _ in each]).reshape(own.shape)
        for own, each in zip(learned, terms, strict=True)
    ]


def _sums(by_channel: Sequence[bool], terms: Sequence[Array]) -> list[Array]:
    """The sum of each term over all axes, or all but the last one where it is by channel."""
    if terms and terms[0].ndim and backend() == "cpu" and features_are_unsharded():
        columns = column_sums(terms)
        return [c if own else jnp.sum(c) for own, c in zip(by_channel, columns, strict=True)]
    shared = iter(_all_sums([t for own, t in zip(by_channel, terms, strict=True) if not own]))
    return [
        jnp.sum(term, axis=tuple(range(term.ndim - 1))) if own else next(shared)
        for own, term in zip(by_channel, terms, strict=True)
    ]


def _all_sums(terms: Sequence[Array]) -> list[Array]:
    if terms and backend() == "gpu":
        return all_sums(terms)
    return [jnp.sum(term) for term in terms]
