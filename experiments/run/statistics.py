"""Statistics of paired runs: two arms, the same seeds (data order and initial values)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy  # whose parts are imported where they are first used: they take long
from jaxtyping import Float

from polycom_jax._errors import require

LEVEL = 0.05
"""Of tests; intervals hold with one minus this."""
POWER = 0.8
"""Chance to find an effect of the smallest detectable size."""
PATTERNS = 1 << 20
"""Sign patterns of the test: all 2^n if they are no more than this, else this many random ones."""
RESAMPLED = 2000
"""Bootstrap samples of a median's error."""
NODES = 256
"""Of Gauss's rule over the distribution of a standard deviation."""


@dataclass(frozen=True)
class Paired:
    """The difference d = arm - reference over n paired runs.

    Attributes:
        mean: of d.
        low: lower end of its interval, mean - sqrt((t s)^2 / n + (z e)^2), s the standard deviation
            of d, t the 1 - LEVEL / 2 quantile of Student's distribution with n - 1 degrees, z the
            normal one, and e a further error of the mean, 0 as a rule.
        high: upper end.
        sd: s.
        p: two-sided, of the sign-flip test.
        correlation: of arm and reference over seeds; NaN where one of them does not vary. Pairing
            pays where it is above 0.
        detectable: a true difference of this size would be found (interval without zero) with
            chance POWER, see `detectable`.
    """

    mean: float
    low: float
    high: float
    sd: float
    p: float
    correlation: float
    detectable: float

    @property
    def found(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.low <= 0.0 <= self.high


def paired(
    arm: Sequence[float],
    reference: Sequence[float],
    *,
    further: float = 0.0,
    rounding: float = 0.0,
) -> Paired:
    """Statistics of arm - reference, entries of equal index having equal seeds.

    Args:
        arm: a number a seed.
        reference: likewise.
        further: standard error of a further error of the mean, normal and independent of the seeds;
            p, of the seeds alone, knows nothing of it.
        rounding: see `sign_flip`.

    Raises:
        InputError: fewer than two pairs, or numbers that are not finite.
    """
    a, b = np.asarray(arm, np.float64), np.asarray(reference, np.float64)
    require(
        a.shape == b.shape and a.ndim == 1 and a.size >= 2,
        f"Paired statistics need two or more pairs, came {a.size} and {b.size} runs.",
    )
    require(
        bool(np.isfinite(a).all() and np.isfinite(b).all()),
        "A run that diverged has no difference to another.",
    )
    d = a - b
    mean, error, sd = float(d.mean()), float(scipy.stats.sem(d)), float(d.std(ddof=1))
    half = float(half_interval(error, d.size, further))
    varies = a.std() > 0 and b.std() > 0
    return Paired(
        mean=mean,
        low=mean - half,
        high=mean + half,
        sd=sd,
        p=sign_flip(d, rounding),
        correlation=float(np.corrcoef(a, b)[0, 1]) if varies else math.nan,
        detectable=detectable(error, d.size, further),
    )


def half_interval(
    error: float | Float[np.ndarray, " N"], count: int, further: float = 0.0
) -> Float[np.ndarray, "..."]:
    """sqrt((t error)^2 + (z further)^2), t Student's quantile with count - 1 degrees, z the normal.

    Args:
        error: standard error of a mean, from the deviation of `count` numbers.
        count: of these.
        further: standard error of what else moves the mean, known without them.
    """
    wide, normal = scipy.stats.t.ppf(1 - LEVEL / 2, count - 1), scipy.stats.norm.ppf(1 - LEVEL / 2)
    return np.hypot(wide * np.asarray(error), normal * further)


def detectable(error: float, count: int, further: float = 0.0) -> float:
    """The true mean whose interval leaves zero out with chance POWER.

    Arguments are those of `half_interval`, taken for the true ones. The interval is as wide as the
    deviation that a study happens to have, so this is a mean over its chi distribution: without
    `further` the power of the noncentral t.
    """
    scale = math.hypot(error, further)
    if scale == 0:
        return 0.0
    deviations, weights = _deviations(count - 1)
    half = half_interval(error * deviations, count, further) / scale

    def missing(size: float) -> float:
        found = scipy.stats.norm.sf(half - size) + scipy.stats.norm.sf(half + size)
        return float(weights @ found) - POWER

    most = 4 + 2 * float(scipy.stats.t.ppf(1 - LEVEL / 2, count - 1))
    return scale * scipy.optimize.root_scalar(missing, bracket=(0.0, most)).root


@cache
def _deviations(degrees: int) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Standard deviations of degrees + 1 standard normal numbers, and their weights in a mean."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return np.sqrt(scipy.stats.chi2.ppf((nodes + 1) / 2, degrees) / degrees), weights / 2


def mean_interval(x: Sequence[float] | Float[np.ndarray, " N"]) -> tuple[float, float, float]:
    """(mean, low, high): Student's interval, mean -+ t s / sqrt(n), at 1 - LEVEL.

    Raises:
        InputError: fewer than two numbers.
    """
    values = np.asarray(x, np.float64)
    require(values.size >= 2, f"An interval needs two or more numbers, came {values.size}.")
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, values.size - 1) * scipy.stats.sem(values))
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def median_error(x: Sequence[float]) -> float:
    """Standard error of the median of x, by the bootstrap; a fixed seed draws."""
    options = {"n_resamples": RESAMPLED, "method": "percentile", "rng": np.random.default_rng(0)}
    return float(
        scipy.stats.bootstrap((np.asarray(x, np.float64),), np.median, **options).standard_error
    )


def sign_flip(d: Float[np.ndarray, " N"], rounding: float = 0.0) -> float:
    """p of "d is as likely as -d", two-sided: twice the share of sign patterns s whose mean(s d)
    lies as far out as mean(d), at most 1.

    Where entries may be off by `rounding`, means within twice that are equal: patterns that count
    as far out by what was measured are not lost to the last digit.

    Of patterns that are drawn, by a fixed seed, (1 + hits) / (1 + PATTERNS) is that share (Phipson
    and Smyth 2010, on p-values that are never zero).
    """

    observed = np.mean(d)

    def mean(x: np.ndarray, axis: int) -> np.ndarray:
        means = np.mean(x, axis=axis)
        return np.where(np.abs(means - observed) <= 2 * rounding, observed, means)

    found = scipy.stats.permutation_test(
        (d,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PATTERNS,
        batch=1 << 14,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def smallest_p(n: int) -> float:
    """The least p that `sign_flip` can give for n pairs: all of one sign."""
    patterns = 2.0**n
    return 2 / (patterns if patterns <= PATTERNS else PATTERNS + 1)


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for that many tests (Holm 1979): of the k-th smallest, the largest of
    (m - j + 1) p_(j) over j <= k, at most 1."""
    m, adjusted, worst = len(p), [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        worst = max(worst, min(1.0, (m - rank) * p[index]))
        adjusted[index] = worst
    return adjusted


def planned(results: Sequence[Paired | None]) -> list[float]:
    """Holm's p of every comparison that was planned, those that could not be made (None) counted
    as tests with p = 1, so that a run that fails makes no other result more certain; NaN for these.
    """
    adjusted = holm([1.0 if one is None else one.p for one in results])
    return [math.nan if one is None else p for one, p in zip(results, adjusted, strict=True)]


def p_text(p: float) -> str:
    """Three digits behind the point, or the first that is not zero."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def in_words(
    result: Paired | None, adjusted: float, *, lower: str = "lower", higher: str = "higher"
) -> str:
    """What an interval and an adjusted p say; None is a comparison that could not be made."""
    if result is None:
        return "not comparable"
    if not result.found:
        return "no difference found"
    side = lower if result.mean < 0 else higher
    return side if adjusted <= LEVEL else f"{side}, not after Holm"


def curve(
    tokens: Sequence[float], losses: Sequence[float]
) -> "scipy.interpolate.PchipInterpolator":
    """The loss between lengths, over log(tokens): the monotone cubic of Fritsch and Butland (1984).

    It stays between the two losses on either side, and is a line where there are two lengths. A
    line between more lies above a loss that falls ever more slowly; of c + B / tokens^b at lengths
    that double, b at most 0.8, this is off by less than half as much.
    """
    return scipy.interpolate.PchipInterpolator(
        np.log(np.asarray(tokens, np.float64)), np.asarray(losses, np.float64)
    )


def crossing(tokens: Sequence[float], losses: Sequence[float], target: float) -> tuple[float, bool]:
    """Tokens at which the loss first comes down to `target`, by `curve` between lengths.

    Returns:
        (tokens, True); or (the first or last tokens, False) where the target lies above the first
        point or below all of them: a bound, not extrapolated.
    """
    if losses[0] <= target:
        return float(tokens[0]), losses[0] == target
    after = next((i for i, loss in enumerate(losses) if loss <= target), None)
    if after is None:
        return float(tokens[-1]), False
    x, between = np.log(np.asarray(tokens, np.float64)), curve(tokens, losses)

    def left(at: float) -> float:
        return float(between(at)) - target

    # Where the loss is met at a length, rounding may leave it a little above.
    if losses[after] == target or left(x[after]) >= 0:
        return float(tokens[after]), True
    return math.exp(scipy.optimize.root_scalar(left, bracket=(x[after - 1], x[after])).root), True


def at_tokens(tokens: Sequence[float], losses: Sequence[float], wanted: float) -> float:
    """The loss at `wanted` tokens, by `curve`; NaN outside of the measured range."""
    if not tokens[0] * (1 - 1e-9) <= wanted <= tokens[-1] * (1 + 1e-9):
        return math.nan
    return float(curve(tokens, losses)(math.log(min(max(wanted, tokens[0]), tokens[-1]))))


def slope_at(tokens: Sequence[float], losses: Sequence[float], wanted: float) -> float:
    """d loss / d log(tokens) of `curve`."""
    inside = min(max(wanted, tokens[0]), tokens[-1])
    return float(curve(tokens, losses).derivative()(math.log(inside)))
