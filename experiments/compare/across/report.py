"""What finished runs say, without training: `python -m experiments.compare report --help`.

python -m experiments.compare report experiments/results/compare/scaling
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from experiments.compare import own_files, report
from experiments.compare.across import figures, tables
from experiments.compare.across.cells import SETTINGS, Cell, arms_of, read_cells, stored_config
from experiments.compare.across.differences import differences, frugality, turns
from experiments.compare.across.extrapolation import Extrapolated, extrapolated
from experiments.compare.across.own_report import check_no_fewer, read_finished, stored_about
from experiments.compare.comparing import worded_seeds
from experiments.compare.concluding import Finished
from experiments.compare.studies import REFERENCE
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.terminal.flags import CommandLine
from experiments.terminal.paths import try_folder
from experiments.terminal.progress import Display
from experiments.terminal.tables import Section, page, print_section
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.storage import Place

TEXT, NUMBERS = "scaling.md", "scaling.json"
COMMITS = "commit of the runs"
QUESTION = "How do differences depend on size and length of training?"


@dataclass(frozen=True)
class ReportConfig:
    """Runs to report on.

    Attributes:
        folder: of a study's runs, or of several such folders.
        out: where scaling.md, scaling.json and plots go, and of one study its own report.md and
            results.json, made again. Default: the folder.
        activation: where files of your own activations lie, FILE.py:NAME, that runs are of; each is
            known by its bytes. Default: where they lay when they ran.
        json: also write scaling.json to this file, or to stdout (-); of a study that is not about
            swiglu, results.json.
    """

    folder: Annotated[PlaceText, Positional, arg(metavar="[FOLDER]")] = "runs/scaling"
    out: PlaceText | None = None
    activation: tuple[str, ...] = ()
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)


LINE = CommandLine(
    "compare report",
    "Report on finished runs of one or several sizes and lengths: paired differences, fits of"
    " L(N, D), where arms cross. Trains nothing.",
    old={"workdir": "out"},
)


def main(argv: Sequence[str]) -> int:
    """Reads, compares, fits, writes."""
    config = LINE(ReportConfig(), argv)
    try_json(config.json)
    command = shlex.join(["python", "-m", "experiments.compare", "report", *argv])
    folder, out = storage.named(config.folder), storage.named(config.out or config.folder)
    storage.require_reachable(folder)
    alone = storage.is_file(folder / SETTINGS)
    across = not alone or REFERENCE in arms_of(stored_config(folder).study)
    cells = read_cells(folder, config.activation) if across else []
    require(
        not across or any(cell.arms for cell in cells),
        f"{folder} holds no finished results yet, only searches for rates.",
    )
    if alone:
        own_files.check_given(config.activation, [folder])
    told = stored_about(folder) if alone else {}
    own, without = _own(config, folder, out, across) if alone else (None, "")
    try_folder("--out", out)
    with Display(aside=config.json == STDOUT) as display:
        if own is not None:
            _write_own(own, told, out, command, display)
        elif without:
            display.note(f"No {report.TEXT} of its own made: {without}")
        if cells:
            written(cells, out, command, display)
    hand_over(config.json, out / (NUMBERS if cells else report.NUMBERS))
    return 0


def _own(
    config: ReportConfig, folder: Place, out: Place, across: bool
) -> tuple[Finished | None, str]:
    """What a study's own report is made of; or, where there is another one, why it has none."""
    try:
        found = read_finished(folder, config.activation)
        check_no_fewer(found, out, own_files.read(folder, config.activation).unread.values())
        return found, ""
    except InputError as error:
        if not across:
            raise
        return None, str(error)


def _write_own(
    own: Finished, told: Mapping[str, Any], out: Place, command: str, display: Display
) -> None:
    """Prints a study's tables; writes its report, numbers and figures as the study itself does.

    `told` is what the report that lies there says of where its numbers come from.
    """
    # This machine is not the one that trained: where nothing is told of that, nothing is known.
    told = {n: v for n, v in told.items() if not n.startswith(("activation ", COMMITS))}
    where = {**(told or {"command": command}), **own_files.worded(own.study.arms)}
    about = {**where, COMMITS: own.commits}
    if not told or "seeds" in told:
        about["seeds"] = worded_seeds(own.config.result_seeds)
    text, numbers = own.write(out, about)
    for section in report.sections(own.findings):
        print_section(display.console, section)
    display.note(f"Report: {text}   Numbers: {numbers}   Plots: {out / 'plots'}")


def written(
    cells: Sequence[Cell],
    out: Place,
    command: str,
    display: Display,
    *,
    before: Sequence[Section] = (),
) -> None:
    """Prints the tables, those from `before` first; writes the report, its numbers and figures."""
    display.busy("fitting")
    every, cells = cells, [cell for cell in cells if cell.arms]
    found, fit = differences(cells), extrapolated(cells)
    sections = [
        *before,
        tables.folders(every),
        tables.compared(found, full=True),
        tables.compared(found, full=False),
        tables.frugal(frugality(cells)),
        tables.turned(turns(cells), cells),
        *tables.fits(fit, cells),
        tables.limits(cells, fit),
        tables.losses(cells),
        tables.rates(cells),
        tables.sensitive(cells),
    ]
    sections = [one for one in sections if one.rows]
    drawn = figures.draw_all(out / "plots", cells, found, fit.fit)
    write_text(out / TEXT, page(QUESTION, about(command, cells[0]), sections, drawn))
    write_json(out / NUMBERS, _numbers(cells, command, fit))
    for section in sections:
        print_section(display.console, section)
    display.note(f"Report: {out / TEXT}   Numbers: {out / NUMBERS}   Plots: {out / 'plots'}")


def about(command: str, cell: Cell) -> dict[str, str]:
    """The head of a report: how it was made, and under which recipe, where that is not the usual
    one."""
    return {"command": command, **({"recipe": cell.recipe} if cell.recipe else {})}


def _numbers(cells: Sequence[Cell], command: str, fit: Extrapolated) -> dict[str, Any]:
    return {
        "command": command,
        "folders": [_cell(cell) for cell in cells],
        "differences": [asdict(one) for one in differences(cells)],
        "sensitivity to the learning rate": [
            {"folder": cell.name, **asdict(one)} for cell in cells for one in cell.sensitivities
        ],
        "crossings measured": [asdict(one) for one in turns(cells)],
        "tokens for the same loss": [asdict(one) for one in frugality(cells)],
        "fit": {
            "form": fit.form,
            "refused": fit.refused,
            "left out": fit.left_out,
            "laws": [asdict(one) for one in fit.laws],
            "predicted": [asdict(one) for one in fit.predicted],
            "crossings": [asdict(one) for one in fit.crossings],
        },
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "folder": cell.name,
        "model": cell.model,
        "recipe": cell.changes,
        "parameters": cell.parameters,
        "tokens": cell.tokens,
        "commits": cell.commits,
        "not finished": cell.waiting,
        "left out": cell.left_out,
        "arms": {
            name: {
                "parameters": arm.parameters,
                "FLOPs a token": arm.flops,
                "search": asdict(arm.search),
                "losses": {seed: run.heldout for seed, run in arm.good.items()},
                "diverged": [seed for seed, run in arm.runs.items() if run.diverged],
            }
            for name, arm in cell.arms.items()
        },
    }
