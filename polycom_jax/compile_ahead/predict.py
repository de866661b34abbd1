"""What a compiled TPU program would take: the project's one predictor.

    seconds = sum of the compiler's `estimated_cycles` x how often they run / clock
            + for each Pallas kernel    max(bytes / HBM bandwidth, declared FLOPs / peak);
                                        attention's, which declare none, at half of the peak
            + for each collective that nothing overlaps    bytes that leave a chip / ICI bandwidth

The first sum covers what XLA itself schedules, over the text of the scheduled program. Loops count
as often as they run, and a conditional by its longest branch, or under a scope named `rescue`,
which handles rows that would overflow, by its shortest. Kernels and collectives carry no estimate,
so theirs is a roofline: a floor. Asynchronous collectives are listed and not added, since they run
beside computation. XLA's own `optimal_seconds` is not used: it counts a loop once, and is negative
for some programs with loops.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import jax

from polycom_jax._errors import require
from polycom_jax.compile_ahead.chips import Chip, chip_of_kind
from polycom_jax.compile_ahead.collectives import collective_opcode, leaving_bytes
from polycom_jax.compile_ahead.compiler import libtpu_version
from polycom_jax.compile_ahead.hbm_bytes import hbm_traffic
from polycom_jax.compile_ahead.hlo import Computation, Instruction, Module, parse, size
from polycom_jax.compile_ahead.loop_trip_counts import Place, trip_count

Kind = Literal["compiled", "kernel", "collective", "asynchronous collective"]

# What takes no time of its own; what ends something asynchronous (-done, -update) is counted where
# that starts.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
        *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
    )
)
# Without an estimate and smaller than this, an instruction counts for nothing and is not listed.
_SMALL = 4096


@dataclass(frozen=True)
class Row:
    """What takes time: one place in the source.

    Attributes:
        scope: JAX's name stack, without the name of the function.
        kind: how its time is known.
        seconds: of all its runs.
        times: how many runs of an instruction that is.
    """

    scope: str
    kind: Kind
    seconds: float
    times: int


@dataclass(frozen=True)
class Collective:
    """All collectives of a kind.

    Attributes:
        opcode: "all-gather", ...
        asynchronous: whether computation goes on between their start and their end.
        times: how often one runs.
        bytes: that leave a chip, in all.
        seconds: these bytes over the interconnect's bandwidth.
    """

    opcode: str
    asynchronous: bool
    times: int
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """What a compiled program would take on one chip of its slice.

    Attributes:
        chip: for which.
        libtpu: version of the compiler that made the estimates.
        cycles: the compiler's, times loop trips.
        kernel_seconds: rooflines of Pallas kernels.
        collective_seconds: rooflines of collectives that nothing overlaps.
        asynchronous_seconds: rooflines of collectives that may be overlapped; not in `seconds`.
        bytes_accessed: HBM traffic: operands and results, times loop trips.
        argument_bytes, output_bytes, alias_bytes, temporary_bytes, code_bytes: as the compiler
            reports them; outputs that reuse a donated argument are the aliases.
        peak_hbm_bytes: the most that is alive at once, arguments and outputs with it.
        rows: the largest first.
        collectives: by kind and whether they are asynchronous, the longest first.
        not_estimated: what has no estimate, with how often it runs; and loops whose number of runs
            depends on data, counted once.
    """

    chip: Chip
    libtpu: str
    cycles: float
    kernel_seconds: float
    collective_seconds: float
    asynchronous_seconds: float
    bytes_accessed: int
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    code_bytes: int
    peak_hbm_bytes: int
    rows: tuple[Row, ...] = field(repr=False)
    collectives: tuple[Collective, ...] = field(repr=False)
    not_estimated: tuple[str, ...] = field(repr=False)

    @property
    def seconds(self) -> float:
        """The predicted time; asynchronous collectives are taken to be hidden."""
        return self.cycles / self.chip.clock + self.kernel_seconds + self.collective_seconds

    def report(self, largest: int = 12) -> str:
        """A page of text: totals, the largest rows, and what was not estimated."""
        gib = 2**30
        lines = [
            f"{self.chip.name}, libtpu {self.libtpu}: {self.seconds * 1e3:.3f} ms"
            f" ({self.cycles / 1e6:.3f} Mcycles at {self.chip.clock / 1e9:g} GHz;"
            f" kernels {self.kernel_seconds * 1e3:.3f} ms and collectives"
            f" {self.collective_seconds * 1e3:.3f} ms by roofline;"
            f" {self.asynchronous_seconds * 1e3:.3f} ms of collectives may be hidden)",
            f"HBM: {self.bytes_accessed / gib:.3f} GiB moved, {self.peak_hbm_bytes / gib:.3f} GiB"
            f" at the peak of {self.chip.hbm_bytes / gib:g}; arguments"
            f" {self.argument_bytes / gib:.3f}, temporaries {self.temporary_bytes / gib:.3f},"
            f" code {self.code_bytes / gib:.3f} GiB",
        ]
        for row in self.rows[:largest]:
            lines.append(
                f"{row.seconds * 1e3:10.3f} ms {row.seconds / max(self.seconds, 1e-30):6.1%}"
                f" {row.times:5d} x {row.kind:10s} {row.scope}"
            )
        lines += [f"not estimated: {what}" for what in self.not_estimated]
        return "\n".join(lines)


def predict(compiled: jax.stages.Compiled) -> Prediction:
    """Predicts a program that `polycom_jax.compile_ahead.compile` made.

    Raises:
        InputError: it was compiled for something else than a TPU of `CHIPS`.
    """
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    require(bool(shardings), "predict: a program without arguments and results takes no time.")
    kind = next(iter(shardings[0].device_set)).device_kind
    memory: Any = compiled.memory_analysis()
    return predict_text(
        compiled.as_text() or "",
        chip_of_kind(kind),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        peak_hbm_bytes=memory.peak_memory_in_bytes,
        libtpu=libtpu_version(),
    )


def predict_text(text: str, chip: Chip, *, libtpu: str = "unknown", **memory: int) -> Prediction:
    """Predicts a program from its text, for a chip.

    Args:
        text: `compiled.as_text()`.
        chip: that it was compiled for.
        libtpu: the compiler's version.
        **memory: the `*_bytes` fields of `Prediction` except `bytes_accessed`; 0 if left out.
    """
    module = parse(text)
    runs, notes = _runs(module, Place(module.computations[module.entry]), chip)
    spent: dict[tuple[str, Kind], list[float]] = defaultdict(lambda: [0.0, 0])
    totals: dict[Kind, float] = defaultdict(float)
    missing: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    sent: dict[tuple[str, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for run in runs:
        cost = _cost(module, run, chip)
        if cost is not None:
            kind, seconds = cost
            totals[kind] += seconds * run.times
            if kind.endswith("collective"):
                key = collective_opcode(module, run.instruction), kind != "collective"
                one = (1, seconds * chip.ici_bandwidth, seconds)
                sent[key] = [a + b * run.times for a, b in zip(sent[key], one, strict=True)]
            entry = spent[_scope(run.instruction), kind]
            entry[0] += seconds * run.times
            entry[1] += run.times
        elif (moved := hbm_traffic(module, run.where, run.instruction)) > _SMALL:
            missing[run.instruction.opcode][0] += run.times
            missing[run.instruction.opcode][1] += moved * run.times
    rows = [Row(scope, kind, s, int(n)) for (scope, kind), (s, n) in spent.items()]
    sizes = {name: memory.pop(name, 0) for name in _MEMORY}
    require(not memory, f"predict_text: unknown {', '.join(memory)}; known: {', '.join(_MEMORY)}.")
    return Prediction(
        chip=chip,
        libtpu=libtpu,
        cycles=totals["compiled"] * chip.clock,
        kernel_seconds=totals["kernel"],
        collective_seconds=totals["collective"],
        asynchronous_seconds=totals["asynchronous collective"],
        bytes_accessed=sum(
            hbm_traffic(module, run.where, run.instruction) * run.times for run in runs
        ),
        rows=tuple(sorted(rows, key=lambda row: -row.seconds)),
        collectives=tuple(
            Collective(*key, int(n), leaving, seconds)
            for key, (n, leaving, seconds) in sorted(sent.items(), key=lambda item: -item[1][2])
        ),
        not_estimated=tuple(notes)
        + tuple(f"{n} x {name}, {b:,} bytes in all" for name, (n, b) in sorted(missing.items())),
        **sizes,
    )


_MEMORY = tuple(one.name for one in fields(Prediction) if one.name.endswith("_bytes"))


@dataclass(frozen=True)
class _Run:
    instruction: Instruction
    where: Computation
    times: int


def _runs(module: Module, place: Place, chip: Chip) -> tuple[list[_Run], list[str]]:
    """What runs in a computation and those it calls, how often, and what is uncertain about it."""
    runs: list[_Run] = []
    notes: list[str] = []
    for instruction in place.computation.instructions.values():
        opcode = instruction.opcode
        if opcode == "while":
            trips = trip_count(module, instruction, place)
            if trips is None:
                notes.append(f"how often the loop {_scope(instruction)} runs; counted once")
                trips = 1
            for name in re.findall(r"\b(?:condition|body)=%?([\w.\-]+)", instruction.attributes):
                inner = Place(module.computations[name], instruction, place)
                _extend(runs, notes, _runs(module, inner, chip), trips)
        elif opcode == "conditional":
            branches = [
                _runs(module, Place(module.computations[name]), chip) for name in instruction.calls
            ]
            which = min if "rescue" in _scope(instruction).split("/") else max
            _extend(runs, notes, which(branches, key=lambda b: _total(module, b[0], chip)), 1)
        elif opcode in ("call", "async-start") and instruction.cycles is None:
            for name in instruction.calls:
                inner = Place(module.computations[name], place.caller, place.outer)
                _extend(runs, notes, _runs(module, inner, chip), 1)
        elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
            runs.append(_Run(instruction, place.computation, 1))
    return runs, notes


def _extend(
    runs: list[_Run], notes: list[str], inner: tuple[Iterable[_Run], list[str]], times: int
) -> None:
    runs.extend(_Run(r.instruction, r.where, r.times * times) for r in inner[0])
    notes.extend(inner[1])


def _total(module: Module, runs: Iterable[_Run], chip: Chip) -> float:
    costs = ((_cost(module, run, chip), run.times) for run in runs)
    return sum(cost[1] * times for cost, times in costs if cost is not None)


def _cost(module: Module, run: _Run, chip: Chip) -> tuple[Kind, float] | None:
    """How the time of one run of an instruction is known, and the time."""
    instruction = run.instruction
    leaving = leaving_bytes(module, run.where, instruction)
    if leaving is not None:
        asynchronous = instruction.opcode.endswith("-start")
        kind: Kind = "asynchronous collective" if asynchronous else "collective"
        return kind, leaving / chip.ici_bandwidth
    if instruction.cycles is not None:
        return "compiled", instruction.cycles / chip.clock
    if instruction.attribute(r'custom_call_target="(tpu_custom_call)"'):
        sources = [run.where.instructions[name].type for name in instruction.operands]
        moved = sum(map(size, (*sources, instruction.type)))
        flops = float(instruction.attribute(r'"flops":"?([\d.e+]+)') or 0)
        flops = max(flops, _attention_flops(instruction.scope, sources) / ATTENTION_SHARE)
        return "kernel", max(moved / chip.hbm_bandwidth, flops / chip.peak_flops)
    return None


ATTENTION_SHARE = 0.5
"""Of the peak, that attention kernels are taken to reach: they also have a softmax to do."""

# Products of T x T x C that JAX's splash kernels make for each head; half of each is masked.
_ATTENTION_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}


def _attention_flops(scope: str, operands: Sequence[str]) -> float:
    """FLOPs of a causal attention kernel, from its name and its largest operand [B, H, T, C]."""
    products = next((n for name, n in _ATTENTION_PRODUCTS.items() if name in scope), 0)
    shapes = [tuple(map(int, dims.split(","))) for t in operands for dims in _FOUR.findall(t)]
    if not products or not shapes:
        return 0.0
    batch, heads, length, width = max(shapes, key=math.prod)
    return products * 2 * batch * heads * length**2 * width / 2


_FOUR = re.compile(r"\w+\[(\d+,\d+,\d+,\d+)\]")


def _scope(instruction: Instruction) -> str:
    return re.sub(r"^jit\([^)]*\)/", "", instruction.scope) or instruction.name
