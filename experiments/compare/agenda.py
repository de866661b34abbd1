"""Which runs of a study can begin now: those of every search, then the results, seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.compare.arms import Arm
from experiments.compare.config import CompareConfig
from experiments.compare.runs import Run, RunKey
from experiments.run.rate_search import FIRST_SEED, Search, found, growing, halving


@dataclass(frozen=True)
class Agenda:
    """What a study's finished runs leave to do.

    Attributes:
        searches: arm -> its learning rate, of arms whose search has ended.
        searched: arm -> the runs that its search has asked for so far, in that order.
        results: arm -> the runs of its results, one a seed; of arms whose search has ended.
        due: runs that can begin, the first ones first; none: the study is done.
    """

    searches: Mapping[str, Search]
    searched: Mapping[str, Sequence[RunKey]]
    results: Mapping[str, Sequence[RunKey]]
    due: Sequence[tuple[Arm, RunKey]]


def agenda(
    config: CompareConfig, carried: Mapping[str, float], finished: Mapping[RunKey, Run]
) -> Agenda:
    """What there is to do.

    Args:
        config: of the study.
        carried: arm -> a rate of smaller models, to be checked in place of a search.
        finished: runs.
    """
    arms = config.chosen.arms
    searches: dict[str, Search] = {}
    searched: dict[str, list[RunKey]] = {}
    for arm in arms:
        given, scores = carried.get(arm.name), dict[float, float]()
        untried = halving(given) if given else growing(config.learning_rates)
        asked = searched[arm.name] = []
        while rates := untried(scores):
            keys = {rate: _search_keys(config, arm, rate) for rate in rates}
            asked += [key for own in keys.values() for key in own]
            if not finished.keys() >= {*asked}:
                break
            for rate, own in keys.items():
                scores[rate] = float(np.mean([finished[key].score for key in own]))
        else:
            searches[arm.name] = found(scores)
    results = {
        arm.name: [
            RunKey(arm.folder, searches[arm.name].best, seed, config.lengths)
            for seed in config.result_seeds
        ]
        for arm in arms
        if arm.name in searches
    }
    wanted = [(arm, key) for arm in arms for key in searched[arm.name]]
    # Seed by seed: what a stopped study has is complete as far as it goes.
    for place in range(config.seeds):
        wanted += [(arm, results[arm.name][place]) for arm in arms if arm.name in results]
    return Agenda(
        searches, searched, results, [(arm, key) for arm, key in wanted if key not in finished]
    )


def _search_keys(config: CompareConfig, arm: Arm, rate: float) -> list[RunKey]:
    seeds = range(FIRST_SEED, FIRST_SEED + config.search_seeds)
    return [RunKey(arm.folder, rate, seed, config.lengths[-1:]) for seed in seeds]
