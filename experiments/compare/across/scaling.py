"""Sizes, lengths and arms in one queue: `python -m experiments.compare scaling --help`.

python -m experiments.compare scaling --dry-run
python -m experiments.compare scaling --data text.jsonl.xz --out runs/scaling
"""

import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

import numpy as np

from experiments.compare import own_files
from experiments.compare.across import report
from experiments.compare.across.cells import (
    SETTINGS,
    arms_of,
    base_of,
    continued,
    read_cell,
    read_cells,
    stored_config,
)
from experiments.compare.across.grid import (
    SEARCHED,
    Item,
    ScalingConfig,
    carried_rate,
    from_command,
    parameters,
    queue,
)
from experiments.compare.arms import check_widths, training_flops
from experiments.compare.branching import updates
from experiments.compare.comparing import carry_out
from experiments.compare.runs import Run, RunFolder
from experiments.compare.train import compile_programs
from experiments.run import device_memory
from experiments.run.compiled import cache_compiled
from experiments.run.files import STDOUT, hand_over, try_json, write_json
from experiments.run.folder import Workdir
from experiments.run.planned import abstract_batch
from experiments.terminal.progress import Display
from experiments.terminal.tables import Section, duration, print_section
from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax.compile_ahead import CHIPS
from polycom_jax.storage import Place

CARD, UTILISATION = "h100", 0.4
"""What `--scale gpu` is taken to run on, and at what share of its peak, until a run is finished."""


@dataclass(frozen=True)
class Cost:
    """What an entry of the queue still costs.

    Attributes:
        folder: of the study.
        arms: of it.
        runs: that are left; grids of rates may grow.
        flops: of these.
        seconds: at the speed of the finished runs of its size, else of all, else see `CARD`; None:
            none is finished, of another scale.
    """

    folder: str
    arms: tuple[str, ...]
    runs: int
    flops: float
    seconds: float | None


def main(argv: Sequence[str]) -> int:
    """Says what is to be done; does it, one entry after the other."""
    config = from_command(argv)
    try_json(config.json)
    command = shlex.join(["python", "-m", "experiments.compare", "scaling", *argv])
    out = storage.named(config.out)
    with Display(aside=config.json == STDOUT) as display:
        items, found = queue(config), costs(config, out)
        for item in items:
            check_widths(item.config.chosen.arms, item.config.common.model)
        print_section(display.console, section(config, items, found))
        if config.dry_run:
            write_json(config.json, [asdict(cost) for cost in found])
            return 0
        cache_compiled(config.data.cache_dir)
        left = [item for item, cost in zip(items, found, strict=True) if cost.runs]
        check_memory(config, left, display)
        reported = shlex.join(["python", "-m", "experiments.compare", "report", config.out])
        for item in items:
            own, last = run(config, item, display), item is items[-1]
            with held(config, display):
                if own or (last and config.json is not None):
                    cells = read_cells(out, config.activation)
                    report.written(cells, out, f"{reported}    # runs by: {command}", display)
                if last:
                    hand_over(config.json, out / report.NUMBERS)
    return 0


def held(config: ScalingConfig, display: Display) -> AbstractContextManager[object]:
    """The folder of all studies, once no other process writes to it."""
    return Workdir(config.out).locked("--out", patient=True, notify=display.note)


def check_memory(config: ScalingConfig, items: Sequence[Item], display: Display) -> None:
    """Compiles the first arms at every size before the first run, so that a large size which does
    not fit is told now, and not after days of smaller ones; where the device says what it has.

    Raises:
        InputError: one does not fit, see `train.check_memory`.
    """
    if not device_memory.bytes_limit():
        return
    for study in {item.config.model: item.config for item in items}.values():
        base = base_of(study)
        batch = abstract_batch(study.data.batch_size, base.context_length)
        for arm in study.chosen.only((*config.first, *config.own)).arms:
            display.doing(f"compile {arm.name} of {study.model}")
            compile_programs(arm.model(base), arm.optimizer(study.common.optim), batch)


def run(config: ScalingConfig, item: Item, display: Display) -> bool:
    """One study; finished runs are read. Whether this process has reported on it."""
    carried = rates(config, item) if item.carried else {}
    study = continued(item.config, storage.named(item.config.folder))
    return carry_out(study, replace(item, config=study).command, display, carried)


def rates(config: ScalingConfig, item: Item) -> dict[str, float]:
    """Arm -> the rate that the two smallest sizes carry up, see `grid.carried_rate`.

    Raises:
        InputError: an arm has not been searched at both.
    """
    small, out = config.sizes[:SEARCHED], storage.named(config.out)
    cells = [read_cell(out / f"{size}-{config.tokens}", config.activation) for size in small]
    found: dict[str, float] = {}
    for arm in item.config.chosen.arms:
        own = [cell.arms[arm.folder].search.best for cell in cells if arm.folder in cell.arms]
        require(
            len(own) == len(small) == SEARCHED,
            f"{arm.name} has results at {len(own)} of the two smallest sizes, and its rate at"
            f" {item.config.model} is carried up from both.",
        )
        counts = [parameters(size) for size in small]
        found[arm.name] = carried_rate(counts, own, parameters(item.config.model))
    return found


def costs(config: ScalingConfig, out: Place) -> list[Cost]:
    """What every entry costs beyond what is finished, entries before it included."""
    done = {item.folder: _finished(out / item.folder) for item in queue(config)}
    speeds = {name: _speed(out / name, runs) for name, runs in done.items() if runs}
    taken = UTILISATION * CHIPS[CARD].peak_flops if config.scale == "gpu" else None
    usual = float(np.median(list(speeds.values()))) if speeds else taken
    counted: dict[str, set[str]] = {name: set() for name in done}
    found = []
    for planned in queue(config):
        item = replace(planned, config=continued(planned.config, out / planned.folder))
        new = [name for name in item.config.arms if name not in counted[item.folder]]
        counted[item.folder] |= {*new}
        found.append(_cost(item, new, done[item.folder], speeds.get(item.folder, usual)))
    return found


def _cost(item: Item, arms: Sequence[str], runs: Sequence[Run], speed: float | None) -> Cost:
    study = item.config
    tried = 2 if item.carried else len(study.learning_rates)
    kinds = ((study.lengths[-1:], tried * study.search_seeds), (study.lengths, study.seeds))
    left, flops, base = 0, 0.0, base_of(study)
    tokens = study.data.batch_size * base.context_length
    for arm in map(study.chosen.arm, arms):
        each = training_flops(arm.model(base))
        for lengths, wanted in kinds:
            there = sum(run.key.arm == arm.folder and run.key.lengths == lengths for run in runs)
            more = max(0, wanted - there)
            left += more
            flops += more * updates(lengths) * tokens * each
    return Cost(item.folder, tuple(arms), left, flops, flops / speed if speed else None)


def _finished(folder: Place) -> list[Run]:
    return RunFolder(folder / "runs").all() if storage.is_file(folder / SETTINGS) else []


def _speed(folder: Place, runs: Sequence[Run]) -> float:
    """FLOPs a second of finished runs, median; a stopped process would spoil a mean."""
    cell = read_cell(folder)
    known = {**arms_of(stored_config(folder).study), **own_files.read(folder).arms}
    tokens, speeds = cell.step_tokens, []
    for run in runs:
        if run.key.arm not in known:  # of a file that is no longer what it was
            continue
        each = training_flops(known[run.key.arm].model(cell.base))
        speeds.append(updates(run.key.lengths) * tokens * each / run.seconds)
    return float(np.median(speeds))


def section(config: ScalingConfig, items: Sequence[Item], found: Sequence[Cost]) -> Section:
    """The queue as a table."""
    rows, until = [], 0.0
    for place, (item, cost) in enumerate(zip(items, found, strict=True), start=1):
        study = item.config
        until += cost.seconds or 0.0
        times = ("-", "-") if cost.seconds is None else (duration(cost.seconds), duration(until))
        searched = "carried up" if item.carried else " ".join(
            f"{rate:.3g}" for rate in study.learning_rates
        )  # fmt: skip
        row = (
            str(place), item.folder, " ".join(cost.arms) or "no more", f"{study.steps:,}",
            str(study.seeds), searched, str(cost.runs), f"{cost.flops:.2e}", *times,
        )  # fmt: skip
        rows.append(row)
    flops = sum(cost.flops for cost in found)
    before = f"; until there are any, of one {CARD} at {UTILISATION:.0%} of its bfloat16 peak"
    note = (
        f"Left in all: {sum(cost.runs for cost in found)} runs, {flops:.2e} FLOPs. Grids of rates"
        " may grow beyond their ends. Times: at the speed of finished runs"
        f"{before if config.scale == 'gpu' else ''}; in all: up to there."
    )
    return Section(
        f"Queue of {config.out}",
        (
            *("", "folder", "new arms", "steps", "seeds", "rates", "runs left", "FLOPs left"),
            *("time", "in all"),
        ),
        tuple(rows),
        (note,),
    )
