"""What several folders say, as tables."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.compare import sensitivity
from experiments.compare.across.cells import Cell, Unit, unit_of
from experiments.compare.across.differences import Difference, Frugality, Turn
from experiments.compare.across.extrapolation import PAPER, Extrapolated
from experiments.compare.across.resampled import RESAMPLES, Band
from experiments.compare.report import BETWEEN, BOUNDS, interval
from experiments.compare.studies import REFERENCE
from experiments.run.rate_search import Search
from experiments.run.statistics import LEVEL, p_text, smallest_p
from experiments.terminal.tables import Section
from polycom_jax.data.weights import parts

SURE = f"{1 - LEVEL:.0%}"
CARRIED = "the better of two, carried up"
BRANCHES = (
    "Shorter lengths branch off the trunks of the longest, at their rates and warm-up: runs with"
    " rates and a warm-up of their own may differ otherwise, in sign, too."
)


def folders(cells: Sequence[Cell]) -> Section:
    """What there is."""
    rows = [
        (
            cell.name,
            f"{cell.parameters:,}",
            f"{cell.tokens[-1]:,}",
            f"{cell.tokens[-1] / cell.parameters:.1f}",
            f"{cell.tokens[-1] / cell.train_tokens:.2f}" if cell.train_tokens else "not known",
            ", ".join(f"{name} {len(arm.good)}" for name, arm in cell.arms.items()) or "none",
            ", ".join(cell.waiting) or "none",
            str(sum(arm.diverged for arm in cell.arms.values())),
            ", ".join(cell.commits) or "-",
        )
        for cell in cells
    ]
    return Section(
        "What there is",
        (
            "folder", "parameters", "tokens", "tokens a parameter", "epochs",
            "arms and their seeds", "not finished", "diverged", "commit of the runs",
        ),
        tuple(rows),
        (
            "Parameters of the SwiGLU model, embeddings included; tokens of the longest runs"
            + (", of which each is a byte." if unit_of(cells) == "byte" else "."),
            *(text for cell in cells for text in cell.left_out),
        ),
    )  # fmt: skip


def rates(cells: Sequence[Cell]) -> Section:
    """Learning rates: tried, and taken."""
    rows = []
    for cell in cells:
        for name, arm in cell.arms.items():
            found = arm.search
            tried = [
                f"{rate:.3g}{'*' if rate == found.best else ''}"
                f" {'diverged' if math.isinf(loss) else f'{loss:.4f}'}"
                for rate, loss in zip(found.rates, found.losses, strict=True)
            ]
            rows.append((cell.name, name, ", ".join(tried) or "none", f"{found.best:.3g}",
                         _edge(found)))  # fmt: skip
    return Section(
        "Learning rates",
        ("folder", "arm", "tried, and held-out loss", "taken", "best is"),
        tuple(rows),
        ("On seeds that no result uses; * the one that the results have.",),
    )


def sensitive(cells: Sequence[Cell]) -> Section:
    """Sensitivity to the learning rate."""
    rows = [(cell.name, *sensitivity.row(one)) for cell in cells for one in cell.sensitivities]
    columns = ("folder", *sensitivity.COLUMNS)
    return Section(sensitivity.TITLE, columns, tuple(rows), (sensitivity.DEFINED,))


def _edge(found: Search) -> str:
    if not found.rates:
        return "not searched"
    if found.better is not None:
        return f"{found.better:.3g}, without results"
    edge = CARRIED if len(found.rates) == 2 else "at the edge"
    return edge if found.at_edge else "inside"


def losses(cells: Sequence[Cell]) -> Section:
    """Means over seeds, at every length."""
    rows = []
    for cell in cells:
        for name, arm in cell.numbered.items():
            found = cell.losses(name, cell.seeds(name))
            for at, tokens in enumerate(cell.tokens):
                sd = f"{np.std(found[:, at], ddof=1):.4f}" if len(found) > 1 else "-"
                mean = f"{found[:, at].mean():.4f}"
                compute = f"{arm.flops * tokens:.3g}"
                counts = (str(len(found)), str(arm.diverged))
                rows.append((cell.name, name, f"{tokens:,}", compute, mean, sd, *counts))
    return Section(
        "Held-out loss, nats a token",
        ("folder", "arm", "tokens", "FLOPs", "mean", "sd", "seeds", "diverged"),
        tuple(rows),
        (
            "Each length has its own decay to zero, from one trunk at constant rate. Where runs"
            " diverged, the mean is of those that did not, and no other table compares it.",
        ),
    )


def compared(found: Sequence[Difference], *, full: bool) -> Section:
    """Differences at full lengths, or at shorter ones."""
    own = [d for d in found if d.full == full]
    rows = [
        (
            *(f"{d.parameters:,}", f"{d.tokens:,}", f"{d.tokens / d.parameters:.1f}"),
            *(d.arm, str(d.seeds)),
            interval(d.result) if d.result else "-",
            p_text(d.result.p) if d.result else "-",
            p_text(d.p_holm) if d.result else "-",
            f"{d.result.detectable:.4f}" if d.result else "-",
            d.verdict,
        )
        for d in own
    ]
    least = min((smallest_p(d.seeds) for d in own if d.result), default=1.0) * len(own)
    notes = [
        f"arm - {REFERENCE}, paired by seed: mean and {SURE} interval (Student's t); p of the"
        f" two-sided sign-flip test, then with Holm's correction over the {len(own)} differences of"
        " this table; the difference that would be found with chance 80 %. An interval with zero"
        " in it: no difference found.",
        f"With so many differences and seeds, a corrected p can be as small as {min(1, least):.3g}"
        + ("." if least <= LEVEL else ", so that the test alone decides nothing here."),
    ]
    if not full:
        notes.append(f"These lengths have no tests of their own. {BRANCHES}")
    return Section(
        f"Differences at equal tokens, {'full' if full else 'shorter'} lengths",
        (
            "parameters", "tokens", "tokens a parameter", "arm", "seeds", "difference", "p",
            "p (Holm)", "detectable", "verdict",
        ),
        tuple(rows),
        tuple(notes),
    )  # fmt: skip


def frugal(found: Sequence[Frugality]) -> Section:
    """Tokens for the same loss."""
    rows = [
        (
            f.cell, f.needed.arm, f"{f.needed.median:.2f}",
            f"{f.needed.low:.2f} to {f.needed.high:.2f}", str(f.needed.bounded),
        )
        for f in found
    ]  # fmt: skip
    return Section(
        f"Tokens for the same loss, in units of {REFERENCE}'s",
        ("folder", "arm", "median", "over seeds", "bounds"),
        tuple(rows),
        (
            f"At full length. {BETWEEN} {BOUNDS} The paper's curves give"
            f" {PAPER.ratio} for {PAPER.arm} at {PAPER.parameters / 1e9:.1f}B parameters and"
            f" {PAPER.tokens / 1e9:.0f}B tokens.",
        ),
    )


def turned(found: Sequence[Turn], cells: Sequence[Cell]) -> Section:
    """Where arms cross, as measured."""
    by_name = {cell.name: cell for cell in cells}
    rows = [
        (
            t.cell, t.arm, f"{t.before:,}", f"{t.after:,}",
            f"{t.tokens / by_name[t.cell].parameters:.1f}", "ahead" if t.ahead else "behind",
        )
        for t in found
    ]  # fmt: skip
    note = (
        f"Where the mean difference to {REFERENCE} changes its sign between neighbouring lengths;"
        " arms and folders without such a change are left out. Whether means differ from zero at"
        f" all is for the tables above to say. {BRANCHES}"
    )
    columns = ("folder", "arm", "last tokens before", "first after", "zero at, tokens a parameter",
               "from there on")  # fmt: skip
    return Section("Where arms cross, as measured", columns, tuple(rows), (note,))


def fits(found: Extrapolated, cells: Sequence[Cell]) -> list[Section]:
    """The laws, what they predict, and where they cross; or why there are none."""
    if not found.form:
        return [Section("Fits", ("fit", "why"), tuple(("none", why) for why in found.refused))]
    of_lengths = BRANCHES if any(len(cell.lengths) > 1 for cell in cells) else ""
    return [_laws(found, of_lengths), _predicted(found), _crossings(found)]


def _laws(found: Extrapolated, of_lengths: str) -> Section:
    rows = [
        (
            law.arm,
            ", ".join(f"{name} {_band(one, '.3g')}" for name, one in law.numbers.items()),
            f"{law.error:.4f}",
            "at their bounds" if law.at_bounds else "inside",
        )
        for law in found.laws
    ]
    return Section(
        found.form,
        ("arm", "numbers", "residual", "exponents are"),
        tuple(rows),
        (
            f"Least squares over means of seeds, weighted by their number; {SURE} bands from"
            f" {RESAMPLES} resamples of the seeds, stretched as far as Student's t is from the"
            " normal distribution. Residual: root mean square, nats a token. Bands are of chance"
            f" between seeds; that the law itself holds is assumed. {of_lengths}".rstrip(),
            *found.refused,
            *(f"{name} is left out. {why}" for name, why in found.left_out.items()),
        ),
    )


THERE: Mapping[Unit, str] = {
    "byte": f"The paper's model read {PAPER.each:.0f} tokens a parameter, of about"
    f" {PAPER.token_bytes:.0f} bytes each, a rough estimate: as many bytes are about"
    f" {1 / PAPER.token_bytes:.0%} of that text. Nats a byte here, nats a token there.",
    "token": f"As many as the paper's model read, {PAPER.each:.0f}, of its own tokenizer. Nats a"
    " token of each tokenizer.",
}
"""What a token is to one of the paper's."""


def _predicted(found: Extrapolated) -> Section:
    rows = []
    for one in found.predicted:
        there = one.arm == PAPER.arm and one.parameters == PAPER.parameters
        rows.append(
            (
                one.arm,
                f"{one.parameters:,.0f}",
                f"{one.tokens:.3g}",
                _band(one.difference, "+.4f"),
                "no difference found" if one.difference.has_zero else "without zero",
                _band(one.ratio, ".2f"),
                f"{PAPER.losses[0] - PAPER.losses[1]:+.3f}" if there else "-",
                f"{PAPER.ratio:.2f}" if there else "-",
            )
        )
    beyond = (
        f"The last row of an arm extrapolates over {found.beyond[0]:.1f} powers of ten in size and"
        f" {found.beyond[1]:.1f} in tokens."
        if found.fit and found.fit.form.across_sizes
        else "Nothing is said of sizes that were not measured."
    )
    return Section(
        f"By these laws, at {PAPER.each:.0f} {found.unit}s a parameter",
        (
            "arm", "parameters", "tokens", f"difference to {REFERENCE}", "band", "tokens ratio",
            "the paper's difference", "the paper's ratio",
        ),
        tuple(rows),
        (
            f"{beyond} Laws are fitted to what both have. {THERE[found.unit]} Compare ratios of"
            " tokens, not differences. inf: its law never has that loss. The paper's curves, at"
            f" {PAPER.parameters / 1e9:.3f}B parameters: a ratio of {PAPER.ratio} for {PAPER.arm}.",
        ),
    )  # fmt: skip


def _crossings(found: Extrapolated) -> Section:
    rows = [
        (
            one.arm,
            f"{one.parameters:,.0f}",
            " and ".join(f"{at / one.parameters:.3g}" for at in one.tokens) or "nowhere",
            f"{one.share:.0%}",
        )
        for one in found.crossings
    ]
    return Section(
        f"Where fitted laws cross that of {REFERENCE}",
        ("arm", "parameters", "tokens a parameter", "resamples that cross"),
        tuple(rows),
        (f"Between the fewest tokens a parameter that were measured, and {PAPER.each:.0f}.",),
    )


def _band(one: Band, form: str) -> str:
    return f"{one.value:{form}} [{one.low:{form}}, {one.high:{form}}]"


def _length(cells: Sequence[Cell], found: Extrapolated) -> str:
    """How much text there was, beside the paper's."""
    most = max(cell.tokens[-1] for cell in cells)
    each = max(cell.tokens[-1] / cell.parameters for cell in cells)
    if found.unit == "token":
        return (
            f"The longest runs read {most:,} tokens, {found.beyond[1]:.1f} powers of ten below the"
            f" paper's number of its own; {each:.0f} a parameter at most (the paper:"
            f" {PAPER.each:.0f})."
        )
    beyond = found.beyond[1] + math.log10(PAPER.token_bytes)
    return (
        f"The longest runs read {most:,} bytes, {beyond:.1f} powers of ten below the paper's text;"
        f" {each:.0f} bytes a parameter at most (the paper: {PAPER.each:.0f} tokens of about"
        f" {PAPER.token_bytes:.0f} bytes each, a rough estimate, so about"
        f" {PAPER.each * PAPER.token_bytes:.0f} bytes)."
    )


def limits(cells: Sequence[Cell], found: Extrapolated) -> Section:
    """What the data cannot say."""
    least = min((len(arm.good) for cell in cells for arm in cell.arms.values()), default=0)
    edges = [
        f"{name} in {cell.name} ({edge})"
        for cell in cells
        for name, arm in cell.arms.items()
        if (edge := _edge(arm.search)) not in ("inside", CARRIED)
    ]
    sizes = sorted({cell.parameters for cell in cells})
    data = sorted({part.source.rpartition("/")[2] for c in cells for part in parts(c.data.source)})
    rows = [
        (
            "larger models",
            f"The largest has {sizes[-1]:,} parameters, {found.beyond[0]:.1f} powers of ten below"
            f" the paper's; {len(sizes)} sizes.",
        ),
        ("longer training", _length(cells, found)),
        ("other text and tokenizers", f"One source, {', '.join(data)}."),
        (
            "small differences",
            f"{least} seeds at least: the sign-flip test cannot come below"
            f" {smallest_p(max(least, 1)):.3g}, before any correction.",
        ),
        (
            "better rates",
            f"There may be better ones than those taken: {', '.join(edges)}."
            if edges
            else "Each arm has one rate for all lengths of a folder, the best at full length.",
        ),
        ("other recipes", "One optimiser, one schedule, one batch size, one kind of model."),
    ]
    return Section("What these data cannot say", ("about", "why"), tuple(rows))
