"""The index of prepared data: written last, so that with it all is there; the way to the tokens."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax._files import Digests, first_damage, retried, status_of
from polycom_jax.data.files import Place
from polycom_jax.data.pieces import INDEX, sha256, shard_name
from polycom_jax.data.reader import SPLITS, Split
from polycom_jax.data.store import OpenShard, TokenStore, files, ranged

_HEAD = b'{"sha256": "%s", "index": '

READ_BYTES = 2**32
"""Prepared data larger than this are checked by the sizes of their files: to read it all would take
longer than people wait for a start."""


def write_index(folder: Place, body: Mapping[str, Any]) -> None:
    """Writes index.json, with a checksum of itself."""
    text = json.dumps(body).encode()
    storage.write(folder / INDEX, _HEAD % sha256(text).encode() + text + b"}")


def read_index(folder: Place) -> dict[str, Any]:
    """What `write_index` was given.

    Raises:
        InputError: the file is damaged.
        OSError: it cannot be read; nothing says that it is damaged.
    """
    text = retried(lambda: storage.read(folder / INDEX))
    begin = len(_HEAD % (b"0" * 64))
    body = text[begin:-1]
    if text != _HEAD % sha256(body).encode() + body + b"}":
        raise _damaged(folder, f"{INDEX} has other bytes than were written")
    return json.loads(body)


def check_files(folder: Place, index: Mapping[str, Any]) -> None:
    """Raises `InputError` unless the files are as they were written.

    In a bucket only their sizes are looked at, for it keeps checksums itself.

    Raises:
        OSError: they cannot be read; nothing says that they are damaged.
    """
    written: Digests = dict(_files(index))
    large = sum(size for size, _ in written.values()) > READ_BYTES
    if large or storage.is_remote(folder):
        damage = _first_of_other_size(folder, written)
    else:
        damage = first_damage(folder, written)
    if damage:
        raise _damaged(folder, damage)


def open_split(folder: Place, index: Mapping[str, Any], split: Split) -> TokenStore:
    """The tokens of a split; nothing is read until it is used."""
    about = index["splits"][split]
    counts, dtype = about["counts"], np.dtype(index["dtype"])
    places = [folder / shard_name(split, piece) for piece in about["pieces"]]
    remote = storage.is_remote(folder)
    sizes = np.diff(about["ends"], prepend=0).tolist()
    opened: OpenShard = (ranged if remote else files)(places, sizes, dtype)
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
    found = {name: _sizes(folder, name) for name in {name.rpartition("/")[0] for name in files}}
    for path, (size, _) in files.items():
        parent, _, name = path.rpartition("/")
        if name not in found[parent]:
            return f"{path} is missing"
        if found[parent][name] != size:
            return f"{path} has {found[parent][name]} bytes of {size}"
    return ""


def _sizes(folder: Place, name: str) -> dict[str, int]:
    """Of the files right in a folder, asked for all at once."""
    inner = folder / name if name else folder
    if storage.is_remote(folder):
        return {file: entry.size for file, entry in storage.entries(inner).items()}
    if not inner.is_dir():
        return {}
    with os.scandir(inner) as found:
        listed = ((one.name, status_of(one)) for one in found)
        return {name: status.st_size for name, status in listed if status is not None}


def _damaged(folder: Place, damage: str) -> InputError:
    return InputError(
        f"The prepared data in {folder} are damaged ({damage}); delete that folder, and the next"
        " start prepares them again."
    )
