"""The index of prepared data: written last, so that with it all is there; the way to the tokens."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax._files import Digests, first_damage, retried
from polycom_jax.data.files import Place
from polycom_jax.data.pieces import INDEX, shard_name
from polycom_jax.data.reader import SPLITS, Split
from polycom_jax.data.store import OpenShard, TokenStore, mapped, ranged

READ_BYTES = 2**32
"""Prepared data larger than this are checked by the sizes of their files: to read it all would take
longer than people wait for a start."""


def write_index(folder: Place, body: Mapping[str, Any]) -> None:
    """Writes index.json, with a checksum of itself."""
    text = json.dumps({"index": body, "sha256": _checksum(body)})
    storage.write(folder / INDEX, text.encode())


def read_index(folder: Place) -> dict[str, Any]:
    """What `write_index` was given.

    Raises:
        InputError: the file is damaged.
        OSError: it cannot be read; nothing says that it is damaged.
    """
    try:
        tree = json.loads(retried(lambda: storage.read(folder / INDEX)))
        body, checksum = tree["index"], tree["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(folder, f"{INDEX} cannot be read: {error}") from error
    if _checksum(body) != checksum:
        raise _damaged(folder, f"{INDEX} has other bytes than were written")
    return body


def check_files(folder: Place, index: Mapping[str, Any]) -> None:
    """Raises `InputError` unless the files are as they were written.

    In a bucket only their sizes are looked at, for it keeps checksums itself.

    Raises:
        OSError: they cannot be read; nothing says that they are damaged.
    """
    files: Digests = dict(_files(index))
    if storage.is_remote(folder):
        damage = _first_of_other_size(folder, files)
    else:
        contents = sum(size for size, _ in files.values()) <= READ_BYTES
        damage = first_damage(folder, files, contents=contents)
    if damage:
        raise _damaged(folder, damage)


def open_store(folder: Place, index: Mapping[str, Any], split: Split) -> TokenStore:
    """The tokens of a split; nothing is read until it is used."""
    about = index["splits"][split]
    counts, dtype = about["counts"], np.dtype(index["dtype"])
    places = [folder / shard_name(split, piece) for piece in about["pieces"]]
    remote = storage.is_remote(folder)
    sizes = np.diff(about["ends"], prepend=0).tolist()
    opened: OpenShard = ranged(places, sizes, dtype) if remote else mapped(places, dtype)
    return TokenStore(
        np.array(about["ends"], np.int64),
        opened,
        index["eot"],
        counts["documents"],
        counts["bytes"] - counts["lost"] - counts["replaced"],
        tuple(index["begin"]),
        dict(about["lengths"]),
        remote,
    )


def _files(index: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, str]]]:
    yield from ((name, (size, digest)) for name, (size, digest) in index["files"].items())
    itemsize = np.dtype(index["dtype"]).itemsize
    for split in SPLITS:
        about = index["splits"][split]
        sizes = np.diff(about["ends"], prepend=0) * itemsize
        for piece, size, digest in zip(
            about["pieces"], sizes.tolist(), about["sha256"], strict=True
        ):
            yield shard_name(split, piece), (size, digest)


def _first_of_other_size(folder: Place, files: Digests) -> str:
    found = {
        f"{split}/{name}": entry
        for split in SPLITS
        for name, entry in storage.entries(folder / split).items()
    }
    for name, (size, _) in files.items():
        if "/" in name and name not in found:
            return f"{name} is missing"
        if "/" in name and found[name].size != size:
            return f"{name} has {found[name].size} bytes of {size}"
    return ""


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Place, damage: str) -> InputError:
    return InputError(
        f"The prepared data in {folder} are damaged ({damage}); delete that folder, and the next"
        " start prepares them again."
    )
