"""Activations by the names that a user gives."""

from collections.abc import Sequence

from polycom_jax._errors import require
from polycom_jax.table import Activation, get_activation


def chosen_by(names: Sequence[str]) -> dict[str, Activation]:
    """The activations, each under its own name.

    Raises:
        InputError: there is none of that name, or two have the same.
    """
    found: dict[str, Activation] = {}
    for name in names:
        act = get_activation(name)
        require(act.name not in found, f"{name}: an activation {act.name!r} is named twice.")
        found[act.name] = act
    return found
