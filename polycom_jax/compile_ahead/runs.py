"""What a compiled program runs, and how often: loops, branches and calls followed."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module
from polycom_jax.compile_ahead.loop_trip_counts import Place, trip_count

# What takes no time of its own; what ends something asynchronous (-done, -update) is counted where
# that starts.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
        *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
    )
)


@dataclass(frozen=True)
class Run:
    """An instruction that runs.

    Attributes:
        instruction: it.
        where: the computation that it stands in.
        times: how often it runs.
    """

    instruction: Instruction
    where: Computation
    times: int


def is_free(instruction: Instruction) -> bool:
    """Whether it takes no time of its own."""
    return instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update"))


def beside(run: Run) -> list[Run]:
    """What runs between the start of an asynchronous instruction and its end, once each."""
    found: list[Run] = []
    started = False
    for instruction in run.where.instructions.values():
        if started and run.instruction.name in instruction.operands:
            break
        if started and not is_free(instruction) and not instruction.opcode.endswith("-start"):
            found.append(Run(instruction, run.where, 1))
        started = started or instruction.name == run.instruction.name
    return found


Seconds = Callable[[Run], float]
"""Of one run, to tell which branch of a conditional is the longest."""


def runs_of(module: Module, place: Place, seconds: Seconds) -> tuple[list[Run], list[str]]:
    """What runs in a computation and those it calls, how often, and what is uncertain about it."""
    runs: list[Run] = []
    notes: list[str] = []
    for instruction in place.computation.instructions.values():
        opcode = instruction.opcode
        if opcode == "while":
            trips = trip_count(module, instruction, place)
            if trips is None:
                notes.append(f"how often the loop {scope_of(instruction)} runs; counted once")
                trips = 1
            for name in re.findall(r"\b(?:condition|body)=%?([\w.\-]+)", instruction.attributes):
                inner = Place(module.computations[name], instruction, place)
                _extend(runs, notes, runs_of(module, inner, seconds), trips)
        elif opcode == "conditional":
            branches = [
                runs_of(module, Place(module.computations[name]), seconds)
                for name in instruction.calls
            ]
            which = min if "rescue" in scope_of(instruction).split("/") else max
            _extend(runs, notes, which(branches, key=lambda b: _total(b[0], seconds)), 1)
        elif opcode in ("call", "async-start") and instruction.cycles is None:
            for name in instruction.calls:
                inner = Place(module.computations[name], place.caller, place.outer)
                _extend(runs, notes, runs_of(module, inner, seconds), 1)
        elif not is_free(instruction):
            runs.append(Run(instruction, place.computation, 1))
    return runs, notes


def _extend(
    runs: list[Run], notes: list[str], inner: tuple[Iterable[Run], list[str]], times: int
) -> None:
    runs.extend(Run(r.instruction, r.where, r.times * times) for r in inner[0])
    notes.extend(inner[1])


def _total(runs: Iterable[Run], seconds: Seconds) -> float:
    return sum(seconds(run) * run.times for run in runs)


def scope_of(instruction: Instruction, module: Module | None = None) -> str:
    """JAX's name stack, without the name of the function; the instruction's name if it has none.

    With the module, a fusion without a name stack has that of its result.
    """
    scope = instruction.scope
    if not scope and module is not None and instruction.opcode == "fusion" and instruction.calls:
        inner = module.computations.get(instruction.calls[0])
        scope = inner.root.scope if inner is not None and inner.root is not None else ""
    return re.sub(r"^jit\([^)]*\)/", "", scope) or instruction.name
