"""Folders of Hugging Face datasets: Parquet files by split, or what `save_to_disk` wrote."""

import json
import re
from collections.abc import Mapping

from polycom_jax import storage
from polycom_jax._errors import InputError, require, unknown
from polycom_jax.data.files import Place

HELDOUT_SPLITS = ("validation", "valid", "heldout", "test")
"""Splits to evaluate on, the first that there is."""

_SPLIT = re.compile(r"(?:^|[/._-])(train|validation|valid|dev|heldout|test)(?:[/._-]|$)")


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
        listed = _json(folder / "dataset_dict.json")["splits"]
        return {split: _saved(folder, f"{split}/", names) for split in listed}
    if "state.json" in names:
        return {"train": _saved(folder, "", names)}
    found: dict[str, list[Place]] = {}
    for name in sorted(name for name in names if name.lower().endswith(".parquet")):
        match = _SPLIT.search(name)
        found.setdefault(match[1] if match else "train", []).append(folder / name)
    return found


def split_files(folder: Place, split: str) -> list[Place]:
    """The files of a split.

    Raises:
        InputError: there is no such split.
    """
    found = splits(folder)
    if split not in found:
        raise unknown(f"split of {folder}", split, found)
    return found[split]


def _saved(folder: Place, prefix: str, names: set[str]) -> list[Place]:
    """The Arrow files of a split that `save_to_disk` wrote, in order."""
    state = _json(folder / f"{prefix}state.json")
    files = [f"{prefix}{file['filename']}" for file in state["_data_files"]]
    for file in files:
        require(file in names, f"{folder}: {file} is missing, and state.json names it.")
    return [folder / file for file in files]


def _json(place: Place) -> dict:
    try:
        return json.loads(storage.read(place))
    except (OSError, ValueError) as error:
        raise InputError(f"{place} cannot be read: {error}.") from error
