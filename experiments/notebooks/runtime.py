"""Makes a notebook's runtime able to run it: `install` in the first cell, `show_next` in the last.

It is imported before anything is installed, so it needs the standard library and pip alone.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:  # a bare runtime: pip has a copy
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

Accelerator = Literal["", "cuda", "tpu"]
PLUGINS = {"cuda13": "jax-cuda13-plugin", "cuda12": "jax-cuda12-plugin", "tpu": "libtpu"}
"""Extra of the project -> the distribution that makes JAX see that accelerator."""
NAME = "polycom-jax"
RESTART = "restart the runtime (Runtime > Restart session) and run this notebook from the top"


def install(clone: Path) -> None:
    """Installs `clone` from its path, with what it needs, unless all of that is there.

    A JAX that fits stays as it is.

    Raises:
        SystemExit: pip failed, or replaced what this runtime had loaded; a line says what to do.
    """
    needs = requirements(clone)
    missing = [need for need in needs if not is_met(need)]
    if missing or not installed([NAME]):
        jax = [str(need) for need in needs if need.name in ("jax", "jaxlib")]
        fits = not any(need.name in ("jax", "jaxlib") for need in missing)
        choice = choose(accelerator(), fits, jax, installed(["jax", "jaxlib", *PLUGINS.values()]))
        print(choice.why)
        before = installed(loaded())
        _pip(clone, choice)
        importlib.invalidate_caches()
        _check_loaded(before, installed(before))
    elsewhere = importlib.util.find_spec("polycom_jax")
    if elsewhere is None or clone.resolve() not in Path(elsewhere.origin or "").resolve().parents:
        raise SystemExit(f"polycom_jax of another place is loaded here, not {clone}'s: {RESTART}.")
    place = clone.resolve()
    where = "this folder" if place == Path.cwd() else place
    print(f"The project in {where}, JAX {installed(['jax'])['jax']}")


@dataclass(frozen=True)
class Choice:
    """What pip is asked for besides the project.

    Attributes:
        extras: of the project.
        pins: distributions that stay as they are, as NAME==VERSION.
        why: in words.
    """

    extras: tuple[str, ...]
    pins: tuple[str, ...]
    why: str


def choose(
    device: Accelerator, fits: bool, wanted: Sequence[str], have: Mapping[str, str]
) -> Choice:
    """Which JAX the project gets.

    Args:
        device: what the runtime has.
        fits: whether the JAX that is there satisfies what the project asks for.
        wanted: these requirements.
        have: versions of jax, jaxlib and its plugins that are there.
    """
    extras = {"": (), "cuda": ("cuda12", "cuda13"), "tpu": ("tpu",)}[device]
    there = [extra for extra in extras if PLUGINS[extra] in have]
    extra = (there or extras)[:1]
    named = f"JAX {have['jax']}" if "jax" in have else "no JAX"
    asked = ", ".join(wanted)
    if not fits:
        new = f" for {', '.join(extra)}" if extra else ""
        why = f"Here is {named}; the project needs {asked}: installing that{new}."
        return Choice(("experiments", *extra), (), why)
    pins = tuple(f"{name}=={have[name]}" for name in ("jax", "jaxlib"))
    if extra and not there:
        why = f"{named} stays; its part for this runtime's {device} is missing and is installed."
        return Choice(("experiments", *extra), pins, why)
    return Choice(("experiments",), pins, f"{named} fits and stays; installing what is missing.")


def accelerator() -> Accelerator:
    """What the runtime has besides its processor."""
    if shutil.which("nvidia-smi"):
        return "cuda"
    return "tpu" if [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")] else ""


def requirements(clone: Path, extra: str = "experiments") -> list[Requirement]:
    """What the clone's pyproject.toml asks for, with that extra and those that it names."""
    project = tomllib.loads((clone / "pyproject.toml").read_text("utf-8"))["project"]
    extras, found = [extra], [Requirement(text) for text in project["dependencies"]]
    for name in extras:
        for need in map(Requirement, project["optional-dependencies"][name]):
            if canonicalize_name(need.name) == NAME:
                extras += sorted(need.extras.difference(extras))
            else:
                found.append(need)
    return [need for need in found if need.marker is None or need.marker.evaluate()]


def is_met(need: Requirement) -> bool:
    """Whether a distribution that satisfies it is there."""
    version = installed([need.name]).get(need.name)
    return version is not None and need.specifier.contains(version, prereleases=True)


def installed(names: Any) -> dict[str, str]:
    """Versions of those of the distributions that are there."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def loaded() -> list[str]:
    """Distributions that this process has imported something of."""
    owners = importlib.metadata.packages_distributions()
    modules = {name.partition(".")[0] for name in sys.modules}
    return sorted({owner for module in modules for owner in owners.get(module, ())})


def _check_loaded(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises `SystemExit` where a distribution was replaced beneath the process."""
    changed = [f"{n} {before[n]} -> {after.get(n)}" for n in before if before[n] != after.get(n)]
    if changed:
        what = ", ".join(changed)
        raise SystemExit(f"Replaced while this runtime had it loaded: {what}; {RESTART}.")


def _pip(clone: Path, choice: Choice) -> None:
    # By its path, never by a name: the index may hold a stranger's project under that.
    project = f"{clone.resolve()}[{','.join(choice.extras)}]"
    command = [sys.executable, "-m", "pip", "install", "-q", "-e", project, *choice.pins]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"pip could not install {project}: see its message above.")


def show_next(clone: Path, *commands: Sequence[str | Path]) -> None:
    """Prints commands of `python -m experiments` as they work from here, for a terminal or a cell.

    Args:
        clone: where the programs are.
        commands: words of each; a `Path` is a file or folder, relative to this process's folder.
    """
    python = shutil.which("python")
    same = python is not None and os.path.realpath(python) == os.path.realpath(sys.executable)
    start = ["python" if same else sys.executable, "-m"]
    inside = Path.cwd() == clone.resolve()
    print("Next, in a terminal, or in a cell with a ! before it:")
    for program, *words in commands:
        paths = (str(w if inside or not isinstance(w, Path) else w.resolve()) for w in words)
        line = shlex.join([*start, f"experiments.{program}", *paths])
        print(f"  {line}" if inside else f"  cd {shlex.quote(str(clone.resolve()))} && {line}")
    if accelerator():
        print("Restart the runtime before (Runtime > Restart session): it holds the accelerator.")
