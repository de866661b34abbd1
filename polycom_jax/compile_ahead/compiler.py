"""Compilation for devices that are not there, which refuses what does not fit into their memory."""

import contextlib
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

import jax
from jax.sharding import Sharding, SingleDeviceSharding

from polycom_jax._errors import InputError, require
from polycom_jax.compile_ahead.chips import GPUS

_REFUSED_OPTION = re.compile(r"No such compile option: .*|While setting option .*")


class DoesNotFit(InputError):
    """A program needs more memory than the chip has.

    Attributes:
        memory: "HBM" or "VMEM".
        needed: bytes, or None where the compiler does not say.
        available: bytes, or None.
    """

    def __init__(self, memory: str, needed: int | None, available: int | None, detail: str) -> None:
        self.memory, self.needed, self.available = memory, needed, available
        fix = {
            "HBM": "shard over more chips, take fewer tokens a step, or recompute more (remat)",
            "VMEM": "take smaller blocks in the kernel",
        }[memory]
        size = "" if needed is None or available is None else f" {needed:,} of {available:,} bytes"
        super().__init__(f"{memory} of the chip:{size} needed ({detail}); {fix}.")


def place(tree: Any, where: Any) -> Any:
    """Abstract arrays like those of `tree`, on `where`, a device or a `jax.sharding.Sharding`."""
    sharding = where if isinstance(where, Sharding) else SingleDeviceSharding(where)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def compile(
    function: Callable[..., Any] | jax.stages.Lowered,
    *args: Any,
    compiler_options: Mapping[str, str | int | float | bool] | None = None,
) -> jax.stages.Compiled:
    """Compiles `function` for where its arguments are.

    Args:
        function: jitted or not, or a program already lowered (then without `args`).
        *args: pytrees of `jax.ShapeDtypeStruct` with shardings on `devices` (see `place`).
        compiler_options: XLA's, by name.

    Returns:
        The program: what `predict` takes.

    Raises:
        DoesNotFit: it needs more HBM or VMEM than there is. TPUs' compiler says so itself, and its
            message is the cause; for GPUs the peak is compared with the card's memory.
        InputError: arguments beside a lowered program, or an option that XLA does not take.
    """
    if isinstance(function, jax.stages.Lowered):
        require(not args, "compile: expected no arguments beside a lowered program.")
        lowered = function
    else:
        jitted = function if hasattr(function, "lower") else jax.jit(function)
        lowered = cast(Any, jitted).lower(*args)
    try:
        with _nothing_kept():
            compiled = lowered.compile(compiler_options=dict(compiler_options or {}))
    except jax.errors.JaxRuntimeError as error:
        refusal = does_not_fit(str(error)) or refused_option(str(error))
        if refusal is None:
            raise
        raise refusal from error
    _check_gpu_memory(compiled)
    return compiled


def refused_option(message: str) -> InputError | None:
    """What to say where XLA knows no option of a name, or no such value of it; else None."""
    found = _REFUSED_OPTION.search(message)
    if found is None:
        return None
    return InputError(
        f"compiler_options: {found[0].rstrip('.')}. They are those of this platform's XLA, as"
        " NAME=VALUE; a truth value is True or False."
    )


def device_kind(compiled: jax.stages.Compiled) -> str | None:
    """The kind of device that a program is for; None: it has no arguments or results."""
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    return next(iter(shardings[0].device_set)).device_kind if shardings else None


def _check_gpu_memory(compiled: jax.stages.Compiled) -> None:
    kind = device_kind(compiled)
    memory: Any = compiled.memory_analysis()
    for chip in GPUS.values():
        if chip.device_kind == kind and memory.peak_memory_in_bytes > chip.hbm_bytes:
            peak = "the peak of all that is alive at once"
            raise DoesNotFit("HBM", memory.peak_memory_in_bytes, chip.hbm_bytes, peak)


@contextlib.contextmanager
def _nothing_kept() -> Generator[None]:
    """While it lasts, JAX writes no compiled program to its persistent cache.

    One for devices that are not there can be written and not read: JAX would warn, and compile.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


# The forms in which libtpu 0.0.51 reports that memory ran out, with (needed, available).
_OVERFLOWS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("HBM", re.compile(r"HLO temporaries \(([\d.]+\w*)\) exceeds available HBM \(([\d.]+\w*)\)")),
    ("HBM", re.compile(r"memory space hbm\. Used ([\d.]+\w*) of ([\d.]+\w*) hbm")),
    ("VMEM", re.compile(r"memory space vmem\. Used ([\d.]+\w*) of ([\d.]+\w*) vmem")),
    ("VMEM", re.compile(r"with size ([\d.]+\w*) and limit ([\d.]+\w*) exceeded scoped vmem limit")),
    (
        "VMEM",
        re.compile(r"size=(\d+)\) would exceed memory \(size=(\d+)\).*?space=vmem", re.DOTALL),
    ),
)


def does_not_fit(message: str) -> DoesNotFit | None:
    """The error behind a compiler's message, or None where it is not about memory."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for memory, form in _OVERFLOWS:
        found = form.search(message)
        if found:
            return DoesNotFit(memory, _bytes(found[1]), _bytes(found[2]), message.splitlines()[0])
    memory = "VMEM" if "vmem" in message.lower() else "HBM"
    return DoesNotFit(memory, None, None, message.splitlines()[0])


def _bytes(size: str) -> int:
    number = size.rstrip("KMGTiB")
    unit = size[len(number) : len(number) + 1]
    return int(float(number) * 1024 ** " KMGT".index(unit if unit in set("KMGT") else " "))
