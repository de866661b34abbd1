"""Bytes that an instruction moves to or from HBM: its operands and results, read or written once.

What a tiled loop inside a fusion reads more than once is the compiler's affair and not counted; its
`estimated_cycles` know it.
"""

from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module, in_hbm, size

_PARTS = ("dynamic-slice", "slice", "gather")


def hbm_traffic(module: Module, where: Computation, instruction: Instruction) -> int:
    """HBM bytes of one run of `instruction`, which stands in `where`."""
    opcode, result = instruction.opcode, in_hbm(instruction.type)
    if opcode.endswith("-start"):
        # (operand, result, context): the type lists what is read and what is written.
        return result
    if opcode in _PARTS:
        return 2 * result
    sources = [where.instructions[name] for name in instruction.operands]
    if opcode == "dynamic-update-slice":
        return 2 * in_hbm(sources[1].type)
    inner = module.computations.get(instruction.calls[0]) if instruction.calls else None
    if opcode != "fusion" or inner is None:
        return result + sum(in_hbm(source.type) for source in sources)
    read = sum(_read(inner, index, source) for index, source in enumerate(sources))
    return read + _written(inner, result)


def _read(fused: Computation, index: int, source: Instruction) -> int:
    """What a fusion reads of an operand: the parts alone, where it only takes parts of it."""
    parameter = fused.parameter(index)
    whole = in_hbm(source.type)
    if parameter is None or not whole:
        return whole
    users = [i for i in fused.instructions.values() if parameter.name in i.operands]
    if not users:
        return 0
    parts = 0
    for user in users:
        if user.opcode in _PARTS:
            parts += _bytes(user)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            parts += 0  # overwritten in place: what is not written is not touched
        else:
            return whole
    return min(whole, parts)


def _written(fused: Computation, result: int) -> int:
    root = fused.root
    if root is not None and result and root.opcode == "dynamic-update-slice":
        return min(result, _bytes(fused.instructions[root.operands[1]]))
    return result


def _bytes(instruction: Instruction) -> int:
    # Inside a fusion a layout does not say where an array is; only the fusion's own operands do.
    return size(instruction.type)
