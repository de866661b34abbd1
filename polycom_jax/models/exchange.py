"""Rows are sent to the devices that hold their experts, and results are returned.

For use inside `jax.shard_map`. Of an expert axis of P devices, each with N tokens that go to k
experts and E/P experts of its own, a device may be sent up to P N min(k, E/P) rows, and buffers are
for all of these, since shapes are static and routing is not known. A capacity factor c makes the
buffer P ceil(c N k / P) rows: of each device's rows for another one (itself included) those beyond
ceil(c N k / P) are dropped, those for its last experts first.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.implementations import backend

AxisName = tuple[str, ...]


class SendPlan(NamedTuple):
    """Which of one device's rows, sorted by expert, are sent to which device.

    Attributes:
        axis: the expert axis.
        slots: rows that a device receives from each other one, at most.
        starts: where the rows for each device begin among the sorted ones, [P].
        sent: rows of each device's experts that are sent, [P, E/P].
        received: rows of own experts that come from each device, [P, E/P].
    """

    axis: AxisName
    slots: int
    starts: Int[Array, " P"]
    sent: Int[Array, "P E/P"]
    received: Int[Array, "P E/P"]

    @property
    def totals(self) -> tuple[Int[Array, " P"], Int[Array, " P"]]:
        """Rows that are sent to, and received from, each device."""
        return jnp.sum(self.sent, axis=1), jnp.sum(self.received, axis=1)

    @property
    def buffer_rows(self) -> int:
        """Rows of the buffer that a device receives into."""
        return self.received.shape[0] * self.slots


def slots(tokens: int, k: int, experts: int, parts: int, capacity: float | None) -> int:
    """Rows that one device may send to another one."""
    worst = tokens * min(k, experts // parts)
    return worst if capacity is None else min(worst, math.ceil(capacity * tokens * k / parts))


def plan_sends(sizes: Int[Array, " E"], axis: AxisName, slots: int) -> SendPlan:
    """The plan for rows of which the first sizes[0] are for the first expert, and so on."""
    parts = jax.lax.axis_size(axis)
    wanted = sizes.reshape(parts, -1)
    before = jnp.cumsum(wanted, axis=1) - wanted
    sent = jnp.clip(slots - before, 0, wanted)
    totals = jnp.sum(wanted, axis=1)
    return SendPlan(axis, slots, jnp.cumsum(totals) - totals, sent, _swapped(sent, axis))


def _swapped(x: Array, axis: AxisName) -> Array:
    """Part p of device q's x becomes part q of device p's."""
    return jax.lax.all_to_all(x, axis, 0, 0, tiled=True)


def _send_padded(rows: Float[Array, "R D"], plan: SendPlan) -> Float[Array, "Q D"]:
    """P pieces of `slots` rows each, of which the last ones may be rows of the next piece."""
    rows = jnp.pad(rows, ((0, plan.slots), (0, 0)))
    pieces = [jax.lax.dynamic_slice_in_dim(rows, start, plan.slots) for start in plan.starts]
    return _swapped(jnp.concatenate(pieces), plan.axis)


def _return_padded(results: Float[Array, "Q D"], plan: SendPlan, rows: int) -> Float[Array, "R D"]:
    size, pieces = plan.slots, _swapped(results, plan.axis)
    out = jnp.zeros((rows + size, results.shape[1]), results.dtype)
    # Ascending: what a piece writes too much belongs to the next one, or to none.
    for part, start in enumerate(plan.starts):
        piece = pieces[part * size : (part + 1) * size]
        out = jax.lax.dynamic_update_slice_in_dim(out, piece, start, 0)
    return out[:rows]


def _places_padded(plan: SendPlan) -> tuple[Int[Array, " Q"], Int[Array, " Q"]]:
    place = jnp.arange(plan.buffer_rows, dtype=jnp.int32)
    return place // plan.slots, place % plan.slots


def _send_ragged(rows: Float[Array, "R D"], plan: SendPlan) -> Float[Array, "Q D"]:
    """The rows that are sent and no others, one device's behind another's."""
    sent, received = plan.totals
    out = jnp.zeros((plan.buffer_rows, rows.shape[1]), rows.dtype)
    begin = _swapped(jnp.cumsum(received) - received, plan.axis)
    return jax.lax.ragged_all_to_all(
        rows, out, plan.starts, sent, begin, received, axis_name=plan.axis
    )


def _return_ragged(results: Float[Array, "Q D"], plan: SendPlan, rows: int) -> Float[Array, "R D"]:
    sent, received = plan.totals
    out = jnp.zeros((rows, results.shape[1]), results.dtype)
    begin, home = jnp.cumsum(received) - received, _swapped(plan.starts, plan.axis)
    return jax.lax.ragged_all_to_all(results, out, begin, received, home, sent, axis_name=plan.axis)


def _places_ragged(plan: SendPlan) -> tuple[Int[Array, " Q"], Int[Array, " Q"]]:
    _, totals = plan.totals
    ends = jnp.cumsum(totals)
    place = jnp.arange(plan.buffer_rows, dtype=jnp.int32)
    source = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    source = jnp.minimum(source, ends.size - 1)
    return source, place - (ends - totals)[source]


class Exchange(NamedTuple):
    """A form of the all-to-all.

    Attributes:
        send: send(rows, plan) -> [P slots, D], this device's share of all rows.
        send_back: send_back(results, plan, rows) -> [rows, D], results where their rows had been.
        places: which device each of the P slots rows is from, and its index among that one's.
    """

    send: Callable[[Array, SendPlan], Array]
    send_back: Callable[[Array, SendPlan, int], Array]
    places: Callable[[SendPlan], tuple[Array, Array]]


EXCHANGES: Mapping[str, Exchange] = {
    "padded": Exchange(_send_padded, _return_padded, _places_padded),
    "ragged": Exchange(_send_ragged, _return_ragged, _places_ragged),
}


def exchange() -> Exchange:
    """What the backend has: XLA's CPU backend lacks `ragged_all_to_all`."""
    return EXCHANGES["padded" if backend() == "cpu" else "ragged"]
