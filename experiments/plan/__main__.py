"""Compiles a run's training step for TPUs or GPUs that are not there; `--help` lists the flags.

    python -m experiments.plan tpu_configs/v5e-16-dense-1b.yaml
    python -m experiments.plan --model dense-1b --mesh.fsdp -1 --mesh.data 1 --hardware 8*gpu:h100

It needs a CPU, a few minutes, and libtpu (extra `plan`) or JAX's CUDA plugin (extra `plan-gpu`).
"""

import itertools
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, TypeVar

from tyro.conf import Positional, arg

from experiments.plan import outcome, report, search
from experiments.run.command import ALIASES, LISTS, Command, from_command
from experiments.run.compiled import without_others
from experiments.run.config import PretrainConfig
from experiments.run.files import STDOUT, try_json, write_json
from experiments.run.planned import VARIANTS, Slice, find_slice, training_step
from experiments.terminal.flags import CommandLine
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_section
from polycom_jax._fields import PathText
from polycom_jax.sharding import make_mesh

T = TypeVar("T")

LINE = CommandLine(
    "plan",
    "Compile a run's training step for TPUs or GPUs that are not there, and predict its memory and"
    " time. Exit code 3: it compiles, but has problems, which are printed.",
    short=ALIASES,
    old={"config": "config", "topology": "hardware"},
    lists=LISTS,
)
REFUSED = 3


@dataclass(frozen=True)
class PlanCommand(Command):
    """What to compile, and for what.

    Attributes:
        config: YAML file of the run; flags win over it.
        hardware: what to compile for, in place of run.hardware of the config: v5e:4x4, gpu:t4,
            8*gpu:h100.
        search: try XLA options, remat, meshes and batch sizes one at a time, and print the best few
            plans.
        json: also write the findings to this file, or to stdout (-).
    """

    config: Annotated[PathText | None, Positional, arg(metavar="[CONFIG]")] = None
    hardware: str | None = None
    search: bool = False
    json: PathText | None = None


@program
def main(argv: Sequence[str]) -> int:
    """Compiles, prints a page, and tells by the exit code whether the plan is good."""
    command, _ = from_command(LINE, PlanCommand(), argv)
    config = command.pretrain
    try_json(command.json)
    where = find_slice(command.hardware or config.run.hardware)
    with Display(aside=command.json == STDOUT) as display:
        own = without_others(config.run.compiler_options, where.chip.platform, display)
        config = replace(config, run=replace(config.run, compiler_options=own))
        if command.search:
            trials = best_few(config, where, argv, display)
            record, good = [asdict(trial) for trial in trials], trials[0].good
        else:
            clock = time.perf_counter()
            display.busy(f"compiling for {where.name}, which takes a minute or more")
            found = planned(config, where)
            display.note(f"compiled and read in {time.perf_counter() - clock:.0f} s")
            display.console.print(report.text(found), markup=False, highlight=False, soft_wrap=True)
            record, good = asdict(found), not found.problems
    write_json(command.json, record)
    return 0 if good else REFUSED


def planned(config: PretrainConfig, where: Slice) -> outcome.Outcome:
    """Compiles and reads a step."""
    step, options = training_step(config, where), config.run.compiler_options
    variants = VARIANTS[where.chip.platform]
    compiled, messages = with_messages(
        lambda: {name: step.compile(options, variant) for name, variant in variants.items()}
    )
    return outcome.examine(config, step, compiled, messages)


def best_few(
    config: PretrainConfig, where: Slice, argv: Sequence[str], display: Display
) -> list[search.Trial]:
    """Searches, with a line a trial; prints the best few, and the command of the best."""
    sizes = make_mesh(**asdict(config.mesh), devices=where.devices).shape
    config = replace(config, mesh=replace(config.mesh, **sizes))
    began, done = time.perf_counter(), 0

    def tell(trial: search.Trial, left: int) -> None:
        nonlocal done
        done += 1
        minutes = (time.perf_counter() - began) / done * left / 60
        display.note(f"[{done}/{done + left}] {search.said(trial)}; about {minutes:.0f} min left")

    display.note(f"searching for {where.name}; each trial compiles, which takes a minute or more")
    trials = search.search(
        config, lambda candidate: planned(candidate, where), tell, where.chip.platform
    )
    print_section(display.console, search.section(trials))
    if trials[0].outcome is not None:
        kept = without_search(argv)
        words = ["python", "-m", "experiments.plan", *kept, *trials[0].flags]
        display.note(f"Next:\n  {shlex.join(words)}")
    return trials


def without_search(argv: Sequence[str]) -> list[str]:
    """The command line without --search, however that was given."""
    return [
        word
        for before, word in itertools.pairwise(["", *argv])
        if word.partition("=")[0] != "--search"
        and not (before == "--search" and word in ("True", "False"))
    ]


def with_messages(f: Callable[[], T]) -> tuple[T, str]:
    """f(), and what it wrote to stderr: the compiler does, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            result: Any = f()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return result, file.read().decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
