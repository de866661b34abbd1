"""What a checkpoint says of itself: its values, what it is of, and a checksum of every file."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polycom_jax._errors import InputError
from polycom_jax._files import Digests, digests, file_names, first_damage, retried
from polycom_jax.training.folder import is_step

FILE = "manifest.json"

FORMAT = 1
"""Version of the manifest; raise it when its fields change."""

_ORBAX_WRITES_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files at the top of a checkpoint that Orbax changes between the manifest and the commit. They
hold times; nothing of a state is in them."""


class Unreadable(Exception):
    """A checkpoint is damaged; an older one may be whole."""


class OtherFormat(Unreadable):
    """A checkpoint is not damaged, but of another version of this project."""


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
    environment: Mapping[str, Any] = field(default_factory=dict)


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
            if is_step(Path(self.get_final()).name):
                await asyncio.to_thread(write, Path(self.get()), contents())
            await super().finalize()

    return Committed


def write(folder: Path, contents: Contents) -> None:
    """Writes the manifest of the files that lie in `folder`, and has it on the disk."""
    names = retried(lambda: file_names(folder, without=(FILE, *_ORBAX_WRITES_LATER)))
    files = digests(folder, names)
    body = {"format": FORMAT, "contents": asdict(contents), "files": files}
    text = json.dumps({"sha256": _of_body(body), **body}, indent=1)

    def put() -> None:
        with open(folder / FILE, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    retried(put)


def read(folder: Path) -> Manifest:
    """The manifest of the checkpoint in `folder`; of its files only the names are looked at.

    Raises:
        Unreadable: there is none, or it is damaged itself.
        OSError: it cannot be read, though tried again, which proves nothing of what is in it.
    """
    path = folder / FILE
    try:
        tree = json.loads(retried(lambda: path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable(f"it has no {FILE}") from None
    except (IsADirectoryError, ValueError, RecursionError) as error:
        raise Unreadable(f"{FILE} cannot be read: {error}") from None
    if not isinstance(tree, dict) or tree.pop("sha256", None) != _of_body(tree):
        raise Unreadable(f"{FILE} is not as it was written")
    if tree.get("format") != FORMAT:
        raise OtherFormat(
            f"{FILE} has format {tree.get('format')}, and this version reads {FORMAT}"
        )
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

    Raises:
        OSError: one cannot be read, though tried again, which proves nothing of what is in it.
    """
    names = sorted(files)[share::shares]
    return first_damage(folder, {name: files[name] for name in names})


def proven_torn(folder: Path) -> str:
    """What proves that the checkpoint in `folder` is damaged; "" where nothing does."""
    try:
        return damaged_file(folder, read(folder).files, share=0, shares=1)
    except (OtherFormat, OSError):
        return ""
    except Unreadable as error:
        return str(error)


def plain(name: str, value: Any) -> Any:
    """`value` as JSON gives it back: what is stored, and compared with what was stored.

    Numbers and arrays of NumPy and JAX become Python's, tuples lists, paths and dtypes text.

    Args:
        name: of the value, for the message.
        value: None, a truth value, a number, a text, a path, a dtype, an array of numbers, or a
            list, tuple or mapping of such; keys are text or integers.

    Raises:
        InputError: it is something else.
    """
    match value:
        case None | bool() | str():
            return value
        case int() | float():
            return int(value) if isinstance(value, int) else float(value)
        case os.PathLike() if isinstance(path := os.fspath(value), str):
            return path
        case np.dtype():
            return value.name
        case list() | tuple():
            return [plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
        case Mapping() if all(isinstance(key, str | int | np.integer) for key in value):
            return {str(key): plain(f"{name}.{key}", item) for key, item in value.items()}
        case np.ndarray() | np.generic() | jax.Array() if (kind := _kind(value.dtype)) is not None:
            return np.asarray(value).astype(kind).tolist()
    shown = " ".join(repr(value).split())[:80]
    raise InputError(
        f"{name} is {shown}, of type {type(value).__name__}, which a manifest in JSON cannot hold:"
        " give numbers, text, or lists and mappings of them."
    )


def _kind(dtype: Any) -> type | None:
    """Python's type for numbers of `dtype`; None: it has none that JSON knows."""
    kinds = {np.bool_: bool, np.integer: object, np.floating: np.float64}
    if jnp.issubdtype(dtype, np.timedelta64):  # NumPy counts it among the integers
        return None
    return next((kind for of, kind in kinds.items() if jnp.issubdtype(dtype, of)), None)


def _of_body(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
