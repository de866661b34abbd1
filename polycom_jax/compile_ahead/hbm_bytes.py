"""Bytes that an instruction moves to or from HBM: its operands and results, read or written once.

What a tiled loop inside a fusion reads more than once is the compiler's affair and not counted; on
TPUs its `estimated_cycles` know it.
"""

import re
from typing import NamedTuple

from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module, in_hbm, size

_PARTS = ("dynamic-slice", "slice", "gather")
_FUSIONS = ("fusion", "fusion-start")
# Workspace of a call of cuBLAS or cuDNN: the last of its results, bytes without a form.
_WORKSPACE = re.compile(r", [su]8\[\d+\]\{0\}\)$")


class Traffic(NamedTuple):
    """Bytes of one run of an instruction."""

    read: int
    written: int


def hbm_traffic(module: Module, where: Computation, instruction: Instruction) -> int:
    """HBM bytes of one run of `instruction`, which stands in `where`."""
    return sum(read_and_written(module, where, instruction))


def read_and_written(module: Module, where: Computation, instruction: Instruction) -> Traffic:
    """What one run of `instruction`, which stands in `where`, reads of HBM and writes to it."""
    opcode, result = instruction.opcode, in_hbm(_without_workspace(module, instruction))
    sources = [where.instructions[name] for name in instruction.operands]
    whole = sum(in_hbm(source.type) for source in sources)
    inner = module.computations.get(instruction.calls[0]) if instruction.calls else None
    if opcode in _FUSIONS and inner is not None:
        read = sum(_read(inner, index, source) for index, source in enumerate(sources))
        return Traffic(read, _written(inner, result if opcode == "fusion" else result - whole))
    if opcode.endswith("-start"):
        # (operand, result, context): the type lists what is read and what is written.
        return Traffic(min(whole, result), max(result - whole, 0))
    if opcode in _PARTS:
        return Traffic(result, result)
    if opcode == "dynamic-update-slice":
        return Traffic(*2 * (in_hbm(sources[1].type),))
    return Traffic(whole, result)


def _read(fused: Computation, index: int, source: Instruction) -> int:
    """What a fusion reads of an operand: the parts alone, where it only takes parts of it."""
    parameter = fused.parameter(index)
    whole = in_hbm(source.type)
    if parameter is None or not whole:
        return whole
    parts = _parts_read(fused, parameter.name)
    return whole if parts is None else min(whole, parts)


def _parts_read(fused: Computation, name: str) -> int | None:
    """Bytes of the parts that are taken of an array, or None where all of it is."""
    parts = 0
    for user in fused.instructions.values():
        if name not in user.operands:
            continue
        if user.opcode in _PARTS:
            parts += _bytes(user)
        elif user.opcode == "bitcast" and not user.root:
            inner = _parts_read(fused, user.name)
            if inner is None:
                return None
            parts += inner
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            parts += 0  # overwritten in place: what is not written is not touched
        else:
            return None
    return parts


def _written(fused: Computation, result: int) -> int:
    root = fused.root
    if root is None or not result:
        return result
    whole = _result_bytes(fused, root)
    return min(result, whole) if whole is not None else result


def _result_bytes(fused: Computation, root: Instruction) -> int | None:
    """Bytes that a fusion writes where some of its results are updated in place; None: all."""
    if root.opcode == "tuple":
        results = [fused.instructions[name] for name in root.operands]
        return sum(_result_bytes(fused, r) or _bytes(r) for r in results)
    if root.opcode == "bitcast":
        return _result_bytes(fused, fused.instructions[root.operands[0]])
    if root.opcode == "dynamic-update-slice":
        return _bytes(fused.instructions[root.operands[1]])
    return None


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
