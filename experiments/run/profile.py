"""A trace of some steps by `jax.profiler`: what ran when, on devices and in Python."""

import shlex
from collections.abc import Callable
from typing import Any

import jax

from experiments.run.config import RunConfig, step_range
from polycom_jax import staging, storage
from polycom_jax._errors import require


def check_traced(run: RunConfig) -> None:
    """Raises `InputError` where a run that begins would end before the steps to trace.

    A config does not check it, as one that was written must stay readable.
    """
    first = step_range(run.profile_steps)[0] if run.profile_steps else 1
    require(
        first <= run.steps,
        f"run.profile_steps={run.profile_steps!r} begins behind the run's last step, {run.steps}:"
        " nothing would be traced.",
    )


class Profile:
    """Traces the steps that `run.profile_steps` names.

    Args:
        steps: "FIRST:LAST"; None: none.
        folder: where the trace goes, readable by XProf, TensorBoard and Perfetto.
        notify: takes a line on how to open it.
    """

    def __init__(
        self, steps: str | None, folder: storage.Place, notify: Callable[[str], None]
    ) -> None:
        self._first, self._last = step_range(steps) if steps else (0, 0)
        self._folder, self._notify = folder, notify
        self._staged: staging.Staged | None = None

    def before(self, step: int) -> None:
        """Starts, if `step` is the first of them, or lies among them where a run resumes."""
        if self._staged is None and self._first <= step <= self._last:
            self._staged = staging.Staged(self._folder)
            jax.profiler.start_trace(str(self._staged.local), create_perfetto_trace=True)

    def after(self, step: int, metrics: Any) -> None:
        """Ends behind the last of them, when the device has computed it."""
        if self._staged is not None and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace, where one is being taken."""
        if self._staged is None:
            return
        jax.profiler.stop_trace()
        self._staged.close()
        self._staged = None
        folder = shlex.quote(str(self._folder))
        self._notify(
            f"trace of the steps in {self._folder}; open it with `pip install xprof` and"
            f" `xprof --logdir {folder}`, or its perfetto_trace.json.gz on ui.perfetto.dev"
        )
