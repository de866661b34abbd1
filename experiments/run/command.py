"""From a command line, or the file of a run, to what a run is."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

from etils import epath
from tyro.conf import arg

from experiments.run.config import PretrainConfig, default_config
from experiments.run.yaml_file import read_yaml
from experiments.terminal import flags
from experiments.terminal.flags import CommandLine
from experiments.terminal.paths import expanded
from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax._fields import PlaceText
from polycom_jax.table import ACTIVATIONS
from polycom_jax.training.recipes import RECIPES

ALIASES: Mapping[str, str] = {
    "model": "preset",
    "model.preset": "preset",
    "activation": "model.activation",
    "seq_len": "model.context_length",
    "data": "data.source",
    "batch_size": "data.batch_size",
    "steps": "run.steps",
    "seed": "run.seed",
    "log_every": "run.log_every",
    "eval_every": "run.eval_every",
    "checkpoint_every": "run.checkpoint_every",
    "run.tpu_slice": "run.hardware",  # its name until GPUs could be planned for; for one release
}
"""Short name -> field, the same for flags and YAML keys."""

LISTS: Mapping[str, Iterable[str]] = {"presets": RECIPES, "activations": ACTIVATIONS}
"""What `--list` prints, of every program that takes the flags of a run."""

DEFAULT_PRESET = "tiny"


@dataclass(frozen=True)
class Command:
    """The command line of a program that takes the flags of a run and some of its own.

    Attributes:
        config: YAML file that sets any of the flags of a run; flags win over it.
        pretrain: the run.
    """

    config: Annotated[PlaceText | None, arg(metavar="FILE.yaml")] = None
    pretrain: Annotated[PretrainConfig, flags.NO_PREFIX] = field(
        default_factory=lambda: default_config(DEFAULT_PRESET)
    )


C = TypeVar("C", bound=Command)


def from_command(line: CommandLine, command: C, argv: Sequence[str]) -> tuple[C, frozenset[str]]:
    """Reads a command line: the preset's recipe, then the YAML file of `config`, then flags.

    Returns:
        The command, and the names of the run's fields that file or flags set.

    Raises:
        InputError: an unknown flag or key, a value of the wrong kind, a file that is none.
        SystemExit: after `--help` or `--list`.
    """
    found = flags.leaves(command.pretrain)
    base, lists = {name: leaf.value for name, leaf in found.items()}, flags.lists(found)
    given = line.read(command, argv)
    files = [setting.words for setting in given if setting.name == "config"]
    words = [word for each in files for word in each]
    require(len(words) == len(files) <= 1, f"--config takes one file, not {len(words)}.")
    stored = read_yaml(_place(words[0]), base, ALIASES, lists=lists) if words else []
    settings = stored + given
    start = default_config(_preset(stored, given), _steps(settings))
    command = line.parse(replace(command, pretrain=start), settings)
    config = command.pretrain
    if config.workdir is None:
        config = replace(config, workdir=f"runs/{config.preset}-{config.model.activation_name}")
    names = frozenset(setting.name for setting in settings) & {*base}
    return replace(command, pretrain=config), names


def _place(word: str) -> epath.Path:
    """The file of `--config`."""
    found = storage.named(expanded("--config", word, remote=True))
    storage.require_reachable(found)
    return found


def _steps(settings: Sequence[flags.Setting]) -> int | None:
    """The length of the run, if it is set; a word that is no number is refused when it is read."""
    words = [word for setting in settings if setting.name == "run.steps" for word in setting.words]
    with contextlib.suppress(ValueError):
        return int(words[-1]) if words else None
    return None


def _preset(stored: Sequence[flags.Setting], given: Sequence[flags.Setting]) -> str:
    """The preset to start from; a file made from one would undo the choice of another."""
    in_file, in_flags = (
        [word for setting in settings if setting.name == "preset" for word in setting.words][-1:]
        for settings in (stored, given)
    )
    require(
        not in_file or not in_flags or in_file == in_flags,
        f"--model {' '.join(in_flags)} asks for another preset than the file of --config, whose"
        f" model is made from {' '.join(in_file)!r}: drop the flag, or the model and optim sections"
        " of the file.",
    )
    return [DEFAULT_PRESET, *in_file, *in_flags][-1]


def from_file(path: storage.Place) -> PretrainConfig:
    """The config that a run's own config.yaml holds, with what data and length had filled in."""
    default = default_config(DEFAULT_PRESET)
    lists = flags.lists(flags.leaves(default))
    stored = read_yaml(path, flags.flatten(default), ALIASES, lists=lists, keep_filled_in=True)
    return CommandLine("pretrain").parse(default_config(_preset(stored, [])), stored)
