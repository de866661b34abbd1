"""Kernel bodies of PolyNorm and its relatives for GPUs: a program takes one row, or a few in turn.

float32 inside, whatever is loaded. Lanes of the last piece that lie beyond the row's end are 0, and
0 adds nothing to any sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import horner
from polycom_jax.kernels import triton
from polycom_jax.kernels.poly_norm import moments
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.poly_norm.gpu_plan import Plan
from polycom_jax.kernels.row_sums import cotangent_terms

Carry = Any


@dataclass(frozen=True)
class Row:
    """The arrays of one row, piece by piece.

    Attributes:
        plan: of its pieces.
        group: which group of rows.
        index: of the row in its group.
        held: what was loaded, by array and start, if the row is held.
    """

    plan: Plan
    group: Any
    index: Any
    held: dict[tuple[int, int], Array] = field(default_factory=dict)

    def load(self, ref: Any, start: Any) -> Float[Array, " P"]:
        """A piece in float32."""
        if not self.plan.held:
            return self._load(ref, start)
        key = id(ref), start
        if key not in self.held:
            self.held[key] = self._load(ref, start)
        return self.held[key]

    def store(self, ref: Any, start: Any, piece: Float[Array, " P"]) -> None:
        """Writes a piece, rounded."""
        triton.store(self._at(ref, start), piece.astype(ref.dtype), self._inside(start))

    def fold(self, step: Callable[[Any, Carry], Carry], carry: Carry) -> Carry:
        """step(start, carry) for every piece in order; of a row that is not held, in a loop."""
        size, whole = self.plan.piece, self.plan.width // self.plan.piece
        if self.plan.held:
            for k in range(self.plan.pieces):
                carry = step(k * size, carry)
            return carry
        carry = jax.lax.fori_loop(0, whole, lambda k, c: step(k * size, c), carry)
        return step(whole * size, carry) if whole < self.plan.pieces else carry

    def zeros(self, count: int) -> list[Float[Array, " P"]]:
        """To add pieces to."""
        return [jnp.zeros((self.plan.piece,), jnp.float32)] * count

    def _load(self, ref: Any, start: Any) -> Array:
        return triton.load(self._at(ref, start), self._inside(start)).astype(jnp.float32)

    def _at(self, ref: Any, start: Any) -> Any:
        # A slice may not reach beyond the array, not even where it is masked.
        lanes = self._lanes(start) if self._is_cut(start) else pl.ds(start, self.plan.piece)
        return ref.at[self.group, self.index, lanes]

    def _inside(self, start: Any) -> Array | None:
        """Which lanes lie in the row; None: all do."""
        return self._lanes(start) < self.plan.width if self._is_cut(start) else None

    def _lanes(self, start: Any) -> Array:
        return start + jax.lax.broadcasted_iota(jnp.int32, (self.plan.piece,), 0)

    def _is_cut(self, start: Any) -> bool:
        return isinstance(start, int) and start + self.plan.piece > self.plan.width


def _each_row(plan: Plan, count: int, body: Callable[[Row, Carry], Carry], carry: Carry) -> Carry:
    """body(row, carry) for the rows of this program, of groups of `count`."""
    blocks = -(-count // plan.rows)
    program = pl.program_id(0)
    group, first = program // blocks, program % blocks * plan.rows
    if plan.rows == 1:
        return body(Row(plan, group, first), carry)
    last = jnp.minimum(first + plan.rows, count)
    return jax.lax.fori_loop(first, last, lambda i, c: body(Row(plan, group, i), c), carry)


def _inner(form: Form, x: Array) -> Array:
    return jnp.maximum(x, 0.0) if form.relu else x


def _sums(form: Form, row: Row, x_ref: Any) -> moments.Sums:
    """Scale and moments of a row."""
    return _sums_held(form, row, x_ref) if row.plan.held else _sums_read_once(form, row, x_ref)


def _sums_held(form: Form, row: Row, x_ref: Any) -> moments.Sums:
    def x(start: Any) -> Array:
        return _inner(form, row.load(x_ref, start))

    def larger(start: Any, largest: Array) -> Array:
        return jnp.maximum(largest, jnp.abs(x(start)))

    scale = moments.scale_of(jnp.max(row.fold(larger, row.zeros(1)[0])))

    def add(start: Any, totals: Sequence[Array]) -> list[Array]:
        terms = moments.moment_terms(x(start) * scale, form.order)
        return [t + term for t, term in zip(totals, terms, strict=True)]

    return moments.Sums(scale, [jnp.sum(t) for t in row.fold(add, row.zeros(form.order))])


def _sums_read_once(form: Form, row: Row, x_ref: Any) -> moments.Sums:
    """The maximum and the sums in one loop: each lane has a scale of its own, which its largest
    element so far sets, and moves its sums to a new one exactly.
    """

    def add(start: Any, carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        before, totals = carry
        x = _inner(form, row.load(x_ref, start))
        scale = jnp.minimum(before, moments.scale_of(jnp.abs(x)))
        moved = moments.moved(totals, scale * moments.inverse_of(before))
        terms = moments.moment_terms(x * scale, form.order)
        return scale, [t + term for t, term in zip(moved, terms, strict=True)]

    start = jnp.ones((row.plan.piece,), jnp.float32), row.zeros(form.order)
    by_lane, totals = row.fold(add, start)
    scale = jnp.min(by_lane)
    moved = moments.moved(totals, scale * moments.inverse_of(by_lane))
    return moments.Sums(scale, [jnp.sum(t) for t in moved])


def forward(form: Form, plan: Plan, *refs: Any) -> None:
    """(coeffs [G, R+1], x[, up], y, row_stats [G, N, R+1]): scale and inverse RMS of each row."""
    coeffs_ref, x_ref, *others, y_ref, stats_ref = refs

    def body(row: Row, carry: Carry) -> Carry:
        sums = _sums(form, row, x_ref)
        inv_rms = moments.inv_rms(sums, plan.width, form.eps)
        terms = moments.value_terms(inv_rms, _coefficients(form, coeffs_ref, row))

        def write(start: Any, carry: Carry) -> Carry:
            y = horner(_inner(form, row.load(x_ref, start)) * sums.scale, terms)
            row.store(y_ref, start, y * row.load(others[0], start) if form.gated else y)
            return carry

        row.fold(write, 0)
        for k, statistic in enumerate([sums.scale, *inv_rms]):
            stats_ref[row.group, row.index, k] = statistic
        return carry

    _each_row(plan, y_ref.shape[1], body, 0)


def backward(form: Form, plan: Plan, *refs: Any) -> None:
    """(coeffs, row_stats, dy, x[, up], dx[, dup][, y], dcoeffs [G, programs, R+1])."""
    coeffs_ref, stats_ref, dy_ref, x_ref, *others, dcoeffs_ref = refs
    up_ref = others.pop(0) if form.gated else None
    dx_ref = others.pop(0)
    dup_ref = others.pop(0) if form.gated else None
    y_ref = others.pop(0) if others else None
    order, count = form.order, dy_ref.shape[1]

    def body(row: Row, carry: list[Array]) -> list[Array]:
        scale, *inv_rms = (stats_ref[row.group, row.index, k] for k in range(order + 1))
        coeffs = _coefficients(form, coeffs_ref, row)

        def cotangent(start: Any) -> Array:
            dy = row.load(dy_ref, start)
            return dy * row.load(up_ref, start) if form.gated else dy

        def add(start: Any, totals: Sequence[Array]) -> list[Array]:
            z = _inner(form, row.load(x_ref, start)) * scale
            terms = cotangent_terms(z, cotangent(start), order)
            return [t + term for t, term in zip(totals, terms, strict=True)]

        found = [jnp.sum(t) for t in row.fold(add, row.zeros(order + 1))]
        sums = moments.Sums(scale, (), found)
        slopes, through_norm = moments.slope_terms(inv_rms, coeffs, sums, plan.width)
        values = moments.value_terms(inv_rms, coeffs)

        def write(start: Any, carry: Carry) -> Carry:
            x = row.load(x_ref, start)
            z = _inner(form, x) * scale
            dx = cotangent(start) * horner(z, slopes) - z * horner(z * z, through_norm)
            row.store(dx_ref, start, jnp.where(x > 0, dx * scale, 0.0) if form.relu else dx * scale)
            if form.gated:
                row.store(dup_ref, start, row.load(dy_ref, start) * horner(z, values))
            if y_ref is not None:
                y = horner(z, values)
                row.store(y_ref, start, y * row.load(up_ref, start) if form.gated else y)
            return carry

        row.fold(write, 0)
        parts = moments.coefficient_terms(inv_rms, sums)
        return [c + part for c, part in zip(carry, parts, strict=True)]

    totals = _each_row(plan, count, body, [jnp.float32(0.0)] * (order + 1))
    blocks = dcoeffs_ref.shape[1]
    for k, total in enumerate(totals):
        dcoeffs_ref[pl.program_id(0) // blocks, pl.program_id(0) % blocks, k] = total


def _coefficients(form: Form, ref: Any, row: Row) -> list[Array]:
    return [ref[row.group, k] for k in range(form.order + 1)]
