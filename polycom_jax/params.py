"""A parameter is declared once; values, abstract trees, shardings and masks are maps over that.

A model is described by a tree (nested dicts) of `ParamSpec`. Nothing here knows which model it is.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Key

from polycom_jax.sharding import Rules, own_mesh

Role = Literal["matrix", "embedding", "norm", "coefficient", "router"]
"""What a parameter is for. Decay, dtype and learning-rate rules go by role, not by rank or name."""

COMPUTE_CAST_ROLES: frozenset[str] = frozenset({"matrix", "embedding"})
"""Roles that follow the compute dtype. The others stay float32: 1/3 in bfloat16 is 0.33398."""

Specs = Any
"""A tree of nested dicts and lists whose leaves are `ParamSpec`."""
Params = Any
"""The same tree with arrays as leaves."""


class Initializer(Protocol):
    """Draws initial values, as `jax.nn.initializers` do."""

    def __call__(self, key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
        """Returns values of `shape` and `dtype`; the same key gives the same values."""
        ...


@dataclass(frozen=True)
class ParamSpec:
    """The declaration of one parameter.

    Attributes:
        shape: its shape, the leading layer axes of `stack` included.
        axes: one logical axis name (of `sharding.Rules`) or None for each dimension.
        init: draws one layer's values, i.e. of `shape[stacked:]`.
        role: what it is for.
        dtype: of the stored parameter.
        stacked: number of leading axes added by `stack`.
        first_layer: absolute index of the first stacked layer; layer i draws from the same key
            however layers are grouped.
        rows: number of leading rows (of the unstacked shape) that are real; the rest is padding and
            starts as zero. None: all are.
        width_multiple: of a matrix: its fan-in in units of a base model's, whose learning rate it
            is trained at; `training.update_rules.WIDTH_POWERS` says what its updates are divided
            by.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    role: Role
    dtype: Any = jnp.float32
    stacked: int = 0
    first_layer: int = 0
    rows: int | None = None
    width_multiple: float = 1.0

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length.")

    @property
    def size(self) -> int:
        """Number of real (unpadded) entries."""
        if self.rows is None:
            return math.prod(self.shape)
        lead, rest = self.shape[: self.stacked], self.shape[self.stacked + 1 :]
        return math.prod(lead) * self.rows * math.prod(rest)

    @property
    def maps_stream(self) -> bool:
        """Whether it is a matrix from or to the residual stream, and not an activation's own."""
        return self.role == "matrix" and "embed" in self.axes


def is_spec(node: object) -> bool:
    """True for the leaves of a spec tree."""
    return isinstance(node, ParamSpec)


def map_specs(f: Callable[..., Any], specs: Specs, *rest: Any) -> Any:
    """`jax.tree.map` with `ParamSpec` as leaves."""
    return jax.tree.map(f, specs, *rest, is_leaf=is_spec)


def stack(specs: Specs, layers: int, first_layer: int = 0) -> Specs:
    """Specs of `layers` equal layers, stacked along a new leading axis named "layers"."""

    def one(spec: ParamSpec) -> ParamSpec:
        if spec.stacked:
            raise ValueError("Specs are stacked once.")
        return replace(
            spec,
            shape=(layers, *spec.shape),
            axes=("layers", *spec.axes),
            stacked=1,
            first_layer=first_layer,
        )

    return map_specs(one, specs)


def widened(specs: Specs, multiple: float) -> Specs:
    """The same with this `width_multiple` for all matrices of the residual stream."""

    def one(spec: ParamSpec) -> ParamSpec:
        return replace(spec, width_multiple=multiple) if spec.maps_stream else spec

    return map_specs(one, specs)


def path_name(path: tuple[Any, ...]) -> str:
    """The parameter's name, as in `layers/ffn/w_up`; the group of layers is no part of it."""
    return "/".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


def name_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """A key that depends on `key` and the name alone, not on what else the model has."""
    digest = hashlib.sha256(name.encode()).digest()
    return jax.random.fold_in(key, int.from_bytes(digest[:4], "little"))


def init(specs: Specs, key: Key[Array, ""]) -> Params:
    """Draws initial values; call it inside `jax.jit` with `out_shardings` for a sharded model.

    A value depends on `key`, the parameter's name, the layer's index and the unpadded shape only:
    two models that differ in the activation start from bit-identical values wherever name and shape
    agree.
    """

    def one(path: tuple[Any, ...], spec: ParamSpec) -> Array:
        own = name_key(key, path_name(path))
        if not spec.stacked:
            return _draw(spec, own, spec.shape)
        layers = spec.first_layer + jnp.arange(spec.shape[0], dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(own, layers)
        return jax.vmap(lambda k: _draw(spec, k, spec.shape[1:]))(keys)

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=is_spec)


def _draw(spec: ParamSpec, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    if spec.rows is None:
        return spec.init(key, shape, spec.dtype)
    real = spec.init(key, (spec.rows, *shape[1:]), spec.dtype)
    return jnp.pad(real, [(0, shape[0] - spec.rows)] + [(0, 0)] * (len(shape) - 1))


def abstract(
    specs: Specs, mesh: jax.sharding.Mesh | None = None, rules: Rules | None = None
) -> Params:
    """The tree of `jax.ShapeDtypeStruct`, with shardings if a mesh is given.

    For ahead-of-time compilation and for restoring checkpoints.
    """

    def one(spec: ParamSpec, sharding: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)

    placed = [] if mesh is None else [shardings(specs, mesh, rules or Rules())]
    return map_specs(one, specs, *placed)


def shardings(specs: Specs, mesh: jax.sharding.Mesh, rules: Rules) -> Any:
    """The tree of `NamedSharding` that the rules give each parameter, on `own_mesh`."""
    mesh = own_mesh(mesh, rules)

    def one(path: tuple[Any, ...], spec: ParamSpec) -> NamedSharding:
        partition = rules.partition_parameter(path_name(path), spec.shape, spec.axes, mesh)
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(one, specs, is_leaf=is_spec)


def mask(specs: Specs, roles: frozenset[str] | set[str]) -> Any:
    """The tree of bools: does the parameter's role stand in `roles`."""
    return map_specs(lambda spec: spec.role in roles, specs)


def count(specs: Specs) -> int:
    """Number of parameters, padding not counted."""
    return sum(spec.size for spec in jax.tree.leaves(specs, is_leaf=is_spec))


def cast(specs: Specs, params: Params, dtype: Any) -> Params:
    """Casts the parameters whose role follows the compute dtype; the others keep their own."""
    return map_specs(
        lambda spec, p: p.astype(dtype) if spec.role in COMPUTE_CAST_ROLES else p, specs, params
    )
