"""The table of activations by name, and activations of a user's own beside it.

What a row is stands in `row.py`, the rows themselves in `rows.py`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from polycom_jax import params as pm
from polycom_jax._errors import InputError, require, unknown
from polycom_jax._operations import COUNTED_ROWS, counted
from polycom_jax.activations.stability import effective_coeffs
from polycom_jax.custom import Function, row_of
from polycom_jax.kernels.few_bit import few_bit
from polycom_jax.kernels.sharded import axis_size
from polycom_jax.params import Initializer, Params, ParamSpec
from polycom_jax.reference import Reference, is_reference
from polycom_jax.row import ActivationOptions, Numbers, Parameter, Row, check_parameters
from polycom_jax.rows import ROWS
from polycom_jax.sharding import MeshAxes

_STABILITY = ("sigmoid", "bound", "output_scale")

ACTIVATIONS: tuple[str, ...] = tuple(ROWS)
"""The names that `get_activation` knows."""


@dataclass(frozen=True)
class Activation:
    """A row of the table with its options chosen; hashable, so it may be a static argument.

    Made by `get_activation`, or by `activation` of a user's own function.

    Attributes:
        name: of the row.
        options: those it reads may differ from the defaults.
        row: what is known of it; None: the row of that name.

    Raises:
        InputError: an unknown name, or an option that the activation does not read.
    """

    name: str
    options: ActivationOptions = ActivationOptions()
    row: Row = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.row is None:  # pyright: ignore[reportUnnecessaryComparison]
            if self.name not in ROWS:
                raise unknown("activation", self.name, ROWS)
            object.__setattr__(self, "row", ROWS[self.name])
        reads, why = self.reads, self.row.keeps_its_input
        require(
            self.options.bits is None or why is None,
            f"bits={self.options.bits}: activation {self.name!r} has no few-bit backward: {why};"
            " leave it out.",
        )
        for field in fields(ActivationOptions):
            value = getattr(self.options, field.name)
            require(
                field.name in reads or value == field.default,
                f"{field.name}={value!r}: activation {self.name!r} does not read this option"
                f" (it reads {', '.join(reads) or 'none'}); leave it out.",
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The options that it depends on."""
        polynomial = self.is_polynomial
        few = () if self.row.keeps_its_input else ("bits",)
        return (("order", *_STABILITY, "initial") if polynomial else ()) + self.row.keywords + few

    @property
    def is_polynomial(self) -> bool:
        """Whether it is PolyCom or a relative, with coefficients of some order: `coeffs`."""
        return any(name == "coeffs" and callable(each) for name, each in self.row.params)

    @property
    def gated(self) -> bool:
        """Whether it takes two hidden arrays, gate and up, from two projections."""
        return self.row.gated

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """What it learns, by name: {} for a fixed function."""
        return self.row.parameters(self.options)

    @property
    def specs(self) -> dict[str, ParamSpec]:
        """Its parameters: {} for a fixed function, `coeffs` [order + 1] float32 for PolyCom.

        Raises:
            InputError: some are one a channel or a group; `specs_at` takes the width.
        """
        return self.specs_at(None)

    def specs_at(self, width: int | None) -> dict[str, ParamSpec]:
        """Its parameters in a block of this hidden width; None: where none depends on that.

        Raises:
            InputError: a width is needed, or groups do not divide it.
        """
        found = self.parameters
        own = [name for name, each in found.items() if each.by_channel]
        require(
            width is not None or not own,
            f"{self.name}: {', '.join(own)} has numbers for single channels or groups of them, so"
            " the hidden width is needed: specs_at(width), init(key, width).",
        )
        return {name: each.spec(width or 0, self.name) for name, each in found.items()}

    @property
    def flops(self) -> int:
        """Forward operations on each hidden element (`rows.py` says what counts)."""
        if self.row.flops is None:
            return _counted(self)
        each_order, always = self.row.flops
        return each_order * self.options.order + always

    @property
    def over_rows(self) -> bool:
        """Whether it reads whole rows, as for means over them, and is not element-wise."""
        return self.row.over_rows

    def init(self, key: Key[Array, ""], width: int | None = None) -> Params:
        """Initial parameters, {} for a fixed function; `width` as in `specs_at`."""
        return pm.init(self.specs_at(width), key)

    def apply(
        self, params: Params, *hidden: Float[Array, "*S F"], axis_name: MeshAxes = None
    ) -> Float[Array, "*S F"]:
        """The activation: apply(params, x), or apply(params, gate, up) if gated.

        Args:
            params: as `init` gives them; one layer's, not a stack.
            *hidden: one array, or two of equal shape and dtype.
            axis_name: inside `jax.shard_map`, the mesh axis that splits rows (see `poly_norm`);
                element-wise activations do not need it.

        Returns:
            The shape and dtype of the first array; arithmetic in float32, one rounding.

        Raises:
            InputError: a wrong number of arrays, parameters other than `specs` says, or rows that
                are split, and a function that reads whole ones and takes no `axis_name`.
        """
        wanted = ("gate", "up") if self.gated else ("x",)
        require(
            len(hidden) == len(wanted),
            f"{self.name}: expected apply(params, {', '.join(wanted)}), came {len(hidden)} arrays.",
        )
        keywords = {name: getattr(self.options, name) for name in self.row.keywords}
        if self.row.takes_axis:
            keywords["axis_name"] = axis_name
        require(
            axis_name is None or self.row.takes_axis or not self.over_rows,
            f"{self.name} reads whole rows, which the mesh axis {axis_name!r} splits: let its"
            " function take axis_name (and jax.lax.pmean over it), or do not split experts' widths"
            " (mesh.tensor=1).",
        )
        parts = 1 if axis_name is None else axis_size(axis_name)
        return self._function(*hidden, *self.arguments(params, hidden[0], parts), **keywords)

    @property
    def _function(self) -> Callable[..., Array]:
        bits, function = self.options.bits, self.row.function
        return function if bits is None else few_bit(function, bits, self.name)

    def arguments(
        self, params: Params, hidden: Float[Array, "*S F"], parts: int = 1
    ) -> list[Array]:
        """What its function takes behind hidden arrays, one of so many `parts` of rows.

        Coefficients are clipped, as options say. Raises `InputError` for parameters other than
        `specs` says."""
        declared = self.parameters
        check_parameters(self.name, declared, params, jnp.shape(hidden), parts)
        if self.is_polynomial:
            stability = {name: getattr(self.options, name) for name in _STABILITY}
            params = {**params, "coeffs": effective_coeffs(params["coeffs"], **stability)}
        return [
            each.expanded(params[name], hidden) if each.by_channel else params[name]
            for name, each in declared.items()
        ]

    def width(self, gated_width: int) -> int:
        """Hidden width of a block that has as many weights as a gated one of width `gated_width`.

        A gated block has three matrices and the others two, so theirs is gated_width * 3/2: 8256
        for the 5504 of the paper's 1B models (its official training script).

        Raises:
            InputError: the width would be fractional.
        """
        require(
            self.gated or gated_width % 2 == 0,
            f"gated_width={gated_width}: {self.name!r} is not gated and takes 3/2 of it, which is"
            f" not whole; nearest: {gated_width - 1} or {gated_width + 1}.",
        )
        return gated_width if self.gated else gated_width * 3 // 2


@cache
def _counted(act: Activation) -> int:
    groups = math.lcm(*(each.groups for each in act.parameters.values()), 1)
    hidden = jax.ShapeDtypeStruct((COUNTED_ROWS, 5 * groups), jnp.float32)
    params = pm.abstract(act.specs_at(hidden.shape[-1]))
    return counted(act.name, act.apply, (params, *[hidden] * (1 + act.gated)), hidden.size)


def activation(
    f: Function,
    params: Mapping[str, Parameter | Numbers | Initializer | Any] | None = None,
    *,
    gated: bool = False,
    flops: int | None = None,
    name: str | None = None,
    formula: str = "",
    source: str = "",
    slopes: tuple[float, float] | None = None,
) -> Activation:
    """An activation of any function, which models, modules and programs take like one of the table.

        y = f(x, **params), or f(gate, up, **params) if gated

    f is written in plain JAX, for float32: it is given arrays in float32 (float64 for float64),
    its result is rounded once to the dtype of the input, and the backward pass keeps nothing but
    its arguments. Where its program is element-wise, all its gradients come from one pass.

    Args:
        f: takes the hidden array (or gate and up), and its parameters by name. If it has an
            argument `axis_name`, it is told the mesh axis that splits rows inside `jax.shard_map`,
            None outside. It may read the last axis alone: elsewhere are other tokens.
        params: name -> start, a number or a sequence of them (one set a layer), or a `Parameter`.
        gated: f takes gate and up, from two projections.
        flops: forward operations on each element; None: counted in the traced program.
        name: of the activation; None: that of f.
        formula: for tables.
        source: for tables.
        slopes: bounds of the derivative at the start, for tables and `testing.check_activation`.

    Returns:
        The activation, as from `get_activation`. Two calls give two different ones.

    Raises:
        InputError: f cannot be called so, does not return one array like its input, mixes rows, or
            a parameter has no usable start or name.

        >>> import jax, jax.numpy as jnp, polycom_jax as pc
        >>> act = pc.activation(lambda x, beta: x * jax.nn.sigmoid(beta * x), {"beta": 1.0})
        >>> act.apply(act.init(jax.random.key(0)), jnp.zeros((2, 4))).shape
        (2, 4)
    """
    require(callable(f), f"activation: {f!r} is no function; pass f(x, **params).")
    name = str(name or getattr(f, "__name__", type(f).__name__)).strip("<>")
    require(
        re.fullmatch(r"[\w.-]+", name) is not None,
        f"name={name!r} must be letters, digits, dots, dashes and underscores: folders have it.",
    )
    require(name not in ROWS, f"name={name!r} is a row of the table; take another name.")
    require(
        flops is None or (isinstance(flops, int) and flops >= 0),
        f"flops={flops!r} must be a whole number of at least 0, or None to count them.",
    )
    declared = {
        key: each if isinstance(each, Parameter) else Parameter(_start(each))
        for key, each in (params or {}).items()
    }
    about = {"formula": formula, "source": source, "slopes": slopes}
    count = None if flops is None else (0, flops)
    return Activation(name, row=row_of(f, name, declared, gated=gated, flops=count, **about))


def _start(value: Any) -> Any:
    """Arrays as nested tuples, which are hashable."""
    if callable(value):
        return value
    try:
        return np.asarray(value, np.float64).tolist()
    except (TypeError, ValueError):
        return value


def get_activation(
    name: str | Activation, options: ActivationOptions | None = None, **changes: Any
) -> Activation:
    """The activation of that name.

    Args:
        name: one of `ACTIVATIONS`; `FILE.py:NAME` or `MODULE:NAME` for what `activation` has made
            in a file, which is imported then; or an activation, which comes back with the options.
        options: of the activation; None for the defaults.
        **changes: single options instead, or on top: `get_activation("poly_norm", order=4)`.

    Returns:
        The activation: `.apply`, `.init`, `.specs`, `.gated`, `.width`, `.flops`.

    Raises:
        InputError: an unknown name or option, an option out of range, or one that the activation
            does not read; a file that is gone, or differs from the hash in the name, or holds no
            activation of that name.

        >>> import jax, jax.numpy as jnp
        >>> act = get_activation("poly_norm")
        >>> params = act.init(jax.random.key(0))
        >>> act.apply(params, jnp.ones((2, 4))).shape
        (2, 4)
    """
    names = {field.name for field in fields(ActivationOptions)}
    for change in changes:
        if change not in names:
            raise unknown("activation option", change, names)
    chosen = None if options is None and not changes else options or ActivationOptions()
    if chosen is not None:
        chosen = replace(chosen, **changes)
    if isinstance(name, Activation):
        return name if chosen is None else replace(name, options=chosen)
    if is_reference(name):
        own = _in_file(name)
        return own if chosen is None else replace(own, options=chosen)
    return Activation(name, chosen or ActivationOptions())


def _in_file(name: str) -> Activation:
    found = Reference.parse(name).load()
    if not isinstance(found, Activation):
        raise InputError(
            f"activation={name}: it is a {type(found).__name__}, and an activation is wanted; make"
            " one of a function by polycom_jax.activation(f)."
        )
    return found


__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ActivationOptions",
    "Parameter",
    "activation",
    "get_activation",
]
