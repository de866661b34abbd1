"""Folders of Hugging Face datasets: Parquet files by split, or what `save_to_disk` wrote."""

import json
import re
from collections.abc import Mapping
from typing import Any

from polycom_jax import storage
from polycom_jax._errors import InputError, require, unknown
from polycom_jax.data.files import Place
from polycom_jax.data.heldout import HELDOUT_SPLITS

_ALSO = {"training": "train", "val": "validation"} | dict.fromkeys(
    ("testing", "eval", "evaluation"), "test"
)
"""Words for splits that Hugging Face reads, too: what they mean there."""

_WORDS = "|".join({"train", *HELDOUT_SPLITS, *_ALSO})
_SPLIT = re.compile(rf"(?:^|[/._-])({_WORDS})(?:[/._-]|$)")


def splits(folder: Place) -> Mapping[str, list[Place]]:
    """The files of each split of a dataset; none where the folder holds no dataset.

    What belongs to no split by its name, as in a folder of Parquet files, is `train`.

    Raises:
        InputError: a file that says what there is is damaged, or what it names is missing.
    """
    if not storage.is_folder(folder):
        return {}
    names = set(storage.entries(folder))
    if "dataset_dict.json" in names:
        place = folder / "dataset_dict.json"
        listed = _names(place, _json(place).get("splits"), "splits")
        return {split: _saved(folder, f"{split}/", names) for split in listed}
    if "state.json" in names:
        return {"train": _saved(folder, "", names)}
    found: dict[str, list[Place]] = {}
    for name in sorted(name for name in names if name.lower().endswith(".parquet")):
        match = _SPLIT.search(name)
        split = match[1] if match else "train"
        found.setdefault(_ALSO.get(split, split), []).append(folder / name)
    return found


def own_name(found: Mapping[str, list[Place]], split: str) -> str:
    """What a split that is asked for is called among those that were `found`: `val` for instance
    is `validation`, as its files are."""
    return split if split in found else _ALSO.get(split, split)


def split_files(folder: Place, split: str) -> list[Place]:
    """The files of a split.

    Raises:
        InputError: there is no such split.
    """
    found = splits(folder)
    name = own_name(found, split)
    if name not in found:
        raise unknown(f"split of {folder}", split, found)
    return found[name]


def _saved(folder: Place, prefix: str, names: set[str]) -> list[Place]:
    """The Arrow files of a split that `save_to_disk` wrote, in order."""
    place = folder / f"{prefix}state.json"
    listed = _json(place).get("_data_files")
    if isinstance(listed, list):
        listed = [one.get("filename") if isinstance(one, dict) else None for one in listed]
    files = [f"{prefix}{name}" for name in _names(place, listed, "_data_files")]
    for file in files:
        require(file in names, f"{folder}: {file} is missing, and state.json names it.")
    return [folder / file for file in files]


def _json(place: Place) -> dict:
    try:
        tree = json.loads(storage.read(place))
    except (OSError, ValueError) as error:
        raise InputError(f"{place} cannot be read: {error}.") from error
    require(isinstance(tree, dict), f"{place} must hold an object, not {type(tree).__name__}.")
    return tree


def _names(place: Place, found: Any, field: str) -> list[str]:
    """What a file lists; `InputError` where that is no list of names."""
    require(
        isinstance(found, list) and all(isinstance(one, str) for one in found),
        f"{place} has no {field} as save_to_disk writes them; save the dataset again.",
    )
    return found
