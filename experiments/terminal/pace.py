"""How far a study is: a bar on a terminal, lines with the time left without one."""

import time

from experiments.terminal.progress import PLAIN_EVERY_S, Display

SCALE = 1000
"""The bar counts thousandths."""


class Pace:
    """Tells a display the share that is done.

    Args:
        display: what the user sees.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._began = time.monotonic()
        self._first: float | None = None
        self._told = self._began
        self._share = 0.0
        display.start(0, SCALE)

    def tell(self, share: float, doing: str) -> None:
        """`share` of all is done, and `doing` goes on."""
        now = time.monotonic()
        if self._first is None:  # a resumed study begins behind what it finds
            self._first, self._began = share, now
        self._share = share
        self._display.step(round(SCALE * share))
        self._display.doing(doing)
        if not self._display.live and now - self._told >= PLAIN_EVERY_S:
            self._told = now
            self._display.note(f"{share:.0%}  {doing}  {self.left()}")

    def note(self, text: str) -> None:
        """A line that stays, with the time left."""
        self._display.note(f"{text}  {self.left()}")

    def left(self) -> str:
        """The time left in words, at the pace since the start."""
        passed, done = time.monotonic() - self._began, self._share - (self._first or 0.0)
        if done <= 0:
            return ""
        minutes, seconds = divmod(round(passed / done * (1 - self._share)), 60)
        return f"about {minutes}:{seconds:02} left"
