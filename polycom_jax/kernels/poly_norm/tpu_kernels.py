"""Kernel bodies of PolyNorm and its relatives on a block of rows in VMEM.

float32 inside, whatever is loaded. Rows and lanes of a block that lie outside the array hold
anything: such rows stay by themselves and are left out of sums over rows, such lanes are set to 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import horner
from polycom_jax.kernels.poly_norm import moments
from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.row_sums import LANES, cotangent_terms
from polycom_jax.kernels.vmem_loops import (
    each_group,
    group_height,
    max_lanes,
    sum_lanes,
    write_lanes,
)

Load = Callable[[Any, int], Float[Array, "G L"]]


@dataclass(frozen=True)
class Row:
    """The arrays of one group of rows, to be loaded piece by piece.

    Attributes:
        x: the input, before relu.
        up: the second factor, if gated.
        dy: the cotangent, in the backward pass.
    """

    form: Form
    x: Load
    up: Load | None = None
    dy: Load | None = None

    def inner(self, start: Any, size: int) -> Array:
        """What is normalised."""
        x = self.x(start, size)
        return jnp.maximum(x, 0.0) if self.form.relu else x

    def cotangent(self, start: Any, size: int) -> Array:
        """Of the polynomial's value."""
        assert self.dy is not None
        dy = self.dy(start, size)
        return dy if self.up is None else dy * self.up(start, size)

    def sums(self, width: int) -> moments.Sums:
        """Scale and moments, those of the cotangent too if there is one; two passes over lanes."""
        (largest,) = max_lanes(width, lambda start, size: [jnp.abs(self.inner(start, size))])
        scale = moments.scale_of(largest)
        wide = jnp.broadcast_to(scale, (scale.shape[0], LANES))
        order = self.form.order

        def terms(start: Any, size: int) -> list[Array]:
            z = self.inner(start, size) * wide[:, :size]
            found = moments.moment_terms(z, order)
            if self.dy is not None:
                found += cotangent_terms(z, self.cotangent(start, size), order)
            return found

        totals = sum_lanes(width, terms)
        return moments.Sums(scale, totals[:order], totals[order:])

    def write_value(self, width: int, scale: Array, terms: Sequence[Array], out: Any) -> None:
        """out(start, size, y) for every piece; `terms` as `moments.value_terms`."""
        scale, *terms = _wide(scale, *terms)

        def write(start: Any, size: int) -> None:
            y = horner(self.inner(start, size) * scale[:, :size], [t[:, :size] for t in terms])
            out(start, y if self.up is None else y * self.up(start, size))

        write_lanes(width, write)

    def write_gradient(
        self,
        width: int,
        scale: Array,
        slopes: Sequence[Array],
        through_norm: Sequence[Array],
        values: Sequence[Array],
        out: Any,
        out_up: Any = None,
    ) -> None:
        """out(start, dx), and out_up(start, dup) if gated, for every piece."""
        count = len(slopes)
        scale, *every = _wide(scale, *slopes, *through_norm, *values)

        def write(start: Any, size: int) -> None:
            factor, *terms = (term[:, :size] for term in (scale, *every))
            x, z = self.x(start, size), self.inner(start, size) * factor
            dy = self.cotangent(start, size)
            dx = dy * horner(z, terms[:count]) - z * horner(z * z, terms[count : 2 * count])
            out(start, jnp.where(x > 0, dx * factor, 0.0) if self.form.relu else dx * factor)
            if self.form.gated:
                assert self.dy is not None
                out_up(start, self.dy(start, size) * horner(z, terms[2 * count :]))

        write_lanes(width, write)


def _wide(*row_stats: Array) -> list[Array]:
    """Statistics of a row, or of all rows, in every lane: once, before the loop over pieces."""
    height = max(n.shape[0] for n in row_stats)
    return [jnp.broadcast_to(n, (height, LANES)) for n in row_stats]


def _loader(ref: Any, first: Any, height: int, left: Any = None) -> Load:
    """Pieces of a group of rows; of a block that lies only `left` lanes inside the array, with 0
    beyond.
    """

    def load(start: Any, size: int) -> Array:
        value = ref[pl.ds(first, height), pl.ds(start, size)].astype(jnp.float32)
        if left is None:
            return value
        lane = start + jax.lax.broadcasted_iota(jnp.int32, value.shape, 1)
        return jnp.where(lane < left, value, 0.0)

    return load


def _writer(ref: Any, first: Any, height: int) -> Callable[[Any, Array], None]:
    def write(start: Any, value: Array) -> None:
        ref[pl.ds(first, height), pl.ds(start, value.shape[1])] = value.astype(ref.dtype)

    return write


def whole_forward(form: Form, width: int, *refs: Any) -> None:
    """Whole rows: (coeffs, x[, up], y)."""
    coeffs_ref, *inputs, y_ref = refs
    coeffs = [coeffs_ref[i : i + 1, :] for i in range(form.order + 1)]

    def group(first: Any, height: int, _: Any) -> None:
        row = Row(form, *(_loader(ref, first, height) for ref in inputs))
        sums = row.sums(width)
        terms = moments.value_terms(moments.inv_rms(sums, width, form.eps), coeffs)
        row.write_value(width, sums.scale, terms, _writer(y_ref, first, height))

    each_group(y_ref.shape[0], group)


def whole_backward(form: Form, count: int, width: int, *refs: Any) -> None:
    """Whole rows of an array that has `count` of them: (coeffs, dy, x[, up], dx[, dup], dcoeffs).

    dcoeffs [1, coefficients, 128] is this block's part of the gradient, the same in every lane.
    """
    *arrays, dcoeffs_ref = refs
    (coeffs_ref, dy_ref, *inputs), outputs = _backward_refs(form, arrays)
    coeffs = [coeffs_ref[i : i + 1, :] for i in range(form.order + 1)]
    block_start = pl.program_id(0) * dy_ref.shape[0]

    def group(first: Any, height: int, carry: list[Array]) -> list[Array]:
        dy = _loader(dy_ref, first, height)
        row = Row(form, *(_loader(ref, first, height) for ref in inputs), dy=dy)
        sums = row.sums(width)
        inv_rms = moments.inv_rms(sums, width, form.eps)
        slopes, through_norm = moments.slope_terms(inv_rms, coeffs, sums, width)
        values = moments.value_terms(inv_rms, coeffs) if form.gated else ()
        out = [_writer(ref, first, height) for ref in outputs]
        row.write_gradient(width, sums.scale, slopes, through_norm, values, *out)
        at = block_start + first + jax.lax.broadcasted_iota(jnp.int32, (height, 1), 0)
        parts = moments.coefficient_terms(inv_rms, sums)
        return [c + jnp.where(at < count, p, 0.0) for c, p in zip(carry, parts, strict=True)]

    zero = jnp.zeros((group_height(dy_ref.shape[0]), 1), jnp.float32)
    totals = each_group(dy_ref.shape[0], group, [zero] * (form.order + 1))
    dcoeffs_ref[...] = jnp.zeros(dcoeffs_ref.shape, jnp.float32)
    for i, total in enumerate(totals):
        whole = jnp.sum(total, axis=0, keepdims=True)
        dcoeffs_ref[0, i : i + 1, :] = jnp.broadcast_to(whole, (1, LANES))


def part_sums(form: Form, width: int, backward: bool, *refs: Any) -> None:
    """A tile of rows of that width: (x, sums), or (dy, x[, up], sums) for the backward pass.

    sums [1, rows, lanes]: scale, moments and cotangent moments in the first lanes.
    """
    *inputs, sums_ref = refs
    dy_ref = inputs.pop(0) if backward else None
    height, tile = inputs[0].shape
    left = width - pl.program_id(1) * tile if width % tile else None

    def group(first: Any, height: int, _: Any) -> None:
        dy = None if dy_ref is None else _loader(dy_ref, first, height, left)
        row = Row(form, *(_loader(ref, first, height, left) for ref in inputs), dy=dy)
        sums = row.sums(tile)
        row_stats = [sums.scale, *sums.moments, *sums.cotangent_moments]
        sums_ref[0, pl.ds(first, height), :] = _packed(row_stats, sums_ref.shape[-1])

    each_group(height, group)


def part_forward(form: Form, *refs: Any) -> None:
    """A tile of rows whose polynomials are given: (terms, x[, up], y)."""
    terms_ref, *inputs, y_ref = refs
    height, tile = y_ref.shape

    def group(first: Any, height: int, _: Any) -> None:
        row = Row(form, *(_loader(ref, first, height) for ref in inputs))
        scale, *terms = _unpacked(terms_ref, first, height, form.order + 2)
        row.write_value(tile, scale, terms, _writer(y_ref, first, height))

    each_group(height, group)


def part_backward(form: Form, *refs: Any) -> None:
    """A tile of rows whose polynomials are given: (terms, dy, x[, up], dx[, dup])."""
    (terms_ref, dy_ref, *inputs), outputs = _backward_refs(form, refs)
    height, tile = dy_ref.shape
    order = form.order

    def group(first: Any, height: int, _: Any) -> None:
        dy = _loader(dy_ref, first, height)
        row = Row(form, *(_loader(ref, first, height) for ref in inputs), dy=dy)
        count = 2 * order + 1 + (order + 1 if form.gated else 0)
        scale, *terms = _unpacked(terms_ref, first, height, count)
        slopes, through_norm, values = (terms[:order], terms[order : 2 * order], terms[2 * order :])
        out = [_writer(ref, first, height) for ref in outputs]
        row.write_gradient(tile, scale, slopes, through_norm, values, *out)

    each_group(height, group)


def _backward_refs(form: Form, refs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    outputs = 2 if form.gated else 1
    return refs[:-outputs], refs[-outputs:]


def _packed(row_stats: Sequence[Float[Array, "G 1"]], lanes: int) -> Float[Array, "G K"]:
    """Statistic k of each row in lane k; 0 in the others."""
    shape = (row_stats[0].shape[0], lanes)
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    packed = jnp.zeros(shape, jnp.float32)
    for k, statistic in enumerate(row_stats):
        packed = jnp.where(lane == k, statistic, packed)
    return packed


def _unpacked(ref: Any, first: Any, height: int, count: int) -> list[Float[Array, "G 1"]]:
    return [ref[pl.ds(first, height), k : k + 1] for k in range(count)]
