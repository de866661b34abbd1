"""How many bytes a collective sends out of each chip."""

import math
import re

from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module, size

# Bytes that leave a chip of a group of n, of the bytes of all operands or of all results, whichever
# are more: what a ring, or several over the torus, cannot go under.
_SHARE = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}


def leaving_bytes(
    module: Module, where: Computation, instruction: Instruction, *, fused: bool = False
) -> float | None:
    """Bytes that one run sends out of each chip; None for what is no collective.

    A fusion round a collective, as libtpu makes of a reduce-scatter, counts as the collective.
    `fused` says that `where` is what a fusion runs.
    """
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "fusion" and instruction.cycles is None and instruction.calls:
        found = [
            leaving_bytes(module, module.computations[name], inner, fused=True)
            for name in instruction.calls
            if name in module.computations
            for inner in module.computations[name].instructions.values()
        ]
        sent = [n for n in found if n is not None]
        return sum(sent) if sent else None
    if opcode not in _SHARE:
        return None
    sources = [size(where.instructions[n].type) for n in instruction.operands]
    results = size(instruction.type)
    if instruction.opcode.endswith("-start"):
        # The type lists the operands, too.
        results = max(results - sum(sources), 0)
    # A ragged exchange is handed the array that it fills, and says behind it what goes where.
    whole = max(sources[0] if opcode == "ragged-all-to-all" else sum(sources), results)
    if fused and _is_scattered(where, instruction):
        opcode = "reduce-scatter"
    return whole * _SHARE[opcode](group_size(instruction))


def _is_scattered(fused: Computation, instruction: Instruction) -> bool:
    """Whether it is an all-reduce in a fusion of which a chip keeps a slice: a reduce-scatter."""
    if instruction.opcode not in ("all-reduce", *_PASSES):
        return False
    users = [u for u in fused.instructions.values() if instruction.name in u.operands]
    return bool(users) and all(
        user.opcode == "dynamic-slice" or (user.opcode in _PASSES and _is_scattered(fused, user))
        for user in users
    )


_PASSES = ("bitcast", "copy", "convert", "reshape", "get-tuple-element")


def collective_opcode(module: Module, instruction: Instruction) -> str:
    """Which collective an instruction is, or the fusion round one."""
    for name in instruction.calls if instruction.opcode == "fusion" else ():
        inside = module.computations[name]
        for inner in inside.instructions.values():
            if inner.opcode in _SHARE or inner.opcode == "fusion":
                found = collective_opcode(module, inner)
                if found in _SHARE:
                    return "reduce-scatter" if _is_scattered(inside, inner) else found
    return instruction.opcode.removesuffix("-start")


def group_size(instruction: Instruction) -> int:
    """Chips that take part together, from any of the three forms in which groups are printed.

    Lists {{0,1},{2,3}}; an iota [groups,size]<=[...]; axes of a mesh, mesh['x'=4] {'x'}.
    """
    listed = instruction.attribute(r"replica_groups=\{\{([\d,]+)\}")
    if listed:
        return len(listed.split(","))
    iota = instruction.attribute(r"replica_groups=\[\d+,(\d+)\]<=")
    if iota:
        return int(iota)
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", instruction.attributes)
    if mesh:
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'([^']+)'", mesh[2]))
    return 2
