"""Whole runs of `experiments.pretrain` on this device, each in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.options import Options
from experiments.benchmark.results import Result, Row, Spread, Tell
from experiments.run.metrics import read_metrics

STEPS, QUICK_STEPS = 20, 3
SECONDS = 240
"""After which a run is ended; the default one of `STEPS` steps takes less than a minute."""

LOSS_TOLERANCE = 5e-2
"""Relative, between two devices: a float32 product by TF32 keeps ten bits, and steps add up."""

QUICK_MODEL = ("--seq-len", "64", "--batch-size", "2", "--model.num-layers", "1")

Losses = Sequence[Mapping[str, float]]


def _pretrain(options: Options, *words: str, cpu: bool = False) -> Losses:
    """The lines of metrics.jsonl, loss and gradient norm of each step.

    Raises:
        RuntimeError: the run failed, with the last line that it said.
    """
    steps = QUICK_STEPS if options.quick else STEPS
    with tempfile.TemporaryDirectory(prefix="polycom-card-") as folder:
        command = [sys.executable, "-m", "experiments.pretrain", "--workdir", folder]
        command += ["--steps", str(steps), "--log-every", "1", "--run.sample-tokens", "1"]
        command += ["--run.eval-tokens", "4096"]
        command += [*(QUICK_MODEL if options.quick else ()), *words]
        done = subprocess.run(
            command,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, **({"JAX_PLATFORMS": "cpu"} if cpu else {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise RuntimeError(f"{' '.join(command[2:])} ended with {done.returncode}: {last}")
        lines = read_metrics(Path(folder, "metrics.jsonl"))
        return [line for line in lines if "loss" in line and "grad_norm" in line]


def _result(case: str, runs: Mapping[str, Losses], note: str, failures: Sequence[str]) -> Result:
    rows = tuple(
        Row(
            name,
            Spread.exact(0.0),
            numbers={
                "steps": len(lines),
                "first loss": lines[0]["loss"],
                "last loss": lines[-1]["loss"],
                "last gradient norm": lines[-1]["grad_norm"],
            },
        )
        for name, lines in runs.items()
    )
    notes = (note, "nothing is timed")
    return Result("card", case, rows, notes=notes, failures=tuple(failures))


def twice(options: Options, tell: Tell) -> Result:
    """The default run twice under --run.deterministic: the same to the last bit."""
    runs: dict[str, Losses] = {}
    for name in ("first", "again"):
        tell(f"{name} run")
        runs[name] = _pretrain(options, "--run.deterministic", "True")
    pairs = zip(*runs.values(), strict=True)
    same = all(a[key] == b[key] for a, b in pairs for key in ("loss", "grad_norm"))
    failures = () if same else ("two deterministic runs differ",)
    return _result("a deterministic run, twice", runs, "equal in every digit: loss, norm", failures)


def mixture(options: Options, tell: Tell) -> Result:
    """The preset moe-tiny learns."""
    tell("training")
    runs = {"moe-tiny": _pretrain(options, "--model", "moe-tiny")}
    first, last = runs["moe-tiny"][0]["loss"], runs["moe-tiny"][-1]["loss"]
    failures = () if last < first else (f"the loss went from {first:.4g} to {last:.4g}",)
    return _result("moe-tiny trains", runs, "the loss falls", failures)


def beside_cpu(options: Options, tell: Tell) -> Result:
    """The default run here and on this machine's CPU."""
    runs: dict[str, Losses] = {}
    for name, cpu in (("here", False), ("on the CPU", True)):
        tell(f"the run {name}")
        runs[name] = _pretrain(options, cpu=cpu)
    failures = [
        f"step {int(a['step'])}: loss {a['loss']:.6g}, and {b['loss']:.6g} on the CPU"
        for a, b in zip(*runs.values(), strict=True)
        if not abs(a["loss"] - b["loss"]) <= LOSS_TOLERANCE * abs(b["loss"])
    ]
    note = f"losses within {LOSS_TOLERANCE:g} of each other at every step"
    return _result("the default run beside the CPU's", runs, note, failures[:3])


Run = Callable[[Options, Tell], Any]

RUNS: Mapping[str, Run] = {
    "a deterministic run, twice": twice,
    "moe-tiny trains": mixture,
    "the default run beside the CPU's": beside_cpu,
}
