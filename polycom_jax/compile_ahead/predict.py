"""What a compiled program would take on a TPU or GPU: the project's one predictor.

    seconds = sum of the compiler's `estimated_cycles` x how often they run / clock       (TPUs)
            + for each kernel              max(bytes / HBM bandwidth, FLOPs / peak);
                                           attention's at half of the peak, on TPUs with heads
                                           filled up to a multiple of the matrix unit
            + for each collective that nothing overlaps    bytes that leave a chip / bandwidth of
                                                           its links

On TPUs the first sum covers what XLA itself schedules, over the text of the scheduled program, and
kernels are Pallas's, with the FLOPs that they declare. On GPUs the compiler estimates nothing, and
every fusion, copy and call of a library is a kernel. Loops count as often as they run, and a
conditional by its longest branch, or under a scope named `rescue`, which handles rows that would
overflow, by its shortest. Kernels and collectives are a roofline: a floor. Asynchronous collectives
are listed and not added, since they run beside computation; on GPUs, where what runs beside one
takes at least as long. XLA's own `optimal_seconds` is not used: it counts a loop once, and is
negative for some programs with loops.
"""

from collections import defaultdict
from dataclasses import dataclass, field, fields
from typing import Any

import jax

from polycom_jax._errors import require
from polycom_jax.compile_ahead.chips import Chip, chip_of_kind
from polycom_jax.compile_ahead.collectives import collective_opcode
from polycom_jax.compile_ahead.compiler import device_kind
from polycom_jax.compile_ahead.costs import Kind, cost
from polycom_jax.compile_ahead.hbm_bytes import read_and_written
from polycom_jax.compile_ahead.hlo import parse
from polycom_jax.compile_ahead.loop_trip_counts import Place
from polycom_jax.compile_ahead.platforms import compiler_version
from polycom_jax.compile_ahead.runs import runs_of, scope_of

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
        seconds: these bytes over the bandwidth of the chip's links.
    """

    opcode: str
    asynchronous: bool
    times: int
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """What a compiled program would take on one chip of its slice or machine.

    Attributes:
        chip: for which.
        compiler: that made the program, and the estimates of TPUs, with its version.
        cycles: the compiler's, times loop trips; none on GPUs.
        kernels: how often a kernel starts.
        kernel_seconds: rooflines of kernels.
        collective_seconds: rooflines of collectives that nothing overlaps.
        asynchronous_seconds: rooflines of collectives that may be overlapped; not in `seconds`.
        bytes_read, bytes_written: HBM traffic: operands and results, times loop trips.
        argument_bytes, output_bytes, alias_bytes, temporary_bytes, code_bytes: as the compiler
            reports them; outputs that reuse a donated argument are the aliases.
        peak_hbm_bytes: the most that is alive at once, arguments and outputs with it.
        rows: the largest first.
        collectives: by kind and whether they are asynchronous, the longest first.
        not_estimated: what has no estimate, with how often it runs; and loops whose number of runs
            depends on data, counted once.
    """

    chip: Chip
    compiler: str
    cycles: float
    kernels: int
    kernel_seconds: float
    collective_seconds: float
    asynchronous_seconds: float
    bytes_read: int
    bytes_written: int
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

    @property
    def bytes_accessed(self) -> int:
        """HBM traffic in all."""
        return self.bytes_read + self.bytes_written

    @property
    def floor_bytes(self) -> int:
        """What no program with these arguments and results goes under: each is moved once."""
        return self.argument_bytes + self.output_bytes

    def report(self, largest: int = 12) -> str:
        """A page of text: totals, the largest rows, and what was not estimated."""
        gib = 2**30
        estimated = ""
        if self.cycles:
            estimated = f"{self.cycles / 1e6:.3f} Mcycles at {self.chip.clock / 1e9:g} GHz; "
        lines = [
            f"{self.chip.name}, {self.compiler}: {self.seconds * 1e3:.3f} ms"
            f" ({estimated}{self.kernels} kernels {self.kernel_seconds * 1e3:.3f} ms"
            f" and collectives {self.collective_seconds * 1e3:.3f} ms by roofline;"
            f" {self.asynchronous_seconds * 1e3:.3f} ms of collectives may be hidden)",
            f"HBM: {self.bytes_accessed / gib:.3f} GiB moved, {self.peak_hbm_bytes / gib:.3f} GiB"
            f" at the peak of {self.chip.hbm_bytes / gib:.4g}; arguments"
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
        InputError: it was compiled for something else than a chip of `CHIPS`.
    """
    kind = device_kind(compiled)
    require(kind is not None, "predict: a program without arguments and results takes no time.")
    chip = chip_of_kind(str(kind))
    memory: Any = compiled.memory_analysis()
    return predict_text(
        compiled.as_text() or "",
        chip,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        peak_hbm_bytes=memory.peak_memory_in_bytes,
        compiler=compiler_version(chip),
    )


def predict_text(
    text: str, chip: Chip, *, compiler: str = "an unknown compiler", **memory: int
) -> Prediction:
    """Predicts a program from its text, for a chip.

    Args:
        text: `compiled.as_text()`.
        chip: that it was compiled for.
        compiler: its name and version.
        **memory: the `*_bytes` fields of `Prediction` that a compiler reports; 0 if left out.
    """
    module = parse(text)
    runs, notes = runs_of(
        module,
        Place(module.computations[module.entry]),
        lambda run: (cost(module, run, chip) or ("compiled", 0.0))[1],
    )
    spent: dict[tuple[str, Kind], list[float]] = defaultdict(lambda: [0.0, 0])
    totals: dict[Kind, float] = defaultdict(float)
    missing: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    sent: dict[tuple[str, bool], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    kernels = read = written = 0
    for run in runs:
        moved = read_and_written(module, run.where, run.instruction)
        read, written = read + moved.read * run.times, written + moved.written * run.times
        found = cost(module, run, chip)
        if found is None:
            if sum(moved) > _SMALL:
                missing[run.instruction.opcode][0] += run.times
                missing[run.instruction.opcode][1] += sum(moved) * run.times
            continue
        kind, seconds = found
        totals[kind] += seconds * run.times
        kernels += run.times if kind == "kernel" else 0
        if kind.endswith("collective"):
            key = collective_opcode(module, run.instruction), kind != "collective"
            one = (1, seconds * chip.link_bandwidth, seconds)
            sent[key] = [a + b * run.times for a, b in zip(sent[key], one, strict=True)]
        entry = spent[scope_of(run.instruction, module), kind]
        entry[0] += seconds * run.times
        entry[1] += run.times
    rows = [Row(scope, kind, s, int(n)) for (scope, kind), (s, n) in spent.items()]
    sizes = {name: memory.pop(name, 0) for name in _MEMORY}
    require(not memory, f"predict_text: unknown {', '.join(memory)}; known: {', '.join(_MEMORY)}.")
    return Prediction(
        chip=chip,
        compiler=compiler,
        cycles=totals["compiled"] * chip.clock,
        kernels=kernels,
        kernel_seconds=totals["kernel"],
        collective_seconds=totals["collective"],
        asynchronous_seconds=totals["asynchronous collective"],
        bytes_read=read,
        bytes_written=written,
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
