"""Reads the numbers of each step off the device, one step late, and logs some of them."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.cli import Stop
from experiments.config import RunConfig
from experiments.logs import Logs
from experiments.progress import Display


class Meter:
    """Turns each step's metrics into log lines and progress.

    Reading a step's numbers waits for that step. They are therefore read when the next step has
    been dispatched: the device has work while Python logs.
    """

    def __init__(self, run: RunConfig, logs: Logs, display: Display) -> None:
        self._run, self._logs, self._display = run, logs, display
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._tokens, self._steps = 0.0, 0
        self._since = time.perf_counter()

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """`step` was dispatched: reads the one before it.

        Raises:
            Stop: that step's loss or gradient was not finite.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self, evaluate: Callable[[], Mapping[str, float]] | None = None) -> Mapping[str, Any]:
        """Reads what is outstanding; afterwards every step that was pushed is logged.

        Args:
            evaluate: gives further numbers of the step, which then is logged in any case. It runs
                when the step's own are read, and takes none of the time they count.

        Returns:
            The numbers of the step that was outstanding; empty if none was.

        Raises:
            Stop: the loss or the gradient was not finite.
        """
        if self._pending is None:
            return {}
        (step, metrics), self._pending = self._pending, None
        values = {name: np.asarray(value).tolist() for name, value in metrics.items()}
        self._read(step, values, evaluate)
        return values

    def pause(self) -> None:
        """Something other than training took time since the last line: it does not count."""
        self._tokens, self._steps = 0.0, 0
        self._since = time.perf_counter()

    def _read(
        self,
        step: int,
        values: dict[str, Any],
        evaluate: Callable[[], Mapping[str, float]] | None,
    ) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise Stop(
                    f"{name} is {values[name]} at step {step}: the run has diverged. Its last"
                    " checkpoint is from before; a new --workdir with a lower"
                    " --optim.peak-learning-rate or a longer --optim.warmup-steps may hold.",
                    code=1,
                )
        self._tokens += values.pop("tokens")
        self._steps += 1
        self._display.step(step)
        run = self._run
        if evaluate or step == 1 or step == run.steps or step % run.log_every == 0:
            elapsed = time.perf_counter() - self._since
            values["tokens_per_second"] = self._tokens / elapsed
            values["step_time_s"] = elapsed / self._steps
            values |= evaluate() if evaluate else {}
            self._logs.write(step, values)
            self._display.numbers(step, values, (run.steps - step) * values["step_time_s"])
            self.pause()
