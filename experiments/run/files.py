"""Files of a run: each is written whole, or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.terminal.paths import naming


def write_text(path: Path, text: str) -> None:
    """Writes a file that a flag names, whole, and the folders above it; to a pipe or device, so."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write instead of `path`, which it then replaces: whole, or not at all."""
    temporary = path.with_suffix(".tmp")
    with naming(path):
        yield temporary
        os.replace(temporary, path)
