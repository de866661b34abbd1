"""Weights that a new run takes from another run or a Hugging Face folder, with what they fit."""

import math
import re
from dataclasses import replace

from jax.sharding import Mesh

from experiments.run.config import PretrainConfig
from experiments.run.model_loading import Model, check_finite, load_model
from experiments.run.resuming import same_activation
from experiments.terminal import flags
from experiments.terminal.progress import Display
from polycom_jax import models, storage
from polycom_jax._errors import InputError, require
from polycom_jax.training.recipes import RECIPES, recipe

ADJUSTABLE = frozenset(
    {"context_length", "document_mask", "init", "attention", "dtype", "remat", "unroll"}
    | {"loss_chunk"}
)
"""Fields of a model that may be others than its source's: they are not its shape."""

_HUB_NAME = re.compile(r"[\w.-]*\w[\w.-]*/[\w.-]+")


def load_start(config: PretrainConfig, mesh: Mesh) -> Model:
    """The model that `run.init_from` names.

    Raises:
        InputError: nothing of that kind lies there, or it holds numbers that are not finite.
    """
    source = storage.named(str(config.run.init_from))
    _check_there(str(config.run.init_from), source)
    model = load_model(source, mesh=mesh, end_of_text=config.data.end_of_text)
    check_finite(model.origin, model.params)
    return model


def _check_there(name: str, source: storage.Place) -> None:
    """Raises `InputError`, with what was probably meant, where no run and no model lies."""
    storage.require_reachable(source)
    if any(storage.is_file(source / file) for file in ("config.yaml", "config.json")):
        return
    runs = [folder for folder in (*source.parents,)[:2] if storage.is_file(folder / "config.yaml")]
    if name in RECIPES:
        hint = f"that is a preset, which has no weights: leave it out, and give --model {name}"
    elif runs:
        hint = f"give the folder of its run, {runs[0]}, whose last checkpoint is taken"
    elif _HUB_NAME.fullmatch(name) and not storage.is_folder(source):
        hint = (
            "no such folder is here; a model of the Hugging Face Hub is brought by"
            f" `hf download {name} --local-dir FOLDER`, and FOLDER given"
        )
    else:
        hint = "give the folder of one" if storage.is_folder(source) else "no such folder is here"
    raise InputError(
        f"run.init_from={name!r} holds neither a run (config.yaml) nor a Hugging Face model"
        f" (config.json): {hint}."
    )


def adopted(config: PretrainConfig, given: frozenset[str], model: Model) -> PretrainConfig:
    """The config with the source's model, but for fields that may change, and its tokenizer.

    Raises:
        InputError: another shape or activation was asked for, or another tokenizer, or none is
            there.
    """
    data = replace(config.data, tokenizer=own_tokenizer(config, given, model))
    asked, own = flags.flatten(config.model), flags.flatten(model.cfg)
    if same_activation(asked["activation"], own["activation"]):  # its file may lie elsewhere
        own["activation"] = asked["activation"]
    named = {name.removeprefix("model.") for name in given if name.startswith("model.")}
    other = sorted(name for name in named if name not in ADJUSTABLE and asked[name] != own[name])
    require(
        not other,
        f"run.init_from={config.run.init_from}: its model has"
        f" {', '.join(f'{name}={own[name]!r}' for name in other)}, and"
        f" {', '.join(f'model.{name}={asked[name]!r}' for name in other)} was asked for. Leave that"
        " out; `python -m experiments.convert` gives a model another activation.",
    )
    changed = {name: getattr(config.model, name) for name in named & {*ADJUSTABLE, "activation"}}
    return replace(config, model=replace(model.cfg, **changed), data=data)


def with_rate(config: PretrainConfig, given: frozenset[str], display: Display) -> PretrainConfig:
    """The config of weights that are brought in, with a learning rate for a model of their size.

    It is the peak of the recipe that is nearest in size among those of the kind, dense or a mixture
    of experts, unless a rate or a preset was given; it says so.
    """
    if given & {"optim.peak_learning_rate", "preset"}:
        return config
    model = config.model
    size = math.log(models.count_params(model))

    def distance(name: str) -> tuple[bool, float]:
        other = recipe(name).model
        return other.is_moe != model.is_moe, abs(math.log(models.count_params(other)) - size)

    nearest = min(RECIPES, key=distance)
    rate = recipe(nearest).optim.peak_learning_rate
    display.note(
        f"optim.peak_learning_rate={rate}, of {nearest}, the recipe nearest in size, which begins"
        " with random weights; fine-tuning often takes a tenth of that."
    )
    return replace(config, optim=replace(config.optim, peak_learning_rate=rate))


def own_tokenizer(config: PretrainConfig, given: frozenset[str], model: Model) -> str:
    """What `DataConfig.tokenizer` is for a model: its own, or the one that is named if it has none.

    Raises:
        InputError: there is none, or there are two.
    """
    named = config.data.tokenizer if "data.tokenizer" in given else None
    own = model.tokenizer_name
    if own is None:
        require(
            named not in (None, "bpe"),
            f"{model.folder} holds no tokenizer.json; name one with --data.tokenizer.",
        )
        return str(named)
    require(
        named in (None, own),
        f"--data.tokenizer {named}: {model.folder} has its own, which the model knows; leave it"
        " out.",
    )
    return own
