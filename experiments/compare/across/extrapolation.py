"""What fitted laws say beyond what was measured, beside what the paper measured there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.compare.across.cells import Cell
from experiments.compare.across.law import (
    Band,
    Fitted,
    Law,
    band,
    difference,
    fitted,
    meeting,
    missing,
)
from experiments.compare.studies import REFERENCE


@dataclass(frozen=True)
class Paper:
    """A pair of runs of the paper (Zhuo et al. 2025, arXiv 2411.03884), from its published curves.

    Attributes:
        parameters: of the model.
        tokens: that it was trained on.
        arm: which.
        losses: training loss of the arm and of SwiGLU, nats a token of its tokenizer.
        ratio: tokens at which the arm has SwiGLU's last loss, by SwiGLU's tokens.
    """

    parameters: float
    tokens: float
    arm: str
    losses: tuple[float, float]
    ratio: float


PAPER = Paper(1.345e9, 250e9, "poly_norm", (2.1712, 2.1902), 0.72)


@dataclass(frozen=True)
class ArmLaw:
    """The fit of one arm.

    Attributes:
        arm: which.
        law: the fit.
        bands: of E, A, a, B and b.
        error: root mean square of the residuals, nats a token.
        at_bounds: an exponent is at the end of what is searched.
    """

    arm: str
    law: Law
    bands: tuple[Band, ...]
    error: float
    at_bounds: bool


@dataclass(frozen=True)
class Predicted:
    """An arm beside the reference at one size and length, by their laws.

    Attributes:
        arm: which.
        parameters: N.
        tokens: D.
        difference: nats a token.
        ratio: tokens at which the arm has the reference's loss, by D; infinite where it never has.
    """

    arm: str
    parameters: float
    tokens: float
    difference: Band
    ratio: Band


@dataclass(frozen=True)
class Crossing:
    """Where the laws of an arm and of the reference are equal, at one size.

    Attributes:
        arm: which.
        parameters: of the size.
        tokens: None: nowhere between the fewest tokens measured and the paper's.
        share: of resampled fits that cross there.
    """

    arm: str
    parameters: float
    tokens: float | None
    share: float


@dataclass(frozen=True)
class Extrapolated:
    """All that fits say.

    Attributes:
        refused: why there is no fit; empty: there is one.
        laws: of every arm that is fitted.
        predicted: every arm but the reference where the paper measured.
        crossings: of the same arms, at the sizes measured and the paper's.
        beyond: powers of ten from the largest size, and the most tokens, to the paper's.
        left_out: arm -> why it is not fitted.
        fit: the laws and their resamples, for figures; None: no fit.
    """

    refused: str
    laws: tuple[ArmLaw, ...]
    predicted: tuple[Predicted, ...]
    crossings: tuple[Crossing, ...]
    beyond: tuple[float, float]
    left_out: dict[str, str]
    fit: Fitted | None


def extrapolated(cells: Sequence[Cell]) -> Extrapolated:
    """Fits what can be fitted, and asks it for the paper's size and length."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.numbered))
    lacks = {name: missing([cell for cell in cells if name in cell.numbered]) for name in names}
    beyond = (
        math.log10(PAPER.parameters / max(cell.parameters for cell in cells)),
        math.log10(PAPER.tokens / max(cell.tokens[-1] for cell in cells)),
    )
    refused = lacks.get(REFERENCE, f"No fit: {REFERENCE} has no finished runs.")
    left_out = {name: why for name, why in lacks.items() if why}
    arms = [name for name in names if not lacks[name]]
    if refused or len(arms) < 2:
        none_else = "No fit: no arm beside the reference has runs enough."
        return Extrapolated(refused or none_else, (), (), (), beyond, left_out, None)
    fit = fitted(cells, arms)
    least = min(cell.tokens[0] for cell in cells)
    sizes = [*sorted({cell.parameters for cell in cells}), PAPER.parameters]
    rest = [name for name in arms if name != REFERENCE]
    return Extrapolated(
        "",
        tuple(_law(fit, name) for name in arms),
        tuple(_predicted(fit, name) for name in rest),
        tuple(_crossing(fit, name, n, least) for name in rest for n in sizes),
        beyond,
        left_out,
        fit,
    )


def _law(fit: Fitted, arm: str) -> ArmLaw:
    law, rest = fit.laws[arm], fit.resampled[arm]
    bands = tuple(band(getattr(law, n), [getattr(r, n) for r in rest]) for n in vars(law))
    error = math.sqrt(float((fit.residuals(arm) ** 2).mean()))
    return ArmLaw(arm, law, bands, error, law.at_bounds)


def difference_band(fit: Fitted, arm: str, parameters: float, tokens: float) -> Band:
    """The arm's law less the reference's, at one size and length."""
    pairs = zip(fit.resampled[arm], fit.resampled[REFERENCE], strict=True)
    return band(
        difference(fit.laws[arm], fit.laws[REFERENCE], parameters, tokens),
        [difference(one, other, parameters, tokens) for one, other in pairs],
    )


def _predicted(fit: Fitted, arm: str) -> Predicted:
    n, d = PAPER.parameters, PAPER.tokens

    def ratio(law: Law, reference: Law) -> float:
        return law.tokens(n, float(reference.loss(n, d))) / d

    pairs = zip(fit.resampled[arm], fit.resampled[REFERENCE], strict=True)
    ratios = [ratio(one, other) for one, other in pairs]
    own = band(ratio(fit.laws[arm], fit.laws[REFERENCE]), ratios)
    return Predicted(arm, n, d, difference_band(fit, arm, n, d), own)


def _crossing(fit: Fitted, arm: str, parameters: float, least: float) -> Crossing:
    def where(law: Law, reference: Law) -> float | None:
        return meeting(law, reference, parameters, least, PAPER.tokens)

    pairs = zip(fit.resampled[arm], fit.resampled[REFERENCE], strict=True)
    crossed = [where(one, other) is not None for one, other in pairs]
    tokens = where(fit.laws[arm], fit.laws[REFERENCE])
    return Crossing(arm, parameters, tokens, sum(crossed) / max(1, len(crossed)))
