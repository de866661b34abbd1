"""From runs to findings: a row for each arm, a comparison for each pair."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.compare.arms import Pair, Study
from experiments.compare.runs import Run
from experiments.compare.sensitivity import Sensitivity
from experiments.run.rate_search import Search
from experiments.run.statistics import (
    Paired,
    at_tokens,
    crossing,
    in_words,
    median_error,
    paired,
    planned,
    slope_at,
)
from polycom_jax import models
from polycom_jax.models import ModelConfig

Budget = Literal["tokens", "seconds"]
BUDGETS: tuple[Budget, ...] = ("tokens", "seconds")


@dataclass(frozen=True)
class Cost:
    """What an arm's model costs.

    Attributes:
        parameters: all of them.
        active: those that a token meets.
        flops: of training on a token, forward and backward, the activation's own included.
        activation_share: of these, the activation's own.
        step_seconds: one update, median of the rounds.
        relative_seconds: the same in units of the fastest arm's among those that it is compared
            with, see `relative_times`.
        tokens_per_second: at that speed.
        memory: bytes of one step: state, gradients, activations.
        rounds: seconds of an update in each round; all arms have the same rounds.
    """

    parameters: int
    active: int
    flops: float
    activation_share: float
    step_seconds: float
    relative_seconds: float
    tokens_per_second: float
    memory: int
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class ArmFinding:
    """One arm.

    Attributes:
        name: of the arm.
        activation: its name.
        rate: its learning rate, chosen by `search`.
        search: how.
        cost: of the model.
        losses: held-out nats a token at the full length, a seed each; NaN where the run diverged.
        losses_at_seconds: the same at the time that the fastest arm of those that it is compared
            with takes for the full length, interpolated between decayed lengths; NaN where that is
            outside of them.
        curve: (tokens, mean over seeds) of every decayed length.
    """

    name: str
    activation: str
    rate: float
    search: Search
    cost: Cost
    losses: tuple[float, ...]
    losses_at_seconds: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]

    @property
    def diverged(self) -> int:
        """Runs that ended in no number."""
        return int(np.isnan(self.losses).sum())

    def at(self, budget: Budget) -> tuple[float, ...]:
        """Losses of all seeds at equal tokens, or at equal seconds."""
        return self.losses if budget == "tokens" else self.losses_at_seconds


@dataclass(frozen=True)
class Comparison:
    """An arm with its reference.

    Attributes:
        arm: which.
        reference: with which.
        budget: what is equal.
        result: None where a run diverged or lies outside of what was measured. At equal seconds the
            interval holds the error of the speeds, too.
        p_holm: p adjusted for all of the study's comparisons at this budget, made or not.
        speed_error: standard error that the measured speeds add to the mean, see `speed_error`.
    """

    arm: str
    reference: str
    budget: Budget
    result: Paired | None
    p_holm: float
    speed_error: float = 0.0

    @property
    def verdict(self) -> str:
        """In words."""
        return in_words(self.result, self.p_holm)


@dataclass(frozen=True)
class Interaction:
    """Two pairs at equal tokens: does the first differ from its reference more than the second?

    Attributes:
        pair: (arm, reference).
        other: the pair that it is compared with.
        result: (arm - reference) - (other arm - its reference), seed by seed; None where a run
            diverged.
        p_holm: p adjusted for all of the study's interactions, made or not.
    """

    pair: Pair
    other: Pair
    result: Paired | None
    p_holm: float

    @property
    def verdict(self) -> str:
        """In words."""
        return in_words(self.result, self.p_holm)


@dataclass(frozen=True)
class TokensNeeded:
    """How many tokens an arm needs for the same loss, in units of its reference's.

    Where the arm ends lower: its tokens at the reference's final loss, by the reference's. Where it
    ends higher: its tokens by those at which the reference had its final loss. All points are
    decayed; `low` and `high` are the least and greatest of the seeds.

    Attributes:
        arm: which.
        reference: whose loss.
        median: over seeds; below 1 is frugal.
        low: least.
        high: greatest.
        bounded: seeds whose ratio lies beyond the shortest length and is given as its bound.
    """

    arm: str
    reference: str
    median: float
    low: float
    high: float
    bounded: int


@dataclass(frozen=True)
class Findings:
    """All of a study."""

    study: str
    arms: tuple[ArmFinding, ...]
    comparisons: tuple[Comparison, ...]
    interactions: tuple[Interaction, ...]
    tokens_needed: tuple[TokensNeeded, ...]
    sensitivities: tuple[Sensitivity, ...]


def relative_times(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Time a step of arms that are compared with each other, in units of the fastest one's.

    Rounds are compared one by one: an arm's ratio is the median over rounds of its time by the mean
    of all arms in the same round. The least of these ratios is the unit.
    """
    arms = np.array([seconds[name] for name in seconds])
    ratios = np.median(arms / arms.mean(axis=0, keepdims=True), axis=1)
    return dict(zip(seconds, (ratios / ratios.min()).tolist(), strict=True))


def cost_of(
    cfg: ModelConfig, *, batch_size: int, seconds: Sequence[float], relative: float, memory: int
) -> Cost:
    """An arm's cost from its rounds of `timing.step_seconds`."""
    flops = models.flops_per_token(cfg, cfg.context_length, attention="causal")
    step = float(np.median(seconds))
    return Cost(
        parameters=models.count_params(cfg),
        active=models.count_active_params(cfg),
        flops=flops.train,
        activation_share=flops.activation / flops.forward,
        step_seconds=step,
        relative_seconds=relative,
        tokens_per_second=batch_size * cfg.context_length / step,
        memory=memory,
        rounds=tuple(seconds),
    )


def arm_finding(
    name: str,
    cfg: ModelConfig,
    found: Search,
    cost: Cost,
    runs: Sequence[Run],
    *,
    batch_tokens: int,
) -> ArmFinding:
    """An arm's row from its runs, in the order of their seeds."""
    lengths = [length * batch_tokens for length in runs[0].key.lengths]
    affordable = lengths[-1] / cost.relative_seconds

    def at_seconds(run: Run) -> float:
        return math.nan if run.diverged else at_tokens(lengths, run.heldout, affordable)

    good = [run.heldout for run in runs if not run.diverged]
    means = np.mean(good, axis=0).tolist() if good else []
    return ArmFinding(
        name=name,
        activation=cfg.activation_name,
        rate=runs[0].key.rate,
        search=found,
        cost=cost,
        losses=tuple(math.nan if run.diverged else run.final for run in runs),
        losses_at_seconds=tuple(map(at_seconds, runs)),
        curve=tuple(zip(lengths, means, strict=True)) if means else (),
    )


def findings(
    name: str,
    study: Study,
    arms: Sequence[ArmFinding],
    runs: Mapping[str, Sequence[Run]],
    sensitive: Sequence[Sensitivity] = (),
) -> Findings:
    """Compares every pair of the study, and pairs of pairs, and asks each arm for its tokens."""
    by_name = {arm.name: arm for arm in arms}
    comparisons = []
    for budget in BUDGETS:
        results = [_compared(by_name[a], by_name[b], budget) for a, b in study.pairs]
        holm_p = planned([r for r, _ in results])
        comparisons += [
            Comparison(a, b, budget, r, p, error)
            for (a, b), (r, error), p in zip(study.pairs, results, holm_p, strict=True)
        ]
    crossed = [_crossed(by_name, pair, other) for pair, other in study.interactions]
    interactions = [
        Interaction(pair, other, r, p)
        for (pair, other), r, p in zip(study.interactions, crossed, planned(crossed), strict=True)
    ]
    needed = [tokens_needed(a, b, runs[a], runs[b]) for a, b in study.pairs]
    return Findings(
        name,
        tuple(arms),
        tuple(comparisons),
        tuple(interactions),
        tuple(n for n in needed if n),
        tuple(sensitive),
    )


def _crossed(arms: Mapping[str, ArmFinding], pair: Pair, other: Pair) -> Paired | None:
    losses = [np.asarray(arms[name].losses) for name in (*pair, *other)]
    if not np.isfinite(losses).all():
        return None
    return paired((losses[0] - losses[1]).tolist(), (losses[2] - losses[3]).tolist())


def _compared(
    arm: ArmFinding, reference: ArmFinding, budget: Budget
) -> tuple[Paired | None, float]:
    own, others = arm.at(budget), reference.at(budget)
    if not np.isfinite([*own, *others]).all():
        return None, 0.0
    error = 0.0 if budget == "tokens" else speed_error(arm, reference)
    return paired(own, others, further=error), error


def speed_error(arm: ArmFinding, reference: ArmFinding) -> float:
    """Standard error of the difference at equal seconds that comes from the measured speeds.

    slope x error(median over rounds of log(time / reference's time)), slope the loss's by
    log(tokens) where the two are read, root mean square of theirs.
    """
    slopes = []
    for one in (arm, reference):
        tokens, losses = zip(*one.curve, strict=True)
        slopes.append(slope_at(tokens, losses, tokens[-1] / one.cost.relative_seconds))
    ratios = np.log(arm.cost.rounds) - np.log(reference.cost.rounds)
    return float(np.sqrt(np.mean(np.square(slopes)))) * median_error(ratios.tolist())


def tokens_needed(
    arm: str, reference: str, runs: Sequence[Run], others: Sequence[Run]
) -> TokensNeeded | None:
    """Of paired runs, in the order of their seeds; None where one of them diverged."""
    ratios, bounded = [], 0
    for run, other in zip(runs, others, strict=True):
        if run.diverged or other.diverged:
            return None
        frugal = run.final <= other.final
        better, worse = (run, other) if frugal else (other, run)
        at, exact = crossing(better.key.lengths, better.heldout, worse.final)
        ratio = at / worse.key.lengths[-1]
        ratios.append(ratio if frugal else 1 / ratio)
        bounded += not exact
    return TokensNeeded(arm, reference, float(np.median(ratios)), min(ratios), max(ratios), bounded)
