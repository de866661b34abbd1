"""Which bytes of a checkpoint's arrays are read: Orbax leaves some behind that nothing refers to.

While a checkpoint is written, every commit to its OCDBT database writes the tree with all small
values anew, into files of its own or beside large values, and the merge of all processes' databases
writes it once more. What the merged manifest leads to is read; what came before may well be larger.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorstore as ts
from etils import epath

from polycom_jax import storage
from polycom_jax.storage import Place


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that are a value, or a node of the tree with small values in it.

    Attributes:
        file: its path within the folder of the arrays.
        start: of the bytes.
        size: how many.
    """

    file: str
    start: int
    size: int


def largest_that_is_read(state: Place) -> tuple[epath.Path, int]:
    """The file with the longest stretch that a restore reads, and the middle of that stretch."""
    found = max(_reached(state), key=lambda one: one.size)
    return epath.Path(state) / found.file, found.start + found.size // 2


def _reached(state: Place) -> list[Stretch]:
    base = ts.KvStore.open(_spec(state)).result()
    newest = ts.ocdbt.dump(base).result()["versions"][-1]
    return list(_below(base, newest["root"]["location"]))


def _below(base: ts.KvStore, location: str) -> Iterator[Stretch]:
    yield _stretch(location)
    for entry in ts.ocdbt.dump(base, location).result()["entries"]:
        if "indirect_value" in entry:
            yield _stretch(entry["indirect_value"])
        elif "location" in entry:
            yield from _below(base, entry["location"])


def _stretch(location: str) -> Stretch:
    """Of "KIND:BASE:FILE:START:SIZE"; a base is the folder of one process, "" that of all."""
    _, base, file, start, size = location.split(":")
    return Stretch(f"{base}{file}", int(start), int(size))


def _spec(state: Place) -> dict[str, Any]:
    if not storage.is_remote(state):
        return {"driver": "file", "path": f"{state}/"}
    bucket, _, path = str(state).removeprefix("gs://").partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
