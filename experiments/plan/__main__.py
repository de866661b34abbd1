"""Compiles a run's training step for TPUs that are not there: `python -m experiments.plan --help`.

    python -m experiments.plan tpu_configs/v5e-16-dense-1b.yaml
    python -m experiments.plan --model dense-1b --mesh.fsdp -1 --mesh.data 1 --topology v5e:4x4

It needs the libtpu wheel (extra `plan`), a CPU and a few minutes.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from experiments import cli
from experiments.config import from_command
from experiments.plan import outcome, report
from experiments.plan.slices import find_slice, training_step
from experiments.progress import Display
from polycom_jax import aot

T = TypeVar("T")

ABOUT = (
    "Compile a run's training step for a TPU slice that is not there, and say what it would need"
    " and take. A config file may stand first. Beside the flags of experiments.pretrain:\n"
    "  --topology SLICE   another slice than the config's run.tpu_slice, as v5e:4x4\n"
    "  --json FILE        write the findings there, too\n"
    "Exit code 3: it compiles, and something is wrong with it."
)
REFUSED = 3


@cli.program
def main(argv: Sequence[str]) -> int:
    """Compiles, prints a page, and tells by the exit code whether the plan is good."""
    own, rest = cli.split_flags(argv, ("--topology", "--json"))
    config, _ = from_command(rest, prog="python -m experiments.plan", about=ABOUT)
    aot.without_tpu()
    where = find_slice(own.get("--topology", config.run.tpu_slice))
    with Display() as display:
        clock = time.perf_counter()
        display.busy(f"compiling for {where.name}, which takes a minute or more")
        step = training_step(config, where)
        compiled, messages = with_messages(lambda: step.compile(config.run.compiler_options))
        found = outcome.examine(config, step, compiled, messages)
        display.note(f"compiled and read in {time.perf_counter() - clock:.0f} s")
        display.console.print(report.text(found), markup=False, highlight=False, soft_wrap=True)
    if "--json" in own:
        Path(own["--json"]).write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return REFUSED if found.problems else 0


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
