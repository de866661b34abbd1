"""Meshes, and the rules that map logical axes to mesh axes.

They decide where a computation runs, never what comes out.
"""

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)
from jaxtyping import Array

from polycom_jax._errors import InputError, require, unknown

MESH_AXES: tuple[str, ...] = ("data", "fsdp", "tensor", "expert")
"""`data`: replicas of the model. `fsdp`: parameters and optimiser state split too. `tensor`: heads,
hidden width and vocabulary split. `expert`: experts split. The batch runs over all but tensor."""

BATCH_AXES = ("data", "fsdp", "expert")

MeshAxes = str | tuple[str, ...] | None
"""An entry of a `PartitionSpec`: the mesh axis, or axes, that split a dimension, or None."""

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axis (None: not split). A misspelt one is an error, not a replication.

    A user's own axes stand in `extra`: `Rules(extra={"state": "tensor", "conv": None})`; none may
    have the name of a field.

    `batch`, `seq` and `residual` name dimensions of activations only. A parameter's model width
    (`embed`) is split over fsdp, for experts their number (`partition_parameter`); that of the
    residual stream (`residual`) is not, since the batch already is.
    """

    batch: MeshAxes = BATCH_AXES
    seq: MeshAxes = None
    residual: MeshAxes = None
    embed: MeshAxes = "fsdp"
    mlp: MeshAxes = "tensor"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    vocab: MeshAxes = "tensor"
    expert: MeshAxes = "expert"
    layers: MeshAxes = None
    extra: Mapping[str, MeshAxes] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", dict(self.extra))
        own = {one.name for one in fields(self)}
        taken = sorted(own & self.extra.keys())
        require(
            not taken,
            f"extra names {', '.join(map(repr, taken))}, which Rules has as a field of its own; set"
            " that, or take another name.",
        )
        for name, entry in self.extra.items():
            require(
                entry is None
                or isinstance(entry, str)
                or (isinstance(entry, tuple) and all(isinstance(one, str) for one in entry)),
                f"extra[{name!r}]={entry!r} must be a mesh axis, a tuple of them, or None.",
            )

    @property
    def by_axis(self) -> dict[str, MeshAxes]:
        """Logical axis -> mesh axes, a user's own included."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "extra"}
        return {**own, **self.extra}

    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """The mesh axes that anything is split over, each once."""
        return tuple(dict.fromkeys(itertools.chain(*map(axis_names, self.by_axis.values()))))

    def partition(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The `PartitionSpec` of an array with these logical axes."""
        known = self.by_axis
        entries: list[MeshAxes] = []
        used: dict[str, str] = {}
        for axis in axes:
            if axis is not None and axis not in known:
                raise unknown("logical axis", axis, known)
            entry: MeshAxes = None if axis is None else known[axis]
            for mesh_axis in axis_names(entry):
                require(
                    mesh_axis not in used,
                    f"Logical axes {used.get(mesh_axis)!r} and {axis!r} both map to mesh axis"
                    f" {mesh_axis!r}; an array can be split over a mesh axis once.",
                )
                used[mesh_axis] = str(axis)
            entries.append(entry)
        return PartitionSpec(*entries)

    def partition_parameter(
        self, name: str, shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh
    ) -> PartitionSpec:
        """The `PartitionSpec` of a parameter; its dimensions must divide, see `check_divides`.

        What splits the model width of experts splits their number, too, in its place, if that
        divides: gathered expert by expert, a matrix comes in the order in which it is multiplied.
        """
        self.check_divides(name, shape, axes, mesh)
        partition = self.partition(axes)
        if not {"expert", "embed"} <= set(axes):
            return partition
        expert, embed = axes.index("expert"), axes.index("embed")
        both = (*axis_names(partition[expert]), *axis_names(partition[embed]))
        if shape[expert] % num_parts(both, mesh):
            return partition
        entries = list(partition)
        entries[expert], entries[embed] = both, None
        return PartitionSpec(*entries)

    def check_divides(
        self, name: str, shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh | AbstractMesh
    ) -> None:
        """Raises `InputError` with the nearest good sizes where a dimension does not divide."""
        for size, axis, entry in zip(shape, axes, self.partition(axes), strict=True):
            parts = num_parts(entry, mesh)
            if size % parts:
                low, high = size // parts * parts, -(-size // parts) * parts
                near = f"{low} or {high}" if low else f"{high}"
                raise InputError(
                    f"{name}: dimension {axis!r} of size {size} does not divide over mesh axis"
                    f" {'x'.join(axis_names(entry))} of size {parts}; nearest sizes: {near}."
                )


def axis_names(entry: MeshAxes) -> tuple[str, ...]:
    """The mesh axes that an entry of a `PartitionSpec` names."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def num_parts(entry: MeshAxes, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts such an entry splits a dimension."""
    return math.prod(mesh.shape[name] for name in axis_names(entry))


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    expert: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with the axes of `MESH_AXES`, all `AxisType.Auto`; one size may be -1: what is left.

    Devices are taken in the order that suits the network between them. Slices of TPUs are joined by
    a slower one, so they are replicas of the model: `data` is divided over them first.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or `data` is no multiple of
            the number of slices.
    """
    sizes: dict[str, int] = dict(zip(MESH_AXES, (data, fsdp, tensor, expert), strict=True))
    count = len(devices) if devices is not None else jax.device_count()
    text = ", ".join(f"{k}={v}" for k, v in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    require(len(free) <= 1, f"mesh {text}: at most one axis may be -1.")
    for name, size in sizes.items():
        require(
            size >= 1 or size == -1,
            f"mesh axis {name}={size} must be at least 1, or -1 for what is left.",
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    require(
        math.prod(sizes.values()) == count,
        f"mesh {text} needs {'a multiple of ' if free else ''}{fixed} devices, and there are"
        f" {count}; nearest: {_near_meshes(sizes, count)}.",
    )
    arranged = _arrange(tuple(sizes.values()), jax.devices() if devices is None else devices)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def own_mesh(mesh: Mesh, rules: Rules) -> Mesh:
    """The mesh that arrays and programs of the library lie on, in the place of a user's own.

    Its axes are `AxisType.Auto`, whatever theirs were (`jax.make_mesh` makes explicit ones), and
    those that the rules name and it lacks are of size 1.

    Raises:
        InputError: devices along an axis over which the rules split nothing: all of these would do
            the same work.
    """
    wanted = rules.mesh_axes
    for name, size in mesh.shape.items():
        require(
            size == 1 or name in wanted,
            f"mesh axis {name!r} of size {size}: the rules split nothing over it, but over"
            f" {', '.join(wanted) or 'no axis'}. Name it so, or give rules that name it, as in"
            f" Rules(batch={name!r}).",
        )
    missing = [name for name in wanted if name not in mesh.shape]
    names = (*mesh.axis_names, *missing)
    devices = mesh.devices.reshape(*mesh.devices.shape, *[1] * len(missing))
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def rules_here(rules: Rules | None) -> Rules | None:
    """The rules without the axes that the mesh of `jax.set_mesh` lacks; None stays None.

    Raises:
        InputError: no mesh, or one with explicit axes.
    """
    if rules is None:
        return None
    mesh = jax.sharding.get_abstract_mesh()
    require(
        not mesh.empty,
        "rules say how arrays are split over the mesh of `jax.set_mesh`, and there is none; set one"
        " or leave rules out.",
    )
    require(
        AxisType.Explicit not in mesh.axis_types,
        f"{_EXPLICIT} Make it with polycom_jax.sharding.make_mesh, or take own_mesh(mesh, rules).",
    )

    def held(entry: MeshAxes) -> MeshAxes:
        return tuple(name for name in axis_names(entry) if name in mesh.shape) or None

    if all(name in mesh.shape for name in rules.mesh_axes):
        return rules
    entries = {axis: held(entry) for axis, entry in rules.by_axis.items()}
    extra = {axis: entries.pop(axis) for axis in rules.extra}
    return Rules(**entries, extra=extra)


_EXPLICIT = (
    "the mesh of `jax.set_mesh` has axes of AxisType.Explicit, for which every operation would have"
    " to say how its result is split; those of a model do not."
)


def check_not_explicit(*trees: Any) -> None:
    """Raises `InputError` where arrays are split over explicit axes of a mesh."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return
    for leaf in jax.tree.leaves(trees):
        split = any(jax.typeof(leaf).sharding.spec)
        require(not split, f"{_EXPLICIT} Make it with axis_types=(AxisType.Auto, ...).")


def _arrange(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    data, *others = sizes
    require(
        data % len(slices) == 0,
        f"mesh axis data={data} must be a multiple of {len(slices)}, the number of slices: only"
        " replicas of the model are put on different ones.",
    )
    # As `jax.make_mesh` does, which takes one slice; nor does it split the physical axes of a torus
    # over logical ones where it has to (fsdp=32 on 4x4x4), but for v5e.
    shape = (data // len(slices), *others)
    return np.concatenate(
        [
            mesh_utils.create_device_mesh(shape, slices[i], allow_split_physical_axes=True)
            for i in sorted(slices)
        ]
    )


def _near_meshes(asked: Mapping[str, int], count: int) -> str:
    """At most two changes to the sizes, in as few axes as possible, that suit `count` devices.

    An `expert` of 1 stays: the model may have no experts.
    """
    fixed = {name: size for name, size in asked.items() if size != -1}
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    fits = []
    choices = [[1] if (name, old) == ("expert", 1) else divisors for name, old in fixed.items()]
    for values in itertools.product(*choices):
        product = math.prod(values)
        if product == count or (len(fixed) < len(asked) and count % product == 0):
            changed = {n: v for (n, old), v in zip(fixed.items(), values, strict=True) if v != old}
            distance = sum(abs(math.log(v / fixed[n])) for n, v in changed.items())
            fits.append((len(changed), distance, ", ".join(f"{n}={v}" for n, v in changed.items())))
    fits.sort()
    return " or ".join(text for changes, _, text in fits[:2] if changes == fits[0][0])


def constrain(x: Array, rules: Rules | None, *axes: str | None) -> Array:
    """States the sharding of `x`, one logical axis a dimension, on the mesh of `jax.set_mesh`.

    Without rules it returns `x`. Outside of a trace, an array that lies on one device is put onto
    the mesh.
    """
    if rules is None:
        return x
    partition = rules.partition(axes)
    if isinstance(getattr(x, "sharding", None), SingleDeviceSharding):
        with contextlib.suppress(ValueError):  # JAX gives the mesh outside of a trace only
            return jax.device_put(x, NamedSharding(jax.sharding.get_mesh(), partition))
    return jax.lax.with_sharding_constraint(x, partition)


def fetch(tree: Tree) -> Tree:
    """The arrays as NumPy arrays on each process, also those that are split over processes.

    Every process calls it, since they exchange their parts; it is for small trees, or leaves.
    """
    from jax.experimental.multihost_utils import process_allgather

    def one(x: Any) -> Any:
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x) if whole else process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)
