"""A plan as text."""

from experiments.plan.host_side import STORAGE_BYTES_PER_S, HostSide
from experiments.plan.outcome import Outcome
from experiments.terminal.tables import duration

GIB = 2**30
BASIS = (
    "Estimated cycles x loop trips; attention kernels at half of the peak, heads filled up to the"
    " matrix unit's width",
    "Each kernel by its bytes over bandwidth or FLOPs over peak, so a floor; attention kernels at"
    " half of the peak",
)
"""What a prediction rests on: compiled in one way, on TPUs, or in several, on GPUs."""


def text(found: Outcome) -> str:
    """A page: memory, time by part, collectives, throughput, problems."""
    mesh = ", ".join(f"{name} {size}" for name, size in found.mesh.items()) or "one device"
    active = ""
    if found.active_parameters != found.parameters:
        active = f", {found.active_parameters:,} active"
    lines = [
        f"{found.config} on {found.hardware} ({mesh}), compiled by {found.compiler}",
        f"parameters {found.parameters:,}{active}",
        "",
        "memory a device, GiB",
        *(
            f"  {kind:<24}{size / GIB:>8.2f}{size / found.hbm:>8.1%}"
            for kind, size in found.memory.items()
        ),
        f"  {'there is':<24}{found.hbm / GIB:>8.2f}",
        "",
        f"predicted step {found.seconds * 1e3:,.1f} ms",
        *(f"  {part:<24}{share:>8.1%}" for part, share in found.parts.items()),
        *variants(found),
        "",
        "collectives a step             times      GiB       ms",
    ]
    for c in found.collectives:
        name = f"{c['opcode']}{', overlapped' if c['asynchronous'] else ''}"
        lines.append(
            f"  {name:<26}{c['times']:>8}{c['bytes'] / GIB:>9.3f}{c['seconds'] * 1e3:>9.1f}"
        )
    if not found.collectives:
        lines.append("  none")
    lines += [
        "",
        f"predicted {found.tokens_per_second:,.0f} tokens/s, MFU {found.mfu:.1%} (PaLM's count;"
        f" {found.mfu_causal:.1%} with half of attention, as it is causal),"
        f" {duration(86_400 * found.days)} for the run",
        machines(found.machines),
        f"{BASIS[len(found.variants) > 1]}; collectives by bandwidth, those that"
        " overlap taken as hidden. A prediction, no measurement.",
        *(f"not estimated: {what}" for what in found.not_estimated),
        *(f"start it with {setting}" for setting in found.settings),
        *(f"problem: {problem}" for problem in found.problems),
    ]
    return "\n".join(lines)


def variants(found: Outcome) -> list[str]:
    """Where a step was compiled in several ways, what each takes."""
    if len(found.variants) < 2:
        return []
    lines = ["", "products by              ms  kernels  GiB read  written     peak"]
    for name, one in found.variants.items():
        read, written, peak = (one[k] / GIB for k in ("bytes_read", "bytes_written", "peak_bytes"))
        lines.append(
            f"  {name:<16}{one['seconds'] * 1e3:>9,.1f}{one['kernels']:>9,.0f}"
            f"{read:>10.1f}{written:>9.1f}{peak:>9.2f}"
        )
    return lines


def machines(found: HostSide) -> str:
    """What each process has to read, write and hold."""
    return (
        f"each of {found.processes} processes reads {found.data_bytes_per_s / 1e6:.2f} MB/s of"
        f" tokens, writes {found.checkpoint_bytes / GIB:.2f} GiB of each checkpoint"
        f" ({found.checkpoint_s:.0f} s at {STORAGE_BYTES_PER_S / 1e6:.0f} MB/s, while training goes"
        f" on), and needs {found.memory_bytes / GIB:.1f} GiB of memory for that and for batches"
        " that wait"
    )
