"""What a row of the table of activations is: a function, its parameters, what is known of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, Float, Key

from polycom_jax._errors import InputError, require, unknown
from polycom_jax._fields import check_fields, check_range
from polycom_jax.activations.inputs import EPS, check_eps, check_order
from polycom_jax.activations.stability import stored_coeffs
from polycom_jax.kernels.implementations import Implementation
from polycom_jax.params import Initializer, ParamSpec, Role

Per = Literal["layer", "channel", "group", "expert"]
"""What has a parameter of its own: a layer, each hidden unit of it, each group of neighbouring
units, or each expert of a mixture (a dense block counts as one)."""

Numbers = float | tuple["Numbers", ...]

MOST_BITS = 4
"""Of few-bit backward; what eight bits hold is not far from bfloat16's derivative itself."""


@dataclass(frozen=True)
class ActivationOptions:
    """What can be chosen about an activation; options that it does not read keep their default.

    Attributes:
        order: degree r >= 1 of the polynomial.
        eps: epsilon of PolyNorm, inside its roots.
        implementation: implementation of the activation, see `kernels.implementations`; None: the
            backend's best.
        sigmoid: apply the logistic function to a_1 ... a_r.
        bound: clip coefficients to [-bound, bound]; None: do not.
        output_scale: factor on PolyCom's output.
        initial: a_0 ... a_r at the start, order + 1 numbers; default: 0, 1/r, ..., 1/r. They are
            what the polynomial is evaluated with, before `output_scale`: with `sigmoid`, the
            parameters start at their logits.
        bits: few-bit backward, 1 to 4: the derivative is one of 2^bits levels, and in the place of
            its input the backward pass keeps which, see `kernels.few_bit`; the value is not
            changed. For fixed element-wise functions of one array. None: exact.
    """

    order: int = 3
    eps: float = EPS
    implementation: Implementation | None = None
    sigmoid: bool = False
    bound: float | None = None
    output_scale: float = 1.0
    initial: tuple[float, ...] = ()
    bits: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_order(self.order)
        check_eps(self.eps)
        check_range(self, "positive and finite", "bound", "output_scale")
        require(
            len(self.initial) in (0, self.order + 1) and all(map(math.isfinite, self.initial)),
            f"initial={self.initial} must be order + 1 = {self.order + 1} finite coefficients, a_0"
            " first; or none, for 0, 1/r, ..., 1/r.",
        )
        require(
            self.bits is None or 1 <= self.bits <= MOST_BITS,
            f"bits={self.bits} must be from 1 to {MOST_BITS}, or none for the exact derivative.",
        )
        if self.initial:
            self.stored_initial()

    def stored_initial(self) -> Float[np.ndarray, " R+1"]:
        """The parameters that the activation starts from.

        Raises:
            InputError: `sigmoid` or `bound` do not allow the initial coefficients.
        """
        coeffs = self.initial or (0.0, *[1 / self.order] * self.order)
        return stored_coeffs(coeffs, sigmoid=self.sigmoid, bound=self.bound)


@dataclass(frozen=True)
class Parameter:
    """What an activation learns: where it starts, how many there are, what it is for.

    The function that reads it is given one array, float32 or wider: of `shape` where there is one a
    layer or an expert, else with a last axis of one number a channel, which broadcasts against the
    hidden array; a group's number stands at all of its channels.

    Attributes:
        start: a number; a sequence of numbers, which gives the shape; or an initialiser, as those
            of `jax.nn.initializers`, for which `shape` is given.
        per: "layer", "channel", "group" or "expert".
        groups: how many groups of neighbouring channels there are; they divide the hidden width,
            and over a mesh's tensor axis. Beside "channel", what the width must be a multiple of,
            where the function reads channels together.
        shape: of one.
        role: decides on decay and learning rate (`training.OptimConfig`), and on the dtype: all but
            "matrix" and "embedding" stay float32.

    Raises:
        InputError: a start that is not finite, another `per` or role, or no group.
    """

    start: Numbers | Initializer = 0.0
    per: Per = "layer"
    groups: int = 1
    shape: tuple[int, ...] = ()
    role: Role = "coefficient"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("per", self.per, get_args(Per)),
            ("role", self.role, get_args(Role)),
        ):
            if value not in known:
                raise unknown(f"{name} of a parameter", value, known)
        require(
            isinstance(self.groups, int) and self.groups >= 1,
            f"groups={self.groups!r} must be a whole number of at least 1.",
        )
        if not callable(self.start):
            self._take_numbers()

    def _take_numbers(self) -> None:
        try:
            numbers = np.asarray(self.start, np.float64)
        except (TypeError, ValueError):
            numbers = np.array(math.nan)
        require(
            bool(np.isfinite(numbers).all()) and numbers.size > 0,
            f"start={self.start!r} must be a finite number, a sequence of them, or an initialiser"
            " as jax.nn.initializers has.",
        )
        require(
            self.shape in ((), numbers.shape),
            f"shape={self.shape} is not that of start, {numbers.shape}; leave it out.",
        )
        object.__setattr__(self, "shape", numbers.shape)
        object.__setattr__(self, "start", _nested(numbers.tolist()))

    @property
    def by_channel(self) -> bool:
        """Whether it has numbers for single channels, or groups of them."""
        return self.per in ("channel", "group")

    def spec(self, width: int, activation: str = "") -> ParamSpec:
        """Its declaration in a block of this hidden width, one expert's in a mixture.

        `activation` is whose it is, for the message.

        Raises:
            InputError: groups that do not divide the width.
        """
        axes: tuple[str | None, ...] = (None,) * len(self.shape)
        if not self.by_channel:
            return ParamSpec(self.shape, axes, self._init, self.role)
        count = width if self.per == "channel" else self.groups
        require(
            width % self.groups == 0,
            f"{activation and f'{activation}: '}groups={self.groups} must divide the hidden width"
            f" {width}; nearest width:"
            f" {max(1, round(width / self.groups)) * self.groups}.",
        )
        return ParamSpec((*self.shape, count), (*axes, "mlp"), self._init, self.role)

    def _init(self, key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
        if callable(self.start):
            return self.start(key, shape, dtype)
        numbers = jnp.asarray(np.asarray(self.start, np.float64), dtype)
        trailing = len(shape) - numbers.ndim
        return jnp.broadcast_to(numbers.reshape(*numbers.shape, *[1] * trailing), tuple(shape))

    def fits(self, shape: tuple[int, ...], width: int, parts: int) -> bool:
        """Whether an array of this shape can be it, for one of `parts` of a hidden array, of this
        width. Where an axis of a mesh splits the width, it splits channels and groups alike.
        """
        if not self.by_channel:
            return shape == self.shape
        if len(shape) != len(self.shape) + 1 or shape[:-1] != self.shape:
            return False
        last = shape[-1]
        if self.per == "channel":
            return last == width and width * parts % self.groups == 0
        divides = 0 < last <= self.groups and self.groups % last == 0 and width % last == 0
        return divides and (last * parts == self.groups or _is_a_shard())

    def expanded(self, value: Array, hidden: Array) -> Array:
        """The array that the function reads, beside a hidden one."""
        if not self.by_channel:
            return value
        width, count = hidden.shape[-1], value.shape[-1]
        ones = (*self.shape, *[1] * (hidden.ndim - 1))
        if count == width:
            return value.reshape(*ones, width)
        # Unlike jnp.repeat, it keeps what axes of a mesh split, explicit ones, too.
        each = value.reshape(*ones, count, 1)
        return jnp.broadcast_to(each, (*ones, count, width // count)).reshape(*ones, width)


def _is_a_shard() -> bool:
    """Whether arrays are parts of larger ones, inside `jax.shard_map`."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def _nested(numbers: Any) -> Any:
    return tuple(map(_nested, numbers)) if isinstance(numbers, list) else numbers


def check_parameters(
    name: str,
    declared: Mapping[str, Parameter],
    params: Mapping[str, Any],
    hidden: tuple[int, ...],
    parts: int,
) -> None:
    """Raises `InputError` unless the activation `name` can read these beside one of `parts` of a
    hidden array, of this shape."""
    channels = [key for key, each in declared.items() if each.by_channel]
    require(
        bool(hidden) or not channels,
        f"{name}: an array of shape () has no channels, for which {', '.join(channels)} has"
        " numbers; its last axis must be that of channels.",
    )
    width = hidden[-1] if hidden else 1
    came = {key: np.shape(value) for key, value in params.items()}
    if came.keys() != declared.keys() or not all(
        each.fits(came[key], width, parts) for key, each in declared.items()
    ):
        wanted = {key: each.spec(width * parts).shape for key, each in declared.items()}
        whole = f" for all {parts} parts" if parts > 1 else ""
        raise InputError(f"{name}: expected parameters of shapes {wanted}{whole}, came {came}.")


Declared = Parameter | Callable[[ActivationOptions], Parameter]
"""A parameter, or what makes one of the options."""


@dataclass(frozen=True)
class Row:
    """One activation: function(*inputs, *parameters, **keywords), and what is known of it.

    Attributes:
        function: takes the hidden array (or gate and up), then the parameters in order.
        formula: in words of mathematics, with the names of the parameters.
        source: where it is from.
        flops: (a, b), when the forward pass takes a * order + b operations on each element; None:
            they are counted in the traced program.
        gated: whether it takes gate and up.
        params: names and parameters, in order.
        keywords: options handed to the function.
        over_rows: whether an element of the result depends on the whole row.
        takes_axis: whether the function takes `axis_name`, the mesh axis that splits rows.
        slopes: bounds of the derivative by the input (the gate, `up` being one) at the start; None:
            it depends on the row, or is not known.
    """

    function: Callable[..., Array]
    formula: str = ""
    source: str = ""
    flops: tuple[int, int] | None = None
    gated: bool = False
    params: tuple[tuple[str, Declared], ...] = ()
    keywords: tuple[str, ...] = ()
    over_rows: bool = False
    takes_axis: bool = False
    slopes: tuple[float, float] | None = None

    @property
    def keeps_its_input(self) -> str | None:
        """Why its backward pass cannot do with an index of few bits in the place of its input."""
        reasons = {
            "the gradient of each factor is the other one, so gate and up are kept": self.gated,
            "the gradients of its parameters read its input": bool(self.params),
            "its derivative at an element depends on the whole row": self.over_rows,
            "its derivative grows without bound, which no table of few levels holds": (
                self.slopes is not None and math.inf in map(abs, self.slopes)
            ),
        }
        return next((why for why, holds in reasons.items() if holds), None)

    def parameters(self, options: ActivationOptions) -> Mapping[str, Parameter]:
        """Name -> parameter, with these options."""
        return {
            name: declared if isinstance(declared, Parameter) else declared(options)
            for name, declared in self.params
        }
