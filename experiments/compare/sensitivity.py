"""How much an arm's loss depends on its learning rate, from the runs of the search for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.compare.runs import Run
from experiments.run.rate_search import shared_seeds
from experiments.run.statistics import LEVEL, mean_interval
from experiments.terminal.tables import Section

LEAST_RATES = 3
"""A mean over fewer rates says nothing of a range."""

DEFINED = (
    "Mean over rates of min(loss, loss before the first update), less the least of them (Wortsman"
    " et al. 2023, arXiv 2309.14322): 0 where no rate is worse than another. Losses"
    " are held-out ones of the search, at the full length; the rates are those that all arms of"
    " the folder have tried. It depends on where in that range an arm's best rate lies: where the"
    " best of all that an arm tried is at an end of the range, or beyond, octaves on one side of it"
    " alone would count, so that it has no number here. With several search"
    f" seeds: their mean, and its {1 - LEVEL:.0%} interval (Student's t). The paper has seven rates"
    " over three powers of ten; `--learning-rates` takes as many. Where an arm normalises what its"
    " weights scale, a rate may mean another thing to it, and its sensitivity then is no property"
    " that others share."
)


@dataclass(frozen=True)
class Sensitivity:
    """One arm's.

    Attributes:
        arm: which.
        tried: rates of its search, ascending.
        losses: of each of these rates, a search seed each: min(loss, loss before the first
            update). NaN where a run diverged, or ended above the loss of guessing, and its file
            does not hold the second.
        rates: those of them that all arms of the folder have tried.
        best: of all that were tried, the one with the least mean loss; NaN where there is none.
        values: the sensitivity over these, a search seed each; empty where there is none.
        why: there is none; "" where there is one.
    """

    arm: str
    tried: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    rates: tuple[float, ...]
    best: float
    values: tuple[float, ...]
    why: str = ""

    @property
    def shown(self) -> str:
        """The mean over seeds with its interval, or why there is none."""
        if self.why:
            return self.why
        if len(self.values) == 1:
            return f"{self.values[0]:.4f}"
        mean, low, high = mean_interval(self.values)
        return f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def sensitivities(searched: Mapping[str, Sequence[Run]], vocab_size: int) -> list[Sensitivity]:
    """Of every arm that has a search.

    Args:
        searched: arm -> the runs of its search at the full length, any order.
        vocab_size: of the models, for the loss of guessing, log(vocab_size).
    """
    tables = {arm: _table(runs, math.log(vocab_size)) for arm, runs in searched.items() if runs}
    common = sorted(set.intersection(*map(set, tables.values()))) if tables else []
    return [_of(arm, table, common) for arm, table in tables.items()]


def _table(runs: Sequence[Run], guessing: float) -> dict[float, list[float]]:
    """Rate -> clipped loss of each seed that all rates have, in the seeds' order."""
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        found.setdefault(run.key.rate, {})[run.key.seed] = _clipped(run, guessing)
    seeds = sorted(shared_seeds(found))
    return {rate: [found[rate][seed] for seed in seeds] for rate in sorted(found)}


def _clipped(run: Run, guessing: float) -> float:
    """min(loss, loss before the first update), NaN where the run's file does not say."""
    if run.initial is not None:
        return min(run.score, run.initial)
    # Weights that know nothing of the text do not beat guessing, so the loss is the lesser one.
    return run.score if run.score < guessing else math.nan


def _of(arm: str, table: Mapping[float, Sequence[float]], common: Sequence[float]) -> Sensitivity:
    tried, losses = tuple(table), tuple(map(tuple, table.values()))
    own = np.array([table[rate] for rate in common], np.float64).reshape(len(common), -1)
    scores = _scores(table)
    least = min(scores, key=scores.__getitem__)
    best = least if math.isfinite(scores[least]) else math.nan
    why = ""
    if len(common) < LEAST_RATES:
        why = f"all arms have {len(common)} rates in common, fewer than {LEAST_RATES}"
    elif not own.size:
        why = "no seed has all rates"
    elif np.isnan(own).any():
        why = "the loss before the first update is not known"
    elif not _inside(scores, common):
        why = "none: its best is at an end of the range, or beyond"
    values = () if why else tuple((own.mean(0) - own.min(0)).tolist())
    return Sensitivity(arm, tried, losses, tuple(common), best, values, why)


def _scores(table: Mapping[float, Sequence[float]]) -> dict[float, float]:
    """Rate -> mean over seeds, infinite where it is not known, so that no such rate is best."""
    means = {rate: float(np.mean(own)) if own else math.nan for rate, own in table.items()}
    return {rate: math.inf if math.isnan(mean) else mean for rate, mean in means.items()}


def _inside(scores: Mapping[float, float], common: Sequence[float]) -> bool:
    """Whether a rate between the ends of the range is as good as any that was tried."""
    between = [score for rate, score in scores.items() if common[0] < rate < common[-1]]
    return min(between) <= min(scores.values())


def row(found: Sensitivity) -> tuple[str, ...]:
    """Cells below `COLUMNS`."""
    span = f"{found.rates[0]:.3g} to {found.rates[-1]:.3g}" if found.rates else "-"
    seeds = len(found.losses[0]) if found.losses else 0
    best = "-" if math.isnan(found.best) else f"{found.best:.3g}"
    return (found.arm, span, str(len(found.rates)), best, str(seeds), found.shown)


COLUMNS = ("arm", "range of rates", "rates", "best rate", "search seeds", "sensitivity")
TITLE = "Sensitivity to the learning rate, nats a token"


def section(found: Sequence[Sensitivity]) -> Section:
    """Of one folder."""
    return Section(TITLE, COLUMNS, tuple(map(row, found)), (DEFINED,))
