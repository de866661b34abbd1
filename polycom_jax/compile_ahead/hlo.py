"""Reads the text of a compiled XLA program: what runs, and how often.

How often a loop runs is not in the text of a TPU program: see `loop_trip_counts`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

# Bits of an element, as its name says (bf16, f8e4m3, s4); tokens and opaque values take none.
_BITS = re.compile(r"(?:bf|[sufc])(\d+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_END = re.compile(r"^\}(, execution_thread|$)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_FAST = re.compile(r"S\([1-9]")


@dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        name: unique in its computation.
        opcode: "fusion", "while", ...
        type: of its result, as printed.
        operands: names of instructions of the same computation; the text for a constant.
        attributes: all that follows the operands, as printed.
        root: whether it is its computation's result.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str = field(repr=False)
    root: bool

    def attribute(self, pattern: str) -> str | None:
        """First group of the first match of `pattern` in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one run, if it gives one."""
        text = self.attribute(r'"estimated_cycles":"(\d+)"')
        return None if text is None else int(text)

    @property
    def scope(self) -> str:
        """Where in the source it comes from: JAX's name stack."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def calls(self) -> tuple[str, ...]:
        """Computations that it runs once, one of, or over and over."""
        found = re.search(
            r"(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes
        )
        if found:
            return tuple(re.findall(r"%?([\w.\-]+)", found[1]))
        keys = r"(?:true_computation|false_computation|calls|to_apply|body)"
        return tuple(re.findall(rf"\b{keys}=%?([\w.\-]+)", self.attributes))


@dataclass(frozen=True)
class Computation:
    """A function of a program: its instructions by name, in the order in which they run."""

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction | None:
        """Its result."""
        return next((i for i in self.instructions.values() if i.root), None)

    def parameter(self, index: int) -> Instruction | None:
        """Its parameter of that index."""
        for instruction in self.instructions.values():
            if instruction.opcode == "parameter" and instruction.operands == (str(index),):
                return instruction
        return None


@dataclass(frozen=True)
class Module:
    """A program."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The program whose text (`compiled.as_text()`) this is.

    Raises:
        ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines, last = None, None, {}, ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines, last = header[2], {}, ""
            entry = name if header[1] else entry
        elif _END.match(line) and name is not None:
            computations[name] = Computation(name, lines)
            name = None
        elif name is not None and (start := _INSTRUCTION.match(line)):
            instruction = _instruction(bool(start[1]), start[2], line[start.end() :])
            last, lines[instruction.name] = instruction.name, instruction
        elif name is not None and last:  # a kernel's notes run over several lines
            before = lines[last]
            lines[last] = replace(before, attributes=f"{before.attributes} {line}")
    if entry is None:
        raise ValueError("The text of a compiled program has an ENTRY computation; this has none.")
    return Module(computations, entry)


def _instruction(root: bool, name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    opcode, inner, attributes = rest[:opening], rest[opening + 1 : closing], rest[closing + 1 :]
    named = tuple(re.findall(r"%([\w.\-]+)", inner))
    operands = named or ((inner.strip(),) if opcode in ("constant", "parameter") else ())
    return Instruction(name, opcode, kind, operands, attributes, root)


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"Unbalanced parentheses in the program's text: {text[:80]!r}.")


def arrays(kind: str) -> Iterator[tuple[int, bool]]:
    """(bytes, whether in HBM) of each array of a type as printed; padding is not counted.

    S(1) and above in a layout are the memories on the chip: VMEM, semaphores, SMEM.
    """
    for dtype, shape, layout in _ARRAY.findall(kind):
        named = _BITS.match(dtype)
        bits = int(named[1]) if named else 8 * (dtype == "pred")
        for size in shape.replace("<=", "").split(","):
            bits *= int(size) if size else 1
        yield (bits + 7) // 8, _FAST.search(layout) is None


def size(kind: str) -> int:
    """Bytes of a type as printed, wherever it is."""
    return sum(n for n, _ in arrays(kind))


def in_hbm(kind: str) -> int:
    """Bytes of a type as printed that are in HBM."""
    return sum(n for n, hbm in arrays(kind) if hbm)
