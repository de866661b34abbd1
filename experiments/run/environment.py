"""What the last digits of a run depend on besides its config: one name and value each."""

import os
from collections.abc import Mapping
from importlib.metadata import version

import jax
import jaxlib

import polycom_jax
from experiments.run.config import RunConfig
from experiments.run.provenance import cores, processor

DECIDING = ("polycom_jax", "optax", "grain")
"""Packages that decide more than the last digits: the update, and which tokens stand in a batch."""
DETERMINISTIC_GPU = {"xla_gpu_deterministic_ops": True}
"""XLA: "Guarantees run-to-run determinism on GPU": no atomic sums, and no algorithm chosen by how
fast it happened to run."""


def facts(run: RunConfig) -> dict[str, str]:
    """Equal facts, equal bits: a run that resumes with others is equal up to rounding.

    Of others of `DECIDING` not even that is known.
    """
    return {
        "polycom_jax": polycom_jax.__version__,
        "optax": version("optax"),
        "grain": version("grain"),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "processor": processor(),
        "cores": str(cores()),
        "NPROC": os.environ.get("NPROC", ""),  # XLA takes it before the cores for its threads
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "hosts": str(jax.process_count()),
        "platform": " ".join(str(jax.devices()[0].client.platform_version).split()),
        "XLA_FLAGS": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
        "LIBTPU_INIT_ARGS": " ".join(sorted(os.environ.get("LIBTPU_INIT_ARGS", "").split())),
        "deterministic options": " ".join(f"{k}={v}" for k, v in deterministic(run).items()),
    }


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The facts that differ, as one line; empty: none does."""
    return "; ".join(
        f"{name} {before[name] or 'none'!r} before, {now[name] or 'none'!r} now"
        for name in now
        if name in before and before[name] != now[name]
    )


def warnings(
    before: Mapping[str, str], now: Mapping[str, str], *, by_device: bool = False
) -> list[str]:
    """What a run that resumes is told: where it may become another, and where only in rounding.

    Args:
        before: facts of its checkpoint.
        now: facts of this process.
        by_device: which tokens are dropped depends on how they are spread over devices.
    """
    deciding = {*DECIDING, *(("devices", "hosts") if by_device else ())}
    more, less = (
        changed(before, {name: now[name] for name in now if (name in deciding) is decides})
        for decides in (True, False)
    )
    said = {"another run from here on, perhaps in more than rounding": more}
    said |= {"equal from here on only up to rounding": less}
    return [f"warning: {what}: {which}" for what, which in said.items() if which]


def deterministic(run: RunConfig) -> dict[str, bool]:
    """XLA's options for the programs of a run that asks for the same bits each time."""
    return DETERMINISTIC_GPU if run.deterministic and jax.default_backend() == "gpu" else {}
