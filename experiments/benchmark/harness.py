"""Times contestants in strict alternation, after checking that they agree."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.benchmark.results import Tell
from experiments.terminal.program import Stop

Clock = Callable[[], float]

MAX_CALLS = 100
"""Calls of a contestant in one round, at most."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work of a case.

    Attributes:
        name: for tables.
        call: starts the work and returns its outcome; a framework may still be busy with it.
        wait: returns when that outcome is there.
        prepare: makes the arguments of one call, outside of the clock: a graph that a backward pass
            uses up.
        work: what it computes: contestants of equal work must agree.
        values: the outcome as NumPy arrays, in an order that all contestants of equal work share;
            None where there is nothing to compare.
    """

    name: str
    call: Callable[..., Any]
    wait: Callable[[Any], Any]
    prepare: Callable[[], tuple[Any, ...]] = tuple
    work: str = ""
    values: Callable[[], Sequence[np.ndarray]] | None = None

    def once(self) -> Any:
        """One call, waited for."""
        outcome = self.call(*self.prepare())
        self.wait(outcome)
        return outcome


@dataclass(frozen=True)
class Plan:
    """How long is measured.

    Attributes:
        rounds: of the alternation.
        sample_seconds: a contestant is called in each round until about this much has passed.
        enqueue: start all calls of a round before waiting for the last one, as an accelerator's
            queue is kept full in training; else each call is waited for, and timed, by itself.
    """

    rounds: int
    sample_seconds: float
    enqueue: bool = False


def order(names: Sequence[str], round_index: int) -> list[str]:
    """The order of a round: rotated by one each time, so that no one always runs first."""
    start = round_index % len(names)
    return [*names[start:], *names[:start]]


def measure(
    contestants: Sequence[Contestant],
    plan: Plan,
    tell: Tell = lambda text: None,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of every contestant in every round.

    In each round every contestant has a call that is not measured (the threads of another framework
    go on spinning for a while, and caches hold another's data), then as many as make up
    `plan.sample_seconds`. The reading of a round is the median of its calls, or, where they are
    enqueued, their mean.
    """
    by_name = {contestant.name: contestant for contestant in contestants}
    calls = {}
    for name, contestant in by_name.items():
        tell(f"warming up {name}")
        contestant.once()  # compiles
        seconds = _read(contestant, 1, plan.enqueue, clock)
        calls[name] = max(1, min(MAX_CALLS, math.ceil(plan.sample_seconds / max(seconds, 1e-9))))
    readings: dict[str, list[float]] = {name: [] for name in by_name}
    with _no_collection():
        for index in range(plan.rounds):
            gc.collect()
            for name in order(list(by_name), index):
                tell(f"round {index + 1}/{plan.rounds}: {name}")
                by_name[name].once()
                readings[name].append(_read(by_name[name], calls[name], plan.enqueue, clock))
    return readings


def _read(contestant: Contestant, calls: int, enqueue: bool, clock: Clock) -> float:
    if not enqueue:
        return float(np.median([_one(contestant, clock) for _ in range(calls)]))
    prepared = [contestant.prepare() for _ in range(calls)]
    contestant.wait(prepared)
    began = clock()
    outcome = None
    for arguments in prepared:
        outcome = contestant.call(*arguments)
    contestant.wait(outcome)
    return (clock() - began) / calls


def _one(contestant: Contestant, clock: Clock) -> float:
    arguments = contestant.prepare()
    contestant.wait(arguments)
    began = clock()
    contestant.wait(contestant.call(*arguments))
    return clock() - began


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector runs between rounds only."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""Greatest difference of two contestants' arrays, relative to the greatest magnitude in them.

Two float32 sums of millions of terms in different orders differ by some 1e-6 of their terms'
root-sum-square. PyTorch's eager formula takes powers and quotients in the dtype of x: six roundings
of 2^-9 each for bfloat16."""

TF32_TOLERANCE = 5e-3
"""For float32 where its products are rounded to 10 bits: on GPUs, and more so on TPUs."""


def tolerance(dtype: str, backend: str) -> float:
    """The one that goes for arrays of `dtype` on `backend`."""
    return TF32_TOLERANCE if (dtype, backend != "cpu") == ("float32", True) else TOLERANCE[dtype]


def check_agreement(case: str, contestants: Sequence[Contestant], allowed: float) -> None:
    """Compares the outcome of every contestant with that of the first one of equal work.

    Args:
        case: for the message.
        contestants: all of the case.
        allowed: difference, relative to an array's greatest magnitude.

    Raises:
        Stop: they differ: their times would not be those of the same work.
    """
    first: dict[str, tuple[str, list[np.ndarray]]] = {}
    for contestant in contestants:
        if contestant.values is None:
            continue
        found = [np.asarray(array, np.float64) for array in contestant.values()]
        name, expected = first.setdefault(contestant.work, (contestant.name, found))
        reason = _difference(expected, found, allowed)
        if reason is not None:
            raise Stop(
                f"{case}: {contestant.name} does not compute what {name} does, so that their times"
                f" say nothing: {reason}.",
                code=1,
            )


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """Greatest difference, by the greatest magnitude that is expected."""
    scale = max(float(np.max(np.abs(expected), initial=0.0)), float(np.finfo(np.float32).tiny))
    return float(np.max(np.abs(expected - found), initial=0.0)) / scale


def _difference(
    expected: Sequence[np.ndarray], found: Sequence[np.ndarray], allowed: float
) -> str | None:
    shapes = [[array.shape for array in arrays] for arrays in (expected, found)]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[1]} in place of {shapes[0]}"
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        error = relative_error(a, b)
        if not error <= allowed:  # a NaN is no agreement either
            return (
                f"result {index} is off by {error:.2g} of its greatest magnitude, {allowed:.2g}"
                " at most"
            )
    return None
