"""The folder of a run: where things lie in it, what it ran with, and when it may be resumed."""

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jaxlib
import yaml

import polycom_jax
from experiments import cli
from experiments.config import PretrainConfig, differences, from_file, inherit, nested
from polycom_jax._errors import InputError, require


@dataclass(frozen=True)
class Workdir:
    """A run's folder.

    Attributes:
        root: the folder.
    """

    root: Path

    @property
    def config(self) -> Path:
        """What the run really ran with; a later run takes it as `--config`."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step or evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Orbax checkpoints, one folder a step."""
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def plots(self) -> Path:
        """Figures made at the end."""
        return self.root / "plots"

    @property
    def sample(self) -> Path:
        """Text that the finished model wrote."""
        return self.root / "sample.txt"

    @contextlib.contextmanager
    def locked(self, *, active: bool = True) -> Iterator[None]:
        """Keeps two runs from writing to the folder at once; a killed run leaves no lock behind.

        Only the `active` host of a run takes the lock.

        Raises:
            InputError: another run holds it, or the folder cannot be made.
        """
        if not active:
            yield
            return
        from filelock import FileLock, Timeout

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"Another run is writing to {self.root}; wait for it, or give another --workdir."
            ) from error
        except OSError as error:
            raise InputError(f"--workdir {self.root} cannot be written: {error}.") from error
        try:
            yield
        finally:
            lock.release()

    def read_config(self) -> PretrainConfig:
        """What the run ran with.

        Raises:
            InputError: there is no run here.
        """
        require(
            self.config.is_file(),
            f"There is no run in {self.root} (no config.yaml); `python -m experiments.pretrain"
            f" --workdir {self.root}` makes one.",
        )
        return from_file(self.config)

    def record(self) -> dict[str, Any]:
        """How the run came about: versions, device, fingerprint of its data."""
        tree = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return tree.get(cli.RECORD, {})

    def check_data(self, fingerprint: str) -> None:
        """Raises `InputError` unless the run began with the same data."""
        began = self.record().get("data_fingerprint")
        require(
            fingerprint == began,
            f"{self.root} was trained on data {began}, and the same settings now give"
            f" {fingerprint}: the files, the tokenizer or (for stdlib) Python itself are others."
            " Begin another --workdir, or bring the old data back.",
        )

    def write_config(self, config: PretrainConfig, record: Mapping[str, Any]) -> None:
        """Writes config.yaml; it appears whole or not at all."""
        header = (
            f"# What `python -m experiments.pretrain --workdir {self.root}` ran with.\n"
            f"# Resume: the same command again.  Anew: --config {self.config} --workdir OTHER\n"
        )
        tree = nested(config) | {cli.RECORD: dict(record)}
        text = header + yaml.safe_dump(_plain(tree), sort_keys=False)
        temporary = self.config.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.config)


def versions() -> dict[str, str]:
    """What the losses' last digits depend on, beside the config."""
    return {
        "polycom_jax": polycom_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _plain(tree: Any) -> Any:
    """Tuples as lists: YAML's plain types, which a safe loader reads."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def resumed(workdir: Workdir, config: PretrainConfig, given: frozenset[str]) -> PretrainConfig:
    """The config to go on with, for a run that has checkpoints.

    Steps and periods are the command's; what the data or the run's length had filled in (the
    vocabulary, the end of the schedule) is the stored run's.

    Raises:
        InputError: any other difference; both values are named.
    """
    stored = workdir.read_config()
    config = inherit(config, given, stored)
    changed = differences(config, stored)
    if changed:
        listed = "; ".join(
            f"{name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items()
        )
        raise InputError(
            f"{workdir.root} holds a run with other settings ({listed}). Resume it with the command"
            f" that began it or with --config {workdir.config} --workdir {workdir.root}, or begin"
            " another --workdir. Only steps, log, eval and checkpoint periods may change."
        )
    return config
