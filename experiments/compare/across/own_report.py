"""A study's own report from what its folder holds: the runs, and the times of a step."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from experiments.compare.across.cells import ArmRuns, base_of, read_arms, stored_config
from experiments.compare.arms import Study
from experiments.compare.concluding import Finished
from experiments.compare.config import CompareConfig
from experiments.compare.report import NUMBERS
from experiments.compare.studies import STUDIES
from experiments.compare.timing import TIMES, Timing, stored
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.storage import Place


def read_finished(root: Place) -> Finished:
    """The study of a folder, on the seeds from the first on that all arms with results have.

    Raises:
        InputError: no two of its arms are compared, or some of them have no times; or a file in it
            is not as a study has written it.
    """
    config = stored_config(root)
    arms = {name: arm for name, arm in read_arms(root, config).items() if arm.runs}
    require(bool(arms), f"{root} holds no finished results yet, only searches for rates.")
    study = _study(config, list(arms))
    arms = {arm.name: arms[arm.name] for arm in study.arms}
    seeds = _shared(config.first_seed, arms.values())
    require(len(seeds) > 1, f"{root}: its arms have not two seeds in common yet.")
    return Finished(
        config=replace(config, seeds=len(seeds)),
        study=study,
        base=base_of(config),
        searches={name: arm.search for name, arm in arms.items()},
        searched={name: arm.searched for name, arm in arms.items()},
        runs={name: [arm.runs[seed] for seed in seeds] for name, arm in arms.items()},
        times=_times(root, arms),
    )


def stored_about(root: Place) -> dict[str, Any]:
    """Where the numbers come from, as the report says that lies there; {}: there is none."""
    path = root / NUMBERS
    try:
        return json.loads(storage.read(path))["about"] if storage.is_file(path) else {}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not as a study has written it: {error}.") from error


def _study(config: CompareConfig, names: Sequence[str]) -> Study:
    """The study of these arms; those of other studies join as further activations."""
    study = STUDIES[config.study]
    own = {arm.name for arm in study.arms}
    further = [name for name in names if name not in own]
    return study.with_activations(further).only(names)


def _shared(first: int, arms: Iterable[ArmRuns]) -> list[int]:
    common = set.intersection(*(set(arm.runs) for arm in arms))
    seeds: list[int] = []
    while first + len(seeds) in common:
        seeds.append(first + len(seeds))
    return seeds


def _times(root: Place, arms: Iterable[str]) -> Timing:
    times = stored(root / TIMES)
    have = times.seconds if times else {}
    missing = [name for name in arms if name not in have]
    require(
        not missing,
        f"{root / TIMES} has no times of {', '.join(missing)}: the command that trained the study"
        " measures them.",
    )
    assert times is not None
    return times
