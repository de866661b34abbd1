"""Each arm less the reference at every size and length, paired by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.compare.across.cells import Cell
from experiments.compare.findings import TokensNeeded, tokens_needed
from experiments.compare.studies import REFERENCE
from experiments.run.statistics import Paired, in_words, paired, planned


@dataclass(frozen=True)
class Difference:
    """An arm less the reference, at one size and length.

    Attributes:
        cell: name of the folder.
        arm: which.
        parameters: of the size.
        tokens: of the length.
        full: it is the folder's longest length, which rates were chosen at.
        seeds: that both have run.
        result: None where these are fewer than two, or one of them diverged: those that are left
            would be a choice by how training went.
        p_holm: p adjusted for all differences at full lengths, or for all at shorter ones.
        verdict: in words.
    """

    cell: str
    arm: str
    parameters: int
    tokens: int
    full: bool
    seeds: int
    result: Paired | None
    p_holm: float
    verdict: str


@dataclass(frozen=True)
class Turn:
    """Where the sign of a mean difference changes within a folder.

    Attributes:
        cell: name of the folder.
        arm: which.
        before: tokens of the last length with the sign from before.
        after: tokens of the next one.
        tokens: where the mean is zero, linear in log(tokens) between these two.
        ahead: whether the arm is ahead of the reference from there on.
    """

    cell: str
    arm: str
    before: int
    after: int
    tokens: float
    ahead: bool


@dataclass(frozen=True)
class Frugality:
    """Tokens that an arm needs for the reference's loss at the full length of a folder."""

    cell: str
    needed: TokensNeeded


def compared(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that have the reference and something to compare with it."""
    return [cell for cell in cells if REFERENCE in cell.arms and len(cell.arms) > 1]


def others(cell: Cell) -> list[str]:
    """Arms of a cell but the reference."""
    return [name for name in cell.arms if name != REFERENCE]


def differences(cells: Sequence[Cell]) -> list[Difference]:
    """Every difference, those at full lengths first; each of the two groups is a family of Holm's.

    Shorter lengths branch off the same trunks, so they are no tests of their own.
    """
    found: list[Difference] = []
    for full in (True, False):
        keys = [
            (cell, arm, at)
            for cell in compared(cells)
            for at in range(len(cell.tokens))
            for arm in others(cell)
            if full == (at == len(cell.tokens) - 1)
        ]
        results = [_result(*key) for key in keys]
        for (cell, arm, at), result, p in zip(keys, results, planned(results), strict=True):
            seeds, lost = len(run_by_both(cell, arm)), diverged(cell, arm)
            found.append(
                Difference(
                    cell.name, arm, cell.parameters, cell.tokens[at], full, seeds, result, p,
                    in_words(result, p) + (f": {lost}" if lost else ""),
                )
            )  # fmt: skip
    return found


def run_by_both(cell: Cell, arm: str) -> list[int]:
    """Seeds that an arm and the reference have finished, whether or not in a number."""
    return sorted({*cell.arms[arm].runs} & {*cell.arms[REFERENCE].runs})


def diverged(cell: Cell, arm: str) -> str:
    """How many of these seeds diverged, in words; empty: none."""
    seeds, said = run_by_both(cell, arm), []
    for name in (arm, REFERENCE):
        lost = sum(cell.arms[name].runs[seed].diverged for seed in seeds)
        whose = f"{name}, " if name == REFERENCE else ""
        if lost:
            said.append(f"{whose}{lost} of {len(seeds)} diverged")
    return "; ".join(said)


def _result(cell: Cell, arm: str, at: int) -> Paired | None:
    seeds = run_by_both(cell, arm)
    if len(seeds) < 2 or diverged(cell, arm):
        return None
    own, reference = (cell.losses(name, seeds)[:, at] for name in (arm, REFERENCE))
    return paired(own.tolist(), reference.tolist())


def turns(cells: Sequence[Cell]) -> list[Turn]:
    """Every change of sign between neighbouring lengths of a folder."""
    found = []
    for cell in compared(cells):
        for arm in others(cell):
            seeds = run_by_both(cell, arm)
            if not seeds or diverged(cell, arm):
                continue
            mean = (cell.losses(arm, seeds) - cell.losses(REFERENCE, seeds)).mean(0)
            for at in range(len(mean) - 1):
                if mean[at] * mean[at + 1] < 0:
                    before, after = cell.tokens[at : at + 2]
                    share = mean[at] / (mean[at] - mean[at + 1])
                    tokens = before * math.exp(share * math.log(after / before))
                    ahead = bool(mean[at + 1] < 0)
                    found.append(Turn(cell.name, arm, before, after, tokens, ahead))
    return found


def frugality(cells: Sequence[Cell]) -> list[Frugality]:
    """Tokens for the same loss, of every arm at the full length of folders with shorter ones."""
    found = []
    for cell in compared(cells):
        if len(cell.lengths) == 1:
            continue
        for arm in others(cell):
            seeds = run_by_both(cell, arm)
            pairs = [[cell.arms[name].runs[seed] for seed in seeds] for name in (arm, REFERENCE)]
            needed = tokens_needed(arm, REFERENCE, *pairs) if seeds else None
            if needed is not None:
                found.append(Frugality(cell.name, needed))
    return found
