"""Prints, draws and times activations: `python -m experiments.activations --help`.

python -m experiments.activations
python -m experiments.activations xielu mine.py:act --check
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from experiments.activations import block, figures
from experiments.activations.described import record, sections
from experiments.run.files import STDOUT, hand_over, try_json, write_json, write_text
from experiments.run.named_activations import chosen_by
from experiments.run.provenance import versions
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine
from experiments.terminal.paths import try_folder
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import page, print_section
from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax._fields import PathText, PlaceText, check_fields
from polycom_jax.table import ACTIVATIONS, Activation
from polycom_jax.testing import ContractError, check_activation

LINE = CommandLine(
    "activations",
    "What each activation is: its formula, where it starts, what it learns, bounds of its"
    " derivative, FLOPs and source; a page with all curves, and what each costs in a feed-forward"
    " block.",
    lists={"activations": ACTIVATIONS},
)


@dataclass(frozen=True)
class ActivationsConfig:
    """What to look at.

    Attributes:
        activations: names of --list, or FILE.py:NAME or MODULE:NAME for what
            polycom_jax.activation has made in a file, which is imported. Default: the whole table.
        check: hold each against the contract of the table (polycom_jax.testing.check_activation);
            the first that breaks it ends the program.
        cost: time each in a feed-forward block, beside GELU's.
        rounds: of that measurement; each block runs once in each.
        embed_dim: width of the residual stream there.
        gated_width: hidden width of gated blocks there; the others have 3/2 of it.
        tokens: that a block is given.
        out: folder for report.md, results.json and plots.
        json: a file for results.json, too; - for stdout.
    """

    activations: Annotated[tuple[str, ...], Positional, arg(metavar="[ACTIVATION ...]")] = ()
    check: bool = False
    cost: bool = True
    rounds: int = 7
    embed_dim: int = 256
    gated_width: int = 768
    tokens: int = 1024
    out: PlaceText = "runs/activations"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 1, "rounds", "embed_dim", "gated_width", "tokens")


@program
def main(argv: Sequence[str]) -> int:
    """Prints tables; writes report, numbers and one page of curves."""
    config = LINE(ActivationsConfig(), argv)
    try_json(config.json)
    chosen = chosen_by(config.activations or tuple(ACTIVATIONS))
    out = storage.named(config.out)
    try_folder("--out", out / "plots")
    command = shlex.join(["python", "-m", "experiments.activations", *argv])
    with Display(aside=config.json == STDOUT) as display:
        if config.check:
            held(chosen, display)
        costs = block.costs(config, chosen, display.busy) if config.cost else {}
        write(out, chosen, costs, {"command": command, **versions()}, display)
    hand_over(config.json, out / "results.json")
    return 0


def held(chosen: Mapping[str, Activation], display: Display) -> None:
    """Holds each against the contract.

    Raises:
        InputError: one breaks it; the message says how, and on which input.
    """
    for name, act in chosen.items():
        display.busy(f"checking {name}")
        try:
            check_activation(act)
        except ContractError as error:
            raise InputError(f"contract: {error}") from error
    display.note(f"{', '.join(chosen)}: the contract is kept.")


def write(
    out: storage.Place,
    chosen: Mapping[str, Activation],
    costs: Mapping[str, block.Cost],
    about: Mapping[str, Any],
    display: Display,
) -> None:
    """Tables on the terminal; report.md, results.json and plots/ in the folder."""
    display.busy("drawing")
    drawn = figures.draw(out / "plots", chosen)
    records = {name: record(act, costs.get(name)) for name, act in chosen.items()}
    shown = sections(records)
    write_json(out / "results.json", {"about": about, "activations": records})
    write_text(out / "report.md", page("Activations", about, shown, [drawn]))
    for section in shown:
        print_section(display.console, section)
    display.note(f"Report: {out / 'report.md'}   Curves: {drawn}.png")


if __name__ == "__main__":
    sys.exit(main())
