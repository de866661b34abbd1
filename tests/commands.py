"""Command lines of a run, for tests of what they give."""

from collections.abc import Sequence

from experiments.run.command import ALIASES, LISTS, Command, from_command
from experiments.run.config import PretrainConfig
from experiments.terminal.flags import CommandLine

LINE = CommandLine("pretrain", short=ALIASES, lists=LISTS)


def run_config(argv: Sequence[str]) -> tuple[PretrainConfig, frozenset[str]]:
    """What these words make of a run, and the fields that they set."""
    command, given = from_command(LINE, Command(), argv)
    return command.pretrain, given
