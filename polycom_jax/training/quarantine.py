"""The folder of a run's checkpoints: which are there, and which are moved out of the way.

In a bucket nothing moves: `in_bucket` says how they are set aside there.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._files import retried, status_of
from polycom_jax.hosts import gather
from polycom_jax.storage import Place
from polycom_jax.training import in_bucket

QUARANTINE = "quarantine"
"""The folder, within that of the checkpoints, that takes those that are out of the way."""

_EARLIER = "set-aside"
"""What earlier versions called it; what lies there counts, too."""

KEPT_TORN = 3
"""How many damaged checkpoints stay in quarantine; of more, the oldest are deleted."""

MOST_INTACT = 16
"""How many checkpoints that are not damaged fit in there; none of them is ever deleted."""

_TORN = "torn.txt"
"""File in a checkpoint in quarantine: what proves that it is damaged. Others have none."""

_STEP = re.compile("0|[1-9][0-9]*")


class ReadError(OSError):
    """Files could not be read, though tried again; nothing says that they are damaged."""


def is_step(name: str) -> bool:
    """Is it how a checkpoint's folder is called: a number, as Python writes it?"""
    return _STEP.fullmatch(name) is not None


def all_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Steps of the finished checkpoints in `folder`, ascending; a save cut short is none.

    Raises:
        InputError: it is a file.
        ReadError: it cannot be listed.
    """

    def listed() -> list[int]:
        if storage.is_remote(folder):
            return sorted(in_bucket.steps_in(storage.named(folder)).names)
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


def path_of(folder: Place, step: int) -> Place:
    """The folder of the checkpoint of `step`, whether there is one or not.

    Raises:
        OSError: a bucket cannot be listed.
    """
    if storage.is_remote(folder):
        return folder / in_bucket.steps_in(folder).new_name(step)
    return folder / str(step)


def latest_step(folder: str | os.PathLike[str]) -> int | None:
    """Step of the newest finished checkpoint in `folder`, read from names alone.

    Raises:
        InputError: it is a file.
        ReadError: it cannot be listed.
    """
    return max(all_steps(folder), default=None)


def agreed_steps(folder: Place) -> list[int]:
    """`all_steps` as process 0 finds them: on a disk that processes share, others may see less.

    Every process calls it.
    """
    return gather("list the checkpoints", all_steps(folder))[0]


def fingerprint(checkpoint: Place) -> list[tuple[str, int, int]]:
    """Path, size and time (or generation) of every file: equal as long as nobody touches any.

    Of a checkpoint that is being deleted, what is left.

    Raises:
        OSError: they cannot be listed.
    """
    if storage.is_remote(checkpoint):
        inside = storage.entries(checkpoint).items()
        return sorted((name, entry.size, entry.generation) for name, entry in inside)
    folder = Path(checkpoint)
    listed = retried(lambda: list(folder.rglob("*")), passing=_is_gone)
    found = ((str(p.relative_to(folder)), status_of(p)) for p in listed)
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found if stat)


def _is_gone(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError)


def quarantine(folder: Place, proofs: Mapping[int, str]) -> None:
    """Moves checkpoints to `quarantine/STEP-N`, with the reason, if they are damaged.

    The newest `KEPT_TORN` of the damaged ones stay there. Whatever is not proven to be damaged is
    never deleted, so no more than `MOST_INTACT` of those are taken.

    Args:
        folder: of the checkpoints.
        proofs: step -> what proves that it is damaged; "" where nothing does.

    Raises:
        InputError: there are too many, and a person has to choose.
        OSError: the folder cannot be written.
    """
    require(not (full := no_room(folder, sum(not proof for proof in proofs.values()))), full)
    if storage.is_remote(folder):
        _set_aside(folder, proofs)
    else:
        _move(Path(folder), proofs)


def _set_aside(folder: Place, proofs: Mapping[int, str]) -> None:
    for step, proof in sorted(proofs.items()):
        in_bucket.set_aside(folder, step, proof)
    there = in_bucket.proofs(folder)
    torn = sorted((when, name) for name, (proof, when) in there.items() if proof)
    for _, name in torn[:-KEPT_TORN]:
        in_bucket.delete(folder, name)


def _move(folder: Path, proofs: Mapping[int, str]) -> None:
    for step, proof in sorted(proofs.items()):
        (folder / QUARANTINE).mkdir(exist_ok=True)
        taken = [int(path.name.partition("-")[2]) for path in _entries(folder, step)]
        target = folder / QUARANTINE / f"{step}-{max(taken, default=0) + 1}"
        (folder / str(step)).rename(target)
        if proof:
            with contextlib.suppress(OSError):  # on a full disk it is kept as if it were intact
                (target / _TORN).write_text(f"{proof}\n", encoding="utf-8")
    marks = [path / _TORN for path in _entries(folder) if (path / _TORN).exists()]
    marks.sort(key=lambda mark: mark.stat().st_mtime_ns)
    for mark in marks[:-KEPT_TORN]:
        shutil.rmtree(mark.parent, ignore_errors=True)


def no_room(folder: Place, intact: int) -> str:
    """Why so many more checkpoints that are not damaged cannot be moved; "" where they can."""
    there = _intact_in_quarantine(folder) if intact else 0
    if intact + there <= MOST_INTACT or not intact:
        return ""
    where = f"{folder}, set aside," if storage.is_remote(folder) else folder / QUARANTINE
    return (
        f"{where} holds {there} checkpoints that are not damaged, and going back to"
        f" an older step would move {intact} more there; delete or move away those that are not"
        " needed."
    )


def _intact_in_quarantine(folder: Place) -> int:
    if storage.is_remote(folder):
        return sum(not proof for proof, _ in in_bucket.proofs(folder).values())
    return sum(not (path / _TORN).exists() for path in _entries(Path(folder)))


def _entries(folder: Path, step: int | None = None) -> list[Path]:
    """The checkpoints in quarantine, of one step or of all."""
    number = "[0-9]+" if step is None else str(step)
    inside = (p for name in (QUARANTINE, _EARLIER) for p in (folder / name).glob("*-*"))
    return [path for path in inside if re.fullmatch(f"{number}-[1-9][0-9]*", path.name)]
