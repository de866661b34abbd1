"""Compares speed and memory with peers: `python -m experiments.benchmark --help`.

    python -m experiments.benchmark ops --shapes cpu_2048x4096
    python -m experiments.benchmark ops ffn attention loss train data --out runs/benchmark

Ratios come first: contestants are timed in strict alternation in one process, and a ratio is the
median of the rounds' own ratios. What a peer computes is compared with ours before it is timed.
"""

import importlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import KEEPS_FREED_MEMORY
from experiments.benchmark.arg_specs import ARG_SPECS
from experiments.benchmark.options import CARDS, CHIPS, MODELS, PARTS, PRODUCTS, SUITES, Options
from experiments.benchmark.peers import PEERS
from experiments.benchmark.report import Report, tables
from experiments.benchmark.results import Case, Result, Tell
from experiments.benchmark.side_by_side import side_by_side
from experiments.run.files import STDOUT, hand_over, try_json
from experiments.terminal.flags import CommandLine
from experiments.terminal.paths import try_folder
from experiments.terminal.program import program
from experiments.terminal.progress import PLAIN_EVERY_S, Display
from experiments.terminal.tables import print_section, print_table, room
from polycom_jax.table import ACTIVATIONS

LINE = CommandLine(
    "benchmark",
    "Measure the speed of our operations, blocks and training steps, and that of their peers.",
    old={"suites": "suites"},
    lists={
        "suites": SUITES,
        "peers": PEERS,
        "activations": ACTIVATIONS,
        "shapes": [spec.name for spec in ARG_SPECS],
        "models": MODELS,
        "chips": CHIPS,
        "gpus": CARDS,
        "parts": PARTS,
        "products": PRODUCTS,
    },
)
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"


@program
def main(argv: Sequence[str]) -> int:
    """Runs the suites, prints a table a case, writes results.json, results.md and plots."""
    options = LINE(Options(), argv)
    try_json(options.json)
    # On a GPU, JAX would take three quarters of its memory at once and leave the peers none.
    os.environ.setdefault(PREALLOCATE, "false")
    command = shlex.join(["python", "-m", "experiments.benchmark", *argv])
    about = {
        PREALLOCATE: os.environ[PREALLOCATE],
        "freed memory is kept": str(KEEPS_FREED_MEMORY),  # of all contestants, the peers' too
    }
    report = Report(Path(options.out), command, about)
    try_folder("--out", report.plots)
    with Display(aside=options.json == STDOUT) as display:
        failures = run(every_case(options), report, display)
        display.note(f"Numbers: {report.numbers}   Tables: {report.tables}   Plots: {report.plots}")
        hand_over(options.json, report.numbers)
        for failure in failures:
            display.note(f"FAILED: {failure}")
        display.note(f"Next:\n  {next_command(options)}")
    return 1 if failures else 0


def every_case(options: Options) -> list[Case]:
    """The cases of all suites, in the order asked for."""
    return [
        case
        for suite in dict.fromkeys(options.suites)
        for case in importlib.import_module(f"experiments.benchmark.{suite}").cases(options)
    ]


def run(cases: Sequence[Case], report: Report, display: Display) -> list[str]:
    """Runs the cases; what one found is printed and written before the next one begins.

    Returns:
        What failed, a line each.
    """
    results: list[Result] = []
    began = time.perf_counter()
    display.start(0, len(cases))
    for index, case in enumerate(cases):
        title = f"{case.suite}: {case.name}"
        result = case.result(_telling(display, title))
        results.append(result)
        report.write(results)
        report.draw(result)
        elapsed = time.perf_counter() - began
        left = elapsed / (index + 1) * (len(cases) - index - 1)
        for drawn in tables(result, room(display.console)):
            print_table(display.console, drawn)
        for name, reason in result.left_out.items():
            display.note(f"  left out: {name}: {reason}")
        for note in result.notes:
            display.note(f"  {note}")
        for failure in result.failures:
            display.note(f"  FAILED: {failure}")
        display.note(f"[{index + 1}/{len(cases)}] {elapsed:.0f} s, about {left:.0f} s left")
        display.step(index + 1)
    display.stop()
    for section in side_by_side(results):
        print_section(display.console, section)
    return [f"{result.case}: {failure}" for result in results for failure in result.failures]


def _telling(display: Display, title: str) -> Tell:
    """Tells a bar what is being done; without one, in a line now and then."""
    told = time.monotonic()

    def tell(doing: str) -> None:
        nonlocal told
        display.doing(f"{title}: {doing}")
        if not display.live and time.monotonic() - told >= PLAIN_EVERY_S:
            told = time.monotonic()
            display.note(f"  {title}: {doing}")

    return tell


def next_command(options: Options) -> str:
    """The suites that this run left out, or the longest look at one of them."""
    command, out = "python -m experiments.benchmark", shlex.quote(options.out)
    rest = [suite for suite in SUITES if suite not in options.suites]
    if rest:
        return f"{command} {' '.join(rest)} --out {out}-more"
    return f"{command} ops --rounds 25 --out {out}-long"


if __name__ == "__main__":
    sys.exit(main())
