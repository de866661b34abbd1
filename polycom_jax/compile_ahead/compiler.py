"""Devices of a slice that is not there, and compilation for them."""

import contextlib
import os
import re
from collections.abc import Callable, Generator, Mapping, MutableMapping
from importlib import metadata
from typing import Any, cast

import jax
from jax.experimental import topologies
from jax.sharding import Sharding, SingleDeviceSharding

from polycom_jax._errors import InputError, require
from polycom_jax.compile_ahead.chips import Chip, chip_named

ENVIRONMENT: Mapping[str, str] = {
    # Without it libtpu asks Google Cloud's metadata server about the machine, for minutes.
    "TPU_SKIP_MDS_QUERY": "1",
    # A TPU serves one process, so libtpu takes a lock; compilation may go on in many at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu reads when it is loaded; `without_tpu` sets it."""


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


def without_tpu(environment: MutableMapping[str, str] = os.environ) -> None:
    """Says in `os.environ` that this machine compiles for TPUs and has none; programs call it.

    It sets `ENVIRONMENT`, where the variables are not set already, and must come before libtpu is
    loaded, so before `devices`. The library never calls it by itself.
    """
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)


def libtpu_version() -> str:
    """Version of the libtpu wheel, whose compiler makes the predictions.

    Raises:
        InputError: it is not installed.
    """
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError as error:
        raise InputError(
            "Compiling for a TPU needs the libtpu wheel, which is not installed; no TPU is needed:"
            " pip install libtpu, in the version that jax[tpu] asks for."
        ) from error


def devices(chip: str, topology: str | None = None, *, slices: int = 1) -> list[Any]:
    """Devices to compile for, of a slice that need not exist.

    Args:
        chip: a name in `CHIPS`.
        topology: "4x4" for v5e and v6e, "2x2x1" for v4, v5p and tpu7x; None for one host's.
        slices: so many of them, joined by the data centre's network.

    Returns:
        Its devices, in the order in which meshes take them.

    Raises:
        InputError: an unknown chip, a topology of the wrong form or one that libtpu refuses, no
            libtpu, or an environment in which it would look for a TPU (see `without_tpu`).
    """
    found = chip_named(chip)
    topology = topology or found.smallest
    form = "x".join(["N"] * found.dimensions)
    require(
        re.fullmatch(form.replace("N", r"[1-9]\d*"), topology) is not None,
        f"topology={topology!r} of {chip} must be {form}, for instance {found.smallest}.",
    )
    libtpu_version()
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    require(
        not missing,
        f"Set {' and '.join(f'{name}={ENVIRONMENT[name]}' for name in missing)} before compiling"
        " for a TPU, or call polycom_jax.compile_ahead.without_tpu(): libtpu reads them when it is"
        " loaded.",
    )
    require(slices >= 1, f"slices={slices} must be at least 1.")
    return _topology(found, topology, slices)


def _topology(chip: Chip, topology: str, slices: int) -> list[Any]:
    options = {**chip.topology_options, **({"num_slices": slices} if slices > 1 else {})}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.name}:{topology}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"libtpu {libtpu_version()} knows no topology {chip.name}:{topology}:"
            f" {str(error).splitlines()[0].rstrip('.')}; one host's is {chip.smallest}."
        ) from error
    return list(description.devices)


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
        DoesNotFit: it needs more HBM or VMEM than there is; the compiler's message is the cause.
        InputError: arguments beside a lowered program.
    """
    if isinstance(function, jax.stages.Lowered):
        require(not args, "compile: expected no arguments beside a lowered program.")
        lowered = function
    else:
        jitted = function if hasattr(function, "lower") else jax.jit(function)
        lowered = cast(Any, jitted).lower(*args)
    try:
        with _nothing_kept():
            return lowered.compile(compiler_options=dict(compiler_options or {}))
    except jax.errors.JaxRuntimeError as error:
        refusal = does_not_fit(str(error))
        if refusal is None:
            raise
        raise refusal from error


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
