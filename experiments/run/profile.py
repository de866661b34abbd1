"""A trace of some steps by `jax.profiler`: what ran when, on devices and in Python."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.run.config import step_range


class Profile:
    """Traces the steps that `run.profile_steps` names.

    Args:
        steps: "FIRST:LAST"; None: none.
        folder: where the trace goes, readable by XProf, TensorBoard and Perfetto.
        tell: takes a line on how to open it.
    """

    def __init__(self, steps: str | None, folder: Path, tell: Callable[[str], None]) -> None:
        self._first, self._last = step_range(steps) if steps else (0, 0)
        self._folder, self._tell, self._running = folder, tell, False

    def before(self, step: int) -> None:
        """Starts, if `step` is the first of them, or lies among them where a run resumes."""
        if not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Ends behind the last of them, when the device has computed it."""
        if self._running and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace, where one is being taken."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        folder = shlex.quote(str(self._folder))
        self._tell(
            f"trace of the steps in {self._folder}; open it with `pip install xprof` and"
            f" `xprof --logdir {folder}`, or its perfetto_trace.json.gz on ui.perfetto.dev"
        )
