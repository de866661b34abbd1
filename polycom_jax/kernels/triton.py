"""The one use here of Pallas's route to Triton, which JAX has deprecated and will drop."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array


def call(
    name: str,
    body: Callable[..., None],
    arrays: Sequence[Array],
    results: Sequence[jax.ShapeDtypeStruct],
    *,
    programs: int,
    warps: int,
    stages: int = 1,
    interpret: bool,
) -> Sequence[Array]:
    """The results of body(*refs of arrays, *refs of results), run by so many programs.

    Args:
        name: shown in profiles.
        body: writes its results; every program sees all of each array.
        arrays: whole.
        results: their shapes and dtypes.
        programs: in a grid of one dimension.
        warps: of a program.
        stages: of a loop's steps, whose operands are on their way at once.
        interpret: runs it as plain XLA operations on any backend, for tests.
    """
    manual = jax.typeof(arrays[-1]).manual_axis_type
    return pl.pallas_call(
        body,
        grid=(programs,),
        out_shape=[
            jax.ShapeDtypeStruct(r.shape, r.dtype, manual_axis_type=manual) for r in results
        ],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=name,
    )(*arrays)


def load(ref: Any, mask: Array | None) -> Array:
    """What `ref` points at, 0 where the mask is False."""
    return triton.load(ref, mask=mask, other=None if mask is None else 0.0)


def store(ref: Any, value: Array, mask: Array | None) -> None:
    """Writes where `ref` points, and where the mask is True."""
    triton.store(ref, value, mask=mask)
