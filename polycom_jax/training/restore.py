"""Reading one checkpoint: does it fit, is it whole, and onto which mesh does it go."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from polycom_jax._errors import InputError
from polycom_jax.hosts import gather
from polycom_jax.params import ParamSpec, Specs
from polycom_jax.training import manifest
from polycom_jax.training.checksums import checksums, leaf_names
from polycom_jax.training.manifest import Contents, Leaf, Unreadable
from polycom_jax.training.quiet import quietly
from polycom_jax.training.state import map_mirrored

STATE, METRICS = "state", "metrics"
"""Items of a checkpoint. Orbax calls the last one so itself."""


CHECK_S = 3600.0
"""How long hosts wait for each other to have read their shares of a checkpoint's files."""


def read(
    folder: Path,
    target: Any,
    specs: Specs | None,
    *,
    partial: bool,
    about: Mapping[str, Any] | None = None,
) -> Any:
    """Reads the checkpoint in `folder` into arrays laid out as `target` says.

    All files are compared with the manifest before anything is read from them, hosts dividing them
    among each other, and the values that were read afterwards.

    Args:
        folder: of one step.
        target: tree of `jax.ShapeDtypeStruct` with shardings.
        specs: the model's parameters. With them, arrays that follow a parameter with padded rows
            may have been saved with other padding: rows of zeros are added or cut.
        partial: the checkpoint may hold more than the target.
        about: what the run is of; None: whatever it is of.

    Raises:
        InputError: it is of another run, or holds another model, or another optimiser.
        Unreadable: it is damaged.
    """
    contents = _verified(folder, target, specs, partial, about)
    state, failure = quietly(lambda: _load(folder, target, partial))
    if failure is None:
        found = checksums(state)
        wrong = [name for name in found if found[name] != contents.leaves[name].checksum]
        failure = f"checksums differ: {', '.join(wrong)}" if wrong else None
    if failure is not None:
        raise Unreadable(failure)
    return state


def _verified(
    folder: Path,
    target: Any,
    specs: Specs | None,
    partial: bool,
    about: Mapping[str, Any] | None,
) -> Contents:
    """What the manifest says, once it fits and all files are as it says, on all hosts alike."""
    found, damage = None, ""
    try:
        found = manifest.read(folder)
    except Unreadable as error:
        damage = str(error)
    if found is not None:
        _check_about(folder, found.contents.about, about)
        _check_fits(folder, found.contents.leaves, target, specs, partial)
        share, shares = jax.process_index(), jax.process_count()
        damage = manifest.damaged_file(folder, found.files, share=share, shares=shares)
    if any(gather("check the checkpoint's files", bool(damage), timeout_s=CHECK_S).values()):
        damage = damage or "as another host found"
    if damage or found is None:
        raise Unreadable(damage)
    return found.contents


def _load(folder: Path, target: Any, partial: bool) -> Any:
    import orbax.checkpoint as ocp

    items: dict[str, Any] = {STATE: ocp.PyTreeCheckpointHandler()}
    handler = ocp.CompositeCheckpointHandler(**items)
    arguments = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
        ),
        target,
    )
    wanted = ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=partial)
    with contextlib.closing(ocp.Checkpointer(handler)) as reader:
        return reader.restore(folder, args=ocp.args.Composite(**{STATE: wanted}))[STATE]


def _check_about(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> None:
    """Raises `InputError` where both name a thing, and name it differently."""
    # As JSON gives them back: tuples are lists.
    now = json.loads(json.dumps(dict(wanted or {})))
    other = [
        f"{name}: {saved[name]!r} there, {now[name]!r} now"
        for name in sorted(saved.keys() & now.keys())
        if saved[name] != now[name]
    ]
    if other:
        raise InputError(
            f"The checkpoint {folder} is of another run ({'; '.join(other)}). Resume with what it"
            " was made with, or begin in another folder."
        )


def _check_fits(
    folder: Path, found: Mapping[str, Leaf], target: Any, specs: Specs | None, partial: bool
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


def score(folder: Path) -> float | None:
    """The held-out loss saved with a checkpoint, if one was.

    Raises:
        ValueError: damaged.
    """
    try:
        return json.loads((folder / METRICS / METRICS).read_text()).get("score")
    except FileNotFoundError:
        return None


def environment(folder: Path) -> Mapping[str, str]:
    """The environment saved with a checkpoint; empty if none was.

    Raises:
        Unreadable: damaged.
    """
    return manifest.read(folder).contents.environment
