"""Rows travel to the devices that hold their experts, and their results travel back.

For use inside `jax.shard_map`. Of an expert axis of P devices, each with N tokens that go to k
experts and E/P experts of its own, a device may be sent up to P N min(k, E/P) rows: all that there
are, since shapes are static and routing is not known. For moe-1b-7b (k = 8, E = 64, D = 2048,
bfloat16) on P = 8 devices with 16,384 tokens each that is 4 GiB, where even routing fills 512 MiB.
A capacity factor c makes the buffer P ceil(c N k / P) rows: of each device's rows for another one
(itself included) those beyond ceil(c N k / P) are dropped, those for its last experts first.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polycom_jax.kernels.dispatch import backend

AxisName = tuple[str, ...]


class Route(NamedTuple):
    """The way of one device's rows, there and back; rows are sorted by expert.

    Attributes:
        axis: the expert axis.
        slots: rows that a device takes from each other one, at most.
        starts: where the rows for each device begin among the sorted ones, [P].
        sent: rows of each device's experts that are sent, [P, E/P].
        received: rows of own experts that come from each device, [P, E/P].
    """

    axis: AxisName
    slots: int
    starts: Int[Array, " P"]
    sent: Int[Array, "P E/P"]
    received: Int[Array, "P E/P"]


def slots(tokens: int, k: int, experts: int, parts: int, capacity: float | None) -> int:
    """Rows that one device may send to another one."""
    worst = tokens * min(k, experts // parts)
    return worst if capacity is None else min(worst, math.ceil(capacity * tokens * k / parts))


def route(sizes: Int[Array, " E"], axis: AxisName, slots: int) -> Route:
    """The route of rows of which the first sizes[0] are for the first expert, and so on."""
    parts = jax.lax.axis_size(axis)
    wanted = sizes.reshape(parts, -1)
    before = jnp.cumsum(wanted, axis=1) - wanted
    sent = jnp.clip(slots - before, 0, wanted)
    totals = jnp.sum(wanted, axis=1)
    received = jax.lax.all_to_all(sent, axis, 0, 0, tiled=True)
    return Route(axis, slots, jnp.cumsum(totals) - totals, sent, received)


def _padded(rows: Float[Array, "R D"], way: Route) -> Float[Array, "Q D"]:
    """There, in P pieces of `slots` rows, each filled up with others: plain all-to-all."""
    size = way.slots
    rows = jnp.pad(rows, ((0, size), (0, 0)))
    pieces = [jax.lax.dynamic_slice_in_dim(rows, start, size) for start in way.starts]
    return jax.lax.all_to_all(jnp.concatenate(pieces), way.axis, 0, 0, tiled=True)


def _padded_back(results: Float[Array, "Q D"], way: Route, rows: int) -> Float[Array, "R D"]:
    size = way.slots
    pieces = jax.lax.all_to_all(results, way.axis, 0, 0, tiled=True)
    out = jnp.zeros((rows + size, results.shape[1]), results.dtype)
    # Ascending: what a piece writes too much belongs to the next one, or to none.
    for part, start in enumerate(way.starts):
        piece = pieces[part * size : (part + 1) * size]
        out = jax.lax.dynamic_update_slice_in_dim(out, piece, start, 0)
    return out[:rows]


def _padded_places(way: Route) -> tuple[Int[Array, " Q"], Int[Array, " Q"]]:
    place = jnp.arange(way.received.shape[0] * way.slots, dtype=jnp.int32)
    return place // way.slots, place % way.slots


def _ragged(rows: Float[Array, "R D"], way: Route) -> Float[Array, "Q D"]:
    """There, one behind the other, none but those that are due."""
    sent, received = jnp.sum(way.sent, axis=1), jnp.sum(way.received, axis=1)
    out = jnp.zeros((way.received.shape[0] * way.slots, rows.shape[1]), rows.dtype)
    begin = _exchanged_offsets(received, way.axis)
    return jax.lax.ragged_all_to_all(
        rows, out, way.starts, sent, begin, received, axis_name=way.axis
    )


def _ragged_back(results: Float[Array, "Q D"], way: Route, rows: int) -> Float[Array, "R D"]:
    sent, received = jnp.sum(way.sent, axis=1), jnp.sum(way.received, axis=1)
    begin = jnp.cumsum(received) - received
    out = jnp.zeros((rows, results.shape[1]), results.dtype)
    home = jax.lax.all_to_all(way.starts, way.axis, 0, 0, tiled=True)
    return jax.lax.ragged_all_to_all(results, out, begin, received, home, sent, axis_name=way.axis)


def _exchanged_offsets(received: Int[Array, " P"], axis: AxisName) -> Int[Array, " P"]:
    """Where this device's rows begin at each of the others."""
    return jax.lax.all_to_all(jnp.cumsum(received) - received, axis, 0, 0, tiled=True)


def _ragged_places(way: Route) -> tuple[Int[Array, " Q"], Int[Array, " Q"]]:
    totals = jnp.sum(way.received, axis=1)
    ends = jnp.cumsum(totals)
    place = jnp.arange(way.received.shape[0] * way.slots, dtype=jnp.int32)
    source = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    source = jnp.minimum(source, ends.size - 1)
    return source, place - (ends - totals)[source]


class Exchange(NamedTuple):
    """One way to send rows.

    Attributes:
        there: there(rows, route) -> [P slots, D], this device's share of all rows.
        back: back(results, route, rows) -> [rows, D], results where their rows had been.
        places: which device each of the P slots rows is from, and its number among that one's.
    """

    send: Callable[[Array, Route], Array]
    send_back: Callable[[Array, Route, int], Array]
    places: Callable[[Route], tuple[Array, Array]]


EXCHANGES: Mapping[str, Exchange] = {
    "padded": Exchange(_padded, _padded_back, _padded_places),
    "ragged": Exchange(_ragged, _ragged_back, _ragged_places),
}


def exchange() -> Exchange:
    """What the backend has: XLA's CPU backend lacks `ragged_all_to_all`."""
    return EXCHANGES["padded" if backend() == "cpu" else "ragged"]
