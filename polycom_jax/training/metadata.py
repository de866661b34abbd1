"""What a checkpoint says of itself, within Orbax's own metadata: its values' checksums, its run."""

import hashlib
import json
import operator
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._files import retried
from polycom_jax.storage import Place

STATE = "state"
"""The item of a checkpoint that holds its values."""

FILE = f"{STATE}/_METADATA"
"""Where Orbax keeps the metadata of that item, ours under `custom_metadata`."""

EARLIER_FILE = "manifest.json"
"""Where checkpoints of format 1 keep theirs."""

FORMAT = 2
"""Version of the metadata; raise it when its fields change. Format 1 is read, too."""


class Unreadable(Exception):
    """A checkpoint is damaged; an older one may be intact."""


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
class CheckpointMetadata:
    """What is in a checkpoint.

    Attributes:
        step: number of updates done.
        leaves: the state by dotted name.
        run_metadata: what the run is of, as given to `Checkpoints`.
        environment: what the bits depend on besides it, as given to `Checkpoints.save`.
    """

    step: int
    leaves: Mapping[str, Leaf]
    run_metadata: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For Orbax to store, with a checksum of its own."""
        body = {"format": FORMAT, "contents": json.loads(json.dumps(asdict(self)))}
        return {"sha256": _digest(body), **body}


def read(folder: Place) -> CheckpointMetadata:
    """The metadata of the checkpoint in `folder`.

    Raises:
        Unreadable: there is none, or it is damaged itself.
        OSError: it cannot be read, though tried again, which proves nothing of what is in it.
    """
    earlier = _json(folder, EARLIER_FILE)
    file = FILE if earlier is None else EARLIER_FILE
    stored = _json(folder, FILE) if earlier is None else earlier
    tree = stored.get("custom_metadata") if file == FILE and isinstance(stored, dict) else stored
    if stored is None:
        raise Unreadable(f"it has no {FILE}")
    if isinstance(stored, dict) and tree is None:
        raise OtherFormat(f"{file} is whole and has none of this library's checksums")
    if not isinstance(tree, dict) or tree.pop("sha256", None) != _digest(tree):
        raise Unreadable(f"{file} is not as it was written")
    if tree.get("format") not in (1, FORMAT):
        raise OtherFormat(
            f"{file} has format {tree.get('format')}, and this version reads 1 and {FORMAT}"
        )
    contents = tree["contents"]
    return CheckpointMetadata(
        contents["step"],
        {
            name: Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"])
            for name, leaf in contents["leaves"].items()
        },
        contents["about" if tree["format"] == 1 else "run_metadata"],
        contents["environment"],
    )


def _json(folder: Place, file: str) -> Any:
    """What the file holds; None: there is none."""
    try:
        return json.loads(retried(lambda: storage.read(folder / file)).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, ValueError, RecursionError) as error:
        raise Unreadable(f"{file} cannot be read: {error}") from None


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def whole(name: str, value: Any, least: int = 0) -> int:
    """The integer that Python or NumPy has for `value`.

    Raises:
        InputError: it is none, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    require(number >= least, f"{name}={value!r} must be a whole number of at least {least}.")
    return number


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
        case _:
            pass
    shown = " ".join(repr(value).split())[:80]
    raise InputError(
        f"{name} is {shown}, of type {type(value).__name__}, which metadata in JSON cannot hold:"
        " give numbers, text, or lists and mappings of them."
    )


def _kind(dtype: Any) -> type | None:
    """Python's type for numbers of `dtype`; None: it has none that JSON knows."""
    kinds = {np.bool_: bool, np.integer: object, np.floating: np.float64}
    if jnp.issubdtype(dtype, np.timedelta64):  # NumPy counts it among the integers
        return None
    return next((kind for of, kind in kinds.items() if jnp.issubdtype(dtype, of)), None)
