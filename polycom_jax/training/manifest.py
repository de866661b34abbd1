"""What a checkpoint says of itself: its values, what it is of, and a checksum of every file."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polycom_jax._files import Digests, digests, file_names, first_damage

FILE = "manifest.json"

FORMAT = 1
"""Version of the manifest; raise it when its fields change."""

_ORBAX_WRITES_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files at the top of a checkpoint that Orbax changes between the manifest and the commit. They
hold times; nothing of a state is in them."""


class Unreadable(Exception):
    """A checkpoint is damaged; an older one may be whole."""


@dataclass(frozen=True)
class Leaf:
    """One array of the state.

    Attributes:
        shape: its dimensions.
        dtype: name of its dtype.
        checksum: of its values, see `checksums`.
    """

    shape: tuple[int, ...]
    dtype: str
    checksum: int


@dataclass(frozen=True)
class Contents:
    """What is in a checkpoint.

    Attributes:
        step: number of updates done.
        leaves: the state by dotted name.
        about: what the run is of, as given to `Checkpoints`.
        environment: what the bits depend on beside it, as given to `Checkpoints.save`.
    """

    step: int
    leaves: Mapping[str, Leaf]
    about: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Contents, and bytes and SHA-256 of each file by its path in the checkpoint's folder."""

    contents: Contents
    files: Digests


def committer(contents: Callable[[], Contents]) -> type:
    """Orbax's class that makes a finished save a checkpoint, with the manifest written before.

    Orbax renames the temporary folder once all hosts have written to it; its own marker says no
    more than that. So a folder under its final name always has a manifest, whatever was killed
    when, and one without has been tampered with.

    Args:
        contents: of the save under way; called on the first host alone.
    """
    from orbax.checkpoint.path import atomicity

    class Committed(atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            # Orbax takes this class for the parts of a checkpoint, too; a whole one is called by
            # its step.
            if Path(self.get_final()).name.isdecimal():
                await asyncio.to_thread(write, Path(self.get()), contents())
            await super().finalize()

    return Committed


def write(folder: Path, contents: Contents) -> None:
    """Writes the manifest of the files that lie in `folder`, and has it on the disk."""
    files = digests(folder, file_names(folder, without=(FILE, *_ORBAX_WRITES_LATER)))
    body = {"format": FORMAT, "contents": asdict(contents), "files": files}
    text = json.dumps({"sha256": _of_body(body), **body}, indent=1)
    with open(folder / FILE, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Manifest:
    """The manifest of the checkpoint in `folder`; of its files only the names are looked at.

    Raises:
        Unreadable: there is none, or it is damaged itself.
    """
    try:
        tree = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreadable(f"it has no {FILE}") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"{FILE} cannot be read: {error}") from None
    if not isinstance(tree, dict) or tree.pop("sha256", None) != _of_body(tree):
        raise Unreadable(f"{FILE} is not as it was written")
    if tree["format"] != FORMAT:
        raise Unreadable(f"{FILE} has format {tree['format']}, and this version reads {FORMAT}")
    contents = tree["contents"]
    leaves = {
        name: Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"])
        for name, leaf in contents["leaves"].items()
    }
    files = {name: (size, digest) for name, (size, digest) in tree["files"].items()}
    return Manifest(Contents(**contents | {"leaves": leaves}), files)


def damaged_file(folder: Path, files: Digests, *, share: int, shares: int) -> str:
    """What is wrong with the first file that is not as it was written; "" where all are.

    Args:
        folder: of the checkpoint.
        files: of its manifest.
        share: which part of the files to read, from 0; hosts divide them.
        shares: number of parts.
    """
    names = sorted(files)[share::shares]
    return first_damage(folder, {name: files[name] for name in names})


def _of_body(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
