"""The folder of a run: where things lie in it, what it ran with, and when it may be resumed."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from experiments.run import lock
from experiments.run.command import from_file
from experiments.run.config import PretrainConfig, as_stored, inherit, nested
from experiments.run.files import atomic
from experiments.run.resuming import differences
from experiments.run.settings import listed
from experiments.run.yaml_file import RECORD, in_a_line
from experiments.terminal.paths import try_folder
from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.data import DataConfig, Mixture, Tokenizer
from polycom_jax.data.local import source_files
from polycom_jax.data.sources import names_files
from polycom_jax.data.tokenizers import load_tokenizer
from polycom_jax.data.weights import parts
from polycom_jax.interop.huggingface.files import read_json
from polycom_jax.interop.huggingface.generation import Generation, from_json
from polycom_jax.reference import Reference, is_reference
from polycom_jax.training.checkpoint import all_steps, latest_step

KNOWN_AS = "data_known_as"
"""In a run's record, the fingerprint of its data now, where the run began under another one."""


class Workdir:
    """A run's folder, on a disk or in a bucket, and what lies in it.

    Attributes:
        root: the folder.
        config: what the run really ran with; a later run takes it as `--config`.
        tokenizer: with it, model and text need nothing from outside the folder.
        generation: how texts end by the Hugging Face folder that a run was made from, if it was.
        activation: a copy of the file that the activation is from, if it is from one; it is not
            what runs.
        metrics: one JSON object a logged step, with the evaluation of that step if it had one.
        checkpoints: Orbax checkpoints, one folder a step.
        tensorboard: event files.
        plots: figures made at the end.
        sample: text that the finished model wrote; the last file of a run: with it, all is there.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = storage.named(root)
        self.config = self.root / "config.yaml"
        self.tokenizer = self.root / "tokenizer.json"
        self.generation = self.root / "generation.json"
        self.activation = self.root / "activation.py"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.tensorboard = self.root / "tensorboard"
        self.plots = self.root / "plots"
        self.sample = self.root / "sample.txt"

    @contextlib.contextmanager
    def locked(
        self,
        flag: str = "--workdir",
        *,
        active: bool = True,
        patient: bool = False,
        notify: Callable[[str], None] = lambda text: None,
    ) -> Iterator[lock.Hold]:
        """Keeps two runs from writing to the folder at once; a killed run leaves no lock behind.

        `flag` has named the folder. Only the `active` process of a run takes the lock; a `patient`
        one waits until it is free. `notify` takes a line where it has to wait.

        Raises:
            InputError: another run holds it, or the folder cannot be made.
        """
        storage.require_reachable(self.root)
        if not active:
            yield lock.Kept()
            return
        with contextlib.ExitStack() as stack:
            try:
                take = lock.waited if patient else lock.locked
                hold = stack.enter_context(take(self.root, notify=notify))
            except lock.Held as error:
                raise InputError(
                    f"Another run is writing to {self.root}: {error}. Wait for it, or give another"
                    f" {flag}."
                ) from error
            except OSError as error:
                raise InputError(f"{flag} {self.root} cannot be written: {error}.") from error
            for folder in (self.checkpoints, self.tensorboard, self.plots):
                try_folder(flag, folder)
            if not storage.is_remote(self.root):  # a bucket has no temporary files
                for written in (self.root, self.plots, *self.root.glob("runs/*")):
                    storage.remove_leftovers(Path(written))
            yield hold

    def read_config(self) -> PretrainConfig:
        """What the run ran with.

        Raises:
            InputError: there is no run here.
        """
        storage.require_reachable(self.root)
        has_config = storage.is_file(self.config)
        require(
            has_config or not all_steps(self.checkpoints),
            f"{self.root} holds checkpoints and no {self.config.name}, so nobody can tell what they"
            " are of; bring the file back (their state/_METADATA says what it held), or give"
            " another --workdir.",
        )
        require(
            has_config or not storage.is_file(self.root / "config.json"),
            f"{self.root} is a Hugging Face folder (config.json), and a run has a config.yaml;"
            f" `python -m experiments.convert {self.root} --workdir FOLDER --data TEXT`"
            " makes one of it.",
        )
        require(
            has_config,
            f"There is no run in {self.root} (no config.yaml); `python -m experiments.pretrain"
            f" --workdir {self.root}` makes one.",
        )
        config, horizon = self._from_file(), self.record().get("decay_steps")
        config = replace(config, data=self.with_own_tokenizer(config.data))
        if config.optim.decay_steps is not None or horizon is None:
            return config
        # Runs of earlier versions have it in their record alone.
        return replace(config, optim=replace(config.optim, decay_steps=horizon))

    def _from_file(self) -> PretrainConfig:
        try:
            return from_file(self.config)
        except InputError as error:
            if not storage.is_file(self.activation):
                raise
            raise InputError(
                f"{self.root}: {error} What the run began with is kept as {self.activation}."
            ) from error

    def begun(self) -> bool:
        """Whether its last checkpoint is of a training, and not of weights brought in at step 0."""
        return latest_step(self.checkpoints) != 0

    def with_own_tokenizer(self, data: DataConfig) -> DataConfig:
        """The folder's tokenizer.json for one that lies no more where it was: a folder may move."""
        if data.tokenizer in ("bytes", "bpe") or storage.is_file(storage.named(data.tokenizer)):
            return data
        if not storage.is_file(self.tokenizer):
            return data
        return replace(data, tokenizer=str(self.tokenizer))

    def record(self) -> dict[str, Any]:
        """How the run came about: versions, device, fingerprint of its data, schedule's end.

        Raises:
            InputError: the file holds none.
        """
        try:
            tree = yaml.safe_load(storage.read(self.config).decode())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{self.config} cannot be read: {in_a_line(error)}.") from error
        record = tree.get(RECORD) if isinstance(tree, dict) else None
        if not isinstance(record, dict):
            raise InputError(
                f"{self.config} is not as a run has written it (it has no section {RECORD!r});"
                " bring the old file back, or give another --workdir."
            )
        return record

    def check_data_there(self, data: DataConfig) -> None:
        """Raises `InputError` where files of the run's text are gone, with what to say instead."""
        texts = [("source", "--data", part.source) for part in parts(data.source)]
        for field, flag, pattern in (*texts, ("heldout", "--data.heldout", data.heldout)):
            if pattern and names_files(pattern):
                try:
                    source_files(pattern, data.train_split, f"data.{field}")
                except InputError as error:
                    raise InputError(
                        f"{error} If it was moved: `python -m experiments.pretrain --workdir"
                        f" {self.root} {flag} NEWPATH` goes on with the same bytes there."
                    ) from error

    def check_data(self, found: Mapping[str, Any], earlier: Callable[[], str] = lambda: "") -> None:
        """Raises `InputError` with the differences unless the run began with the same data.

        Args:
            found: `data_record` of the data as they are now.
            earlier: `Mixture.earlier` of them.
        """
        began = self.record()
        first = began.get("data_fingerprint")
        if found["data_fingerprint"] in (first, began.get(KNOWN_AS)) or earlier() == first:
            return
        before, now = _flat({name: began.get(name) for name in found}), _flat(dict(found))
        other = [
            f"{name}: {before.get(name, 'none')} there, {now.get(name, 'none')} now"
            for name in sorted(
                before.keys() | now.keys(), key=lambda name: ("files" not in name, name)
            )
            if before.get(name) != now.get(name)
        ]
        raise InputError(
            f"{self.root} was trained on other data than the same settings now give"
            f" ({'; '.join(other[:8])}{' ...' if len(other) > 8 else ''}). Begin another --workdir,"
            " or bring the old data back."
        )

    def write_config(self, config: PretrainConfig, record: Mapping[str, Any]) -> None:
        """Writes config.yaml.

        The record lists under `filled_in` what was not given: a new run fills that in itself.
        """
        header = (
            f"# What `python -m experiments.pretrain --workdir {self.root}` ran with.\n"
            f"# Resume: that command, with --steps for more of them.\n"
            f"# Anew: --config {self.config} --workdir OTHER\n"
        )
        act = config.model.activation
        if is_reference(act):
            with atomic(self.activation) as file:
                file.write_bytes(Reference.parse(str(act)).read())
        with atomic(self.config) as file:
            file.write_text(header + as_yaml(config, {RECORD: dict(record)}), "utf-8")

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Writes tokenizer.json."""
        with atomic(self.tokenizer) as file:
            tokenizer.save(file)

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer that the run's text went through.

        Raises:
            InputError: there is none, or another one.
        """
        tokenizer = load_tokenizer(self.tokenizer)
        require(
            tokenizer.fingerprint == self.record().get("tokenizer_fingerprint"),
            f"{self.tokenizer} is not the tokenizer that the run in {self.root} began with; the"
            " model would read and write nonsense with it. Bring the old file back.",
        )
        return tokenizer

    def write_generation(self, generation: Generation) -> None:
        """Writes generation.json, for exports."""
        with atomic(self.generation) as file:
            file.write_text(json.dumps(generation.to_json(), indent=2) + "\n", "utf-8")

    def read_generation(self) -> Generation | None:
        """What `write_generation` wrote; None: the run is of no Hugging Face folder.

        Raises:
            InputError: the file holds something else.
        """
        if not storage.is_file(self.generation):
            return None
        return from_json(read_json(self.generation), str(self.generation))

    def write_sample(self, text: str) -> None:
        """Writes sample.txt."""
        with atomic(self.sample) as file:
            file.write_text(text + "\n", encoding="utf-8")


def data_record(data: Mixture) -> dict[str, Any]:
    """What identifies the data of a run."""
    return {
        "data_fingerprint": data.fingerprint,
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
        "data": data.summary,
    }


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaf by dotted name."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {
        name: leaf for key in tree for name, leaf in _flat(tree[key], f"{prefix}{key}.").items()
    }


def as_yaml(config: PretrainConfig, more: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The text of a config's file, with further sections."""
    plain = json.loads(json.dumps(nested(config) | dict(more)))  # tuples as lists
    return yaml.safe_dump(plain, sort_keys=False)


def resumed(workdir: Workdir, config: PretrainConfig, given: frozenset[str]) -> PretrainConfig:
    """The config to go on with, for a run that has checkpoints.

    What changes no result is the command's (see `resuming`); what the data or the run's length had
    filled in (the vocabulary, warm-up and end of the schedule) is the stored run's.

    Raises:
        InputError: any other difference; both values are named.
    """
    stored = workdir.read_config()
    config = inherit(config, given, stored)
    if config.run.init_from is not None:
        config = as_stored(config, given, stored)
    config = replace(config, data=workdir.with_own_tokenizer(config.data))
    changed = differences(config, stored, begun=workdir.begun())
    if changed:
        raise InputError(
            f"{workdir.root} holds a run with other settings ({listed(changed)}). Resume it with"
            f" `python -m experiments.pretrain {workdir.root}`, or begin another --workdir. Steps,"
            " periods, mesh, remat, accumulation and where things lie may change."
        )
    return config
