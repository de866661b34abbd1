"""How a gradient becomes the direction of an update: one row an optimiser.

What follows is the same for all, see `make_optimizer`: weight decay, factors by role, the rate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from polycom_jax import params as pm
from polycom_jax.params import Params, ParamSpec, Specs

OptimizerName = Literal["adamw", "muon", "lion", "adafactor"]


class Moments(NamedTuple):
    """The numbers of `OptimConfig` that the rows read."""

    b1: float
    b2: float
    eps: float


Rule = Callable[[Moments, Specs], optax.GradientTransformation]

MUON_MOMENTUM = 0.95
MUON_RMS = 0.2
"""An orthogonal update's root mean square, about that of AdamW's, whose rate and decay then fit
(Liu et al. 2025, arXiv 2502.16982, section 2.2)."""
ADAFACTOR_RMS = 1.0
"""A larger update of a matrix is scaled down to this root mean square (Shazeer and Stern 2018,
arXiv 1804.04235, section 6)."""


def _adam(moments: Moments, specs: Specs) -> optax.GradientTransformation:
    return optax.scale_by_adam(*moments, mu_dtype=jnp.float32)


def _lion(moments: Moments, specs: Specs) -> optax.GradientTransformation:
    return optax.scale_by_lion(moments.b1, moments.b2, mu_dtype=jnp.float32)


def _muon(moments: Moments, specs: Specs) -> optax.GradientTransformation:
    def sides(updates: Params) -> Any:
        return by_spec(lambda _, spec: sides_of(spec), updates, specs)

    def sized(update: Any, spec: ParamSpec) -> Any:
        sizes = (math.prod(spec.shape[axis] for axis in side) for side in _sides(spec))
        return update * (MUON_RMS * math.sqrt(max(sizes)))

    orthogonal = scale_by_muon(
        beta=MUON_MOMENTUM, mu_dtype=jnp.float32, weight_dimension_numbers=sides
    )
    size = optax.stateless(lambda updates, params: by_spec(sized, updates, specs))
    return optax.chain(orthogonal, size)


def _adafactor(moments: Moments, specs: Specs) -> optax.GradientTransformation:
    def clipped(update: Any, spec: ParamSpec) -> Any:
        axes = tuple(range(_matrices_in(spec), update.ndim))
        mean = jnp.mean(jnp.square(update), axis=axes, keepdims=True)
        return update / jnp.maximum(1.0, jnp.sqrt(mean) / ADAFACTOR_RMS)

    clip = optax.stateless(lambda updates, params: by_spec(clipped, updates, specs))
    return optax.chain(_each_matrix(optax.scale_by_factored_rms(), specs), clip)


def _matrices_in(spec: ParamSpec) -> int:
    """How many leading axes number matrices: layers, and experts."""
    return spec.stacked + ("expert" in spec.axes)


def _each_matrix(rule: optax.GradientTransformation, specs: Specs) -> optax.GradientTransformation:
    """`scale_by_factored_rms` of each layer's and expert's matrix by itself: of a whole array it
    factors the two longest axes, and layers or experts may be one of them."""
    common: Any = None  # the count
    own, sums = optax.FactoredState(common, 0, 0, 0), optax.FactoredState(0, 0, 0, 0)

    def lifted(f: Callable[..., Any], spec: ParamSpec, in_axes: Any, out_axes: Any) -> Any:
        for _ in range(_matrices_in(spec)):
            f = jax.vmap(f, in_axes, out_axes)
        return f

    def init(params: Params) -> optax.FactoredState:
        each = by_spec(lambda p, spec: lifted(rule.init, spec, 0, own)(p), params, specs)
        state = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure(sums), each)
        return state._replace(count=jnp.zeros((), jnp.int32))

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        def one(grad: Any, spec: ParamSpec, *before: Any) -> Any:
            step = lifted(rule.update, spec, (0, own, 0), (0, own))
            return step(grad, optax.FactoredState(state.count, *before), grad)

        each = by_spec(one, updates, specs, *state[1:])
        pair = jax.tree.structure((0, sums))
        updates, after = jax.tree.transpose(jax.tree.structure(updates), pair, each)
        return updates, after._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _matrices(rule: Rule) -> Rule:
    """The rule for matrices of the residual stream, Adam for all else."""

    def parted(moments: Moments, specs: Specs) -> optax.GradientTransformation:
        labels = pm.map_specs(lambda spec: "matrix" if spec.maps_stream else "rest", specs)
        rules: dict[Any, Any] = {"matrix": rule(moments, specs), "rest": _adam(moments, specs)}
        return optax.partition(rules, labels)

    return parted


RULES: Mapping[OptimizerName, Rule] = {
    "adamw": _adam,
    "muon": _matrices(_muon),
    "lion": _lion,
    # The statistics of an embedding's padding would depend on the mesh.
    "adafactor": _matrices(_adafactor),
}
"""Optimiser -> (its numbers, the parameters) -> transformation of the gradient."""

WIDTH_POWERS: Mapping[OptimizerName, float] = {
    "adamw": 1.0,
    "muon": 0.5,
    "lion": 1.0,
    "adafactor": 1.0,
}
"""The update of a matrix with m times the base model's fan-in is divided by m to this power: then
what it changes in an activation does not depend on m. Entries of an update of Adam's kind have one
size at every width, and their products with an input that they align with add up over the fan-in:
m. Muon's is an orthogonal matrix times `MUON_RMS` times the root of the width, and what it makes of
an input of norm sqrt(D) is spread over as many outputs: the root of m."""

FOR_MATRICES = frozenset({"muon", "adafactor"})
"""Those that leave all but matrices to Adam."""


def sides_of(spec: ParamSpec) -> MuonDimensionNumbers:
    """A matrix's two sides: the residual stream, and heads or hidden width; others are batches."""
    return MuonDimensionNumbers(*_sides(spec))


def _sides(spec: ParamSpec) -> tuple[Sequence[int], Sequence[int]]:
    named = [(axis, name) for axis, name in enumerate(spec.axes) if axis >= spec.stacked]
    stream = tuple(axis for axis, name in named if name == "embed")
    inner = tuple(axis for axis, name in named if name not in ("embed", "expert"))
    return stream, inner


def by_spec(f: Callable[..., Any], updates: Params, specs: Specs, *rest: Any) -> Any:
    """Maps over the updates that are there; optax has `MaskedNode` for those of other rules."""

    def one(update: Any, spec: ParamSpec, *more: Any) -> Any:
        return update if isinstance(update, optax.MaskedNode) else f(update, spec, *more)

    return jax.tree.map(
        one, updates, specs, *rest, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
    )
