"""`experiments.pretrain`, telling what it is doing: `python -m experiments.faults.child FD ...`.

A line "PHASE STEP" goes to the file descriptor FD whenever a phase or a step begins or ends; all
else is as without it.
"""

import os
import runpy
import sys

from experiments.terminal import progress


class Told(progress.Display):
    """A display whose reader is a program, too."""

    fd, last = -1, 0

    def doing(self, what: str) -> None:
        """Tells the phase."""
        os.write(self.fd, f"{what} {self.last}\n".encode())
        super().doing(what)

    def step(self, step: int) -> None:
        """Tells a step that is done."""
        type(self).last = step
        os.write(self.fd, f"step {step}\n".encode())
        super().step(step)


if __name__ == "__main__":
    Told.fd = int(sys.argv[1])
    progress.Display = Told  # before the program imports it
    sys.argv[1:] = sys.argv[2:]
    runpy.run_module("experiments.pretrain", run_name="__main__", alter_sys=True)
