"""Where runs of `compare` have their heads after a few updates, and whether that tells their end.

    python -m experiments.results.compare.heads.measure

trains the first updates of finished runs once more, in a folder where the texts of their studies
lie, writes heads.json, prints the tables of README.md and draws heads.png and near.png; what is
measured is not trained again, so without the texts it prints and draws what is here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments.compare.runs import Run, RunKey
from experiments.compare.train import Curves, Programs, advance, heldout_loss
from experiments.results.compare.heads.again import (
    DRAWS,
    HERE,
    Setting,
    keep,
    kept,
    repeats,
    results,
    setting_of,
    table,
    within,
)
from experiments.terminal.figures import BLUE, ORANGE, panels
from polycom_jax import analysis
from polycom_jax.data import train_batches
from polycom_jax.training.loss import documents

FIRST = ("scaling/bytes-0.1m-200", "scaling/bytes-0.1m-20", "ablation")
FRESH = ("length-200",)
"""Whose plan asks once more what the answer on the first studies was."""
LARGER = ("size-0.3m",)
"""Three layers of three heads: where `near` is tested, which was picked on `FRESH`."""
STUDIED = (*FIRST, *FRESH, *LARGER)
ARMS = ("swiglu", "poly_norm")
Shares = tuple[tuple[tuple[float, ...], ...], ...]
"""Layer -> head -> share of attention to the token `OFFSETS` places back."""

UPDATES = 560
OFFSETS = (0, 1, 2, 3)
SEEN = tuple(("scaling/bytes-0.1m-200", "poly_norm", seed) for seed in range(4))
"""Runs that the expectation comes from; they take no part in its test."""


def most_before(shares: Shares) -> float:
    """Most attention that a head of the first layer gives to the token before."""
    return max(head[OFFSETS.index(1)] for head in shares[0])


def near(shares: Shares) -> float:
    """Attention of the first layer to a token itself and the three before, mean over its heads."""
    return float(np.mean([sum(head) for head in shares[0]]))


Measure = Callable[[Shares], float]
MEASURES: Mapping[str, Measure] = {"token before, one head": most_before, "near, all heads": near}
"""What the first layer's attention is told by."""


@dataclass(frozen=True)
class Point:
    """A run after its first updates, and what became of it.

    Attributes:
        study: folder of its study.
        arm: of that study.
        seed: of the run.
        repeats: whether its training loss so far is that of the first time, digit by digit.
        heldout: nats a byte now.
        shares: layer -> head -> share of attention to the token `OFFSETS` places back.
        final: held-out nats a byte of the finished run.
    """

    study: str
    arm: str
    seed: int
    repeats: bool
    heldout: float
    shares: Shares
    final: float

    @property
    def seen(self) -> bool:
        """Whether the expectation comes from it."""
        return (self.study, self.arm, self.seed) in SEEN


def measured() -> list[Point]:
    """Every run's point: read from heads.json, or trained and added there."""
    points = kept(HERE / "heads.json", Point)
    done = {(point.study, point.arm, point.seed) for point in points}
    for study in STUDIED:
        runs = results(study, ARMS)
        todo = [run for run in runs if (study, run.key.arm, run.key.seed) not in done]
        for run in todo:
            point = point_of(study, setting_of(study), run)
            points.append(point)
            keep(HERE / "heads.json", points)
            told_as = f"{near(point.shares):.3f} {point.final:.4f}"
            print(f"{study} {point.arm} seed {point.seed}: {told_as}")
    return points


def point_of(study: str, setting: Setting, run: Run) -> Point:
    """Trains the trunk as `compare` does, and looks."""
    key = run.key
    # A branch leaves the trunk before its length; up to there the longest run is on the trunk.
    curves, loss, shares = look(setting, setting.programs(key.arm), key, UPDATES, run.steps[0])
    return Point(study, key.arm, key.seed, repeats(run, curves), loss, shares, run.final)


def look(
    setting: Setting, programs: Programs, key: RunKey, updates: int, every: int
) -> tuple[Curves, float, Shares]:
    """A run after so many updates: its curves, its held-out loss and where its heads look."""
    curves = Curves(every)
    batches = train_batches(setting.store, **setting.shape, seed=key.seed)
    state = programs.init(jax.random.key(key.seed))
    state = advance(programs, state, batches, key, 0, updates, None, curves)
    _, segments = documents(programs.cfg, setting.windows)
    seen: Any = {"segment_ids": segments, "mask": setting.windows["mask"]}
    shares = tuple(
        tuple(zip(*(shares_of(layer, offset, seen) for offset in OFFSETS), strict=True))
        for layer in analysis.walk(programs.cfg, state.params, setting.windows)
    )
    return curves, heldout_loss(programs, state.params, setting.heldout), shares


def shares_of(layer: analysis.LayerView, offset: int, seen: Any) -> list[float]:
    """Of each head."""
    return analysis.share_before(layer.queries, layer.keys, offset, **seen).tolist()


def told(points: Sequence[Point]) -> None:
    """Rank correlations, and the test: within one arm of one study, does the share tell the end?"""
    rows = []
    groups = grouped([point for point in points if not point.seen])
    for (study, arm), own in groups.items():
        final = [p.final for p in own]
        early = [[of(p.shares) for p in own] for of in MEASURES.values()]
        early.append([p.heldout for p in own])
        cells = [f"{stats.spearmanr(values, final)[0]:.2f}" for values in early]
        rows.append((study, arm, len(own), *cells))
    table(("study", "arm", "runs", *MEASURES, "loss then"), rows)
    for name, of in MEASURES.items():
        pairs = [[(of(p.shares), p.final) for p in own] for own in groups.values()]
        slope, part, p = within(pairs)
        print(f"{name}: slope {slope:.4f} nats a unit, share of variance {part:.2f}, p {p:.2g}")
        print(f"  seeds permuted, both arms of a study at once: p {p_of_seeds(groups, of):.2g}")
    print()


def grouped(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """By study and arm; a group of one says nothing of what is within."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.study, point.arm), []).append(point)
    return {name: own for name, own in groups.items() if len(own) > 1}


def p_of_seeds(groups: Mapping[tuple[str, str], Sequence[Point]], of: Measure) -> float:
    """As of `within`, by permutations of seeds: runs of one seed share values and batches."""
    rng, found, drawn = np.random.default_rng(0), 0.0, np.zeros(DRAWS)
    for study in dict.fromkeys(study for study, _ in groups):
        own = [sorted(group, key=lambda p: p.seed) for name, group in groups.items()
               if name[0] == study]  # fmt: skip
        seeds = [[point.seed for point in arm] for arm in own]
        assert all(each == seeds[0] for each in seeds), "arms of a study have equal seeds"
        order = rng.permuted(np.tile(np.arange(len(seeds[0])), (DRAWS, 1)), axis=1)
        for x, y in (centre(arm, of).T for arm in own):
            found, drawn = found + x @ y, drawn + y[order] @ x
    return float((1 + np.sum(np.abs(drawn) >= abs(found) * (1 - 1e-12))) / (DRAWS + 1))


def centre(own: Sequence[Point], of: Measure) -> np.ndarray:
    """Share and end of each run, less their means."""
    both = np.array([(of(p.shares), p.final) for p in own])
    return both - both.mean(axis=0)


def asked(points: Sequence[Point], studies: Sequence[str]) -> None:
    """All that is asked of some studies' runs together."""
    own = [point for point in points if point.study in studies]
    print(f"## {', '.join(studies)}\n")
    print(f"{sum(point.repeats for point in own)} of {len(own)} runs repeat digit by digit\n")
    told(own)
    differences(own, studies)


def differences(points: Sequence[Point], studies: Sequence[str]) -> None:
    """PolyNorm - SwiGLU, seed by seed: of the end, of each share, and of the end at one share."""
    rows = []
    for study in studies:
        own = {(p.arm, p.seed): p for p in points if p.study == study}
        seeds = sorted({seed for arm, seed in own if arm == "poly_norm"})
        pairs = [(own["poly_norm", seed], own["swiglu", seed]) for seed in seeds]
        end = np.array([a.final - b.final for a, b in pairs])
        cells = [interval(end)]
        for of in MEASURES.values():
            share = np.array([of(a.shares) - of(b.shares) for a, b in pairs])
            cells += [interval(share), at_one_share(share, end)]
        rows.append((study, len(seeds), *cells))
    of_shares = [head for name in MEASURES for head in (name, "end at one share")]
    table(("study", "seeds", "end", *of_shares), rows)


def at_one_share(share: np.ndarray, end: np.ndarray) -> str:
    """Where a line over the differences of shares has none; 95 % by Student's t."""
    fit = np.linalg.lstsq(np.stack([np.ones_like(share), share], 1), end, rcond=None)[0]
    spread = np.std(end - fit[1] * share, ddof=2) / np.sqrt(len(end))
    spread *= np.sqrt(1 + share.mean() ** 2 / share.var())
    half = spread * stats.t.ppf(0.975, len(end) - 2)
    return f"{fit[0]:+.4f} [{fit[0] - half:.4f}, {fit[0] + half:.4f}]"


def draw(points: Sequence[Point], file: str, of: Measure, title: str, across: str) -> None:
    """A panel for each study: the end of each run over its share."""
    note = (
        f"Across: {across}, after {UPDATES} updates. Empty: runs that the first expectation comes"
        " from. Lines: least squares."
    )
    look: Any = {"title": title, "note": note, "columns": 2, "size": (3.6, 2.4)}
    with panels(HERE / file, len(STUDIED), **look) as axes:
        for axis, study in zip(axes, STUDIED, strict=True):
            for arm, colour in zip(ARMS, (BLUE, ORANGE), strict=True):
                own = [p for p in points if (p.study, p.arm) == (study, arm)]
                for seen in (False, True):
                    some = [(of(p.shares), p.final) for p in own if p.seen == seen]
                    face: Any = {"mfc": "none"} if seen else {"label": arm}
                    x, y = np.reshape(some, (-1, 2)).T
                    axis.plot(x, y, "o", ms=4, color=colour, **face)
                x, y = np.transpose([(of(p.shares), p.final) for p in own])
                ends = np.array([x.min(), x.max()])
                axis.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=colour, lw=0.8)
            axis.set(title=study, xlabel="share", ylabel="held-out nats a byte")
    (HERE / f"{file}.pdf").unlink()  # the page shows the PNG alone


def interval(values: np.ndarray) -> str:
    """Mean and 95 % by Student's t."""
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{values.mean():+.4f} [{values.mean() - half:.4f}, {values.mean() + half:.4f}]"


if __name__ == "__main__":
    every = measured()
    asked(every, FIRST)
    asked(every, FRESH)
    asked(every, LARGER)
    draw(
        every, "heads", most_before,
        "Where the head that looks at the token before forms, and how the run ends",
        "most attention that a head of the first layer gives to the token before",
    )  # fmt: skip
    draw(
        every, "near", near, "How near the first layer looks, and how the run ends",
        "attention to a token itself and the three before, mean over the first layer's heads",
    )  # fmt: skip
