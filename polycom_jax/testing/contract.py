"""The checks together, and the one call that runs them."""

import math
from collections.abc import Callable, Mapping, Sequence

from polycom_jax._errors import require, unknown
from polycom_jax.table import Activation, get_activation
from polycom_jax.testing.examples import Exact, Example
from polycom_jax.testing.far_out import FAR_OUT
from polycom_jax.testing.numbers import NUMBERS
from polycom_jax.testing.transformations import TRANSFORMATIONS

CHECKS: Mapping[str, Callable[[Example], None]] = {**TRANSFORMATIONS, **NUMBERS, **FAR_OUT}
"""Name -> check, the cheap ones first."""

QUICK_CHECKS: tuple[str, ...] = (
    *("shapes_and_roles", "elements_stand_alone", "rows_stand_alone"),
    *("flops_are_counted", "saves_its_arguments"),
    *("values_and_gradients", "one_rounding", "always_finite", "stated_slopes"),
)
"""Those that find most of what goes wrong, in a second or two."""

WIDTH = 16


def check_activation(
    activation: str | Activation,
    *,
    checks: Sequence[str] = tuple(CHECKS),
    exact: Exact | None = None,
    largest: float = math.inf,
) -> None:
    """Raises `ContractError` unless the activation keeps the contract of the table's rows.

    - Result and gradients have the dtype of the input, and are those of float32 rounded once.
    - They are those of float64, and of its numeric derivatives, second ones too, also for inputs up
      to 40, and of `exact` where it is given.
    - They are finite for every finite float16, bfloat16 and float32 input, wherever float64 has a
      number that the dtype holds, and it has one, along cotangents of about 1; gate and up may be
      of very different sizes.
    - `jit`, `vmap` (over parameters, too), a scan over stacked layers, `checkpoint`, forward mode
      and a mesh of all devices, which splits rows and width, change nothing. Nor do parts of the
      channels by themselves, as where experts' widths are split.
    - The backward pass keeps the arguments alone.
    - A row of the result reads no other row, where other tokens are.
    - What it states of itself is so: shapes, FLOPs, bounds of the derivative, whether it is
      element-wise.

    Args:
        activation: from `polycom_jax.activation`, or as `get_activation` takes it.
        checks: some of `CHECKS`, by name.
        exact: value in float64, as exact(params, *hidden) of NumPy arrays, written apart from the
            activation; None: the activation itself in float64, which tells no wrong formula.
        largest: inputs of a greater magnitude need not give finite results.

    Raises:
        ContractError: what failed, on which input, what came and what was expected.
        InputError: no such check or activation.
    """
    act = get_activation(activation)
    groups = [each.groups for each in act.parameters.values()]
    example = Example(act, exact, math.lcm(WIDTH, *groups), largest)
    require(largest > 0, f"largest={largest} must be above 0.")
    for name in checks:
        if name not in CHECKS:
            raise unknown("check", name, CHECKS)
        CHECKS[name](example)
