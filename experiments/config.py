"""The old place of a run's configuration, for one release: see `experiments.run.command`."""

import warnings
from collections.abc import Sequence

from experiments.run import command
from experiments.run.config import PretrainConfig
from experiments.terminal.flags import CommandLine

warnings.warn(
    "experiments.config is now experiments.run.command; the old name goes with the next release.",
    DeprecationWarning,
    stacklevel=2,
)


def from_command(
    argv: Sequence[str], *, prog: str, about: str
) -> tuple[PretrainConfig, frozenset[str]]:
    """A run's config, and the fields that these words set."""
    line = CommandLine(prog.rpartition(".")[2], about, command.ALIASES)
    read, given = command.from_command(line, command.Command(), argv)
    return read.pretrain, given
