"""Local folders for what a bucket holds: for who appends, or wants files of the system."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from etils import epath

from polycom_jax import _buckets, storage


class Staged:
    """A local folder to write to, whose files `put` takes to their place; on a disk, it is that.

    For what appends, or wants a file of the system; a context manager that ends in `close`.

    Args:
        folder: where the files are to be.
    """

    def __init__(self, folder: os.PathLike[str]) -> None:
        self._folder = epath.Path(folder)
        self._temporary = tempfile.TemporaryDirectory() if storage.is_remote(folder) else None
        self._put: dict[str, storage.Entry] = {}
        self.local = Path(folder if self._temporary is None else self._temporary.name)

    def put(self) -> None:
        """Returns once what was written, and closed or flushed, is in its place.

        Raises:
            OSError: it cannot be put there.
        """
        if self._temporary is not None:
            for name, entry in storage.entries(self.local).items():
                if self._put.get(name) != entry:
                    _buckets.put(os.fspath(self._folder / name), self.local / name)
                    self._put[name] = entry

    def close(self) -> None:
        """Puts what is left, and removes the local folder if it is not the place itself."""
        try:
            self.put()
        finally:
            self.drop()

    def drop(self) -> None:
        """Removes the local folder if it is not the place itself."""
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close() if kind is None else self.drop()


@contextlib.contextmanager
def fetched(folder: os.PathLike[str]) -> Iterator[Path]:
    """A local folder with the files of one in a bucket, in the block; a local one is it itself.

    Raises:
        OSError: a file cannot be read.
    """
    with tempfile.TemporaryDirectory() as name:
        yield fetched_to(Path(name), folder)


def fetched_to(local: Path, folder: os.PathLike[str], *, without: str = "\0") -> Path:
    """The local folder, with the files of one in a bucket in it; of a local `folder`, that itself.

    Args:
        local: to be filled.
        folder: of the files.
        without: the end of the names of those that are not wanted.

    Raises:
        OSError: a file cannot be read.
    """
    if not storage.is_remote(folder):
        return Path(folder)
    for file in storage.entries(folder):
        if not file.endswith(without):
            target = local / file
            target.parent.mkdir(parents=True, exist_ok=True)
            _buckets.download(os.fspath(epath.Path(folder) / file), target)
    return local
