"""The runs of a study, shared by all processes that are at it: each run is trained by one of them.

A process takes the first run that is due, not finished, and no other process's, which the lock of
the run says. One that ends leaves its run to the others, who go on from the state that was kept.
"""

import time
from collections.abc import Callable, Mapping

from experiments.compare.agenda import Agenda, agenda
from experiments.compare.arms import Arm
from experiments.compare.config import CompareConfig
from experiments.compare.runs import Run, RunFolder, RunKey
from experiments.run import lock
from experiments.terminal.progress import Display
from polycom_jax import storage


class Sharing:
    """A process's part in the runs of a study.

    Args:
        config: of the study.
        carried: arm -> a rate of smaller models, to be checked in place of a search.
        runs: of the study's folder.
        train: trains a run, which it is told how it holds, and writes it.
        display: for people.

    Attributes:
        finished: all runs that the study has asked for so far and that are finished.
        last: whether this process has trained the last run, or found none that was left.
    """

    def __init__(
        self,
        config: CompareConfig,
        carried: Mapping[str, float],
        runs: RunFolder,
        train: Callable[[Arm, RunKey, lock.Hold], Run],
        display: Display,
    ) -> None:
        self._config, self._carried, self._runs = config, carried, runs
        self._train, self._display = train, display
        self._told: set[str] = set()
        self._others: dict[RunKey, float] = {}
        self.finished: dict[RunKey, Run] = {}
        self.last = True

    def all(self) -> Agenda:
        """Returns once every run is finished."""
        now = self._look()
        self._there, self._begun, waiting = len(self.finished), time.monotonic(), False
        self._display.start(self._there, self._total(now))
        while now.due:
            self.last, total = False, self._total(now)
            idle = not any(self._taken(arm, key, total) for arm, key in now.due)
            if idle and not waiting:
                left = _counted(total - len(self.finished))
                self._display.note(f"waiting for other processes: {left} left")
            if idle:
                time.sleep(lock.AGAIN_S)
            waiting = idle
            now = self._look()
            self._display.step(len(self.finished))
        return now

    def _total(self, now: Agenda) -> int:
        """Runs of the study, as far as it is known: grids of rates grow."""
        asked = sum(map(len, now.searched.values()))
        return asked + self._config.seeds * len(self._config.chosen.arms)

    def _look(self) -> Agenda:
        """What is left to do, by the runs that are finished now, whoever trained them."""
        files = self._runs.files()
        now = agenda(self._config, self._carried, self.finished)
        while new := [key for _, key in now.due if key.file in files]:
            read = {key: self._runs.read(key) for key in new}
            self.finished |= {key: run for key, run in read.items() if run is not None}
            files -= {key.file for key in new}
            now = agenda(self._config, self._carried, self.finished)
        for name, search in now.searches.items():
            if name not in self._told:
                edge = ", at the edge of what was tried" if search.at_edge else ""
                self._display.note(f"{name}: rate {search.best:.3g}{edge}")
        self._told |= now.searches.keys()
        return now

    def _taken(self, arm: Arm, key: RunKey, total: int) -> bool:
        """Trains a run, unless it is another process's; whether it is finished now.

        Across machines it takes seconds to find out that a run is another's, so that is asked again
        only when that process could be known to be no more.
        """
        if time.monotonic() < self._others.get(key, 0.0):
            return False
        try:
            with self._runs.taken(key, self._display.doing) as hold:
                if self._runs.read(key) is None:
                    self._tell(self._train(arm, key, hold), total)
                    self.last = True
                return True
        except lock.Held:
            self._others[key] = time.monotonic() + lock.LOST_S
        except storage.Lost:
            self._display.note(f"{key.arm}, seed {key.seed} is another process's now")
            self._others[key] = time.monotonic() + lock.LOST_S
        return False

    def _tell(self, run: Run, total: int) -> None:
        done = len(self.finished) + 1
        pace = (time.monotonic() - self._begun) / (done - self._there)
        score = "diverged" if run.diverged else f"held-out {run.final:.4f}"
        self._display.note(
            f"[{done}/{total}] {run.key.arm}, rate {run.key.rate:.3g}, seed {run.key.seed}:"
            f" {score} in {run.seconds:.1f} s; about {(total - done) * pace / 60:.1f} min left"
        )


def _counted(runs: int) -> str:
    return "1 run is" if runs == 1 else f"{runs} runs are"
