"""Arms whose activations are in files of the user's: what a folder of runs keeps of these files.

Its activations.json names each file by place and hash, and a copy lies in `activations`. To read an
arm is to import the file from where it lay, or from a place that the user names; the copy is never
imported by itself.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.compare.arms import Arm
from experiments.run.files import write_json
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.reference import SHOWN, Reference, is_reference
from polycom_jax.storage import Place

INDEX, COPIES = "activations.json", "activations"
EARLIER = rf".+-[0-9a-f]{{{SHOWN}}}"
"""Folder of runs of an activation in a file."""


@dataclass(frozen=True)
class OwnArms:
    """Arms of a folder whose activations are in files.

    Attributes:
        arms: folder of the arm's runs -> arm.
        unread: folder of an arm's runs -> why it is left out.
    """

    arms: Mapping[str, Arm]
    unread: Mapping[str, str]


def worded(arms: Iterable[Arm]) -> dict[str, str]:
    """Where the activations in files are from, for the head of a report."""
    own = [arm for arm in arms if is_reference(arm.activation)]
    return {f"activation {arm.name}": arm.activation for arm in own}


def keep(root: Place, arms: Iterable[Arm]) -> None:
    """Writes down where the activations in files are, and copies the files."""
    new = {arm.folder: arm.activation for arm in arms if is_reference(arm.activation)}
    if not new:
        return
    write_json(root / INDEX, {**_kept(root), **new})
    for name, reference in new.items():
        storage.write(root / COPIES / f"{name}.py", Reference.parse(reference).read())


def read(root: Place, given: Sequence[str] = ()) -> OwnArms:
    """The arms of files that a folder has runs of.

    Args:
        root: the folder.
        given: where some of the files lie now, `FILE.py:NAME`; each is known by its hash.

    Raises:
        InputError: activations.json is not as a study has written it; what is given does not exist.
    """
    named = {arm.folder: arm for arm in map(Arm.of, given)}
    arms: dict[str, Arm] = {}
    unread: dict[str, str] = {}
    there, kept = storage.folders(root / "runs"), _kept(root)
    for name in there:
        if re.fullmatch(EARLIER, name) and name not in kept:
            unread[name] = (
                f"{root}: {name} is left out: an earlier version ran it, which did not keep where"
                f" the activation's file was; remove {root / 'runs' / name}."
            )
    for name, reference in kept.items():
        if name not in there:
            continue
        try:
            found = named[name] if name in named else Arm.of(reference)
            require(found.folder == name, f"{root / INDEX} has {reference} for {name}.")
            arms[name] = found
        except InputError as error:
            unread[name] = _told(root, name, Reference.parse(reference), error)
    return OwnArms(arms, unread)


def check_given(given: Sequence[str], roots: Sequence[Place]) -> None:
    """Raises `InputError` where no folder has runs of one of the activations that are given."""
    there = sorted({name for root in roots for name in _kept(root)})
    for reference in given:
        name = Arm.of(reference).folder
        require(
            name in there,
            f"--activation {reference}: no runs are of {name}, whose digits are of the file's bytes"
            f" and the name in it; of activations in files there are {', '.join(there) or 'none'}.",
        )


def _kept(root: Place) -> dict[str, str]:
    path = root / INDEX
    if not storage.is_file(path):
        return {}
    try:
        found = {str(name): str(text) for name, text in json.loads(storage.read(path)).items()}
        for reference in found.values():
            require(Reference.parse(reference).sha256 is not None, f"{reference} has no hash")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not as a study has written it: {error}.") from error
    return found


def _told(root: Place, name: str, pinned: Reference, error: InputError) -> str:
    why = str(error)
    try:
        now = Reference(pinned.place, pinned.name).pinned().sha256 or ""
        if now != pinned.sha256:
            why = f"{pinned.place} is another file now (SHA-256 {now[:SHOWN]})."
    except InputError as gone:
        why = str(gone)
    copy = f"{root / COPIES / name}.py"
    way = f"--activation {copy}:{pinned.name} reads it from the kept copy."
    if storage.is_remote(root):
        way = f"Fetch the kept copy, {copy}, and name it by --activation FILE.py:{pinned.name}."
    return f"{root}: {name} is left out: {why} {way}"
