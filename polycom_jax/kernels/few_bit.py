"""Few-bit backward: of its input, an activation keeps the row of a small table of derivatives.

The value is that of the activation. The gradient is the cotangent times one of 2^bits numbers,
those of `activations.derivative_table`; which one is kept in `bits` bits an element, as planes: one
bit of the index of eight elements in each byte.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from polycom_jax._errors import InputError, require
from polycom_jax.activations.derivative_table import derivative_table
from polycom_jax.activations.inputs import check_floating, work_dtype
from polycom_jax.kernels.checkpoint_names import checkpoint_as
from polycom_jax.kernels.linear import linear_map
from polycom_jax.sharding import num_parts

_BYTE = 8


@cache
def few_bit(
    f: Callable[[Array], Array], bits: int, name: str = "the function"
) -> Callable[[Array], Array]:
    """f with a derivative of 2^bits values, of which the backward pass keeps the index alone.

    Args:
        f: element-wise, of one array, which fixes the dtype of the result; bounded derivative.
        bits: 1 to 4.
        name: of f, in messages.

    Returns:
        The same function, value for value. First derivatives exist in both modes; a second one,
        which the table would say is zero, raises `InputError`.
    """

    @jax.custom_jvp
    def function(x: Array) -> Array:
        return f(x)

    @function.defjvp
    def rule(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
        (x,), (change,) = primals, tangents
        table = derivative_table(f, bits, name)
        axis = packed_axis(x)
        index = _index(_first_order(x, bits, name), table.borders)
        kept = checkpoint_as("few_bit", jnp.stack([pack(bit, axis) for bit in index]))

        def scaled(fixed: Sequence[Array], operand: Array) -> Array:
            found = [unpack(plane, axis, operand.shape) for plane in fixed[0]]
            dtype = work_dtype(operand.dtype)
            slope = _select(found, list(np.asarray(table.levels, dtype)))
            return (operand.astype(dtype) * slope).astype(operand.dtype)

        def forward(fixed: Sequence[Array], operands: Sequence[Array]) -> Array:
            return scaled(fixed, operands[0])

        def backward(fixed: Sequence[Array], cotangent: Array) -> Sequence[Array]:
            return [scaled(fixed, cotangent)]

        out = checkpoint_as("few_bit", f(x))
        return out, linear_map(forward, backward, (kept,), (change,))

    compiled = jax.jit(function)
    return lambda x: compiled(check_floating("x", x))


def _index(x: Float[Array, "*S"], borders: Sequence[float]) -> list[Bool[Array, "*S"]]:
    """How many borders are below x, in binary, the highest digit first: a search of the tree."""
    dtype = work_dtype(x.dtype)
    x, places = x.astype(dtype), np.asarray(borders, dtype)
    found: list[Array] = []
    step = (len(borders) + 1) // 2
    while step:
        found.append(x > _select(found, list(places[step - 1 :: 2 * step])))
        step //= 2
    return found


def _select(digits: Sequence[Bool[Array, "*S"]], values: Sequence[Any]) -> Any:
    """values[i] of the number i that has these binary digits: no table is read from memory."""
    for digit in reversed(digits):
        values = [
            jnp.where(digit, one, zero) for zero, one in zip(values[::2], values[1::2], strict=True)
        ]
    return values[0]


def packed_axis(x: Array) -> int:
    """The axis along which eight neighbours share a byte.

    No device should need a part of another's byte, so if possible its length is a multiple of eight
    for every device that may have a part of it; else it is one that is padded least. Not the last
    one, if another is as good: that is the one along which vectors run.

    Raises:
        InputError: explicit axes of the mesh split all axes of x, none of them in eighths.
    """
    parts, explicit = _parts(x)

    def price(axis: int) -> tuple[bool, bool, float, bool, int]:
        size, last = x.shape[axis], axis == x.ndim - 1
        padded = _BYTE * -(-size // _BYTE)
        cut = size % (_BYTE * parts[axis]) != 0
        return cut and explicit[axis], cut, padded / max(size, 1), last, -axis

    best = min(range(x.ndim), key=price, default=0)
    require(
        not x.ndim or not price(best)[0],
        f"few-bit backward of {x.dtype}{list(x.shape)} on a mesh of explicit axes: eight neighbours"
        " share a byte, so on each device one of the axes must be a multiple of 8 long.",
    )
    return best


def _parts(x: Array) -> tuple[list[int], list[bool]]:
    """Of each axis of x: into how many parts a mesh may split it, and whether explicit axes do."""
    mesh = jax.sharding.get_abstract_mesh()
    left = math.prod(mesh.shape[name] for name in mesh.auto_axes)
    own = [num_parts(entry, mesh) for entry in jax.typeof(x).sharding.spec]
    return [left * count for count in own], [count > 1 for count in own]


def pack(bit: Bool[Array, "*S"], axis: int) -> UInt8[Array, "*P"]:
    """Eight neighbours along the axis in a byte, the first one lowest; zeros fill the last byte."""
    bit = bit.reshape(bit.shape or (1,))
    size = bit.shape[axis]
    bit = jnp.pad(bit, [(0, -size % _BYTE if i == axis else 0) for i in range(bit.ndim)])
    before, behind = bit.shape[:axis], bit.shape[axis + 1 :]
    each = bit.reshape(*before, bit.shape[axis] // _BYTE, _BYTE, *behind)
    values = each.astype(jnp.uint8) << _places(axis, len(behind))
    return jnp.sum(values, axis=axis + 1, dtype=jnp.uint8)


def unpack(plane: UInt8[Array, "*P"], axis: int, shape: Sequence[int]) -> Bool[Array, "*S"]:
    """The bits that `pack` has put there, in their shape."""
    before, behind = plane.shape[:axis], plane.shape[axis + 1 :]
    each = (jnp.expand_dims(plane, axis + 1) >> _places(axis, len(behind))) & np.uint8(1)
    long = each.reshape(*before, plane.shape[axis] * _BYTE, *behind)
    size = shape[axis] if shape else 1
    return jax.lax.slice_in_dim(long, 0, size, axis=axis).reshape(shape) == 1


def _places(before: int, behind: int) -> UInt8[np.ndarray, "..."]:
    """Which bit of its byte an element is, along an axis of eight behind the axis of bytes."""
    return np.arange(_BYTE, dtype=np.uint8).reshape(*[1] * (before + 1), _BYTE, *[1] * behind)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _first_order(x: Array, bits: int, name: str) -> Array:
    """x, on its way to an index: whoever differentiates this asks for a second derivative."""
    del bits, name
    return x


@_first_order.defjvp
def _refuse(bits: int, name: str, _primals: Any, _tangents: Any) -> NoReturn:
    raise InputError(
        f"bits={bits}: {name} has first derivatives alone, as the derivative of a table's levels is"
        " zero; without bits it has every order."
    )
