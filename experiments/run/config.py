"""What a pretraining run is: six frozen dataclasses, and where their values come from.

Defaults come from the recipe of the model preset; a YAML file replaces some, flags replace more.
"""

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from tyro.conf import arg

from experiments.terminal import flags
from experiments.terminal.checks import at_least
from polycom_jax._errors import InputError, require
from polycom_jax._fields import LARGEST, PlaceText, check_fields
from polycom_jax.data import DataConfig
from polycom_jax.hosts import HostsConfig
from polycom_jax.models import ModelConfig
from polycom_jax.training import OptimConfig
from polycom_jax.training.recipes import RECIPES, recipe


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged; the result does not depend on it. One size may be -1: the rest.

    Attributes:
        data: replicas of the model, each with its share of the batch.
        fsdp: parts that parameters and optimiser state are split into, the batch too.
        tensor: parts that heads, hidden width and vocabulary are split into.
        expert: parts that experts are split into.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "mesh.")
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, size in sizes.items():
            require(
                size >= 1 or size == -1,
                f"mesh.{name}={size} must be at least 1, or -1 for what is left.",
            )
        free = [f"mesh.{name}" for name, size in sizes.items() if size == -1]
        require(len(free) <= 1, f"Only one of {' and '.join(free)} may be -1, for what is left.")


Tracker = Literal["tensorboard", "wandb", "trackio"]


def step_range(text: str) -> tuple[int, int]:
    """The steps that "FIRST:LAST" names, both included.

    Raises:
        InputError: it is nothing of that kind.
    """
    found = re.fullmatch(r"(\d{1,15}):(\d{1,15})", text)
    if found is None:
        raise InputError(f"run.profile_steps={text!r} must be FIRST:LAST, for instance 20:25.")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class RunConfig:
    """How long a run is, what it writes and when.

    Attributes:
        steps: optimiser steps in all.
        seed: of the initial parameters, the order of the data and the sample.
        log_every: steps between two lines of metrics.jsonl; steps that are evaluated have one, too.
        eval_every: steps between two evaluations on held-out text; the last step has one too.
        eval_tokens: tokens of held-out text in an evaluation, spread evenly over it and the same
            each time. Default: all.
        checkpoint_every: steps between two checkpoints; the last step has one too. "best" is
            chosen among checkpoints of evaluated steps.
        keep_last: newest checkpoints to keep, beside the best one.
        sample_prompt: beginning of the text that the finished model continues.
        sample_tokens: tokens of that sample.
        compile_cache: keep compiled programs, so that the next start reads them.
        compile_cache_dir: where, also gs://BUCKET/PATH, which hosts then share; default:
            `compiled/` beside the prepared data.
        hardware: TPUs or GPUs that the run is planned for: "v5e:4x4", "2*v5e:16x16" for two
            slices, "gpu:t4", "8*gpu:h100" for a machine of eight. `experiments.plan` compiles for
            them. With other numbers of devices it does not start.
        compiler_options: of XLA for the training step on TPUs and GPUs, as NAME=VALUE.
        grace_s: seconds for ending the step and saving after the first Ctrl-C or SIGTERM; where
            they are too few, the run ends unsaved. Set it below the scheduler's limit.
        give_up_after: steps in a row without a finite loss and gradient that end the run; a
            checkpoint then holds the last good parameters.
        deterministic: on GPUs, programs that give the same bits each time, at some cost in speed;
            CPUs and TPUs always do.
        init_from: run or Hugging Face folder that a new run takes its weights, the shape of its
            model and its tokenizer from; a resumed run no longer needs it. Default: random weights.
        profile_steps: FIRST:LAST, steps whose time `jax.profiler` traces into `profile/`.
        trackers: what shows the numbers beside metrics.jsonl.
        dry_run: check settings, data, devices and memory, print what would run, and end; nothing is
            written to the workdir.
    """

    steps: int = 1000
    seed: int = 0
    log_every: int = 10
    eval_every: int = 100
    eval_tokens: int | None = None
    checkpoint_every: int = 100
    keep_last: int = 2
    sample_prompt: str = "def "
    sample_tokens: int = 200
    compile_cache: bool = True
    compile_cache_dir: PlaceText | None = None
    hardware: str | None = None
    compiler_options: tuple[str, ...] = ()
    grace_s: float = 25.0
    give_up_after: int = 10
    deterministic: bool = False
    init_from: Annotated[PlaceText | None, arg(metavar="RUN_OR_FOLDER")] = None
    profile_steps: Annotated[str | None, arg(metavar="FIRST:LAST")] = None
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "run.", wide=("seed",))
        counts = ("steps", "log_every", "eval_every", "eval_tokens", "checkpoint_every")
        counts += ("keep_last", "sample_tokens", "give_up_after")
        at_least(self, 1, *counts, prefix="run.")
        require(self.grace_s > 0, f"run.grace_s={self.grace_s} must be above 0 seconds.")
        for option in self.compiler_options:
            require(
                "=" in option.strip("="),
                f"run.compiler_options: {option!r} must be NAME=VALUE.",
            )
        if self.profile_steps is not None:
            first, last = step_range(self.profile_steps)
            require(
                1 <= first <= last,
                f"run.profile_steps={self.profile_steps!r}: steps count from 1, and the last is not"
                " before the first.",
            )
        # A seed travels as uint32 through threefry, NumPy and Grain alike.
        require(0 <= self.seed < 2**32, f"run.seed={self.seed} must be in [0, 2**32).")


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
        model: the transformer; from the preset.
        optim: optimiser and schedule; from the preset's recipe, the warm-up at most a tenth of the
            run.
        data: text, tokenizer and batch.
        mesh: arrangement of the devices.
        hosts: which processes take part.
        run: length, periods, seed.
        preset: model preset whose recipe gives the defaults.
        workdir: folder of the run, also gs://BUCKET/PATH; default: runs/PRESET-ACTIVATION. A run
            that is there goes on with its own settings, if no flag says what it is.
    """

    model: ModelConfig
    optim: OptimConfig
    data: DataConfig
    mesh: MeshConfig
    hosts: HostsConfig
    run: RunConfig
    preset: Annotated[str, arg(metavar="|".join(RECIPES))]
    workdir: Annotated[PlaceText | None, arg(metavar="DIR")] = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.workdir != "", "workdir is empty; leave it out for the default.")
        require(
            self.data.heldout != self.data.source,
            f"data.heldout={self.data.heldout!r} is data.source: all of it would be trained on.",
        )
        tokens, batch = self.data.batch_size * self.model.context_length, self.data.batch_size
        require(
            tokens <= LARGEST,
            f"data.batch_size={batch} x model.context_length={self.model.context_length} are"
            f" {tokens} tokens a step, and places in a batch are counted up to {LARGEST}; nearest:"
            f" batch_size={max(LARGEST // self.model.context_length, 1)}.",
        )


_PLACES = frozenset(
    {"workdir", "preset", "data.cache_dir", "data.lock_timeout_s", "run.compile_cache"}
    | {"run.compile_cache_dir"}
    | {f"hosts.{field.name}" for field in fields(HostsConfig)}
    | {"run.hardware", "run.compiler_options", "run.grace_s", "run.give_up_after"}
    | {"run.init_from", "run.profile_steps", "run.trackers"}
)
"""Fields that say where things lie and where values came from, and change no number of a run."""


FILLED = ("model.vocab_size", "optim.warmup_steps", "optim.decay_steps")
"""Fields that, where nobody sets them, follow from the data and the run's length."""

WARMUP_SHARE = 10
"""A warm-up that nobody has set takes one part of so many of a run, or the recipe's, if less."""


def default_config(preset: str, steps: int | None = None) -> PretrainConfig:
    """The preset's recipe, for a run of its own length or of so many steps.

    Raises:
        InputError: no such preset.
    """
    chosen = recipe(preset)
    steps = chosen.steps if steps is None else max(steps, 1)
    warmup = min(chosen.optim.warmup_steps, steps // WARMUP_SHARE)
    return PretrainConfig(
        model=chosen.model,
        optim=replace(chosen.optim, warmup_steps=warmup),
        data=DataConfig(batch_size=chosen.batch_size),
        mesh=MeshConfig(),
        hosts=HostsConfig(),
        run=RunConfig(steps=chosen.steps),
        preset=preset,
    )


def nested(config: PretrainConfig) -> dict[str, Any]:
    """The shape that YAML files have: sections, and the preset's name within `model`."""
    tree = {name: asdict(getattr(config, name)) for name in ("optim", "data", "mesh", "run")}
    return {"model": {"preset": config.preset, **asdict(config.model)}, **tree}


def resolve(config: PretrainConfig, given: frozenset[str], *, vocab_size: int) -> PretrainConfig:
    """Fills what only the data and the run's length tell.

    The vocabulary is the tokenizer's, unless one was given; the schedule ends at the last step,
    unless told otherwise.

    Raises:
        InputError: a given vocabulary that does not hold the tokenizer's.
    """
    if "model.vocab_size" in given:
        require(
            config.model.vocab_size >= vocab_size,
            f"model.vocab_size={config.model.vocab_size} is smaller than the tokenizer's"
            f" {vocab_size}; leave it out, or give at least {vocab_size}.",
        )
        vocab_size = config.model.vocab_size
    horizon = config.optim.decay_steps
    if horizon is None:  # A run shorter than its warm-up never gets to where the rate falls.
        horizon = max(config.run.steps, config.optim.warmup_steps + 1)
    return replace(
        config,
        model=replace(config.model, vocab_size=vocab_size),
        optim=replace(config.optim, decay_steps=horizon),
    )


def filled(config: PretrainConfig, given: frozenset[str]) -> list[str]:
    """Those of `FILLED` that a command, which sets the fields `given`, leaves open."""
    values = flags.flatten(config)
    return [name for name in FILLED if name not in given or values[name] is None]


def inherit(
    config: PretrainConfig, given: frozenset[str], stored: PretrainConfig
) -> PretrainConfig:
    """The command's config, with what was filled in taken from the run that it resumes."""
    names = [name.split(".") for name in filled(config, given)]

    def taken(section: str) -> dict[str, Any]:
        source = getattr(stored, section)
        return {field: getattr(source, field) for its, field in names if its == section}

    return replace(
        config,
        model=replace(config.model, **taken("model")),
        optim=replace(config.optim, **taken("optim")),
    )


def as_stored(
    config: PretrainConfig, given: frozenset[str], stored: PretrainConfig
) -> PretrainConfig:
    """A command's config with the model and tokenizer of the run that it resumes, where it names
    none: they were the source's."""
    named = {name.split(".")[1] for name in given if name.startswith("model.")}
    kept = [field.name for field in fields(ModelConfig) if field.name not in named]
    model = replace(config.model, **{name: getattr(stored.model, name) for name in kept})
    data = config.data
    if "data.tokenizer" not in given:
        data = replace(data, tokenizer=stored.data.tokenizer)
    return replace(config, model=model, data=data)


def shared(config: PretrainConfig) -> dict[str, Any]:
    """What all processes of a run must have in common: everything but the places of things."""
    return {name: value for name, value in flags.flatten(config).items() if name not in _PLACES}
