"""Reads the metrics of each step off the device, one step late, and logs some of them.

The step names most of them (`make_train_step`, `model_loss`), the evaluation `heldout_loss` and
`bits_per_byte`, and both as `ema_*` (`compiled.state_numbers`), this module `tokens_per_second`,
`step_time_s` and `data_wait_s`.
"""

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from experiments.run.config import RunConfig
from experiments.run.metrics import Logs
from experiments.terminal.program import Stop
from experiments.terminal.progress import Display

_NOT_FINITE = "loss or gradient was not finite"
_NO_TARGETS = "the batch had no targets"


class Meter:
    """Turns each step's metrics into log lines and progress.

    Reading a step's numbers waits for that step. They are therefore read when the next step has
    been dispatched: the device has work while Python logs.

    Args:
        run: when to log, when to give up.
        logs: where lines go.
        display: what a person sees.
        in_a_row: steps without a finite loss or gradient right before the first one
            (`TrainState.watch`).
    """

    def __init__(self, run: RunConfig, logs: Logs, display: Display, *, in_a_row: int = 0) -> None:
        self._run, self._logs, self._display = run, logs, display
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._tokens, self._steps, self._waited = 0.0, 0, 0.0
        self._since = time.perf_counter()
        self._in_a_row, self._patience = in_a_row, in_a_row // run.give_up_after
        self._read_last = 0
        self._why: set[str] = set()  # of the steps in a row

    @property
    def diverged(self) -> bool:
        """Have `run.give_up_after` steps in a row changed nothing? (As many again, if the run was
        resumed behind that point.) It is known one step late, as all numbers are."""
        return self._in_a_row // self._run.give_up_after > self._patience

    def give_up(self, step: int, workdir: str) -> Stop:
        """The end of a run that has diverged and has saved `step`."""
        self.flush()
        first = self._read_last - self._in_a_row + 1
        replay = f"python -m experiments.replay {shlex.quote(workdir)} --step {first}"
        advice = {
            _NOT_FINITE: "A new --workdir with a lower --optim.peak-learning-rate or a longer"
            " --optim.warmup-steps may hold.",
            _NO_TARGETS: "Look at the data: every target of such a batch is masked.",
        }
        why = [kind for kind in advice if kind in self._why] or [_NOT_FINITE]
        return Stop(
            f"{' or '.join(why)} in steps {first} to {self._read_last}; the parameters"
            f" are those of step {first - 1}, saved at step {step}. `{replay}` repeats the first of"
            f" these batches. {' '.join(advice[kind] for kind in why)}",
            code=1,
        )

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """`step` was dispatched: reads the one before it."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self, evaluate: Callable[[], Mapping[str, float]] | None = None) -> Mapping[str, Any]:
        """Reads what is outstanding; afterwards every step that was pushed is logged.

        Args:
            evaluate: gives further numbers of the step, which then is logged in any case. It runs
                when the step's own are read, and takes none of the time they count.

        Returns:
            The numbers of the step that was outstanding; empty if none was.
        """
        if self._pending is None:
            return {}
        (step, metrics), self._pending = self._pending, None
        values = {name: np.asarray(value).tolist() for name, value in metrics.items()}
        self._read(step, values, evaluate)
        return values

    def pause(self) -> None:
        """Something other than training took time since the last line: it does not count."""
        self._tokens, self._steps, self._waited = 0.0, 0, 0.0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """In the block, training waits for its next batch."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def _read(
        self,
        step: int,
        values: dict[str, Any],
        evaluate: Callable[[], Mapping[str, float]] | None,
    ) -> None:
        targets = values.pop("tokens")
        self._tokens += targets
        self._steps += 1
        self._in_a_row = self._in_a_row + 1 if values["skipped"] else 0
        why = _NOT_FINITE if targets else _NO_TARGETS
        self._why = self._why | {why} if values["skipped"] else set()
        self._read_last = step
        self._display.step(step)
        strange = self._strange(step, values, targets)
        if strange:
            self._display.note(strange)
        run = self._run
        logged = step == 1 or step == run.steps or step % run.log_every == 0
        if evaluate or strange or logged:
            elapsed = time.perf_counter() - self._since
            values["tokens_per_second"] = self._tokens / elapsed
            values["step_time_s"] = elapsed / self._steps
            values["data_wait_s"] = self._waited / self._steps
            values |= evaluate() if evaluate else {}
            self._logs.write(step, values)
            self._display.numbers(step, values, (run.steps - step) * values["step_time_s"])
            self.pause()

    def _strange(self, step: int, values: Mapping[str, Any], targets: float) -> str:
        """What is to be said of a step that is not as others; its number is its batch's position:
        a batch is a function of (seed, step)."""
        if values["skipped"]:
            broken = [n for n in ("loss", "grad_norm") if not math.isfinite(values[n])]
            what = (
                f"{broken[0]} is {values[broken[0]]}"
                if broken and targets
                else "the batch has no targets"
            )
            return (
                f"step {step}: {what}, so nothing was updated"
                f" ({self._in_a_row} in a row, run.give_up_after={self._run.give_up_after})"
            )
        return f"step {step}: loss {values['loss']:.4f} is a spike" if values["spike"] else ""
