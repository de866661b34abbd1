"""PolyReLU as TPU kernels (Pallas, lowered by Mosaic): one pass forward, one backward.

A `custom_vjp` that saves the inputs: forward mode and second derivatives, which
`implementation="xla"` has, are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from polycom_jax.activations.polynomial import horner
from polycom_jax.kernels.restrictions import reverse_only
from polycom_jax.kernels.row_sums import LANES, cotangent_terms
from polycom_jax.kernels.sharded import match_varying
from polycom_jax.kernels.tpu_blocks import SUBLANES, round_up
from polycom_jax.kernels.tpu_call import Operand, TpuCall, in_lanes, tiled
from polycom_jax.kernels.vmem_loops import each_group, group_height, sum_lanes, write_lanes


def poly_relu(
    x: Float[Array, "*S"], coeffs: Float[Array, " R+1"], *, interpret: bool = False
) -> Float[Array, "*S"]:
    """`kernels.poly_relu.poly_relu`; `interpret` runs the kernels as XLA operations, for tests."""
    # Vectors in rows of one register's width where that costs no padding.
    width = x.shape[-1] if x.ndim > 1 else LANES if x.size % LANES == 0 else x.size
    flat = x.reshape(-1, width) if x.size else x.reshape(0, 1)
    arrays = reverse_only("poly_relu", "pallas_tpu", *match_varying(coeffs, flat))
    return _compiled(interpret, *arrays).reshape(x.shape)


def _value(interpret: bool, coeffs: Array, x: Float[Array, "N F"]) -> Float[Array, "N F"]:
    if x.size == 0:
        return x
    call = Plan.of(coeffs, x).forward()
    return call(partial(_forward_kernel, coeffs.size), in_lanes(coeffs), x, interpret=interpret)[0]


def _forward(interpret: bool, coeffs: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
    return _value(interpret, coeffs, x), (coeffs, x)


def _backward(interpret: bool, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    coeffs, x = saved
    if x.size == 0:
        return jnp.zeros_like(coeffs), dy
    call = Plan.of(coeffs, x).backward()
    body = partial(_backward_kernel, coeffs.size, (x.shape[0], x.shape[1]))
    dx, parts = call(body, in_lanes(coeffs), dy, x, interpret=interpret)
    return jnp.sum(parts[:, :, : coeffs.size, 0], axis=(0, 1)).astype(coeffs.dtype), dx


_elements = jax.custom_vjp(_value, nondiff_argnums=(0,))
_elements.defvjp(_forward, _backward)
_compiled = jax.jit(_elements, static_argnums=0)


@dataclass(frozen=True)
class Plan:
    """The calls for arrays [count, width] of a dtype, and a polynomial of so many coefficients."""

    coefficients: int
    count: int
    width: int
    dtype: Any

    @classmethod
    def of(cls, coeffs: Float[Array, " R+1"], x: Float[Array, "N F"]) -> "Plan":
        """For these arrays."""
        return cls(coeffs.size, x.shape[0], x.shape[1], x.dtype)

    def forward(self) -> TpuCall:
        """(coeffs, x) -> y."""
        grid, coeffs, part = self._blocks()
        return TpuCall("poly_relu_forward", grid, (coeffs, part), (part,))

    def backward(self) -> TpuCall:
        """(coeffs, dy, x) -> (dx, dcoeffs by block)."""
        grid, coeffs, part = self._blocks()
        shape = (1, 1, *coeffs.shape)
        dcoeffs = Operand((*grid, *coeffs.shape), jnp.float32, shape, lambda i, j: (i, j, 0, 0))
        return TpuCall("poly_relu_backward", grid, (coeffs, part, part), (part, dcoeffs))

    def _blocks(self) -> tuple[tuple[int, int], Operand, Operand]:
        grid, part = tiled(self.count, self.width, self.dtype)
        shape = (round_up(self.coefficients, SUBLANES), LANES)
        return grid, Operand(shape, jnp.float32, shape, lambda i, j: (0, 0)), part


def _forward_kernel(count: int, coeffs_ref: Any, x_ref: Any, y_ref: Any) -> None:
    coeffs = [coeffs_ref[i : i + 1, :] for i in range(count)]

    def group(first: Any, height: int, _: Any) -> None:
        def write(start: Any, size: int) -> None:
            at = pl.ds(first, height), pl.ds(start, size)
            z = jnp.maximum(x_ref[at].astype(jnp.float32), 0.0)
            y = horner(z, [c[:, :size] for c in _tall(coeffs, height)])
            y_ref[at] = y.astype(y_ref.dtype)

        write_lanes(y_ref.shape[1], write)

    each_group(y_ref.shape[0], group)


def _backward_kernel(
    count: int,
    shape: tuple[int, int],
    coeffs_ref: Any,
    dy_ref: Any,
    x_ref: Any,
    dx_ref: Any,
    dcoeffs_ref: Any,
) -> None:
    """dcoeffs [1, 1, coefficients, 128] is this block's part, the same in every lane."""
    slopes = [i * coeffs_ref[i : i + 1, :] for i in range(1, count)]
    rows, columns = x_ref.shape
    rows_left, columns_left = (
        size - pl.program_id(axis) * block
        for axis, (size, block) in enumerate(zip(shape, x_ref.shape, strict=True))
    )

    def group(first: Any, height: int, carry: Sequence[Array]) -> list[Array]:
        wide = _tall(slopes, height)

        def terms(start: Any, size: int) -> list[Array]:
            at = pl.ds(first, height), pl.ds(start, size)
            x, dy = x_ref[at].astype(jnp.float32), dy_ref[at].astype(jnp.float32)
            z = jnp.maximum(x, 0.0)
            dx = jnp.where(x > 0, dy * horner(z, [c[:, :size] for c in wide]), 0.0)
            dx_ref[at] = dx.astype(dx_ref.dtype)
            if shape[1] % columns:
                lane = start + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
                z, dy = (jnp.where(lane < columns_left, v, 0.0) for v in (z, dy))
            return cotangent_terms(z, dy, count - 1)

        row = first + jax.lax.broadcasted_iota(jnp.int32, (height, 1), 0)
        parts = sum_lanes(columns, terms)
        return [c + jnp.where(row < rows_left, p, 0.0) for c, p in zip(carry, parts, strict=True)]

    zero = jnp.zeros((group_height(rows), 1), jnp.float32)
    totals = each_group(rows, group, [zero] * count)
    dcoeffs_ref[...] = jnp.zeros(dcoeffs_ref.shape, jnp.float32)
    for i, total in enumerate(totals):
        whole = jnp.sum(total, axis=0, keepdims=True)
        dcoeffs_ref[0, 0, i : i + 1, :] = jnp.broadcast_to(whole, (1, LANES))


def _tall(coeffs: Sequence[Array], height: int) -> list[Array]:
    return [jnp.broadcast_to(c, (height, LANES)) for c in coeffs]
