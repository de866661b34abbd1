"""Rows of the table at one size and length, ordered: `python -m experiments.compare leaderboard`.

python -m experiments.compare leaderboard runs/leaderboard --add relu2 poly_norm
python -m experiments.compare leaderboard experiments/results/compare/scaling/bytes-0.3m-20
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from experiments.compare import own_files
from experiments.compare.across.cells import (
    SETTINGS,
    ArmRuns,
    Cell,
    continued,
    read_cell,
    stored_config,
)
from experiments.compare.across.differences import Difference, differences
from experiments.compare.across.grid import SCALINGS, STUDY, queue
from experiments.compare.across.report import about
from experiments.compare.arms import Arm
from experiments.compare.comparing import carry_out
from experiments.compare.config import CompareConfig
from experiments.compare.findings import relative_times
from experiments.compare.report import interval
from experiments.compare.studies import REFERENCE, STUDIES
from experiments.compare.timing import TIMES, stored
from experiments.run.compiled import cache_compiled
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.run.named_activations import chosen_by
from experiments.run.rate_search import Search
from experiments.terminal.flags import CommandLine
from experiments.terminal.progress import Display
from experiments.terminal.tables import Section, page, print_section
from polycom_jax import storage
from polycom_jax._errors import require, unknown
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.reference import is_reference
from polycom_jax.storage import Place

TEXT, NUMBERS = "leaderboard.md", "leaderboard.json"
TITLE = "Leaderboard: which activation is best at equal parameters and tokens?"
SIZE = "bytes-0.3m"
UNEQUAL = (
    "Rows have different seeds: a place is by the mean over the row's own, a difference by those in"
    " common, so the two may disagree."
)


@dataclass(frozen=True)
class LeaderboardConfig:
    """A folder of runs of one size and length, and rows to add.

    Attributes:
        folder: of the runs; a new one is made by --add, with 0.36M parameters and 20 tokens each.
        add: rows to train: each searches its rate and runs on the seeds that swiglu has. Names of
            --list, or FILE.py:NAME or MODULE:NAME for what polycom_jax.activation has made in a
            file.
        activation: where files of your own activations lie, FILE.py:NAME, that runs are of; each is
            known by its bytes. Default: where they lay when they ran.
        data: text for a new folder, and where the same text now lies for one that is there.
            Default: as before, or the standard library.
        heldout: text to evaluate on, likewise.
        out: where leaderboard.md and leaderboard.json go. Default: the folder.
        json: also write leaderboard.json to this file, or to stdout (-).
    """

    folder: Annotated[PlaceText, Positional, arg(metavar="[FOLDER]")] = "runs/leaderboard"
    add: tuple[str, ...] = ()
    activation: tuple[str, ...] = ()
    data: PlaceText | None = None
    heldout: PlaceText | None = None
    out: PlaceText | None = None
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        known = [arm.name for arm in STUDIES[STUDY].arms]
        chosen_by([name for name in self.add if is_reference(name)])
        for name in self.add:
            if not is_reference(name) and name not in known:
                raise unknown("row", name, known)


LINE = CommandLine(
    "compare leaderboard",
    "Order the rows of the table by held-out loss, from whatever runs a folder has; --add trains"
    " further rows.",
    old={"workdir": "out"},
    lists={"rows": [arm.name for arm in STUDIES[STUDY].arms]},
)


@dataclass(frozen=True)
class Standing:
    """A row of the leaderboard.

    Attributes:
        arm: which.
        parameters: of its model.
        flops: of training on a token.
        seconds: of an update, median of the rounds; None: not measured.
        relative: the same in units of the fastest row's, from ratios within rounds.
        rate: its learning rate.
        at_edge: that rate is at the edge of what was tried.
        loss: held-out, mean over seeds with a number, nats a token; NaN where none has one.
        sd: over seeds.
        seeds: that it has a number for.
        diverged: runs without one.
        difference: to the reference; None: it is the reference.
    """

    arm: str
    parameters: int
    flops: float
    seconds: float | None
    relative: float | None
    rate: float
    at_edge: bool
    loss: float
    sd: float
    seeds: int
    diverged: int
    difference: Difference | None


def main(argv: Sequence[str]) -> int:
    """Trains what is to be added; orders what there is."""
    config = LINE(LeaderboardConfig(), argv)
    try_json(config.json)
    command = shlex.join(["python", "-m", "experiments.compare", "leaderboard", *argv])
    folder, out = storage.named(config.folder), storage.named(config.out or config.folder)
    storage.require_reachable(folder)
    with Display(aside=config.json == STDOUT) as display:
        if config.add:
            train(config, folder, display)
        require(
            storage.is_file(folder / SETTINGS),
            f"{folder} holds no study; `--add {REFERENCE} poly_norm` begins a leaderboard there.",
        )
        own_files.check_given(config.activation, [folder])
        cell = read_cell(folder, (*config.activation, *filter(is_reference, config.add)))
        found = standings(cell)
        require(bool(found), f"{folder} holds no finished results; --add ROW makes some.")
        written(cell, found, out, command, display)
    hand_over(config.json, out / NUMBERS)
    return 0


def train(config: LeaderboardConfig, folder: Place, display: Display) -> None:
    """Rates, seeds and times of the added rows, as the folder's own study does them."""
    command = shlex.join(
        ["python", "-m", "experiments.compare", "leaderboard", config.folder, "--add", *config.add]
    )
    done = set[str]()
    # Once more where another process has added rows meanwhile: all are timed beside each other.
    while not done >= {*(study := study_of(config, folder)).arms}:
        cache_compiled(study.data.cache_dir)
        carry_out(study, command, display)
        done = {*study.arms}


def study_of(config: LeaderboardConfig, folder: Place) -> CompareConfig:
    """The folder's study with the added rows beside those that it has, on as many seeds; a new
    folder has the second size of `compare scaling`.

    Raises:
        InputError: the folder's settings are not as a study has written them.
    """
    start = next(item.config for item in queue(SCALINGS["cpu"]) if item.config.model == SIZE)
    there: list[str] = []
    if storage.is_made(folder / SETTINGS):
        there = [row_of(arm) for arm in read_cell(folder, config.activation).arms.values()]
        rates = {"learning_rates": start.learning_rates, "search_seeds": start.search_seeds}
        start = continued(replace(stored_config(folder), **rates, seeds=start.seeds), folder)
    data = replace(
        start.data,
        source=config.data or start.data.source,
        heldout=config.heldout or start.data.heldout,
    )
    # Of two versions of an activation in a file the one that is added is trained beside the others.
    own = {Arm.of(row).name: row for row in (*there, *config.add) if is_reference(row)}
    rows = [row for row in (REFERENCE, *there, *config.add) if not is_reference(row)]
    arms = tuple(dict.fromkeys((*rows, *own)))
    return replace(
        start, study=STUDY, arms=arms, activation=tuple(own.values()), data=data, out=str(folder)
    )


def row_of(arm: ArmRuns) -> str:
    """What adds this arm's runs to a leaderboard: its name, or of one in a file where that is."""
    act = arm.model.activation
    return str(act) if is_reference(act) else arm.name


def standings(cell: Cell) -> list[Standing]:
    """Every row, the lowest loss first; those of which a run diverged after all others."""
    times = stored(cell.root / TIMES)
    seconds = {} if times is None else {n: s for n, s in times.seconds.items() if n in cell.arms}
    relative = relative_times(seconds) if seconds else {}
    apart = {d.arm: d for d in differences([cell]) if d.full}
    found = []
    for name, arm in cell.arms.items():
        losses = [run.final for run in arm.good.values()]
        found.append(
            Standing(
                arm=name,
                parameters=arm.parameters,
                flops=arm.flops,
                seconds=float(np.median(seconds[name])) if name in seconds else None,
                relative=relative.get(name),
                rate=arm.search.best,
                at_edge=arm.search.at_edge,
                loss=float(np.mean(losses)) if losses else math.nan,
                sd=float(np.std(losses, ddof=1)) if len(losses) > 1 else math.nan,
                seeds=len(losses),
                diverged=arm.diverged,
                difference=apart.get(name),
            )
        )
    return sorted(found, key=lambda one: (one.diverged > 0, not one.seeds, one.loss))


def _beside(search: Search) -> str:
    if search.better is not None:
        return f", {search.better:.3g} is better"
    return ", at the edge" if search.at_edge else ""


def section(cell: Cell, found: Sequence[Standing]) -> Section:
    """The leaderboard as a table."""
    rows = []
    for place, one in enumerate(found, start=1):
        apart = one.difference.result if one.difference else None
        rows.append(
            (
                str(place),
                one.arm,
                f"{one.loss:.4f}" if one.seeds else "-",
                f"{one.sd:.4f}" if one.seeds > 1 else "-",
                str(one.seeds),
                str(one.diverged),
                interval(apart) if apart else "-",
                one.difference.verdict if one.difference else "-",
                f"{one.parameters:,}",
                f"{one.flops:,.0f}",
                "-" if one.seconds is None else f"{1e3 * one.seconds:.1f}",
                "-" if one.relative is None else f"{one.relative:.3f}",
                f"{one.rate:.3g}{_beside(cell.arms[one.arm].search)}",
            )
        )
    return Section(
        f"{cell.parameters:,} parameters, {cell.tokens[-1]:,} tokens"
        f" ({cell.tokens[-1] / cell.parameters:.0f} a parameter)",
        (
            "", "row", "loss", "sd", "seeds", "diverged", f"difference to {REFERENCE}", "verdict",
            "parameters", "FLOPs a token", "ms a step", "time", "rate",
        ),
        tuple(rows),
        (
            "Held-out loss, nats a token, mean over seeds; differences paired by seed with a 95 %"
            " interval, verdicts with Holm's correction over all rows. Neighbours in the order may"
            " well be equal: only differences to the reference are tested. Rows of which a run"
            " diverged come last and are not compared: a mean over the others would be one of those"
            " that went well. FLOPs of training, the"
            " activation's own included. Time: in units of the fastest row's, median over rounds"
            " in strict alternation on one machine.",
            *([UNEQUAL] if len({tuple(cell.seeds(one.arm)) for one in found}) > 1 else []),
            f"Not finished: {', '.join(cell.waiting) or 'none'}. Commits of the runs:"
            f" {', '.join(cell.commits)}.",
            *cell.left_out,
        ),
    )  # fmt: skip


def written(
    cell: Cell, found: Sequence[Standing], out: Place, command: str, display: Display
) -> None:
    """Prints the table; writes it, and its numbers."""
    table = section(cell, found)
    write_text(out / TEXT, page(TITLE, about(command, cell), [table], []))
    write_json(out / NUMBERS, {"command": command, "rows": [asdict(one) for one in found]})
    print_section(display.console, table)
    display.note(f"Report: {out / TEXT}   Numbers: {out / NUMBERS}")
