"""From contestants to a result: agreement, alternation, ratios."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from experiments.benchmark.harness import (
    Clock,
    Contestant,
    Plan,
    check_agreement,
    measure,
    tolerance,
)
from experiments.benchmark.options import Options
from experiments.benchmark.results import Result, Tell, rows_from_seconds

Numbers = Callable[[Mapping[str, Sequence[float]]], Callable[[str, float], Mapping[str, float]]]
"""All readings -> ((contestant, median seconds) -> its other numbers)."""

CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def plan(options: Options) -> Plan:
    """How long, and whether calls are enqueued: a CPU runs each as it comes."""
    return Plan(options.rounds, options.sample_seconds, enqueue=jax.default_backend() != "cpu")


def hold(
    suite: str,
    case: str,
    contestants: Sequence[Contestant],
    options: Options,
    tell: Tell,
    *,
    dtype: str,
    references: Sequence[str],
    left_out: Mapping[str, str],
    numbers: Numbers = lambda readings: lambda name, seconds: {},
    notes: tuple[str, ...] = (),
) -> Result:
    """Checks that the contestants agree, and times them.

    Raises:
        Stop: they do not agree.
    """
    tell("comparing results")
    check_agreement(case, contestants, tolerance(dtype, jax.default_backend()))
    readings = measure(contestants, plan(options), tell, CLOCKS[options.clock])
    rows = rows_from_seconds(readings, references, numbers(readings))
    return Result(suite, case, rows, dict(left_out), notes)


def able(
    makers: Mapping[str, Callable[[], Contestant]], left_out: dict[str, str]
) -> Iterator[Contestant]:
    """Those that can be made and called; the others' reasons go to `left_out`.

    For our own named implementations: whatever one raises says why it does not run here.
    """
    for name, make in makers.items():
        try:
            contestant = make()
            contestant.once()
        except Exception as error:
            left_out[name] = " ".join(str(error).split())[:200]
        else:
            yield contestant
