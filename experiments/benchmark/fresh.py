"""One contestant of the suite train in a process of its own: cold caches, memory of nobody else.

Run by `train.py` as `python -m experiments.benchmark.fresh`: options and name come on stdin as
JSON; a line "first" goes to stdout when the first step is done, and the numbers as JSON at the end.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.benchmark.options import Options, read_options
from experiments.terminal.program import Stop

FIRST = "first"
LATER_STEPS = 4
"""Steps behind the first one: for the time of a step that compiles nothing, and for the peak of
memory that training holds, without the compiler's."""


def measure_fresh(options: Options, name: str) -> dict[str, float]:
    """Starts the process, and reads its numbers.

    Returns:
        "first step s" from the start of the process, Python's own start and imports included;
        "compile s", the first step less a later one; "peak MiB" while training, and of a CPU's
        "imports MiB", which is what the libraries held before there was a model.

    Raises:
        Stop: it failed; with the last line it said.
    """
    with (
        tempfile.TemporaryDirectory(prefix="polycom-benchmark-") as folder,
        open(Path(folder, "stderr"), "w", encoding="utf-8") as errors,
    ):
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark.fresh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env=_cold(os.environ, folder),
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"options": asdict(options), "name": name}))
            process.stdin.close()
            first, last = None, ""
            for line in process.stdout:
                if line.strip() == FIRST:
                    first = time.perf_counter() - began
                last = line
        if process.returncode or first is None:
            said = Path(folder, "stderr").read_text(encoding="utf-8").strip().splitlines()
            last = said[-1] if said else f"exit code {process.returncode}"
            raise Stop(f"{name} failed in a process of its own: {last}", code=1)
        return {"first step s": first, **json.loads(last)}


def _cold(environment: Mapping[str, str], folder: str) -> dict[str, str]:
    """No compiled program of an earlier run, of neither framework."""
    return {
        **environment,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }


def main() -> None:
    """The process's side."""
    request = json.load(sys.stdin)
    from experiments.benchmark.steps import make_step

    imports = resident_bytes()
    step = make_step(read_options(request["options"]), request["name"])
    clock = time.perf_counter()
    step.wait(step())
    first = time.perf_counter() - clock
    print(FIRST, flush=True)
    forget_peak()
    later = []
    for _ in range(LATER_STEPS):
        clock = time.perf_counter()
        step.wait(step())
        later.append(time.perf_counter() - clock)
    found: dict[str, Any] = {"compile s": first - sorted(later)[len(later) // 2]}
    on_device = step.peak_device_bytes()
    found["peak MiB"] = (peak_resident_bytes() if on_device is None else on_device) / 2**20
    if on_device is None:
        found["imports MiB"] = imports / 2**20
    print(json.dumps(found), flush=True)


def forget_peak() -> None:
    """Starts the kernel's record of peak memory anew (Linux: proc(5), clear_refs); elsewhere the
    peak is that of the whole process, compilation included."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def resident_bytes() -> int:
    """Memory held now; 0 where it is not known."""
    return _status("VmRSS") or 0


def peak_resident_bytes() -> int:
    """The most memory held since `forget_peak`."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


if __name__ == "__main__":
    main()
