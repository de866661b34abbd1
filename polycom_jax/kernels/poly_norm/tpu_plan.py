"""Block shapes of PolyNorm's TPU kernels: the calls, as data."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from polycom_jax.kernels.poly_norm.form import Form
from polycom_jax.kernels.tpu_blocks import LANES, SUBLANES, round_up, whole_row_block
from polycom_jax.kernels.tpu_call import Operand, TpuCall, tiled


@dataclass(frozen=True)
class Plan:
    """The calls for arrays [count, width]; each has blocks over rows, and some over tiles of rows.

    Attributes:
        form: the operation.
        count: rows.
        width: of a row.
        dtype: of every large array.
    """

    form: Form
    count: int
    width: int
    dtype: Any

    @classmethod
    def of(cls, form: Form, x: Float[Array, "N F"]) -> "Plan":
        """For arrays like x."""
        return cls(form, x.shape[0], x.shape[1], x.dtype)

    @property
    def inputs(self) -> int:
        """Large arrays that the forward pass reads."""
        return 2 if self.form.gated else 1

    def whole_forward(self) -> TpuCall | None:
        """(coeffs, x[, up]) -> y, or None where rows do not fit."""
        rows = whole_row_block(self.count, self.width, self.dtype, self.inputs + 1)
        if rows is None:
            return None
        row = self._whole(rows)
        inputs = (self._coeffs, *[row] * self.inputs)
        return TpuCall("poly_norm_forward", self._grid(rows), inputs, (row,))

    def whole_backward(self) -> TpuCall | None:
        """(coeffs, dy, x[, up]) -> (dx[, dup], dcoeffs by block), or None where rows do not fit."""
        rows = whole_row_block(self.count, self.width, self.dtype, 2 * self.inputs + 1)
        if rows is None:
            return None
        row, (blocks,) = self._whole(rows), self._grid(rows)
        height = self._coeffs.shape[0]
        dcoeffs = Operand(
            (blocks, height, LANES), jnp.float32, (1, height, LANES), lambda i: (i, 0, 0)
        )
        inputs = (self._coeffs, *[row] * (1 + self.inputs))
        outputs = (*[row] * self.inputs, dcoeffs)
        return TpuCall("poly_norm_backward", (blocks,), inputs, outputs)

    def part_sums(self, *, backward: bool) -> TpuCall:
        """([dy,] x[, up]) -> sums [tiles, count, lanes]."""
        form = self.form
        read = self.inputs + 1 if backward else 1
        row_stats = round_up(2 * form.order + 2 if backward else form.order + 1, LANES)
        grid, part = tiled(self.count, self.width, self.dtype)
        rows = part.block[0]
        sums = Operand(
            (grid[1], self.count, row_stats),
            jnp.float32,
            (1, rows, row_stats),
            lambda i, j: (j, i, 0),
        )
        return TpuCall("poly_norm_sums", grid, (part,) * read, (sums,))

    def part_forward(self) -> TpuCall:
        """(terms, x[, up]) -> y."""
        grid, part = tiled(self.count, self.width, self.dtype)
        inputs = (self._terms(part, self.form.order + 2), *[part] * self.inputs)
        return TpuCall("poly_norm_apply", grid, inputs, (part,))

    def part_backward(self) -> TpuCall:
        """(terms, dy, x[, up]) -> dx[, dup]."""
        order = self.form.order
        grid, part = tiled(self.count, self.width, self.dtype)
        row_stats = self._terms(part, 2 * order + 1 + (order + 1) * self.form.gated)
        inputs = (row_stats, *[part] * (1 + self.inputs))
        return TpuCall("poly_norm_apply_transposed", grid, inputs, (part,) * self.inputs)

    @property
    def _coeffs(self) -> Operand:
        shape = (round_up(self.form.order + 1, SUBLANES), LANES)
        return Operand(shape, jnp.float32, shape, lambda i: (0, 0))

    def _whole(self, rows: int) -> Operand:
        return Operand((self.count, self.width), self.dtype, (rows, self.width), lambda i: (i, 0))

    def _grid(self, rows: int) -> tuple[int]:
        return (-(-self.count // rows),)

    def _terms(self, part: Operand, row_stats: int) -> Operand:
        lanes = round_up(row_stats, LANES)
        return Operand(
            (self.count, lanes), jnp.float32, (part.block[0], lanes), lambda i, j: (i, 0)
        )
