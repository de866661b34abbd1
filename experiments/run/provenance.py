"""Where a number comes from: versions of packages, the machine, the commit."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jaxlib

import polycom_jax

PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "libtpu", "numpy", "flax", "optax")
"""Whose versions are recorded where they are installed, besides jax and Python."""


def versions() -> dict[str, str]:
    """What the losses' last digits depend on besides the config."""
    return {
        "polycom_jax": polycom_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


@functools.cache
def circumstances() -> dict[str, Any]:
    """The machine, versions of other packages, the commit."""
    found: dict[str, Any] = {"platform": platform.platform(), "processor": processor()}
    found["cores"] = cores()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if "torch" in sys.modules:
        found["torch threads"] = sys.modules["torch"].get_num_threads()
    return {**found, "backend": jax.default_backend(), "commit": commit()}


@functools.cache
def source_files() -> str:
    """A digest of the Python files of the library and the programs.

    A commit does not say what a checkout that differs from it holds. Scripts among the results are
    of single pages, and no program reads them.
    """
    found = hashlib.sha256()
    for root in (Path(polycom_jax.__file__).parent, Path(__file__).resolve().parents[1]):
        names = (path.relative_to(root) for path in root.rglob("*.py") if path.is_file())
        for name in sorted(name for name in names if name.parts[0] != "results"):
            content = (root / name).read_bytes()
            found.update(f"{name.as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:12]


def cores() -> int:
    """Cores that this process may use: XLA splits a CPU's sums by them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor()


def commit() -> str | None:
    """The commit that this file is of, marked where the checkout differs from it."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
