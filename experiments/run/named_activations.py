"""Activations by the names that a user gives."""

from collections.abc import Mapping, Sequence

from polycom_jax._errors import require
from polycom_jax.reference import SHOWN, Reference, is_reference
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
    """Activation -> how its files are named: of one in a file, with the file's hash."""
    found = {}
    for name, own in zip(names, chosen, strict=True):
        pinned = Reference.parse(name).pinned().sha256 if is_reference(name) else None
        found[own] = f"{own}-{pinned[:SHOWN]}" if pinned else own
    return found
