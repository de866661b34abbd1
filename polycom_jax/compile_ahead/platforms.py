"""Devices of slices and machines that are not there, and the compilers that know them."""

import os
import re
import shutil
from collections.abc import Mapping, MutableMapping
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies

from polycom_jax._errors import InputError, require
from polycom_jax.compile_ahead.chips import Chip, Gpu, Tpu, chip_named

ENVIRONMENT: Mapping[str, str] = {
    # Without it libtpu asks Google Cloud's metadata server about the machine, for minutes.
    "TPU_SKIP_MDS_QUERY": "1",
    # A TPU serves one process, so libtpu takes a lock; compilation may go on in many at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu reads when it is loaded; `without_tpu` sets it."""

GPU_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
"""Distributions of JAX's compiler for NVIDIA's GPUs."""

ASSEMBLERS = ("nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu12")
"""Distributions with `ptxas`, which makes machine code of what that compiler emits."""


def without_tpu(environment: MutableMapping[str, str] = os.environ) -> None:
    """Says in `os.environ` that this machine compiles for TPUs and has none; programs call it.

    It sets `ENVIRONMENT`, where the variables are not set already, and must come before libtpu is
    loaded, so before `devices`. The library never calls it by itself.
    """
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)


def without_gpu() -> None:
    """Says in JAX's settings that this machine compiles for GPUs and has none; programs call it.

    JAX then looks for no GPU. It does nothing where JAX_PLATFORMS is set, and must come before JAX
    is asked for devices. The library never calls it by itself.
    """
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")


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


def gpu_plugin() -> str:
    """Name and version of JAX's compiler for GPUs.

    Raises:
        InputError: it is not installed, or NVIDIA's assembler, which it calls, is not.
    """
    plugin = _installed(GPU_PLUGINS)
    missing = [] if plugin else [GPU_PLUGINS[0]]
    if not _installed(ASSEMBLERS) and shutil.which("ptxas") is None:
        missing.append(ASSEMBLERS[0])
    require(
        not missing,
        f"Compiling for a GPU needs {' and '.join(missing)}, not installed here; no GPU is needed:"
        " pip install 'polycom-jax[plan-gpu]', or of a clone: pip install -e '.[plan-gpu]'.",
    )
    return plugin


def _installed(distributions: tuple[str, ...]) -> str:
    """Name and version of the first that is installed; nothing if none is."""
    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def compiler_version(chip: Chip) -> str:
    """Name and version of the compiler for a chip; raises `InputError` if it is not installed."""
    return gpu_plugin() if isinstance(chip, Gpu) else f"libtpu {libtpu_version()}"


def devices(chip: str, topology: str | None = None, *, slices: int = 1) -> list[Any]:
    """Devices to compile for, of a slice or machine that need not exist.

    Args:
        chip: a name in `CHIPS`.
        topology: "4x4" for v5e and v6e, "2x2x1" for v4, v5p and tpu7x, None for one host's; of
            GPUs the number on a machine, as "8", None for one.
        slices: so many slices of TPUs, joined by the data centre's network.

    Returns:
        Its devices, in the order in which meshes take them.

    Raises:
        InputError: an unknown chip, a topology of the wrong form or one that the compiler refuses,
            no compiler, or an environment in which it would look for a device (see `without_tpu`
            and `without_gpu`).
    """
    found = chip_named(chip)
    require(slices >= 1, f"slices={slices} must be at least 1.")
    if isinstance(found, Gpu):
        require(slices == 1, f"slices={slices} of {chip}: GPUs are planned for on one machine.")
        return _gpus(found, topology or "1")
    assert isinstance(found, Tpu)
    return _tpus(found, topology or found.smallest, slices)


def _tpus(chip: Tpu, topology: str, slices: int) -> list[Any]:
    form = "x".join(["N"] * chip.dimensions)
    require(
        re.fullmatch(form.replace("N", r"[1-9]\d*"), topology) is not None,
        f"topology={topology!r} of {chip.name} must be {form}, for instance {chip.smallest}.",
    )
    libtpu_version()
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    require(
        not missing,
        f"Set {' and '.join(f'{name}={ENVIRONMENT[name]}' for name in missing)} before compiling"
        " for a TPU, or call polycom_jax.compile_ahead.without_tpu(): libtpu reads them when it is"
        " loaded.",
    )
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


def _gpus(chip: Gpu, topology: str) -> list[Any]:
    most = chip.chips_per_host
    require(
        re.fullmatch(r"[1-9]\d?", topology) is not None and int(topology) <= most,
        f"topology={topology!r} of {chip.name} must be a number of GPUs on one machine, 1 to"
        f" {most}.",
    )
    plugin = gpu_plugin()
    require(
        bool(jax.config.jax_platforms),
        "Set JAX_PLATFORMS=cpu before compiling for a GPU, or call"
        " polycom_jax.compile_ahead.without_gpu(): JAX would look for a GPU here.",
    )
    try:
        description = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=chip.target_config,
            topology=f"1x1x{topology}",
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise InputError(
            f"{plugin} cannot compile for {chip.name}: {str(error).splitlines()[0].rstrip('.')};"
            " start this process with JAX_PLATFORMS=cpu."
        ) from error
    return list(description.devices)
