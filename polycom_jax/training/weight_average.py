"""An exponential moving average of the parameters, kept beside the optimiser's state."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from polycom_jax.params import Params


class AveragedState(NamedTuple):
    """The state of an optimiser whose parameters are averaged.

    Attributes:
        inner: its own.
        average: of the parameters after each update so far; before the first, the parameters.
        updates: number of these.
    """

    inner: PyTree
    average: Params
    updates: Int[Array, ""]


def averaging(
    optimizer: optax.GradientTransformationExtraArgs, decay: float
) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, in whose state the parameters p_1 ... p_t after its updates are averaged:

        average_t = sum_s decay^(t-s) p_s / sum_s decay^(t-s).

    The weights add up to 1 at every t, so the start is forgotten at once. What the optimiser does
    stays the same.
    """

    def init(params: Params) -> AveragedState:
        # Copies: a step donates both.
        return AveragedState(
            optimizer.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32)
        )

    def update(
        updates: Params, state: Any, params: Params | None = None, **given: Any
    ) -> tuple[Params, AveragedState]:
        updates, inner = optimizer.update(updates, state.inner, params, **given)
        assert params is not None
        count: Any = optax.safe_increment(state.updates)
        share = newest_share(decay, count)
        average = jax.tree.map(
            lambda mean, new: mean + share.astype(mean.dtype) * (new - mean),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, AveragedState(inner, average, count)

    return optax.GradientTransformationExtraArgs(init, update)


def newest_share(decay: float, count: Int[Array, ""]) -> Float[Array, ""]:
    """(1 - decay) / (1 - decay^count), the last one's weight among `count`."""
    return (1 - decay) / -jnp.expm1(count.astype(jnp.float32) * math.log(decay))


def average_of(opt_state: Any) -> Params | None:
    """The averaged parameters of a state with them; None: there are none."""
    return opt_state.average if isinstance(opt_state, AveragedState) else None
