"""How often a loop of a compiled program runs, read off the loop itself."""

import math
from dataclasses import dataclass

from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module

_PASSES = ("copy", "bitcast", "convert", "reshape")


@dataclass(frozen=True)
class Place:
    """A computation in the context that runs it.

    Attributes:
        computation: where we are.
        caller: the loop whose body or condition this is; None for the entry.
        outer: where that loop stands.
    """

    computation: Computation
    caller: Instruction | None = None
    outer: "Place | None" = None


def trip_count(module: Module, loop: Instruction, where: Place) -> int | None:
    """How often the `while` instruction `loop`, standing at `where`, runs its body.

    Returns:
        None where the bound is not a constant of the program, so where it depends on data.
    """
    printed = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if printed is not None:
        return int(printed)
    condition = module.computations.get(loop.attribute(r"condition=%?([\w.\-]+)") or "")
    body = module.computations.get(loop.attribute(r"body=%?([\w.\-]+)") or "")
    if condition is None or body is None or condition.root is None:
        return None
    inside = Place(condition, loop, where)
    compare, sides = _comparison(module, condition, condition.root)
    direction = compare.attribute(r"direction=(\w+)") if compare else None
    if direction is None or len(sides) != 2:
        return None
    slots = [_slot(condition, side) for side in sides]
    steps = [_step(body, slot) for slot in slots]
    for counter, bound, comes in ((0, 1, direction), (1, 0, _MIRROR.get(direction, ""))):
        slot, step = slots[counter], steps[counter]
        if slot is None or not step:
            continue
        start = _initial(module, loop, slot, where)
        end = _value(module, inside, sides[bound])
        return None if start is None or end is None else _count(start, end, step, comes)
    return None


_MIRROR = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


def _count(start: int, end: int, step: int, direction: str) -> int | None:
    distance = (end - start) / step
    if direction in ("LE", "GE"):
        distance += 1 / abs(step)
    if direction not in _MIRROR or (direction[0] in "LG" and (direction[0] == "L") != (step > 0)):
        return None
    return max(math.ceil(distance), 0)


def _comparison(
    module: Module, where: Computation, root: Instruction
) -> tuple[Instruction | None, list[Instruction]]:
    """The compare behind a condition's result, with its operands as `where` knows them."""
    if root.opcode == "compare":
        return root, [where.instructions[name] for name in root.operands]
    if root.opcode in ("fusion", "call") and root.calls:
        inner = module.computations[root.calls[0]]
        if inner.root is None or inner.root.opcode != "compare":
            return None, []
        found = []
        for name in inner.root.operands:
            side = inner.instructions[name]
            if side.opcode == "parameter":
                side = where.instructions[root.operands[int(side.operands[0])]]
            found.append(side)
        return inner.root, found
    return None, []


def _through(where: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in _PASSES:
        instruction = where.instructions[instruction.operands[0]]
    return instruction


def _slot(where: Computation, instruction: Instruction) -> int | None:
    """Which of the values that a loop carries `instruction` is."""
    if instruction.name not in where.instructions:
        return None  # a constant inside a fusion
    instruction = _through(where, instruction)
    if instruction.opcode == "get-tuple-element":
        source = where.instructions[instruction.operands[0]]
        if source.opcode == "parameter":
            return int(instruction.attribute(r"index=(\d+)") or 0)
    return None


def _step(body: Computation, slot: int | None) -> int | None:
    """What one run of the body adds to that value; 0 where it leaves it alone."""
    if slot is None or body.root is None or body.root.opcode != "tuple":
        return None
    new = _through(body, body.instructions[body.root.operands[slot]])
    if _slot(body, new) == slot:
        return 0
    if new.opcode not in ("add", "subtract"):
        return None
    left, right = (_through(body, body.instructions[name]) for name in new.operands)
    if new.opcode == "add" and _slot(body, right) == slot:
        left, right = right, left
    if _slot(body, left) != slot or right.opcode != "constant":
        return None
    return _literal(right, -1 if new.opcode == "subtract" else 1)


def _literal(constant: Instruction, sign: int = 1) -> int | None:
    try:
        return sign * int(constant.operands[0])
    except ValueError:
        return None


def _initial(module: Module, loop: Instruction, slot: int, where: Place) -> int | None:
    start = where.computation.instructions[loop.operands[0]]
    if start.opcode == "tuple":
        return _value(module, where, where.computation.instructions[start.operands[slot]])
    return None


def _value(module: Module, where: Place, instruction: Instruction) -> int | None:
    """The number that `instruction` is, if it is one: a constant, or a carried one unchanged."""
    if instruction.opcode == "constant":
        return _literal(instruction)
    here = where.computation
    if instruction.name not in here.instructions:
        return None
    instruction = _through(here, instruction)
    if instruction.opcode == "constant":
        return _literal(instruction)
    slot = _slot(here, instruction)
    if slot is None or where.caller is None or where.outer is None:
        return None
    body = module.computations.get(where.caller.attribute(r"body=%?([\w.\-]+)") or "")
    if body is None or _step(body, slot) != 0:
        return None
    return _initial(module, where.caller, slot, where.outer)
