"""Kills a run at random moments and compares its bits: `python -m experiments.faults --help`.

    python -m experiments.faults --kills 20 --seed 0 --model tiny --steps 40 --checkpoint-every 10
    STORAGE_EMULATOR_HOST=http://127.0.0.1:4443 python -m experiments.faults --workdir gs://b/faults

First the run is trained undisturbed. Then the same run is trained anew, its data and programs too
are made anew, killed (by SIGKILL, or asked by SIGTERM) and started again, time after time; whenever
it comes to its end, it is compared with the first one, and another begins.
"""

import os
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
from tyro.conf import Positional, arg

from experiments.faults.compare import differences
from experiments.faults.report import Kill, Outcome
from experiments.faults.run_attempt import RunAttempt, draw, live, phases
from experiments.run.command import ALIASES, LISTS, Command, from_command
from experiments.run.environment import facts
from experiments.run.files import STDOUT, hand_over, try_json
from experiments.run.provenance import commit
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine, replaced
from experiments.terminal.paths import try_folder
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_table
from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax._fields import PathText, check_fields
from polycom_jax.storage import Place

LINE = CommandLine(
    "faults",
    "Kill a run at random moments, restart it, and compare it bit by bit with an undisturbed run."
    " Exit code 3: something differs. --workdir gs://BUCKET/PATH is a bucket of Google's, or of the"
    f" emulator that {storage.EMULATOR}=http://HOST:PORT names.",
    short=ALIASES,
    old={"config": "config"},
    lists=LISTS,
    refused=frozenset({"data.cache_dir"}),
    why_refused="prepared data lie in --out; leave it out.",
)
DIFFERS = 3


@dataclass(frozen=True)
class FaultsCommand(Command):
    """How to disturb a run, and which.

    Attributes:
        config: YAML file of the run; flags win over it. The runs lie in --workdir (a new folder,
            local or gs://) or else in --out.
        kills: number of kills.
        seed: seed of the moments of the kills; --run.seed is that of the run.
        out: new folder for report, logs and prepared data.
        json: also write faults.json to this file, or to stdout (-).
    """

    config: Annotated[PathText | None, Positional, arg(metavar="[CONFIG]")] = None
    kills: int = 20
    seed: int = 0
    out: PathText = "runs/faults"
    json: PathText | None = None

    def __post_init__(self) -> None:
        check_fields(self, wide=("seed",))
        at_least(self, 1, "kills")


@program
def main(argv: Sequence[str]) -> int:
    """Tortures, writes faults.json and faults.md; the exit code tells whether all bits agree."""
    options, given = from_command(LINE, FaultsCommand(), argv)
    config = options.pretrain
    try_json(options.json)
    out = Path(options.out)
    try_folder("--out", out)
    require(
        not out.exists() or not any(out.iterdir()), f"--out {out} is not empty; name a new folder."
    )
    runs = storage.named(str(config.workdir) if "workdir" in given else out)
    storage.require_reachable(runs)
    require(not storage.folders(runs), f"--workdir {runs} holds folders already; name a new one.")
    command = shlex.join(["python", "-m", "experiments.faults", *argv])
    begun_with = commit()
    with Display(aside=options.json == STDOUT) as display:
        # Here arrays are only compared; the devices are the runs'.
        jax.config.update("jax_platforms", "cpu")
        torture = KillTest(
            out, runs, run_words(argv), config.run.checkpoint_every, options, display
        )
        torture.run()
        about = {**facts(config.run), "commit": begun_with or "not known"}
        if storage.is_remote(runs):
            about[storage.EMULATOR] = os.environ.get(storage.EMULATOR, "")
        outcome = Outcome(command, about, torture.kills, torture.runs, torture.differences)
        outcome.write(out)
        print_table(display.console, outcome.table())
        for run, found in outcome.differences.items():
            for text in found:
                display.note(f"run {run} differs: {text}")
        display.note(outcome.summary())
        display.note(f"Numbers: {out / 'faults.json'}   Table: {out / 'faults.md'}")
        hand_over(options.json, out / "faults.json")
        more = {"--seed": options.seed + 1, "--out": f"{options.out}-more"}
        if "workdir" in given:
            more["--workdir"] = f"{config.workdir}-more"
        again = replaced(argv, more)
        display.note(f"Next:\n  {shlex.join(['python', '-m', 'experiments.faults', *again])}")
    return 0 if outcome.equal == options.kills else DIFFERS


def run_words(argv: Sequence[str]) -> list[str]:
    """The words of a command line that `experiments.pretrain` takes, too."""
    words = replaced(argv, dict.fromkeys(("--kills", "--seed", "--out", "--json", "--workdir")))
    return words if not words or words[0].startswith("-") else ["--config", *words]


class KillTest:
    """The runs and kills so far."""

    def __init__(
        self,
        out: Path,
        places: Place,
        words: Sequence[str],
        every: int,
        options: FaultsCommand,
        display: Display,
    ) -> None:
        self._out, self._places, self._words, self._every = out, places, words, every
        self._options, self._display = options, display
        self._rng = random.Random(options.seed)
        self._phases = phases(self._rng)
        self._began = time.perf_counter()
        self.kills: list[Kill] = []
        self.differences: dict[int, list[str]] = {}

    @property
    def runs(self) -> int:
        """How many killed runs came to their end."""
        return len(self.differences)

    def run(self) -> None:
        """Until there were enough kills and the last killed run is at its end."""
        self._display.note("the run that nothing disturbs")
        first = self._live("undisturbed", kill=False)
        seen = dict(first.durations)
        self._display.start(0, self._options.kills)
        while len(self.kills) < self._options.kills:
            run = self.runs + 1
            while (life := self._live(f"run-{run}", seen)).killed:
                self.kills.append(Kill.of(life, len(self.kills) + 1, run))
                self._tell()
            self.differences[run] = differences(first.folder, life.folder)
        self._display.stop()

    def _live(
        self, name: str, seen: dict[str, float] | None = None, *, kill: bool = True
    ) -> RunAttempt:
        folder = self._places / name
        cache = self._out / ("cache" if seen is None else "cache-of-killed-runs")
        words = [*self._words, "--workdir", str(folder), "--data.cache-dir", str(cache)]
        kill = kill and len(self.kills) < self._options.kills
        plan = None
        if kill and seen:
            phase = next(phase for phase in self._phases if phase in seen)
            plan = draw(self._rng, phase, seen[phase], self._every)
        life = live(words, folder, plan, log=self._out / name)
        if seen is not None:  # a phase that was cut short lasts longer than was seen
            seen |= {
                phase: seconds
                for phase, seconds in life.durations.items()
                if not life.killed or phase != life.phase
            }
        return life

    def _tell(self) -> None:
        done, kills = len(self.kills), self._options.kills
        last, elapsed = self.kills[-1], time.perf_counter() - self._began
        self._display.note(
            f"[{done}/{kills}] killed in {last.phase} behind step {last.step}, newest checkpoint"
            f" {last.checkpoint}; {elapsed:.0f} s, about {elapsed / done * (kills - done):.0f} s"
            " left"
        )
        self._display.step(done)


if __name__ == "__main__":
    sys.exit(main())
