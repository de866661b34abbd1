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
from polycom_jax.training.loss_scale import check_loss_scaling
from polycom_jax.training.recipes import RECIPES, recipe


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged. One size may be -1: the rest.

    The result does not depend on it, but for a mixture with moe.capacity_factor, whose devices each
    drop what they have no room for.

    Attributes:
        data: replicas of the model; each has its share of the batch. -1: as many as the devices
            allow.
        fsdp: parts into which parameters, optimiser state and batch are split.
        tensor: parts into which heads, hidden width and vocabulary are split.
        expert: parts into which experts are split.
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
        steps: optimiser steps of the whole run.
        seed: seed of the initial parameters, of the order of the data and of the sample.
        log_every: steps between two lines of metrics.jsonl; a step with an evaluation has a line,
            too.
        eval_every: steps between two evaluations on held-out text; the last step has one, too.
        eval_tokens: tokens of held-out text in an evaluation, spread evenly over it, and the same
            ones each time. Default: all.
        checkpoint_every: steps between two checkpoints; the last step has one, too. "best" is
            chosen among checkpoints of steps with an evaluation.
        keep_last: how many of the newest checkpoints are kept; the best one is kept, too.
        sample_prompt: beginning of the text that the finished model continues.
        sample_tokens: length of that text in tokens.
        compile_cache: store compiled programs, so that the next start need not compile them.
        compile_cache_dir: folder for compiled programs; all processes can share one in a bucket
            (gs://BUCKET/PATH). Default: `compiled/` beside the prepared data, or in this machine's
            own cache folder where those are in a bucket.
        hardware: TPUs or GPUs that the run is meant for: "v5e:4x4", "2*v5e:16x16" for two slices,
            "gpu:t4", "8*gpu:h100" for a machine of eight; `experiments.plan` compiles for them.
            With another number of devices the run does not start.
        compiler_options: XLA's options for the training step on TPUs and GPUs, as NAME=VALUE.
        grace_s: seconds from the first Ctrl-C or SIGTERM within which the run finishes its step and
            saves; after them it ends unsaved. Set it below the scheduler's limit.
        give_up_after: consecutive steps without a finite loss and gradient after which the run
            ends; the last good parameters are then in a checkpoint.
        deterministic: on GPUs, compile programs that give the same bits each time, at some cost in
            speed; CPUs and TPUs always do.
        init_from: run or Hugging Face folder from which a new run takes weights, shape of the model
            and tokenizer, and the learning rate of the preset nearest in size, unless one is given;
            a resumed run does not need it. Default: random weights.
        profile_steps: steps that `jax.profiler` traces into `profile/`, both included.
        trackers: where metrics are shown, besides metrics.jsonl.
        dry_run: check settings, data, devices and memory, print what would run, and end; the
            workdir stays as it is.
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
        model: the transformer; defaults are the preset's.
        optim: optimiser and schedule; defaults are the preset's recipe, its warm-up at most a tenth
            of the run.
        data: text, tokenizer and batch.
        mesh: how devices are arranged; results do not depend on it. One number may be -1.
        hosts: processes of the run; leave all out on one machine, and on clusters that JAX knows.
        run: length of the run, what it writes and when.
        preset: name of the model preset; its shape and recipe are the defaults of all flags.
        workdir: folder of the run, here or in a bucket (gs://BUCKET/PATH). A run that is there is
            resumed, with its own settings if no other flag is given. Default:
            runs/PRESET-ACTIVATION.
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
        check_loss_scaling(self.model.dtype, self.optim.loss_scaling)
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
"""Fields that follow from the data and the run's length unless they are set."""

WARMUP_SHARE = 10
"""By default, the warm-up is the recipe's, and at most one part in this many of a run."""


def default_config(preset: str, steps: int | None = None) -> PretrainConfig:
    """The preset's recipe, for a run of `steps`; None: of the recipe's length.

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
    """Fills in what follows from the data and from the length of the run.

    The vocabulary is the tokenizer's, unless one was given; the schedule ends at the last step,
    unless `optim.decay_steps` was given.

    Raises:
        InputError: a given vocabulary that does not hold the tokenizer's.
    """
    if "model.vocab_size" in given:
        require(
            config.model.vocab_size >= vocab_size,
            f"model.vocab_size={config.model.vocab_size} is smaller than the tokenizer's"
            f" {vocab_size}; leave it out, or give at least {vocab_size}. Weights that are brought"
            " in have the size of their own model's tokenizer: give that one.",
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
    """A command's config with the model, tokenizer and learning rate of the run that it resumes,
    where it names none: they were the source's, or followed from it."""
    named = {name.split(".")[1] for name in given if name.startswith("model.")}
    kept = [field.name for field in fields(ModelConfig) if field.name not in named]
    model = replace(config.model, **{name: getattr(stored.model, name) for name in kept})
    data = config.data
    if "data.tokenizer" not in given:
        data = replace(data, tokenizer=stored.data.tokenizer)
    optim = config.optim
    if not given & {"optim.peak_learning_rate", "preset"}:
        optim = replace(optim, peak_learning_rate=stored.optim.peak_learning_rate)
    return replace(config, model=model, data=data, optim=optim)


def shared(config: PretrainConfig) -> dict[str, Any]:
    """What all processes of a run must have in common: everything but the places of things."""
    return {name: value for name, value in flags.flatten(config).items() if name not in _PLACES}
