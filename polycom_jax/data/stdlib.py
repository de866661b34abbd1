"""The default corpus: the source text of the running Python's standard library."""

import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from polycom_jax._errors import require

PRUNED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "__pycache__"}
    | {"encodings"}
)
"""Folders of the standard library that are no part of the corpus: what others installed, tests,
and `encodings`, an eighth of the bytes, generated tables of code points: nothing to learn from."""


def stdlib_name() -> str:
    """The name of the running Python's standard library: implementation and version."""
    return f"{platform.python_implementation().lower()}-{platform.python_version()}"


def stdlib_documents() -> Iterator[tuple[str, bytes]]:
    """The .py files of the running Python's standard library, sorted by path.

    `PRUNED_FOLDERS` are not entered (pruned inside the walk: site-packages may be huge), nor are
    `config-*` folders; `_sysconfigdata*` files describe the machine and are left out too.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            f for f in subfolders if f not in PRUNED_FOLDERS and not f.startswith("config-")
        ]
        paths = (Path(folder, f) for f in files if f.endswith(".py"))
        found += [p.relative_to(root).as_posix() for p in paths if "_sysconfigdata" not in p.name]
    require(
        bool(found),
        f"No Python source under {root}: this Python ships its library compiled;"
        " give data.source a text file, a .jsonl file or a TFDS name.",
    )
    for name in sorted(found):
        yield name, (root / name).read_bytes()
