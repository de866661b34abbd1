"""Bytes that an instruction moves to or from HBM: its operands and results, read or written once.

What a tiled loop inside a fusion reads more than once is the compiler's affair and not counted; on
TPUs its `estimated_cycles` know it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module, arrays, in_hbm, size

_PARTS = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
_FUSIONS = ("fusion", "fusion-start")
# Workspace of a call of cuBLAS or cuDNN: the last of its results, bytes without a form.
_WORKSPACE = re.compile(r", [su]8\[\d+\]\{0\}\)$")
_NOTHING_MOVES = 'custom_call_target="AllocateBuffer"'


class Traffic(NamedTuple):
    """Bytes of one run of an instruction."""

    read: int
    written: int


class Updated(NamedTuple):
    """A result that is a parameter of its computation with parts of it written over, in place.

    Attributes:
        parameter: its name.
        written: bytes of the parts.
        read: bytes of them that are read before, as by a scatter that adds.
        by: names of the instructions that do it, or that it goes through.
    """

    parameter: str
    written: int
    read: int
    by: frozenset[str]


def hbm_traffic(module: Module, where: Computation, instruction: Instruction) -> int:
    """HBM bytes of one run of `instruction`, which stands in `where`."""
    return sum(read_and_written(module, where, instruction))


def read_and_written(module: Module, where: Computation, instruction: Instruction) -> Traffic:
    """What one run of `instruction`, which stands in `where`, reads of HBM and writes to it."""
    opcode, result = instruction.opcode, in_hbm(_without_workspace(module, instruction))
    sources = [where.instructions[name] for name in instruction.operands]
    whole = sum(in_hbm(source.type) for source in sources)
    inner = module.computations.get(instruction.calls[0]) if instruction.calls else None
    if _NOTHING_MOVES in instruction.attributes:
        return Traffic(0, 0)
    if opcode in _FUSIONS and inner is not None:
        read = sum(_read(module, inner, index, source) for index, source in enumerate(sources))
        most = result if opcode == "fusion" else result - whole
        return Traffic(read, _written(module, inner, instruction, most))
    synchronous = opcode.removesuffix("-start")
    if synchronous in _PARTS:
        # (operands, result, context) of what is asynchronous: what is taken may stay on the chip.
        started = synchronous != opcode
        taken = size(instruction.type) - started * sum(size(source.type) for source in sources)
        rest = sum(in_hbm(source.type) for source in sources[1:])
        read = min(taken, in_hbm(sources[0].type)) + rest
        return Traffic(read, max(result - started * whole, 0))
    if synchronous in _UPDATES:
        count = len(_bases(instruction))
        parts, bases, others = _part_bytes(where, instruction), sources[:count], sources[count:]
        touched = any(in_hbm(base.type) for base in bases)
        read = sum(in_hbm(source.type) for source in others)
        return Traffic(read + touched * _read_before(instruction, parts), touched * parts)
    if opcode.endswith("-start"):
        # (operand, result, context): the type lists what is read and what is written.
        return Traffic(min(whole, result), max(result - whole, 0))
    return Traffic(whole, result)


def _read(module: Module, fused: Computation, index: int, source: Instruction) -> int:
    """What a fusion reads of an operand: the parts alone, where it only takes parts of it."""
    parameter = fused.parameter(index)
    whole = in_hbm(source.type)
    if parameter is None or not whole:
        return whole
    parts = _parts_read(module, fused, parameter.name)
    return whole if parts is None else min(whole, parts)


def _parts_read(
    module: Module, fused: Computation, name: str, *, inner: bool = False
) -> int | None:
    """Bytes of the parts that are taken of an array, or None where all of it is.

    `inner` says that this is a fusion inside another one, which has no results of its own.
    """
    parts = 0
    updated = [] if inner else _updated_results(module, fused)
    written_over = [u for u in updated if u is not None]
    for user in fused.instructions.values():
        if name not in user.operands:
            continue
        own = next((u for u in written_over if user.name in u.by), None)
        if own is not None and user.operands.index(name) == _base_index(module, user):
            # What is not written over is not touched; `name` is the parameter, or a bitcast of it.
            found = own.read
        elif own is not None and name in _bases(user):
            found = 0  # another array of a scatter: with the first one its parts are counted
        elif user.opcode in _PARTS and user.operands[0] == name:
            found = _bytes(user)
        elif user.opcode == "bitcast" and not user.root:
            found = _parts_read(module, fused, user.name, inner=inner)
        elif user.opcode == "fusion" and not user.root:
            found = _parts_of_inner(module, fused, user, name, inner=inner)
        else:
            return None
        if found is None:
            return None
        parts += found
    return parts


def _parts_of_inner(
    module: Module, fused: Computation, user: Instruction, name: str, *, inner: bool
) -> int | None:
    """The same of what a fusion inside a fusion takes, whose result may be all of it in turn."""
    own = module.computations[user.calls[0]]
    parameters = [own.parameter(i) for i, operand in enumerate(user.operands) if operand == name]
    result = own.root
    while result is not None and result.opcode == "bitcast":
        result = own.instructions[result.operands[0]]
    if result in parameters:
        return _parts_read(module, fused, user.name, inner=inner)
    parts = [
        None if each is None else _parts_read(module, own, each.name, inner=True)
        for each in parameters
    ]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _written(module: Module, fused: Computation, fusion: Instruction, most: int) -> int:
    """Bytes that a fusion writes, `most` where none of its results is updated in place."""
    updated = _updated_results(module, fused)
    results = _results(fused)
    if not any(updated):
        return most
    there = list(arrays(fusion.type))
    if len(there) != len(results):
        there = [(_bytes(result), True) for result in results]
    sizes = zip(there, updated, strict=True)
    return min(most, sum(n if u is None else u.written for (n, hbm), u in sizes if hbm))


def _results(fused: Computation) -> list[Instruction]:
    root = fused.root
    if root is None:
        return []
    return [fused.instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]


def _updated_results(module: Module, fused: Computation) -> list[Updated | None]:
    """Of each result, what is updated in place; None: it is written whole."""
    found = (_updated(module, fused, result) for result in _results(fused))
    return [each if each is not None and each.by else None for each in found]


def _updated(module: Module, fused: Computation, result: Instruction) -> Updated | None:
    """What `result` makes of a parameter, if nothing but parts of that change."""
    written = read = 0
    by: set[str] = set()
    while result.opcode != "parameter":
        if sum(result.name in user.operands for user in fused.instructions.values()) > 1:
            return None  # somebody else reads it, with what was not written over
        if result.opcode in _UPDATES:
            parts = _part_bytes(fused, result)
            written, read = written + parts, read + _read_before(result, parts)
            by.add(result.name)
        elif result.opcode == "fusion" and (inside := _updated_inside(module, result)) is not None:
            written, read = written + inside.written, read + inside.read
            by.add(result.name)
        elif result.opcode != "bitcast":
            return None
        result = fused.instructions[result.operands[_base_index(module, result)]]
    return Updated(result.name, written, read, frozenset(by))


def _updated_inside(module: Module, fusion: Instruction) -> Updated | None:
    inner = module.computations[fusion.calls[0]]
    return None if inner.root is None else _updated(module, inner, inner.root)


def _base_index(module: Module, user: Instruction) -> int:
    """Which operand of what updates an array in place that array is."""
    if user.opcode != "fusion":
        return 0
    inside, inner = _updated_inside(module, user), module.computations[user.calls[0]]
    return 0 if inside is None else int(inner.instructions[inside.parameter].operands[0])


def _bases(update: Instruction) -> Sequence[str]:
    """The arrays that are updated: a scatter of n has them first, then where to, and n of parts."""
    if update.opcode.startswith("scatter"):
        return update.operands[: len(update.operands) // 2]
    return update.operands[:1] if update.opcode.startswith(_UPDATES) else ()


def _part_bytes(where: Computation, update: Instruction) -> int:
    """Bytes that an update writes; of a scatter of several arrays, of all of them."""
    operands = [where.instructions[name] for name in update.operands]
    if update.opcode.startswith("dynamic-update-slice"):
        return _bytes(operands[1])
    return sum(map(_bytes, operands[len(operands) // 2 + 1 :]))


def _read_before(update: Instruction, parts: int) -> int:
    """Bytes that are read of an array before they are written over: a scatter combines both."""
    return parts if update.opcode.startswith("scatter") else 0


def _without_workspace(module: Module, instruction: Instruction) -> str:
    """The type of an instruction; of a library's call, or a fusion round one, without workspace."""
    inner = module.computations.get(instruction.calls[0]) if instruction.calls else None
    called = inner.root if inner is not None and instruction.opcode == "fusion" else None
    called = called or instruction
    if 'custom_call_target="__cu' not in called.attributes:
        return instruction.type
    return _WORKSPACE.sub(")", instruction.type)


def _bytes(instruction: Instruction) -> int:
    # Inside a fusion a layout does not say where an array is; only the fusion's own operands do.
    return size(instruction.type)
