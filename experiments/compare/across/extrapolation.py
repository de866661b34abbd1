"""What fitted laws say beyond what was measured, beside what the paper measured there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.compare.across.cells import Cell, Unit, unit_of
from experiments.compare.across.law import FORMS, Form, difference, meetings, ratio, residuals
from experiments.compare.across.resampled import (
    Band,
    Fit,
    Fitted,
    Shared,
    band,
    fitted,
    having,
    points_of,
    shared,
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
        token_bytes: of text that a token of its tokenizer (Llama's) has; a rough estimate.
    """

    parameters: float
    tokens: float
    arm: str
    losses: tuple[float, float]
    ratio: float
    token_bytes: float

    @property
    def each(self) -> float:
        """Tokens a parameter."""
        return self.tokens / self.parameters


PAPER = Paper(1.345e9, 250e9, "poly_norm", (2.1712, 2.1902), 0.72, 4.0)


@dataclass(frozen=True)
class ArmLaw:
    """The fit of one arm.

    Attributes:
        arm: which.
        numbers: of the law, by name.
        error: root mean square of the residuals, nats a token.
        at_bounds: an exponent is at the end of what is searched.
    """

    arm: str
    numbers: dict[str, Band]
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
        tokens: between the fewest a parameter that were measured and the paper's, ascending.
        share: of resampled fits that cross there.
    """

    arm: str
    parameters: float
    tokens: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class Extrapolated:
    """All that fits say.

    Attributes:
        form: the formula that is fitted; empty: none is.
        refused: why not, of each form that was looked at before it.
        laws: of every arm that is fitted.
        predicted: every arm but the reference, at as many tokens a parameter as the paper has, each
            of its own tokenizer: at the sizes measured, and at the paper's where the form reaches
            there.
        crossings: of the same arms and sizes.
        unit: what a token is; where it is a byte, equal numbers of tokens are not equal texts.
        beyond: powers of ten from the largest size, and the most tokens, to the paper's numbers.
        left_out: arm, or "arm in folder" -> why it is not fitted.
        fit: the laws and their resamples, for figures; None: no fit.
    """

    form: str
    refused: tuple[str, ...]
    laws: tuple[ArmLaw, ...]
    predicted: tuple[Predicted, ...]
    crossings: tuple[Crossing, ...]
    unit: Unit
    beyond: tuple[float, float]
    left_out: dict[str, str]
    fit: Fitted | None


def extrapolated(cells: Sequence[Cell]) -> Extrapolated:
    """Fits the first form that the reference and another arm have the runs for."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.numbered))
    beyond = (
        math.log10(PAPER.parameters / max(cell.parameters for cell in cells)),
        math.log10(PAPER.tokens / max(cell.tokens[-1] for cell in cells)),
    )
    refused: list[str] = []
    for form in FORMS:
        arms, left_out = fittable(cells, names, form)
        if REFERENCE in arms and len(arms) > 1:
            fit = fitted(cells, arms, form)
            return _said(cells, fit, tuple(refused), beyond, left_out)
        why = left_out.get(REFERENCE) or f"No fit: {form.text} needs {REFERENCE} and another arm."
        refused.append(why)
    few = [f"{name} is left out. {why}" for name, why in shared(cells, names).left_out.items()]
    return Extrapolated("", (*refused, *few), (), (), (), unit_of(cells), beyond, {}, None)


def fittable(
    cells: Sequence[Cell], names: Sequence[str], form: Form
) -> tuple[list[str], dict[str, str]]:
    """The arms that have the runs for a form on the seeds that they share, and why others have not.

    What counts is what the reference has, too. An arm that has not enough on the seeds that it
    shares with the reference is out at once, so that it takes no seeds away from others.
    """
    lacks: dict[str, str] = {}

    def enough(arm: str, common: Shared) -> bool:
        why = form.lacks(points_of(having(cells, common, arm, REFERENCE), arm, common))
        lacks.update({arm: why} if why else {})
        return not why

    def alone(arm: str) -> list[str]:
        return [REFERENCE] if arm == REFERENCE else [REFERENCE, arm]

    pairs = {name: shared(cells, alone(name)) for name in names}
    for common in pairs.values():
        lacks.update(common.left_out)
    arms = [name for name in names if enough(name, pairs[name])]
    while True:
        common = shared(cells, arms)
        kept = [name for name in arms if enough(name, common)]
        if kept == arms:
            return arms, {**lacks, **common.left_out}
        arms = kept


def _said(
    cells: Sequence[Cell],
    fit: Fitted,
    refused: tuple[str, ...],
    beyond: tuple[float, float],
    left_out: dict[str, str],
) -> Extrapolated:
    predicted, crossings = [], []
    for name, (both, _) in fit.beside.items():
        sizes = both.points.sizes
        reached = [*sizes, *([PAPER.parameters] if fit.form.across_sizes else [])]
        for n in reached:
            d = PAPER.each * n
            own = [cell for cell in cells if cell.parameters == n] or cells
            least = n * min(cell.tokens[0] / cell.parameters for cell in own)
            apart, frugal = fit.band(name, difference, n, d), fit.band(name, ratio, n, d)
            predicted.append(Predicted(name, n, d, apart, frugal))
            crossings.append(_crossing(fit, name, n, least))
    laws = tuple(_law(name, own) for name, own in fit.fits.items())
    return Extrapolated(
        fit.form.text,
        refused,
        laws,
        tuple(predicted),
        tuple(crossings),
        unit_of(cells),
        beyond,
        left_out,
        fit,
    )


def _law(arm: str, own: Fit) -> ArmLaw:
    numbers = {
        name: band(value, [one.numbers[name] for one in own.resampled])
        for name, value in own.law.numbers.items()
    }
    error = float(np.sqrt((residuals(own.law, own.points) ** 2).mean()))
    return ArmLaw(arm, numbers, error, own.law.at_bounds)


def _crossing(fit: Fitted, arm: str, parameters: float, least: float) -> Crossing:
    most = max(PAPER.each * parameters, 2 * least)
    tokens, *rest = (meetings(*pair, parameters, least, most) for pair in fit.pairs(arm))
    return Crossing(arm, parameters, tokens, sum(map(bool, rest)) / max(1, len(rest)))
