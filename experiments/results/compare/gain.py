"""PolyNorm - SwiGLU over the length of training: studies under AdamW from random starts.

    python -m experiments.results.compare.gain

reads what lies beside it, prints a table and draws gain.png. The table has studies of one setting
and other seeds together, too: which the first of them show is known when the second are begun, so
those rows are for how exactly a difference is known, and not for whether there is one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compare.across.cells import SETTINGS, Cell, read_cell, stored_settings
from experiments.compare.studies import REFERENCE
from experiments.run.statistics import Paired, paired
from experiments.terminal.figures import COLOURS, panels

HERE = Path(__file__).resolve().parent
ARM = "poly_norm"

STUDIES = {
    "0.36M parameters, source text of Python's library": ("activations", "longer"),
    "0.11M, technical documentation, by a plan": (
        *("onset/0.1m-128", "onset/0.1m-280", "onset/0.1m-560", "onset/0.1m-1120"),
    ),
    "0.36M, by a plan": ("onset/0.3m-400", "onset/0.3m-1760"),
    "0.11M": ("scaling/bytes-0.1m-20",),
    "0.11M, fresh seeds, by a plan": ("ablation",),
    "0.36M": ("scaling/bytes-0.3m-20",),
    "0.36M, fresh seeds, by a plan": ("size-0.3m",),
    "0.11M, longer": ("scaling/bytes-0.1m-200",),
    "0.11M, longer, fresh seeds, by a plan": ("length-200",),
}
"""What is drawn as one line -> folders: all lengths of one study, of which the shorter are branches
at the rate of the longest, or the longest of each."""
TOGETHER = {
    "0.11M, all seeds": ("scaling/bytes-0.1m-20", "ablation"),
    "0.36M, all seeds": ("scaling/bytes-0.3m-20", "size-0.3m"),
    "0.11M, longer, all seeds": ("scaling/bytes-0.1m-200", "length-200"),
}
"""Studies that differ in their seeds alone."""
APART = 0.02
"""Lines are moved along the logarithmic axis by so much, so that bars of one length are apart."""


@dataclass(frozen=True)
class Gain:
    """The difference of a study at one length.

    Attributes:
        length: bytes a parameter.
        own: its learning rate and warm-up are those of that length, and not of a longer run.
        seeds: how many.
        result: of arm and reference.
    """

    length: float
    own: bool
    seeds: int
    result: Paired


def gains(folders: Sequence[str]) -> list[Gain]:
    """The points of a line, see `STUDIES`, from run files, or the reports of studies without."""
    if len(folders) > 1:
        return [longest(folder) for folder in folders]
    return together(folders)


def longest(folder: str) -> Gain:
    """Of a study's full length."""
    root = HERE / folder
    if (root / SETTINGS).exists():
        return together((folder,))[-1]
    return published(json.loads((root / "results.json").read_text(encoding="utf-8")))


def together(folders: Sequence[str]) -> list[Gain]:
    """Of each length, over the seeds of all these folders.

    Raises:
        ValueError: they differ in more than their seeds.
    """
    cells = [read_cell(HERE / folder) for folder in folders]
    one, *others = cells
    seeds = [cell.seeds(REFERENCE, ARM) for cell in cells]
    alike = all(_setting(cell) == _setting(one) for cell in others)
    if not alike or len(set().union(*seeds)) < sum(map(len, seeds)):
        raise ValueError(f"{', '.join(folders)} are not of one setting and other seeds.")
    losses = {
        arm: np.concatenate([c.losses(arm, own) for c, own in zip(cells, seeds, strict=True)]).T
        for arm in (ARM, REFERENCE)
    }
    each = [
        paired(a.tolist(), b.tolist()) for a, b in zip(losses[ARM], losses[REFERENCE], strict=True)
    ]
    lengths = [tokens / one.parameters for tokens in one.tokens]
    count = losses[ARM].shape[1]
    return [
        Gain(n, n == lengths[-1], count, result) for n, result in zip(lengths, each, strict=True)
    ]


def _setting(cell: Cell) -> dict[str, Any]:
    """What a folder's losses are of, but for seeds; a name that one has not yet is None there."""
    stored = stored_settings(cell.root)
    names = ("model", "seq_len", "steps", "heldout_tokens", "recipe", "data_fingerprint")
    rates = {arm: cell.arms[arm].search.best for arm in (ARM, REFERENCE)}
    return {"rates": rates, **{name: stored.get(name) for name in (*names, "data.batch_size")}}


def published(results: Any) -> Gain:
    """Of a study's own report."""
    reference = next(arm for arm in results["arms"] if arm["name"] == REFERENCE)
    wanted = {"arm": ARM, "reference": REFERENCE, "budget": "tokens"}
    found = next(one for one in results["comparisons"] if wanted.items() <= one.items())
    length = reference["curve"][-1][0] / reference["cost"]["parameters"]
    return Gain(length, True, len(reference["losses"]), Paired(**found["result"]))


def draw(lines: list[tuple[str, list[Gain]]]) -> None:
    """One line for each of `STUDIES`."""
    title = "PolyNorm's held-out loss minus SwiGLU's at equal parameters and tokens"
    note = (
        "Below 0 PolyNorm is better. Bars: 95 % intervals over paired seeds, whose number stands in"
        " brackets. Filled: rate and warm-up of that length; open: branches of a longer run, at its"
        f" own. Bars of one length are drawn apart by {APART:.0%}."
    )
    with panels(HERE / "gain", 1, title=title, note=note, size=(6.4, 2.6)) as (axis,):
        axis.axhline(0, color="0.45", linewidth=0.8)
        for at, ((label, points), colour) in enumerate(
            zip(lines, COLOURS[: len(lines)], strict=True)
        ):
            x = [one.length * (1 + APART * (at - len(lines) / 2)) for one in points]
            y = [one.result.mean for one in points]
            reach = [one.result.high - one.result.mean for one in points]
            counts = " and ".join(str(n) for n in dict.fromkeys(one.seeds for one in points))
            look: Any = {"fmt": "o-", "ms": 3.5, "lw": 1.0, "capsize": 2, "color": colour}
            axis.errorbar(x, y, reach, label=f"{label} ({counts})", **look)
            hollow = [i for i, one in enumerate(points) if not one.own]
            dots: Any = {"linestyle": "", "marker": "o", "ms": 2.2, "color": "white", "zorder": 3}
            axis.plot([x[i] for i in hollow], [y[i] for i in hollow], **dots)
        axis.set_xscale("log")
        ticks = (1, 2, 5, 10, 20, 50, 100, 200)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="bytes of training text a parameter", ylabel="difference, nats a byte")
    (HERE / "gain.pdf").unlink()  # the page shows the PNG alone


if __name__ == "__main__":
    every = [(label, gains(of)) for label, of in STUDIES.items()]
    print("| study | seeds | bytes a parameter | rate | PolyNorm - SwiGLU |")
    print("| --- | --- | --- | --- | --- |")
    for label, points in (*every, *((label, together(of)) for label, of in TOGETHER.items())):
        for one in points:
            said = f"{one.result.mean:+.4f} [{one.result.low:.4f}, {one.result.high:.4f}]"
            rate = "its own" if one.own else "the longest's"
            print(f"| {label} | {one.seeds} | {one.length:.3g} | {rate} | {said} |")
    draw(every)
