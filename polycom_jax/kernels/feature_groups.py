"""Activations over groups of features, in the layout that each of XLA's backends sums fast."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Array, Float

from polycom_jax.activations import grouped
from polycom_jax.activations.group_layouts import InColumns, InRows
from polycom_jax.kernels.implementations import Kernel, Operation
from polycom_jax.sharding import MeshAxes

X = Float[Array, "*S F"]
P = Float[Array, "..."]


def _operation(f: Callable[..., Array]) -> Operation:
    versions = {"xla": InRows, "tpu": InColumns}
    return Operation(
        f.__name__, {key: Kernel(partial(f, layout=layout)) for key, layout in versions.items()}
    )


EVONORM_S0, GDN = map(_operation, (grouped.evonorm_s0, grouped.gdn))


def evonorm_s0(x: X, v: P, gamma: P, beta: P, axis_name: MeshAxes = None) -> X:
    """`grouped.evonorm_s0`; raises `InputError` as that does."""
    return EVONORM_S0(x, v, gamma, beta, axis_name=axis_name)


def gdn(x: X, beta: P, gamma: P, axis_name: MeshAxes = None) -> X:
    """`grouped.gdn`."""
    return GDN(x, beta, gamma, axis_name=axis_name)
