"""A study's own report from what its folder holds: the runs, and the times of a step."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from experiments.compare import own_files
from experiments.compare.across.cells import (
    SETTINGS,
    ArmRuns,
    base_of,
    read_arms,
    stored_config,
    stored_vocabulary,
)
from experiments.compare.arms import Arm, Study
from experiments.compare.concluding import Finished
from experiments.compare.report import NUMBERS
from experiments.compare.studies import STUDIES
from experiments.compare.timing import TIMES, Timing, stored
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.reference import is_reference
from polycom_jax.storage import Place
from polycom_jax.table import ACTIVATIONS


def read_finished(root: Place, activations: Sequence[str] = ()) -> Finished:
    """The study of a folder, on the seeds from the first on that all arms with results have.

    Args:
        root: the folder.
        activations: where files of users' activations lie now, see `own_files.read`.

    Raises:
        InputError: no two of its arms are compared, or some of them have no times; or a file in it
            is not as a study has written it.
    """
    config = stored_config(root)
    own = own_files.read(root, activations)
    arms = {name: arm for name, arm in read_arms(root, config, own).items() if arm.runs}
    require(bool(arms), f"{root} holds no finished results yet, only searches for rates.")
    vocabulary = stored_vocabulary(root)
    require(
        vocabulary is not None,
        f"{root / SETTINGS} does not say how many ids the tokenizer has, as earlier versions did"
        " not: the command that trained the study adds it, and writes the report.",
    )
    rows = [own.arms[name].activation if name in own.arms else name for name in arms]
    name = _name(config.study, (_stored(root) or {}).get("study"), rows)
    study = _study(name, rows)
    arms = {arm.name: arms[arm.folder] for arm in study.arms}
    seeds = _shared(config.first_seed, arms.values())
    require(len(seeds) > 1, f"{root}: its arms have not two seeds in common yet.")
    return Finished(
        config=replace(config, study=name, seeds=len(seeds)),
        study=study,
        base=base_of(config, vocabulary),
        searches={name: arm.search for name, arm in arms.items()},
        searched={name: arm.searched for name, arm in arms.items()},
        runs={name: [arm.runs[seed] for seed in seeds] for name, arm in arms.items()},
        times=_times(root, [arm.folder for arm in study.arms]),
    )


def stored_about(root: Place) -> dict[str, Any]:
    """Where the numbers come from, as the report says that lies there; {}: there is none."""
    found = _stored(root)
    try:
        return {} if found is None else dict(found["about"])
    except (ValueError, TypeError, KeyError) as error:
        raise _foreign(root, error) from error


def check_no_fewer(done: Finished, place: Place, unread: Iterable[str] = ()) -> None:
    """Raises `InputError` where the report that lies there has seeds or arms which this one would
    not; `unread`: why some arms are left out."""
    try:
        seeds = {arm["name"]: len(arm["losses"]) for arm in (_stored(place) or {}).get("arms", [])}
    except (TypeError, KeyError) as error:
        raise _foreign(place, error) from error
    gone = [name for name in seeds if name not in done.runs]
    require(
        not gone,
        f"{place / NUMBERS} has the results of {', '.join(gone)}, too, so it stays."
        f" {' '.join(unread)}".rstrip(),
    )
    more = [name for name, count in seeds.items() if count > done.config.seeds]
    require(
        not more,
        f"{place / NUMBERS} has {max(seeds.values(), default=0)} seeds of {', '.join(more)}, and"
        f" all arms with results ({', '.join(done.runs)}) have {done.config.seeds} in common, so it"
        " stays; another --out takes the report of these.",
    )


def _stored(root: Place) -> dict[str, Any] | None:
    """The numbers of the report that lies there; None: there is none."""
    path = root / NUMBERS
    try:
        return dict(json.loads(storage.read(path))) if storage.is_file(path) else None
    except (ValueError, TypeError) as error:
        raise _foreign(root, error) from error


def _foreign(root: Place, error: Exception) -> InputError:
    return InputError(f"{root / NUMBERS} is not as a study has written it: {error}.")


def _name(folders: str, told: str | None, rows: Sequence[str]) -> str:
    """The study that a report is of, of those whose runs lie in one folder: the one that it was of,
    if there is one, unless it has not all of these arms and they cannot join it."""
    family = [name for name, study in STUDIES.items() if folders in (name, study.runs_of)]
    able = [
        name for name in family
        if all(row in ACTIVATIONS or is_reference(row) for row in _further(name, rows))
    ]  # fmt: skip
    return min(able, key=lambda name: name != told, default=folders)


def _further(study: str, rows: Sequence[str]) -> list[str]:
    own = {arm.name for arm in STUDIES[study].arms}
    return [row for row in rows if row not in own]


def _study(name: str, rows: Sequence[str]) -> Study:
    """The study of these arms; those of other studies and of users' files join as further
    activations."""
    further = [Arm.of(row) for row in _further(name, rows) if is_reference(row)]
    twice = {arm.name for arm in further if [one.name for one in further].count(arm.name) > 1}
    require(
        not twice,
        f"there are {len(further)} versions of {', '.join(sorted(twice))}, which one report cannot"
        " tell apart; `compare leaderboard` orders all.",
    )
    wanted = [row for row in rows if not is_reference(row)]
    study = STUDIES[name].with_activations(_further(name, rows))
    return study.only([*wanted, *(arm.name for arm in further)])


def _shared(first: int, arms: Iterable[ArmRuns]) -> list[int]:
    common = set.intersection(*(set(arm.runs) for arm in arms))
    seeds: list[int] = []
    while first + len(seeds) in common:
        seeds.append(first + len(seeds))
    return seeds


def _times(root: Place, arms: Iterable[str]) -> Timing:
    try:
        times = stored(root / TIMES)
    except (ValueError, TypeError) as error:
        raise InputError(f"{root / TIMES} is not as a study has written it: {error}.") from error
    missing = [name for name in arms if times is None or name not in times.seconds]
    if times is None or missing:
        raise InputError(
            f"{root / TIMES} has no times of {', '.join(missing)}: the command that trained the"
            " study measures them."
        )
    return times
