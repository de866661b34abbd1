"""The table of activations: a new one is a function in `activations` and an entry here.

Tests, models, Flax modules and programs all read this table; the contract test in
`tests/test_table.py` tests a new entry without being told of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from polycom_jax import params as pm
from polycom_jax._errors import require, unknown
from polycom_jax._fields import check_fields, check_range
from polycom_jax.activations import classic, normed
from polycom_jax.activations.inputs import EPS, check_eps, check_order
from polycom_jax.activations.learnable import INITIAL_SLOPE
from polycom_jax.activations.stability import effective_coeffs, stored_coeffs
from polycom_jax.kernels.implementations import Implementation
from polycom_jax.kernels.poly_norm import poly_norm, poly_norm_glu, poly_relu_norm
from polycom_jax.kernels.poly_relu import poly_prelu, poly_relu
from polycom_jax.params import Initializer, Params, ParamSpec
from polycom_jax.sharding import MeshAxes


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
    """

    order: int = 3
    eps: float = EPS
    implementation: Implementation | None = None
    sigmoid: bool = False
    bound: float | None = None
    output_scale: float = 1.0
    initial: tuple[float, ...] = ()

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
class _Entry:
    """One activation: function(*inputs, *parameters, **keywords).

    Attributes:
        function: takes the hidden array (or gate and up), then the parameters in order.
        flops: (a, b), when the forward pass takes a * order + b operations on each element.
        gated: whether it takes gate and up.
        params: names in `_PARAMS`.
        keywords: options handed to the function.
    """

    function: Callable[..., Array]
    flops: tuple[int, int]
    gated: bool = False
    params: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The options that this activation depends on."""
        return (
            ("order", *_STABILITY, "initial") if "coeffs" in self.params else ()
        ) + self.keywords


def _coefficient_init(options: ActivationOptions) -> Initializer:
    def init(key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
        del key, shape  # they start the same in every layer
        return jnp.asarray(options.stored_initial(), dtype)

    return init


_VERSION = "implementation"
_STABILITY = ("sigmoid", "bound", "output_scale")

_PARAMS: Mapping[str, Callable[[ActivationOptions], ParamSpec]] = {
    "coeffs": lambda options: ParamSpec(
        (options.order + 1,), (None,), _coefficient_init(options), "coefficient"
    ),
    "slope": lambda options: ParamSpec(
        (), (), jax.nn.initializers.constant(INITIAL_SLOPE), "coefficient"
    ),
}

# FLOPs: each arithmetic operation of the forward pass on a whole hidden array counts 1, be it a
# product, a comparison, a power or exp; what happens once a row, and casts, count nothing. Horner's
# scheme takes 2r, PolyNorm's means 2r (power, sum) and its scale 3 (abs, max, product); an RMSNorm
# behind a baseline 6 (the scale, square, sum, product).
_ENTRIES: Mapping[str, _Entry] = {
    "poly_norm": _Entry(poly_norm, (4, 3), params=("coeffs",), keywords=("eps", _VERSION)),
    "poly_relu": _Entry(poly_relu, (2, 1), params=("coeffs",), keywords=(_VERSION,)),
    "poly_prelu": _Entry(poly_prelu, (2, 3), params=("coeffs", "slope"), keywords=(_VERSION,)),
    "poly_relu_norm": _Entry(
        poly_relu_norm, (4, 4), params=("coeffs",), keywords=("eps", _VERSION)
    ),
    "poly_norm_glu": _Entry(
        poly_norm_glu, (4, 4), gated=True, params=("coeffs",), keywords=("eps", _VERSION)
    ),
    "relu": _Entry(classic.relu, (0, 1)),
    "relu2": _Entry(classic.relu2, (0, 2)),
    "gelu": _Entry(classic.gelu, (0, 5)),
    "gelu_tanh": _Entry(classic.gelu_tanh, (0, 10)),
    "silu": _Entry(classic.silu, (0, 2)),
    "tanh": _Entry(classic.tanh, (0, 1)),
    "swiglu": _Entry(classic.swiglu, (0, 3), gated=True),
    "geglu": _Entry(classic.geglu, (0, 6), gated=True),
    "reglu": _Entry(classic.reglu, (0, 2), gated=True),
    "gelu_norm": _Entry(normed.gelu_norm, (0, 11), keywords=("eps",)),
    "relu2_norm": _Entry(normed.relu2_norm, (0, 8), keywords=("eps",)),
    "swiglu_norm": _Entry(normed.swiglu_norm, (0, 9), gated=True, keywords=("eps",)),
}

ACTIVATIONS: tuple[str, ...] = tuple(_ENTRIES)
"""The names that `get_activation` knows."""


@dataclass(frozen=True)
class Activation:
    """An entry of the table with its options chosen; hashable, so it may be a static argument.

    Made by `get_activation`.

    Attributes:
        name: of the entry.
        options: those it reads may differ from the defaults.

    Raises:
        InputError: an unknown name, or an option that the activation does not read.
    """

    name: str
    options: ActivationOptions = ActivationOptions()

    def __post_init__(self) -> None:
        if self.name not in _ENTRIES:
            raise unknown("activation", self.name, _ENTRIES)
        reads = self._entry.reads
        for field in fields(ActivationOptions):
            value = getattr(self.options, field.name)
            require(
                field.name in reads or value == field.default,
                f"{field.name}={value!r}: activation {self.name!r} does not read this option"
                f" (it reads {', '.join(reads) or 'none'}); leave it out.",
            )

    @property
    def _entry(self) -> _Entry:
        return _ENTRIES[self.name]

    @property
    def gated(self) -> bool:
        """Whether it takes two hidden arrays, gate and up, from two projections."""
        return self._entry.gated

    @property
    def specs(self) -> dict[str, ParamSpec]:
        """Its parameters: {} for a fixed function, `coeffs` [order + 1] float32 for PolyCom."""
        return {name: _PARAMS[name](self.options) for name in self._entry.params}

    @property
    def flops(self) -> int:
        """Forward operations on each hidden element (see the comment at the table for what
        counts).
        """
        each_order, always = self._entry.flops
        return each_order * self.options.order + always

    @property
    def over_rows(self) -> bool:
        """Whether it takes means over rows, and is not element-wise."""
        return "eps" in self._entry.keywords

    def init(self, key: Key[Array, ""]) -> Params:
        """Initial parameters, {} for a fixed function."""
        return pm.init(self.specs, key)

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
            InputError: a wrong number of arrays, or parameters other than `specs` says.
        """
        wanted = ("gate", "up") if self.gated else ("x",)
        require(
            len(hidden) == len(wanted),
            f"{self.name}: expected apply(params, {', '.join(wanted)}), came {len(hidden)} arrays.",
        )
        keywords = {name: getattr(self.options, name) for name in self._entry.keywords}
        if self.over_rows:
            keywords["axis_name"] = axis_name
        return self._entry.function(*hidden, *self._parameters(params), **keywords)

    def _parameters(self, params: Params) -> list[Array]:
        shapes = {name: jnp.shape(value) for name, value in params.items()}
        wanted = {name: spec.shape for name, spec in self.specs.items()}
        require(
            shapes == wanted, f"{self.name}: expected parameters of shapes {wanted}, came {shapes}."
        )
        stability = {name: getattr(self.options, name) for name in _STABILITY}
        return [
            effective_coeffs(params[name], **stability) if name == "coeffs" else params[name]
            for name in wanted
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


def get_activation(
    name: str, options: ActivationOptions | None = None, **changes: Any
) -> Activation:
    """The activation of that name.

    Args:
        name: one of `ACTIVATIONS`.
        options: of the activation; None for the defaults.
        **changes: single options instead, or on top: `get_activation("poly_norm", order=4)`.

    Returns:
        The activation: `.apply`, `.init`, `.specs`, `.gated`, `.width`, `.flops`.

    Raises:
        InputError: an unknown name or option, an option out of range, or one that the activation
            does not read.

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
    return Activation(name, replace(options or ActivationOptions(), **changes))


__all__ = ["ACTIVATIONS", "Activation", "ActivationOptions", "get_activation"]
