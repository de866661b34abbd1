"""The folder of a run's checkpoints: which are there, and which are moved out of the way."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polycom_jax._errors import InputError, require
from polycom_jax._files import retried
from polycom_jax.hosts import gather

KEPT_TORN = 3
"""How many damaged checkpoints stay in `set-aside`; of more, the oldest are deleted."""

MOST_WHOLE = 16
"""How many checkpoints that are not damaged fit into `set-aside`; none of them is ever deleted."""

_TORN = "torn.txt"
"""File in a checkpoint that was set aside: what proves that it is damaged. Others have none."""

_STEP = re.compile("0|[1-9][0-9]*")


class ReadError(OSError):
    """Files could not be read, though tried again; nothing says that they are damaged."""


def is_step(name: str) -> bool:
    """Is it how a checkpoint's folder is called: a number, as Python writes it?"""
    return _STEP.fullmatch(name) is not None


def all_steps(folder: str | Path) -> list[int]:
    """Steps of the finished checkpoints in `folder`, ascending; a save cut short is none.

    Raises:
        InputError: it is a file.
        ReadError: it cannot be listed.
    """

    def listed() -> list[int]:
        with os.scandir(folder) as entries:
            return sorted(int(one.name) for one in entries if is_step(one.name) and one.is_dir())

    try:
        return retried(listed)
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        if not os.path.lexists(folder):  # a folder above it is a file
            return []
        raise InputError(f"{folder} is a file; checkpoints need a folder.") from error
    except OSError as error:
        raise ReadError(f"{folder} cannot be listed: {error.strerror or error}.") from error


def latest_step(folder: str | Path) -> int | None:
    """Step of the newest finished checkpoint in `folder`, read from names alone.

    Raises:
        InputError: it is a file.
        ReadError: it cannot be listed.
    """
    return max(all_steps(folder), default=None)


def agreed_steps(folder: Path) -> list[int]:
    """`all_steps` as the first host finds them: on a disk that hosts share, others may see less.

    Every host calls it.
    """
    return gather("list the checkpoints", all_steps(folder))[0]


class Names:
    """Orbax's `NameFormat` of the same folders: its own takes digits of any script for numbers."""

    def __init__(self, temporary_path_class: type) -> None:
        import orbax.checkpoint as ocp

        self._standard = ocp.step.standard_name_format(temporary_path_cls=temporary_path_class)

    def build_name(self, step: int) -> str:
        """The folder's name."""
        return self._standard.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """What Orbax keeps of each checkpoint under `base_path`."""
        found = self._standard.find_all(base_path)
        return (one for one in found if is_step(one.path.name))

    def find_step(self, base_path: Any, step: int) -> Any:
        """What Orbax keeps of one checkpoint; a `ValueError` if it is not there."""
        return self._standard.find_step(base_path, step)


def set_aside(folder: Path, proofs: Mapping[int, str]) -> None:
    """Moves checkpoints to `set-aside/STEP-N`, the reason beside those that are damaged.

    The newest `KEPT_TORN` of the damaged ones stay there. Whatever is not proven to be damaged is
    never deleted, so no more than `MOST_WHOLE` of those are taken.

    Args:
        folder: of the checkpoints.
        proofs: step -> what proves that it is damaged; "" where nothing does.

    Raises:
        InputError: there are too many, and a person has to choose.
        OSError: the folder cannot be written.
    """
    aside = folder / "set-aside"
    require(not (full := no_room(folder, sum(not proof for proof in proofs.values()))), full)
    for step, proof in sorted(proofs.items()):
        aside.mkdir(exist_ok=True)
        taken = [int(path.name.partition("-")[2]) for path in _entries(aside, step)]
        target = aside / f"{step}-{max(taken, default=0) + 1}"
        (folder / str(step)).rename(target)
        if proof:
            with contextlib.suppress(OSError):  # on a full disk it is kept as if it were whole
                (target / _TORN).write_text(f"{proof}\n", encoding="utf-8")
    marks = [path / _TORN for path in _entries(aside) if (path / _TORN).exists()]
    marks.sort(key=lambda mark: mark.stat().st_mtime_ns)
    for mark in marks[:-KEPT_TORN]:
        shutil.rmtree(mark.parent, ignore_errors=True)


def no_room(folder: Path, whole: int) -> str:
    """Why so many more checkpoints that are not damaged cannot be set aside; "" where they can."""
    aside = folder / "set-aside"
    there = sum(not (path / _TORN).exists() for path in _entries(aside)) if whole else 0
    if whole + there <= MOST_WHOLE or not whole:
        return ""
    return (
        f"{aside} holds {there} checkpoints that are not damaged, and going back to an older"
        f" step would move {whole} more there; delete or move away those that are not needed."
    )


def _entries(aside: Path, step: int | None = None) -> list[Path]:
    """The checkpoints in `set-aside`, of one step or of all."""
    number = "[0-9]+" if step is None else str(step)
    if not aside.is_dir():
        return []
    return [path for path in aside.iterdir() if re.fullmatch(f"{number}-[1-9][0-9]*", path.name)]
