"""A model to use: of a finished or running run, or of a Hugging Face folder; and text for it."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.run.checkpoint_names import read_named
from experiments.run.config import PretrainConfig
from experiments.run.folder import Workdir
from experiments.run.resuming import function_of
from experiments.run.summary import own_activation
from polycom_jax import params as pm
from polycom_jax import staging, storage
from polycom_jax._errors import InputError, require
from polycom_jax.data import ByteTokenizer, Corpus, DataConfig, Tokenizer, prepare
from polycom_jax.data.digests import EMPTY, Kind, shown
from polycom_jax.data.heldout import SingleDocumentError
from polycom_jax.data.local import file_sums
from polycom_jax.data.sources import names_files
from polycom_jax.data.tokenizers import load_tokenizer
from polycom_jax.data.weights import parts
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface import Generation
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params
from polycom_jax.sharding import make_mesh
from polycom_jax.training import Checkpoints, model_specs

TOKENIZER = "tokenizer.json"
"""The file's name, in a run's folder and in Hugging Face's."""

Weights = Literal["last", "ema"]
"""Of a run's checkpoint: the parameters of its step, or their moving average."""

Split = Literal["heldout", "all"]
"""Of a text: the part that training on it leaves out, or every document."""


@dataclass(frozen=True)
class Trained:
    """What a run has made.

    Attributes:
        config: what it ran with.
        step: of the checkpoint that was read.
        params: its parameters.
        tokenizer: what turned its text into tokens.
        generation: what the Hugging Face folder that it was made from says of its texts' ends.
    """

    config: PretrainConfig
    step: int
    params: Params
    tokenizer: Tokenizer
    generation: Generation | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text, besides the tokenizer's own."""
        return () if self.generation is None else self.generation.ends


def load_trained(
    workdir: Workdir,
    checkpoint: str = "latest",
    *,
    mesh: Mesh | None = None,
    weights: Weights = "last",
) -> Trained:
    """Reads a run's parameters; the optimiser's state stays on the disk, and data are not needed.

    Args:
        workdir: of the run.
        checkpoint: "latest", "best" (lowest held-out loss) or a step.
        mesh: devices to read them onto; None: one.
        weights: which.

    Raises:
        InputError: no run there, no such checkpoint, no average; another's config or tokenizer.
    """
    config = workdir.read_config()
    averaged = weights == "ema"
    require(
        not averaged or config.optim.ema_decay is not None,
        f"--weights ema: {workdir.root} holds none, as its optim.ema_decay is none; leave it out.",
    )
    if imported := own_activation(config.model):
        print(imported, file=sys.stderr)
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    specs = model_specs(config.model, mesh)
    with Checkpoints(workdir.checkpoints, run_metadata=function_of(config)) as saved:
        how: Any = {"specs": specs, "averaged": averaged}
        found, params = read_named(saved, checkpoint, pm.abstract(specs, mesh), **how)
    return Trained(config, found, params, workdir.read_tokenizer(), workdir.read_generation())


def check_finite(where: str, params: Params) -> None:
    """Raises `InputError` where a run has diverged: what a model of NaN gives means nothing."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        require(
            bool(_all_finite(leaf)),
            f"{where}: {pm.path_name(path)} holds numbers that are not finite (NaN or infinity):"
            " the training went wrong. An older --checkpoint may be intact.",
        )


@jax.jit
def _all_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


@dataclass(frozen=True)
class Model:
    """A model wherever it is from.

    Attributes:
        cfg: what it is.
        params: its parameters.
        tokenizer: its own; None: its folder holds none.
        data: what it was trained on, where that is known; else the defaults.
        folder: it was read from.
        step: of the run's checkpoint; None: it is no run's.
        generation: what the Hugging Face folder that it is from, at first or second hand, says of
            its texts' ends; None: it is of none.
        end_of_text: the end-of-text token, where it was given and tokenizer.json does not name it.
        noted: what the run's record says of its data (`Corpus.summary`).
        weights: which of the run's checkpoint.
    """

    cfg: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    data: DataConfig
    folder: storage.Place
    step: int | None
    generation: Generation | None = None
    end_of_text: str | None = None
    noted: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights = "last"

    @property
    def trained_here(self) -> bool:
        """Whether text was put before it as this project does, and not by others alone."""
        return self.step is not None and (self.step > 0 or self.generation is None)

    @property
    def origin(self) -> str:
        """Where it is from, in words."""
        at = "" if self.step is None else f", checkpoint of step {self.step}"
        return f"{self.folder}{at}{', moving average' if self.weights == 'ema' else ''}"

    @property
    def tokenizer_name(self) -> str | None:
        """What `DataConfig.tokenizer` calls it."""
        if self.tokenizer is None:
            return None
        is_bytes = isinstance(self.tokenizer, ByteTokenizer)
        return "bytes" if is_bytes else str(self.folder / TOKENIZER)


def load_model(
    folder: storage.Place,
    checkpoint: str = "latest",
    *,
    mesh: Mesh | None = None,
    end_of_text: str | None = None,
    weights: Weights = "last",
) -> Model:
    """Reads a run's model (there is a config.yaml) or a Hugging Face folder (a config.json).

    Args:
        folder: where it lies.
        checkpoint: of a run.
        mesh: devices to read it onto; None: one.
        end_of_text: for a Hugging Face folder that does not say which token ends a text.
        weights: of a run, which.

    Raises:
        InputError: neither stands there, or it cannot be read.
    """
    storage.require_reachable(folder)
    if storage.is_file(folder / "config.yaml"):
        require(
            end_of_text is None,
            f"end_of_text={end_of_text!r}: the run in {folder} has its own; leave it out.",
        )
        workdir = Workdir(folder)
        run = load_trained(workdir, checkpoint, mesh=mesh, weights=weights)
        about = (run.config.model, run.params, run.tokenizer, run.config.data, folder, run.step)
        noted = workdir.record().get("data", {})
        return Model(*about, generation=run.generation, noted=noted, weights=weights)
    require(
        storage.is_file(folder / "config.json"),
        f"{folder} holds neither a run (config.yaml) nor a Hugging Face model (config.json).",
    )
    require(weights == "last", f"--weights {weights}: {folder} is no run's folder; leave it out.")
    if checkpoint != "latest":  # it may be of runs beside this one
        print(
            f"--checkpoint {checkpoint}: {folder} is no run's folder, and has one model alone.",
            file=sys.stderr,
        )
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    file, tokenizer = folder / TOKENIZER, None
    if storage.is_file(file):
        tokenizer = load_tokenizer(file, end_of_text=end_of_text)
    with staging.fetched(folder) as local:
        generation = huggingface.read_generation(local)
        cfg, params = huggingface.load(local, mesh=mesh)
    return Model(cfg, params, tokenizer, DataConfig(), folder, None, generation, end_of_text)


def check_tokenizer(model: Model, named: str | None) -> None:
    """Raises `InputError` unless there is just one: the model's own, or the one that is named."""
    own = model.tokenizer_name
    require(
        own is not None or named is not None,
        f"{model.folder} holds no tokenizer.json; name one with --tokenizer.",
    )
    require(
        own is None or named is None,
        f"--tokenizer {named}: {model.folder} has its own, which the model knows; leave the flag"
        " out.",
    )


def read_text(
    model: Model,
    source: str,
    tell: Callable[[str], None],
    *,
    split: Split = "heldout",
    tokenizer: str | None = None,
    text_field: str | None = None,
) -> Corpus:
    """A text as tokens of the model; of files and "all", everything is what is held out.

    Of a run's own text is held out what training on it left out, whatever name it goes by.

    Args:
        model: it is for.
        source: as `DataConfig.source`.
        tell: takes a line on what is being done.
        split: what is wanted of it.
        tokenizer: for a model whose folder has none, as `DataConfig.tokenizer`.
        text_field: as `DataConfig.text_field`; None: a run's own for its own text, or the default.

    Raises:
        InputError: a text that cannot be read, or some of which the model was trained on; no
            tokenizer, or two, or another model's.
    """
    check_tokenizer(model, tokenizer)
    own = _own_text(model, source, split)
    data = replace(model.data, source=source) if own else DataConfig(source)
    data = replace(data, tokenizer=tokenizer or str(model.tokenizer_name))
    if model.end_of_text is not None:
        data = replace(data, end_of_text=model.end_of_text)
    data = data if text_field is None else replace(data, text_field=text_field)
    files = names_files(source)
    if split == "all" and files:
        data = replace(data, heldout=source)  # also where nothing could be held out
    try:
        corpus = prepare(data, vocab_size=model.cfg.vocab_size, progress=tell)
    except SingleDocumentError as error:
        raise InputError(
            f"{source}: a single document, so nothing of it is held out; --split all reads all of a"
            " text that the model was not trained on."
        ) from error
    require(
        corpus.tokenizer.vocab_size <= model.cfg.vocab_size,
        f"The tokenizer has {corpus.tokenizer.vocab_size} ids and the model"
        f" {model.cfg.vocab_size}: it is another model's.",
    )
    if own and files and split == "heldout" and own.noted:
        _check_left_out(source, own.noted, corpus.summary)
    return corpus


class _Text(NamedTuple):
    """A text that a model was trained on, and what the run's record says of it."""

    source: str
    heldout: str | None
    noted: Mapping[str, Any]


def _own_text(model: Model, source: str, split: Split) -> _Text | None:
    """The text that a source is, of those that the model was trained on."""
    own = parts(model.data.source)
    noted = model.noted.get("corpora")
    each = noted.values() if noted else [model.noted] * len(own)
    texts = [
        _Text(part.source, model.data.heldout, about) for part, about in zip(own, each, strict=True)
    ]
    return next((text for text in texts if _is_own(text, source, split)), None)


def _is_own(text: _Text, source: str, split: Split) -> bool:
    """Whether a source is a text that was trained on: of files, their contents tell."""
    own = text.source
    if source == own or not (names_files(source) and names_files(own)):
        return source == own
    trained = _trained_on(text)
    now = file_sums(source, _kind(trained))
    if set(now.values()) == trained:
        return True
    seen = [name for name, content in now.items() if content in trained - EMPTY]
    require(
        not seen or split == "all",
        f"{source}: the model was trained on {', '.join(seen[:3])}, so the part of it that would be"
        f" held out now is not what training left out. That is measured by --data {own}; other"
        " text without these files.",
    )
    return False


def _trained_on(text: _Text) -> set[str]:
    """The files of a text by the beginnings of their checksums, if known."""
    noted_training_files = text.heldout is None or "heldout_files" in text.noted
    if noted_training_files and text.noted.get("files"):
        return {shown(one) for one in text.noted["files"].values()}
    try:
        return set(file_sums(text.source).values())
    except InputError:  # The text of a run may be gone.
        return set()


def _kind(noted: Collection[str]) -> Kind:
    """What checksums a run has noted; those of earlier versions are SHA-256."""
    return "crc32c" if all(one.startswith("crc32c") for one in noted) else "sha256"


def _check_left_out(source: str, noted: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before, after = (
        {name: about["heldout"][name] for name in ("documents", "bytes")} for about in (noted, now)
    )
    require(
        before == after,
        f"{source}: training left out {before['documents']} documents of {before['bytes']} bytes,"
        f" and now {after['documents']} of {after['bytes']} would be held out: the files, or how"
        " they are split, have changed. Measure it on other text.",
    )
