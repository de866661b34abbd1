"""Compiles a run's training step for TPUs that are not there: `python -m experiments.plan --help`.

    python -m experiments.plan tpu_configs/v5e-16-dense-1b.yaml
    python -m experiments.plan --model dense-1b --mesh.fsdp -1 --mesh.data 1 --topology v5e:4x4

It needs the libtpu wheel (extra `plan`), a CPU and a few minutes.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from experiments.plan import outcome, report, search
from experiments.plan.slices import Slice, find_slice, training_step
from experiments.run.config import PretrainConfig, from_command
from experiments.run.files import write_text
from experiments.terminal import flags
from experiments.terminal.paths import try_file
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_section
from polycom_jax import compile_ahead as aot
from polycom_jax.sharding import make_mesh

T = TypeVar("T")

OWN_FLAGS = ("--topology", "--json")

ABOUT = (
    "Compile a run's training step for a TPU slice that is not there, and say what it would need"
    " and take. A config file may stand first. Beside the flags of experiments.pretrain:\n"
    "  --topology SLICE   another slice than the config's run.tpu_slice, as v5e:4x4\n"
    "  --search           try XLA options, remat, meshes and batches, one by one: the best few\n"
    "  --json FILE        write the findings there, too\n"
    "Exit code 3: it compiles, and something is wrong with it."
)
REFUSED = 3


@program
def main(argv: Sequence[str]) -> int:
    """Compiles, prints a page, and tells by the exit code whether the plan is good."""
    searching, argv = "--search" in argv, [word for word in argv if word != "--search"]
    own, rest = flags.split_flags(argv, OWN_FLAGS, paths=("--json",))
    config, _ = from_command(rest, prog="python -m experiments.plan", about=ABOUT, own=OWN_FLAGS)
    if "--json" in own:
        try_file("--json", Path(own["--json"]))
    aot.without_tpu()
    where = find_slice(own.get("--topology", config.run.tpu_slice))
    with Display() as display:
        if searching:
            trials = best_few(config, where, argv, display)
            record, good = [asdict(trial) for trial in trials], trials[0].good
        else:
            clock = time.perf_counter()
            display.busy(f"compiling for {where.name}, which takes a minute or more")
            found = planned(config, where)
            display.note(f"compiled and read in {time.perf_counter() - clock:.0f} s")
            display.console.print(report.text(found), markup=False, highlight=False, soft_wrap=True)
            record, good = asdict(found), not found.problems
    if "--json" in own:
        write_text(Path(own["--json"]), json.dumps(record, indent=1) + "\n")
    return 0 if good else REFUSED


def planned(config: PretrainConfig, where: Slice) -> outcome.Outcome:
    """Compiles and reads a step."""
    step = training_step(config, where)
    compiled, messages = with_messages(lambda: step.compile(config.run.compiler_options))
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
    trials = search.search(config, lambda candidate: planned(candidate, where), tell)
    print_section(display.console, search.section(trials))
    if trials[0].outcome is not None:
        words = ["python", "-m", "experiments.plan", *argv, *trials[0].flags]
        display.note(f"Next:\n  {shlex.join(words)}")
    return trials


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
