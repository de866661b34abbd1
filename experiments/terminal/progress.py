"""What a person sees while a run runs: a rich progress bar, or plain lines without a terminal."""

import contextlib
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

from experiments.terminal.program import discard_stdout

PLAIN_EVERY_S = 10.0
"""Without a terminal, at least this long between two lines on training."""


class Screen(Console):
    """A console whose reader may go away (`| head -1`) without ending the run."""

    def on_broken_pipe(self) -> None:
        """Goes on in silence; rich would leave the program, as silently."""
        self.quiet = True
        if self.stderr:  # what stdout holds is for another reader
            return
        discard_stdout()
        with contextlib.suppress(OSError):
            print("stdout was closed: going on without display.", file=sys.stderr)


class Display:
    """Shows stages and steps. On processes other than the first, nothing.

    `with Display(...) as display:` restores the terminal also when the run fails.
    """

    def __init__(
        self, console: Console | None = None, *, active: bool = True, aside: bool = False
    ) -> None:
        """`aside`: on stderr, where stdout is for something else."""
        self.console = console or Screen(quiet=not active, stderr=aside, highlight=False)
        self._last_plain = time.monotonic()
        self._bar: Progress | None = None
        self._status: Status | None = None
        self._steps = 0

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def live(self) -> bool:
        """Can it draw over what it has drawn, with signs for a bar? Else there are plain lines."""
        console = self.console
        drawn = console.is_terminal and not console.is_dumb_terminal
        return drawn and console.encoding.startswith("utf")

    def note(self, text: str) -> None:
        """A line that stays."""
        self._idle()
        self.console.print(text, markup=False, soft_wrap=True)

    def busy(self, text: str) -> None:
        """Before training: what is going on. On a terminal the next such line replaces it."""
        if not self.live:
            self.note(text)
        elif self._status is None:
            self._status = self.console.status(escape(text))
            self._status.start()
        else:
            self._status.update(escape(text))

    def _idle(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def start(self, step: int, steps: int) -> None:
        """Training begins (or goes on) behind `step` of `steps`."""
        self._steps = steps
        self._idle()
        if self.live:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task("train", total=steps, completed=step, numbers="")
            self._bar.start()

    def doing(self, what: str) -> None:
        """Names what is being done: "train", "evaluate", "compile"."""
        if self._bar is not None:
            self._bar.update(self._task, description=escape(what))

    def step(self, step: int) -> None:
        """`step` is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def numbers(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """Shows the numbers of a logged step."""
        text = f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, numbers=text)
        elif time.monotonic() - self._last_plain >= PLAIN_EVERY_S or step == self._steps:
            self._last_plain = time.monotonic()
            self.note(f"step {step}/{self._steps}  {text}  {_clock(seconds_left)} left")

    def stop(self) -> None:
        """Training is over; the bar stays as it is."""
        self._idle()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
