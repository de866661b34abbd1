"""Activations by the names that a user gives."""

from collections.abc import Mapping, Sequence

from polycom_jax._errors import require
from polycom_jax.reference import Reference, is_reference
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


def cell_names(names: Sequence[str], chosen: Mapping[str, Activation]) -> dict[str, str]:
    """Activation -> how its files are named: of one in a file, with a hash of what it is there."""
    found = {}
    for name, own in zip(names, chosen, strict=True):
        of_file = is_reference(name)
        found[own] = f"{own}-{Reference.parse(name).pinned().digest}" if of_file else own
    return found
