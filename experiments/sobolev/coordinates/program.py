"""The program `python -m experiments.sobolev coordinates`, and its report alone."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from experiments.run.compiled import cache_compiled
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.sobolev.coordinates import figures, report, summary
from experiments.sobolev.coordinates.arms import NAMES
from experiments.sobolev.coordinates.options import CoordinatesOptions
from experiments.sobolev.coordinates.study import Cell, Study, picture
from experiments.sobolev.coordinates.targets import load
from experiments.sobolev.store import Store, about
from experiments.terminal.flags import CommandLine, replaced
from experiments.terminal.pace import Pace
from experiments.terminal.progress import Display
from experiments.terminal.tables import page, print_section
from polycom_jax._errors import InputError, require
from polycom_jax._fields import PathText, check_fields
from polycom_jax.storage import Place

STUDY = "coordinates"
QUESTION = "Which network of coordinates represents an image, and a signed distance?"
FREE = ("targets", "arms", "reference", "learning_rates", "search_seeds", "seeds")
"""Options by which a study grows; the others are those of all its runs."""


def run(options: CoordinatesOptions, workdir: Path, command: str, display: Display) -> None:
    """Trains, writes, and says what to look at; the same command again goes on."""
    store = Store(workdir, STUDY)
    store.open(options, free=FREE)
    (store.root / "pictures").mkdir(exist_ok=True)
    cache_compiled(None)
    told = {**about(command), "reference": options.reference, "side": options.side}
    write_json(store.root / "about.json", told)
    pace = Pace(display)
    cells = Study(options, store, pace.tell).run()
    pace.tell(1.0, "report")
    display.stop()
    write(store, cells, told, display)
    more = replaced(shlex.split(command), {"--seeds": 2 * options.seeds})
    display.note(f"Next, more seeds beside those that are there:\n  {shlex.join(more)}")


@dataclass(frozen=True)
class ReportConfig:
    """Runs to report on.

    Attributes:
        folder: of a study of coordinates.
        json: also write coordinates.json to this file, or to stdout (-).
    """

    folder: Annotated[PathText, Positional, arg(metavar="[FOLDER]")] = "runs/sobolev-coordinates"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)


REPORT = CommandLine("sobolev report", "Report on finished runs of coordinates. Trains nothing.")


def again(argv: Sequence[str]) -> int:
    """Makes the report of a folder from its runs."""
    config = REPORT(ReportConfig(), argv)
    try_json(config.json)
    store = Store(Path(config.folder), STUDY)
    try:
        told = json.loads((store.root / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{store.root / 'about.json'} cannot be read: {error}.") from error
    with Display(aside=config.json == STDOUT) as display:
        write(store, finished(store), told, display)
    hand_over(config.json, store.root / f"{STUDY}.json")
    return 0


def finished(store: Store) -> list[Cell]:
    """The cells of a folder that have results, by target, then in the order of the arms.

    Raises:
        InputError: there are none.
    """
    names = sorted(path.stem for path in (store.root / "cells").glob("*.json"))
    cells = [Cell.of(store.cell(name) or {}, name) for name in names]
    cells = [cell for cell in cells if cell.runs and cell.results()]
    require(bool(cells), f"{store.root} holds no finished runs of a study: cells/.")
    return sorted(cells, key=lambda cell: (cell.target, NAMES.index(cell.arm)))


def write(store: Store, cells: Sequence[Cell], told: Mapping[str, Any], display: Display) -> None:
    """Tables on the terminal; coordinates.md, coordinates.json and plots/ in the folder."""
    cells = sorted(cells, key=lambda cell: (cell.target, NAMES.index(cell.arm)))
    reference = str(told["reference"])
    found = summary.differences(cells, reference)
    sections, said = report.sections(cells, found), summary.remarks(cells, found, reference)
    drawn = draw(store, cells, int(told["side"]))
    record = {"about": told, **summary.record(cells, found)}
    write_json(store.root / f"{STUDY}.json", record, indent=None)
    write_text(store.report, page(QUESTION, facts(store, cells, told), sections, drawn, said))
    for section in sections[:-2]:  # the last two are of what went in
        print_section(display.console, section)
    for line in said:
        display.note(line.replace("**", ""))
    display.note(f"Report: {store.report}   Plots: {store.plots}")


def facts(store: Store, cells: Sequence[Cell], told: Mapping[str, Any]) -> dict[str, Any]:
    """What ran where, with which settings, and the commits of the runs."""
    path = store.root / f"{STUDY}-options.json"
    options = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    commits = sorted({run.commit or "not known" for cell in cells for run in cell.runs})
    fixed = {name: value for name, value in options.items() if name not in FREE}
    return {**told, "commit of the runs": ", ".join(commits), **fixed}


def draw(store: Store, cells: Sequence[Cell], side: int) -> list[Place]:
    """Curves, and for each target whose pictures are in the folder, these."""
    drawn = [figures.curves(store.plots / "curves", cells)]
    for target in dict.fromkeys(cell.target for cell in cells):
        own = {cell.arm: cell.name for cell in cells if cell.target == target}
        made = {arm: picture(store, name) for arm, name in own.items()}
        made = {arm: pixels for arm, pixels in made.items() if pixels is not None}
        path = store.plots / target
        if made:
            figures.pictures(path, cells, target, load(target, side).pixels, made)
        if path.with_suffix(".png").exists():  # committed results have it without its arrays
            drawn.append(path)
    return drawn
