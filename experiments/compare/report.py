"""A study's findings as tables: on the terminal, in Markdown and in JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.compare import sensitivity
from experiments.compare.branching import DECAYS_OVER
from experiments.compare.findings import (
    ArmFinding,
    Comparison,
    Findings,
    Interaction,
    TokensNeeded,
)
from experiments.run.files import write_json, write_text
from experiments.run.statistics import LEVEL, POWER, Paired, p_text, smallest_p
from experiments.terminal.tables import Section, page
from polycom_jax.storage import Place

TEXT, NUMBERS = "report.md", "results.json"
MIB = 2**20
BETWEEN = "Between decayed lengths: a monotone cubic in log(tokens)."
"""How a loss is read there."""
BOUNDS = "Bounds: seeds whose ratio lies beyond the shortest length, given as that bound."


def sections(found: Findings) -> list[Section]:
    """All tables of a study."""
    return [
        _costs(found.arms),
        _rates(found.arms),
        *([sensitivity.section(found.sensitivities)] if found.sensitivities else []),
        _losses(found.arms),
        _comparisons(found, "tokens"),
        _comparisons(found, "seconds"),
        *([_interactions(found)] if found.interactions else []),
        _tokens(found.tokens_needed),
    ]


def _costs(arms: Sequence[ArmFinding]) -> Section:
    first = arms[0].cost
    rows = []
    for arm in arms:
        c = arm.cost
        active = f" ({c.active:,} active)" if c.active != c.parameters else ""
        rows.append(
            (
                arm.name,
                f"{c.parameters:,}{active}",
                f"{c.parameters / first.parameters:.4f}",
                f"{c.flops:,.0f}",
                f"{c.flops / first.flops:.4f}",
                f"{c.activation_share:.2%}",
                f"{c.tokens_per_second:,.0f}",
                f"{c.relative_seconds:.3f}",
                f"{c.memory / MIB:,.1f}",
            )
        )
    return Section(
        "What each arm costs",
        (
            "arm", "parameters", "ratio", "FLOPs a token", "ratio", "activation's share",
            "tokens/s", "time", "MiB",
        ),
        tuple(rows),
        (
            "FLOPs of training, causal attention, the activation's own included; ratios to the"
            " first arm. Time a step in units of the fastest arm's of those that are compared with"
            " each other: all arms in strict alternation, median over rounds of the ratio. MiB:"
            " what the compiled step holds.",
        ),
    )  # fmt: skip


def _rates(arms: Sequence[ArmFinding]) -> Section:
    tried = sorted({rate for arm in arms for rate in arm.search.rates})
    rows = []
    for arm in arms:
        scores = dict(zip(arm.search.rates, arm.search.losses, strict=True))
        cells = [_mark(scores[r], r == arm.rate) if r in scores else "" for r in tried]
        rows.append((arm.name, *cells, "at the edge" if arm.search.at_edge else "inside"))
    return Section(
        "Learning rate of each arm",
        ("arm", *(f"{rate:.3g}" for rate in tried), "best is"),
        tuple(rows),
        (
            "Held-out loss at the full length, mean of seeds that no result uses; * the best,"
            " which the results are made with.",
        ),
    )


def _mark(loss: float, best: bool) -> str:
    return ("diverged" if math.isinf(loss) else f"{loss:.4f}") + ("*" if best else "")


def _losses(arms: Sequence[ArmFinding]) -> Section:
    lengths = [tokens for tokens, _ in next((arm.curve for arm in arms if arm.curve), ())]
    survivors = ", but for runs that diverged" if any(arm.diverged for arm in arms) else ""
    rows = []
    for arm in arms:
        good = [loss for loss in arm.losses if not math.isnan(loss)]
        spread = f"{np.std(good, ddof=1):.4f}" if len(good) > 1 else "-"
        timed = [loss for loss in arm.losses_at_seconds if not math.isnan(loss)]
        rows.append(
            (
                arm.name,
                *(f"{loss:.4f}" for _, loss in arm.curve or [(0, math.nan)] * len(lengths)),
                spread,
                f"{np.mean(timed):.4f}" if timed else "-",
                str(arm.diverged),
            )
        )
    return Section(
        "Held-out loss, nats a token",
        ("arm", *(f"{n:,} tokens" for n in lengths), "sd", "equal seconds", "diverged"),
        tuple(rows),
        (
            f"Means over {len(arms[0].losses)} seeds{survivors}. Each length has its own decay to"
            f" zero over its last {DECAYS_OVER:.0%}, from one trunk at constant rate. sd: over"
            " seeds, at the full length. Equal seconds: the time that the fastest arm of those"
            f" compared with each other takes for the full length. {BETWEEN}",
        ),
    )


def _comparisons(found: Findings, budget: str) -> Section:
    chosen = [c for c in found.comparisons if c.budget == budget]
    seeds = len(found.arms[0].losses)
    note = (
        f"arm - reference over {seeds} seeds, paired: mean and {1 - LEVEL:.0%} interval (Student's"
        " t); p of the two-sided sign-flip test with Holm's correction over all comparisons of"
        " this table, those that could not be made included; correlation of the pair over seeds;"
        f" the difference that would be found with chance {POWER:.0%}. An interval with zero in it:"
        " no difference found."
    )
    if budget == "seconds":
        note += (
            " Speeds: standard error that the measured speeds add, from the spread of the pair's"
            " ratio over the rounds of one measurement (another may differ by more); it is in the"
            " interval and in what is detectable, p is of the seeds alone."
        )
    speeds = ("speeds",) if budget == "seconds" else ()
    columns = ("p (Holm)", "correlation", *speeds, "detectable")
    return Section(
        f"Differences at equal {budget}",
        ("arm", "reference", "difference", *columns, "verdict"),
        tuple(_comparison_row(c, columns) for c in chosen),
        (note, _smallest(seeds, chosen)),
    )


def _smallest(seeds: int, family: Sequence[Comparison | Interaction]) -> str:
    """How small p can get, in a sentence."""
    tested = len(family)
    least = smallest_p(seeds) * tested
    if least > LEVEL:
        return (
            f"With {seeds} seeds and {tested} comparisons, no p can be below {min(1, least):.3g}:"
            " the test alone can decide nothing here, whatever the differences."
        )
    return f"With {seeds} seeds and {tested} comparisons, p can be as small as {least:.3g}."


def _comparison_row(c: Comparison, columns: Sequence[str]) -> tuple[str, ...]:
    r = c.result
    if r is None:
        return (c.arm, c.reference, "-", *("-" for _ in columns), c.verdict)
    cells = {
        "p (Holm)": p_text(c.p_holm),
        "correlation": f"{r.correlation:+.2f}",
        "speeds": f"{c.speed_error:.4f}",
        "detectable": f"{r.detectable:.4f}",
    }
    return (c.arm, c.reference, interval(r), *(cells[name] for name in columns), c.verdict)


def interval(r: Paired) -> str:
    """Mean and interval of a difference."""
    return f"{r.mean:+.4f} [{r.low:+.4f}, {r.high:+.4f}]"


def _interactions(found: Findings) -> Section:
    seeds = len(found.arms[0].losses)
    rows = []
    for i in found.interactions:
        r = i.result
        cells = ("-", "-", "-") if r is None else (
            interval(r), p_text(i.p_holm), f"{r.detectable:.4f}"
        )  # fmt: skip
        rows.append((" - ".join(i.pair), " - ".join(i.other), *cells, i.verdict))
    return Section(
        "Differences of differences at equal tokens",
        ("difference", "less the difference", "is", "p (Holm)", "detectable", "verdict"),
        tuple(rows),
        (
            f"Over {seeds} seeds: the first difference less the second, seed by seed; the rest as"
            " above, Holm's correction over this table.",
            _smallest(seeds, found.interactions),
        ),
    )


def _tokens(needed: Sequence[TokensNeeded]) -> Section:
    rows = [
        (n.arm, n.reference, f"{n.median:.2f}", f"{n.low:.2f} to {n.high:.2f}", str(n.bounded))
        for n in needed
    ]
    return Section(
        "Tokens for the same loss, in units of the reference's",
        ("arm", "reference", "median", "over seeds", "bounds"),
        tuple(rows),
        (
            "Below 1: the arm comes to the reference's final loss with fewer tokens; above 1: the"
            f" reference came to the arm's. {BETWEEN} {BOUNDS}",
        ),
    )


def write(
    folder: Place,
    question: str,
    found: Findings,
    about: Mapping[str, Any],
    figures: Sequence[Place],
) -> tuple[Place, Place]:
    """Writes report.md and results.json; their paths."""
    text, numbers = folder / TEXT, folder / NUMBERS
    write_text(text, page(f"{found.study}: {question}", about, sections(found), figures))
    write_json(numbers, {"about": about, **asdict(found)})
    return text, numbers
