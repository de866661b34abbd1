"""Command lines of a run, and copies of what it leaves, for tests of what they give."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run.command import ALIASES, LISTS, Command, from_command
from experiments.run.config import PretrainConfig
from experiments.run.metrics import read_metrics
from experiments.terminal.flags import CommandLine
from polycom_jax import storage

COMPARED = ("step", "loss", "grad_norm", "learning_rate", "heldout_loss", "bits_per_byte")
LINE = CommandLine("pretrain", short=ALIASES, lists=LISTS)


def run_config(argv: Sequence[str]) -> tuple[PretrainConfig, frozenset[str]]:
    """What these words make of a run, and the fields that they set."""
    command, given = from_command(LINE, Command(), argv)
    return command.pretrain, given


def copied(whole: Path, folder: Path) -> Path:
    """A copy of the run, which a test may harm, of text that is not there any more."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(".lock"))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("little.txt", "gone.txt"))
    return folder


def numbers(workdir: str | Path) -> list[dict[str, Any]]:
    """What must be equal digit for digit: the lines of metrics.jsonl without their times."""
    records = read_metrics(storage.named(workdir) / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k in COMPARED} for record in records]
