"""Reading one checkpoint: does it fit, is it intact, and onto which mesh does it go."""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import jax
from etils import epath

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._files import retried
from polycom_jax.hosts import gather, meet
from polycom_jax.params import ParamSpec, Specs
from polycom_jax.storage import Place
from polycom_jax.training import in_bucket, metadata
from polycom_jax.training.checksums import checksums, leaf_names
from polycom_jax.training.metadata import STATE, CheckpointMetadata, Leaf, OtherFormat, Unreadable
from polycom_jax.training.orbax_errors import quietly
from polycom_jax.training.quarantine import ReadError, agreed_steps, fingerprint, no_room, path_of
from polycom_jax.training.state import map_mirrored

T = TypeVar("T")

CHECK_S = 3600.0
"""How long processes wait for each other to have read their part of a checkpoint."""


UNTOUCHED_S = 0.2
"""A checkpoint whose files stay as they are for so long is not being deleted."""

DELETED_S = 30.0
"""Who touches the files of a checkpoint for longer does something else with them: a copy, say."""


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged and an older one is used."""


@dataclass(frozen=True)
class DamagedCheckpoint:
    """A damaged checkpoint.

    Attributes:
        proof: what is wrong with it.
        files: its `fingerprint` when that was seen; None: it could not be taken.
    """

    proof: str
    files: Any

    @classmethod
    def seen(cls, checkpoint: Place, problem: Exception) -> "DamagedCheckpoint":
        """Notes that a checkpoint is damaged."""
        with contextlib.suppress(OSError):
            return cls(str(problem), fingerprint(checkpoint))
        return cls(str(problem), None)

    def still_there(self, checkpoint: Place) -> bool:
        """Is it as it was? If somebody has touched it since, nothing is proven any more.

        Raises:
            OSError: its files cannot be listed.
        """
        return self.files == fingerprint(checkpoint)


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read.

    Attributes:
        step: which.
        tree: what was asked for.
        steps: all that lie in the folder.
        torn: those later than `step` that are damaged.
    """

    step: int
    tree: Any
    steps: Sequence[int]
    torn: Mapping[int, DamagedCheckpoint]


def read_newest(
    folder: Place,
    step: int | None,
    target: Any,
    specs: Specs | None,
    *,
    partial: bool,
    run_metadata: Mapping[str, Any] | None = None,
) -> Found:
    """Reads the newest checkpoint in `folder` that is not damaged, or that of `step`.

    Args:
        folder: of all steps.
        step: which; None: the newest, and a damaged one is passed over with a warning.
        target: see `read`, as what follows.
        specs: "
        partial, run_metadata: "

    Raises:
        InputError: there is none, or all are damaged, or it is of another run or model.
        ReadError: one cannot be read, though tried again; nothing says that it is damaged.
    """
    steps = agreed_steps(folder)
    left, damage, torn = _wanted(folder, steps, step), "", dict[int, DamagedCheckpoint]()
    while left:
        candidate = left.pop()
        path = path_of(folder, candidate)
        try:
            meet(f"read the checkpoint of step {candidate}")
            tree = read(path, target, specs, partial=partial, run_metadata=run_metadata)
            return Found(candidate, tree, steps, torn)
        except (Unreadable, ReadError) as error:
            problem = error
        if step is not None:  # behind later ones, so that the run itself may be deleting it
            _let_go(path)
        now = agreed_steps(folder)
        if now != steps:  # A run that saves there deletes older ones while they are read.
            steps, left = now, _wanted(folder, now, step)
        elif isinstance(problem, ReadError):
            raise ReadError(
                f"The checkpoint {path} cannot be read ({problem}). Nothing says that it is"
                " damaged, so no older one is taken and nothing is moved: try again when the disk"
                " answers, or move it away to go on from an older one."
            ) from problem
        else:
            damage = f"checkpoint {path} is damaged ({problem})"
            if not isinstance(problem, OtherFormat):
                torn[candidate] = DamagedCheckpoint.seen(path, problem)
            if left:
                text = f"{damage}; going back to an older one."
                warnings.warn(text, CheckpointWarning, stacklevel=4)
    raise InputError(
        f"{damage[:1].upper()}{damage[1:]}, and no older one can be read. To start afresh, "
        "move the folder away or take another one."
    )


def _let_go(checkpoint: Place) -> None:
    """Waits until nobody touches the files of a checkpoint: a run deletes it file by file."""
    before, last = None, time.monotonic() + DELETED_S
    with contextlib.suppress(OSError):
        while (now := fingerprint(checkpoint)) and now != before and time.monotonic() < last:
            before = now
            time.sleep(UNTOUCHED_S)


def check_way(folder: Place, found: Found) -> None:
    """Raises `InputError` where a run from `found` could not move later checkpoints away."""
    intact = len([step for step in found.steps if step > found.step and step not in found.torn])
    try:
        full = no_room(folder, intact)
    except OSError as error:  # every process has to come to what they do together
        full = f"Quarantine cannot be read: {error}."
    found_full = gather("look for room in quarantine", full, timeout_s=CHECK_S).values()
    require(not any(found_full), next(filter(None, found_full), ""))


def _wanted(folder: Place, steps: Sequence[int], step: int | None) -> list[int]:
    """What may be read, the last one first."""
    require(bool(steps), f"There is no checkpoint in {folder}.")
    if step is None:
        return list(steps)
    require(
        step in steps,
        f"There is no checkpoint of step {step} in {folder}; "
        f"there are: {', '.join(map(str, steps))}.",
    )
    return [step]


def read(
    folder: Place,
    target: Any,
    specs: Specs | None,
    *,
    partial: bool,
    run_metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Reads the checkpoint in `folder` into arrays laid out as `target` says.

    Each process reads what its devices will hold, and the sums over all of it are compared with
    those that were taken when it was saved.

    Args:
        folder: of one step.
        target: tree of `jax.ShapeDtypeStruct` with shardings.
        specs: the model's parameters. With them, arrays that follow a parameter with padded rows
            may have been saved with other padding: rows of zeros are added or cut.
        partial: the checkpoint may hold more than the target.
        run_metadata: what the run is of; None: whatever it is of.

    Raises:
        InputError: it is of another run, or holds another model, or another optimiser.
        Unreadable: it is damaged.
        ReadError: it cannot be read, though tried again; nothing says that it is damaged.
    """

    def fitting() -> CheckpointMetadata:
        found = metadata.read(folder)
        _check_run(folder, found.run_metadata, run_metadata)
        _check_fits(folder, found.leaves, target, specs, partial)
        return found

    def values() -> Any:
        state, failure = quietly(lambda: _load(folder, target, partial))
        if failure is not None:
            raise Unreadable(failure) if failure.damage else ReadError(failure)
        return state

    leaves = _agreed("read the checkpoint's metadata", fitting).leaves
    waits = () if storage.is_remote(folder) else None  # its clients have asked again themselves
    state = retried(
        lambda: _agreed("read the checkpoint's values", values),
        passing=lambda error: isinstance(error, ReadError),
        waits=waits,
    )
    found = checksums(state)
    wrong = [name for name in found if found[name] != leaves[name].checksum]
    if wrong:
        raise Unreadable(f"checksums differ: {', '.join(wrong)}")
    return state


def _agreed(what: str, part: Callable[[], T]) -> T:
    """What this process reads, once all have read theirs; else the worst that one has found."""
    found, problem = None, None
    try:
        found = part()
    except (Unreadable, OSError) as error:
        problem = error
    own = [type(problem).__name__, _reason(problem)] if problem else None
    by_process = gather(what, own, timeout_s=CHECK_S)
    problems = [one for _, one in sorted(by_process.items()) if one]
    for kind in (Unreadable, OtherFormat):  # Who finds damage has seen it; who cannot read has not.
        for name, reason in problems:
            if name == kind.__name__:
                raise kind(reason)
    if problems:
        raise ReadError(problems[0][1])
    return cast(T, found)


def _reason(error: Exception) -> str:
    """In a line; an error of the system with the file that it is about."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or repr(error)


def _load(folder: Place, target: Any, partial: bool) -> Any:
    """This process's part of the values. Of Orbax the handler alone: around it, one that fails
    would leave the others waiting for it."""
    import orbax.checkpoint as ocp

    if storage.is_remote(folder):
        in_bucket.bound_retries()
    arguments = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
        ),
        target,
    )
    wanted = ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=partial)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        return handler.restore(epath.Path(folder / STATE), args=wanted)


def _check_run(folder: Place, saved: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> None:
    """Raises `InputError` where both name a thing, and name it differently."""
    now = metadata.plain("run_metadata", wanted or {})
    other = [
        f"{name}: {saved[name]!r} there, {now[name]!r} now"
        for name in sorted(saved.keys() & now.keys())
        if saved[name] != now[name] and json.dumps(saved[name]) != json.dumps(now[name])  # NaN
    ]
    if other:
        raise InputError(
            f"The checkpoint {folder} is of another run ({'; '.join(other)}). Take what it was made"
            " with (was its config edited?), or begin in another folder."
        )


def _check_fits(
    folder: Place,
    found: Mapping[str, Leaf],
    target: Any,
    specs: Specs | None,
    partial: bool,
) -> None:
    """Raises `InputError` where names, shapes or dtypes differ by more than padding."""
    wanted = leaf_names(target)
    declared = leaf_names(map_mirrored(lambda _, spec: spec or 0, target, specs or {}))
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    if not partial:
        problems += [f"{name} is not wanted" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        have, want = found[name], wanted[name]
        same = have.shape == want.shape or _is_repadded(have.shape, want.shape, declared[name])
        if not same or have.dtype != want.dtype.name:
            problems.append(
                f"{name} is {have.dtype}{list(have.shape)}, wanted {want.dtype}{list(want.shape)}"
            )
    if problems:
        problems.sort(key=lambda text: (not text.startswith("params"), text))
        shown = "; ".join(problems[:4])
        raise InputError(
            f"The checkpoint {folder} is of another model or optimiser: {shown}"
            f"{' ...' if len(problems) > 4 else ''}. Resume with the settings it was made with."
        )


def _is_repadded(have: tuple[int, ...], want: tuple[int, ...], spec: ParamSpec | int) -> bool:
    """Do the shapes differ only in how many rows of zeros stand behind the real ones?"""
    if not isinstance(spec, ParamSpec) or spec.rows is None or len(have) != len(want):
        return False
    row = spec.stacked
    others_agree = have[:row] + have[row + 1 :] == want[:row] + want[row + 1 :]
    return others_agree and min(have[row], want[row]) >= spec.rows


def environment(folder: Place) -> Mapping[str, Any]:
    """The environment saved with a checkpoint; empty if none was.

    Raises:
        InputError: damaged, or not there.
        ReadError: it cannot be read.
    """
    try:
        return metadata.read(folder).environment
    except Unreadable as error:
        raise InputError(f"The checkpoint {folder} cannot be used: {error}.") from error
    except OSError as error:
        raise ReadError(f"The checkpoint {folder} cannot be read: {_reason(error)}.") from error
