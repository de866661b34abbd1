"""Activations on one shard of the hidden layer: kernels, and decisions about single rows."""

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from polycom_jax._errors import InputError
from polycom_jax.sharding import Rules, axis_names, num_parts


def hidden_axes(x: Float[Array, "*N F"]) -> tuple[str, ...]:
    """The logical axes of the hidden layer: tokens, flat or by sequence, by width."""
    return ("batch", "mlp") if x.ndim == 2 else ("batch", "seq", "mlp")


_unsharded: ContextVar[bool | None] = ContextVar("unsharded_features", default=None)


def features_are_unsharded() -> bool:
    """Whether no mesh axis splits the feature axis of what an activation is applied to.

    A traced array does not know; `unsharded_features` states it. Without a statement it is true on
    one device, and inside `jax.shard_map` over all axes of a mesh, where an array is one shard.
    """
    stated = _unsharded.get()
    if stated is not None:
        return stated
    kinds = set(jax.sharding.get_abstract_mesh().axis_types)
    return jax.device_count() == 1 or kinds == {AxisType.Manual}


@contextlib.contextmanager
def unsharded_features(unsharded: bool) -> Generator[None]:
    """While it lasts, `features_are_unsharded` returns this."""
    token = _unsharded.set(unsharded)
    try:
        yield
    finally:
        _unsharded.reset(token)


def features_are_sharded(rules: Rules | None) -> bool:
    """Whether the mesh of `jax.set_mesh` splits the hidden layer's width by these rules."""
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty:
        return False
    return larger_than_one(mesh, rules.partition(("mlp",))[0]) is not None


def rows_are_local(rules: Rules | None, x: Float[Array, "*N F"]) -> bool:
    """Whether each device of the mesh of `jax.set_mesh` has whole rows of `x` that no other has.

    Then `over_mesh` communicates nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty or features_are_sharded(rules):
        return False
    parts = [num_parts(entry, mesh) for entry in rules.partition(hidden_axes(x))]
    divides = all(size % n == 0 for size, n in zip(x.shape, parts, strict=True))
    return divides and math.prod(parts) == mesh.size


def over_mesh(
    f: Callable[..., Array], rules: Rules | None, params: Any, *hidden: Float[Array, "*N F"]
) -> Float[Array, "*N F"]:
    """f(params, *hidden, axis_name=...) on each device's part of `hidden`.

    GSPMD refuses to partition a kernel; this states how. And it would reduce a condition on a
    device's own rows over all devices; here it stays on the device. The parameters are whole on
    every device, and their gradients are added up over all of them.

    Args:
        f: of parameters and arrays of one shape; `axis_name` is the mesh axis (or axes) that splits
            their last dimension, None where none does.
        rules: where the logical axes "batch" and "mlp" lie on the mesh of `jax.set_mesh`. Without
            rules, or on a mesh of one device, it is a plain call.
        params: any tree of arrays.
        *hidden: tokens (flat, or batch by sequence) by hidden width.

    Raises:
        InputError: a dimension that does not divide over its mesh axes.
    """
    if rules is None or on_one_device():
        return f(params, *hidden, axis_name=None)
    mesh = jax.sharding.get_abstract_mesh()
    axes = hidden_axes(hidden[0])
    for x in hidden:
        rules.check_divides("hidden", x.shape, axes, mesh)
    spec = rules.partition(axes)
    split = jax.shard_map(
        partial(f, axis_name=larger_than_one(mesh, spec[-1])),
        in_specs=(PartitionSpec(), *[spec] * len(hidden)),
        out_specs=spec,
        check_vma=False,  # kernels that are interpreted, in tests, do not pass the check
    )
    return split(params, *hidden)


def on_local_rows(
    f: Callable[..., tuple[Sequence[Array], Sequence[Array]]],
    rules: Rules | None,
    params: Any,
    *rows: Float[Array, "*N _"],
) -> tuple[Sequence[Array], Sequence[Array]]:
    """f(params, *rows) on each device's own rows, which no other device has (`rows_are_local`).

    Args:
        f: returns arrays of rows, and sums over rows, which are added up over all devices.
        rules: where tokens lie on the mesh of `jax.set_mesh`; None: on one device.
        params: any tree of arrays, whole on every device.
        *rows: arrays [tokens, numbers of a token], tokens flat or by sequence; what lies in one row
            of each belongs together.

    Returns:
        What f returns: rows split as its arguments are, sums whole on every device.
    """
    if rules is None or on_one_device():
        return f(params, *rows)
    spec = rules.partition(hidden_axes(rows[0]))
    names = tuple(name for entry in spec for name in axis_names(entry))

    def local(params: Any, *rows: Array) -> tuple[Sequence[Array], Sequence[Array]]:
        own, sums = f(params, *rows)
        return own, [jax.lax.psum(each, names) for each in sums]

    split = jax.shard_map(
        local,
        in_specs=(PartitionSpec(), *[spec] * len(rows)),
        out_specs=(spec, PartitionSpec()),
        check_vma=False,  # as in `over_mesh`
    )
    return split(params, *rows)


def on_one_device() -> bool:
    """Whether there is no mesh (`jax.set_mesh`), or one of a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def larger_than_one(mesh: Any, entry: Any) -> tuple[str, ...] | None:
    """The mesh axes of an entry of a `PartitionSpec` that split anything, or None."""
    return tuple(name for name in axis_names(entry) if mesh.shape[name] > 1) or None


def axis_size(axis_name: str | tuple[str, ...]) -> int:
    """Into how many parts it splits what a surrounding `jax.shard_map` (or vmap) is applied to.

    Raises:
        InputError: there is no such axis.
    """
    try:
        return jax.lax.axis_size(axis_name)
    except NameError as error:
        raise InputError(
            f"axis_name={axis_name!r} is no axis here: it names a mesh axis of the surrounding"
            " jax.shard_map; outside of one leave it out."
        ) from error


def match_varying(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, all varying over the mesh axes that any of them varies over.

    Inside `jax.shard_map` a kernel's operands must agree in this. The transpose adds up the
    cotangents of an array that was the same on every shard, such as the coefficients'. Elsewhere,
    and with `check_vma=False`, it does nothing.
    """
    varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    every = frozenset().union(*varying)

    def cast(array: Array, own: frozenset[Any]) -> Array:
        missing = tuple(sorted(every - own))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return tuple(cast(a, own) for a, own in zip(arrays, varying, strict=True))
