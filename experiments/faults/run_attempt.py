"""One life of a run, from its start to its end or to the moment it is killed."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.terminal.program import Stop
from polycom_jax.storage import Place
from polycom_jax.training import latest_step

ROOT = Path(__file__).resolve().parents[2]
PHASES = {
    **{"start": 1, "prepare": 2, "compile": 2},
    **{"train": 4, "evaluate": 4, "save": 4},
    "report": 1,
}
"""What a run goes through, and how often each is aimed at in as many kills as there are in all;
"start" is Python's own and the imports, "prepare" reads data and checkpoint."""
SEVERAL = ("evaluate", "save")
"""Phases that a life has more than one of."""
PREEMPTED = 0.2
"""Share of SIGTERM among the signals, as a scheduler sends it; the others are SIGKILL."""
HANGS_S = 900.0
"""Without a word from a run for so long, it hangs."""


@dataclass(frozen=True)
class Plan:
    """When to kill.

    Attributes:
        phase: once it has begun ...
        times: ... so often (steps, where it is "train") ...
        delay_s: ... and so long after.
        number: by what; SIGKILL asks nobody, SIGTERM lets the run save.
    """

    phase: str
    times: int
    delay_s: float
    number: signal.Signals = signal.SIGKILL


@dataclass
class RunAttempt:
    """What became of it.

    Attributes:
        folder: of the run.
        plan: when it was to be killed; None: not at all.
        began_at: step of the checkpoint that it found, 0 without one.
        phase: what it was doing last.
        step: last step that was done.
        killed: whether it was; False: it came to its end before.
        seconds: how long it lasted.
        durations: of each phase, the longest.
    """

    folder: Place
    plan: Plan | None
    began_at: int
    phase: str = "start"
    step: int = 0
    killed: bool = False
    seconds: float = 0.0
    durations: dict[str, float] = field(default_factory=dict)


def phases(rng: random.Random) -> Iterator[str]:
    """Phases to aim at, without end: all of `PHASES`, as often as it says, in random order; again.

    Drawn one by one, twenty of them would leave the short ones out now and then.
    """
    while True:
        deck = [phase for phase, times in PHASES.items() for _ in range(times)]
        rng.shuffle(deck)
        yield from deck


def draw(rng: random.Random, phase: str, longest: float, every: int) -> Plan:
    """A moment drawn at random in a phase, however short that is.

    Args:
        rng: what draws.
        phase: of `PHASES`.
        longest: that it has lasted, in seconds.
        every: steps between two checkpoints; a life is to get about that far.
    """
    times = rng.randint(1, 2) if phase in SEVERAL else 1
    if phase == "train":
        times, longest = rng.randint(1, every + every // 2 + 1), longest / every
    if phase == "save":
        longest *= 2  # it goes on in the background
    number = signal.SIGTERM if rng.random() < PREEMPTED else signal.SIGKILL
    return Plan(phase, times, rng.uniform(0, longest), number)


def live(
    words: Sequence[str], folder: Place, plan: Plan | None, *, log: Path | None = None
) -> RunAttempt:
    """Runs `experiments.pretrain` with these words, and kills it as planned.

    Args:
        words: of its command line.
        folder: of the run.
        plan: when to kill it; None: never.
        log: what the run says goes beside it, as .out and .err; None: beside the folder.

    Raises:
        Stop: it ended by itself, and not well (with the last line it said), or it hangs.
    """
    life = RunAttempt(folder, plan, latest_step(folder / "checkpoints") or 0)
    read, write = os.pipe()
    command = [sys.executable, "-m", "experiments.faults.child", str(write), *words]
    log = log or Path(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    stderr = log.with_suffix(".err")
    with open(log.with_suffix(".out"), "ab") as out, open(stderr, "ab") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, "PYTHONPATH": _with_root(os.environ.get("PYTHONPATH"))},
            pass_fds=(write,),
        )
        os.close(write)
        try:
            _follow(life, process, read)
        finally:
            process.kill()
            process.wait()
            os.close(read)
    if process.returncode not in (0, *_codes(plan)):
        said = stderr.read_text(encoding="utf-8").strip().splitlines()
        last = said[-1] if said else f"exit code {process.returncode}"
        raise Stop(f"the run in {folder} failed by itself: {last}", code=1)
    life.killed = process.returncode != 0  # or its end came first
    return life


def _follow(life: RunAttempt, process: subprocess.Popen[bytes], events: int) -> None:
    """Reads what the run tells until it ends, or kills it at the planned moment."""
    plan, text, times = life.plan, b"", 0
    began = at = time.perf_counter()
    due = at + plan.delay_s if plan and plan.phase == "start" else None
    aim = "step" if plan and plan.phase == "train" else plan and plan.phase
    while True:
        now = time.perf_counter()
        life.seconds = now - began
        limit = HANGS_S if due is None else max(due - now, 0.0)
        if not select.select([events], [], [], limit)[0]:
            if due is None:
                raise Stop(f"the run in {life.folder} hangs in phase {life.phase}.", code=1)
            process.send_signal(plan.number if plan else signal.SIGKILL)
            if plan and plan.number == signal.SIGKILL:
                return
            due = None
            continue
        found = os.read(events, 65_536)
        *lines, text = (text + found).split(b"\n")
        now = time.perf_counter()
        for line in lines if found else [b"end 0"]:
            what, step = line.decode().split()
            if what == "step":
                life.step = int(step)
            else:
                life.durations[life.phase] = max(life.durations.get(life.phase, 0.0), now - at)
                life.phase, at = (what, now) if found else (life.phase, at)
            if plan and what == aim:
                times += 1
                due = now + plan.delay_s if times == plan.times else due
        if not found:
            process.wait(HANGS_S)
            return


def _codes(plan: Plan | None) -> tuple[int, ...]:
    """Exit codes of a run that the signal ended: by the system, or when the run had it in hand."""
    return () if plan is None else (-plan.number, 128 + plan.number)


def _with_root(path: str | None) -> str:
    return os.pathsep.join([str(ROOT), *([path] if path else [])])
