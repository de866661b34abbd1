"""Moves weights between runs and Hugging Face folders: `python -m experiments.convert --help`.

    python -m experiments.convert runs/tiny-poly_norm --out exported
    python -m experiments.convert llama --workdir runs/llama --data text.txt
    python -m experiments.convert llama --workdir runs/swapped --data a.txt --activation poly_norm

The last one replaces the activation, prints the loss before and after, and leaves a run that
`experiments.pretrain` goes on with.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Annotated

import numpy as np
from etils import epath
from jax.sharding import Mesh
from rich.table import Table
from tyro.conf import Positional, arg

from experiments.run.command import ALIASES, LISTS, Command, from_command
from experiments.run.compiled import batch_shape, make_evaluation
from experiments.run.config import PretrainConfig, default_config
from experiments.run.corpus import load_corpus
from experiments.run.devices import mesh_of
from experiments.run.folder import Workdir
from experiments.run.hf_tokenizer import generation_of, save_tokenizer
from experiments.run.model_loading import TOKENIZER, Model, Weights, check_finite, load_model
from experiments.run.profile import check_traced
from experiments.run.report import activation_parameters, coefficient_table
from experiments.run.resuming import function_of, same_activation
from experiments.run.starting import ADJUSTABLE, own_tokenizer, with_rate
from experiments.terminal.checks import at_least
from experiments.terminal.flags import CommandLine, flatten
from experiments.terminal.paths import try_folder
from experiments.terminal.program import program
from experiments.terminal.progress import Display
from experiments.terminal.tables import print_table
from polycom_jax import staging, storage
from polycom_jax._errors import InputError, require
from polycom_jax._fields import PlaceText, check_fields
from polycom_jax.data import prepare_mixture
from polycom_jax.interop import huggingface
from polycom_jax.interop.huggingface import WeightDtype
from polycom_jax.interop.huggingface.config import family_of
from polycom_jax.interop.huggingface.files import all_or_nothing, check_empty
from polycom_jax.interop.swap import replacement, swap
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params
from polycom_jax.table import Activation
from polycom_jax.training import Checkpoints, latest_step, put_batch, state_from

FREE = ("model.activation", *(f"model.{name}" for name in ADJUSTABLE))

LINE = CommandLine(
    "convert",
    "Convert a run to a Hugging Face folder, a Hugging Face folder to a run, or either to another"
    " activation. --activation NAME fits the coefficients of the new activation to the old one on"
    " the text of --data; in a gated model, poly_norm stands for poly_norm_glu. Flags of the groups"
    " below are settings of the run that --workdir writes.",
    short=ALIASES,
    old={"source": "source", "target": "out"},
    refused=frozenset(
        name
        for name in flatten(default_config("tiny"))
        if name.startswith("model.")
        and name not in FREE
        and not name.startswith("model.activation_options.")
    ),
    why_refused="the source says what the model is; leave it out.",
    lists=LISTS,
)


@dataclass(frozen=True)
class ConvertCommand(Command):
    """What to read and what to write.

    Attributes:
        source: folder of a run, or a Hugging Face folder (config.json, safetensors).
        out: Hugging Face folder to write.
        dtype: dtype of its matrices; None: float32.
        checkpoint: checkpoint of a run: "latest", "best" (lowest held-out loss), or a step.
        weights: of a run: "last", those of that step; "ema", their moving average, which runs with
            optim.ema_decay keep.
        fit_batches: batches of training text to fit new coefficients on.
    """

    source: Annotated[PlaceText, Positional, arg(metavar="RUN_OR_FOLDER")] = ""
    out: Annotated[PlaceText | None, arg(metavar="FOLDER")] = None
    dtype: WeightDtype | None = None
    checkpoint: str = "latest"
    weights: Weights = "last"
    fit_batches: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 1, "fit_batches")


@program
def main(argv: Sequence[str]) -> int:
    """Reads, replaces the activation where that was asked for, and writes."""
    command, given = from_command(LINE, ConvertCommand(), argv)
    workdir = check_command(command, given)
    config = command.pretrain
    mesh = mesh_of(config)
    with Display() as display:
        display.busy(f"reading {command.source}")
        source, end = storage.named(command.source), config.data.end_of_text
        model = load_model(
            source, command.checkpoint, mesh=mesh, end_of_text=end, weights=command.weights
        )
        check_finite(model.origin, model.params)
        display.note(
            f"read {model.origin}: {model.cfg.num_layers} layers of {model.cfg.activation_name}"
        )
        config, activation = plan(config, given, model)
        if command.out is not None:  # what cannot be written is refused before anything is fitted
            asked = config.model
            family_of(asked if activation is None else with_activation(asked, activation))
        params = model.params
        if activation is not None:
            params = swapped(command.fit_batches, config, params, activation, mesh, display)
            config = replace(config, model=with_activation(config.model, activation))
        if command.out is not None:
            dtype = command.dtype or "float32"
            export(storage.named(command.out), config.model, params, model, dtype, display)
        if workdir is not None:
            begin_run(workdir, config, given, params, model, mesh, display)
    return 0


def check_command(command: ConvertCommand, given: frozenset[str]) -> Workdir | None:
    """The run to write, if any.

    Raises:
        InputError: a word that is missing or no use, or a folder that is taken.
    """
    require(
        command.source != "",
        "RUN_OR_FOLDER is missing: the folder of a run, or a Hugging Face one.",
    )
    source = storage.named(command.source)
    storage.require_reachable(source)
    is_run, is_other = (storage.is_file(source / name) for name in ("config.yaml", "config.json"))
    require(
        command.checkpoint == "latest" or is_run or not is_other,
        f"--checkpoint {command.checkpoint}: {source} is no run's folder; leave it out.",
    )
    run = command.pretrain.run
    require(
        run.init_from is None,
        f"run.init_from={run.init_from!r}: the weights are those of {command.source}; leave it"
        " out, or, where the file of --config has it, give --run.init-from None.",
    )
    require(
        not run.dry_run,
        "run.dry_run: convert writes what it is asked for; leave it out, and give it to"
        " `python -m experiments.pretrain RUN` once the run is there.",
    )
    workdir = Workdir(str(command.pretrain.workdir)) if "workdir" in given else None
    require(
        command.out is not None or workdir is not None,
        "Nothing to write: give --out for a Hugging Face folder, --workdir for a run.",
    )
    require(command.dtype is None or command.out is not None, "--dtype is of --out's weights.")
    if command.out is not None:
        target = storage.named(command.out)
        storage.require_reachable(target)
        check_no_model(target)
        try_folder("--out", target)
    if workdir is not None:
        require(
            command.out is None or storage.place(command.out) != storage.place(workdir.root),
            f"--out and --workdir are both {workdir.root}; a Hugging Face folder and a run take one"
            " each.",
        )
        check_traced(run)
        try_folder("--workdir", workdir.root)
        check_no_run(workdir)
    return workdir


def check_no_model(target: epath.Path) -> None:
    """Raises `InputError` where --out holds what would be overwritten."""
    check_empty(target)
    taken = [name for name in ("config.yaml", TOKENIZER) if storage.is_file(target / name)]
    require(
        not taken,
        f"--out {target} holds {' and '.join(taken)} already, as a run's folder does; give"
        " another folder.",
    )


def check_no_run(workdir: Workdir) -> None:
    """Raises `InputError` where --workdir holds a run."""
    require(
        latest_step(workdir.checkpoints) is None and not storage.is_file(workdir.config),
        f"{workdir.root} holds a run already; give another --workdir.",
    )


def plan(
    config: PretrainConfig, given: frozenset[str], model: Model
) -> tuple[PretrainConfig, Activation | None]:
    """The run's config with the source's model and tokenizer, and its new activation if any.

    Raises:
        InputError: flags that ask for another shape, or an activation that does not fit.
    """
    asked = config.model
    fields = {name.removeprefix("model.") for name in given if name.startswith("model.")}
    fields = {name.partition(".")[0] for name in fields}
    activation, options = None, "activation_options" in fields
    same = same_activation(asked.activation, model.cfg.activation)
    same &= not options or asked.activation_options == model.cfg.activation_options
    if "activation" in fields and not same:
        activation = replacement(model.cfg, str(asked.activation), asked.activation_options)
    elif options and "activation" not in fields:
        raise InputError("model.activation_options are of a new activation; give --activation.")
    kept = ADJUSTABLE if activation else ADJUSTABLE | {"activation"}  # a file may lie elsewhere
    changed = {name: getattr(asked, name) for name in fields & kept}
    require(
        model.tokenizer_name is None or "data.tokenizer" not in given,
        f"--data.tokenizer: {model.folder} has its own, which the model knows; leave it out.",
    )
    data = replace(config.data, tokenizer=own_tokenizer(config, given, model))
    cfg, optim = replace(model.cfg, **changed), config.optim
    if cfg.dtype == "float16" and "workdir" not in given:  # nothing will be trained
        optim = replace(optim, loss_scaling="dynamic")
    return replace(config, model=cfg, data=data, optim=optim), activation


def with_activation(cfg: ModelConfig, activation: Activation) -> ModelConfig:
    """The same model with another activation."""
    return replace(cfg, activation=activation.name, activation_options=activation.options)


def swapped(
    fit_batches: int,
    config: PretrainConfig,
    params: Params,
    activation: Activation,
    mesh: Mesh,
    display: Display,
) -> Params:
    """Parameters with fitted coefficients; shows them, and the loss before and after."""
    data = prepare_mixture(config.data, vocab_size=config.model.vocab_size, progress=display.busy)
    put = partial(put_batch, mesh=mesh, batch_size=config.data.batch_size)
    batches = data.train_batches(**batch_shape(config, mesh), seed=config.run.seed)
    display.busy(f"fitting {activation.name} on {fit_batches} batches of {', '.join(data.names)}")
    found = swap(config.model, params, map(put, islice(batches, fit_batches)), activation)
    print_table(display.console, fit_table(found.cfg, found.params, found.explained))
    for when, cfg, values in (
        ("before", config.model, params),
        ("after", found.cfg, found.params),
    ):
        display.busy(f"evaluating {cfg.activation_name}")
        numbers = make_evaluation(replace(config, model=cfg), data, mesh, cut=lambda: False)(values)
        display.note(
            f"held-out loss {when}, {cfg.activation_name}: {numbers['heldout_loss']:.4f} nats a"
            f" token, {numbers['bits_per_byte']:.4f} bits a byte"
        )
    return found.params


def fit_table(cfg: ModelConfig, params: Params, explained: np.ndarray) -> Table:
    """Each layer's coefficients, and how much of the old activation they give."""
    title = f"{cfg.activation_name}, fitted to the old activation in each layer"
    shares = [f"{share:.2%}" for share in explained]
    return coefficient_table(title, activation_parameters(cfg, params), explained=shares)


def export(
    target: epath.Path,
    cfg: ModelConfig,
    params: Params,
    model: Model,
    dtype: WeightDtype,
    display: Display,
) -> None:
    """Writes the Hugging Face folder, tokenizer and all."""
    tokenizer, generation = model.tokenizer, model.generation
    if generation is None and tokenizer is not None:
        generation = generation_of(tokenizer)
    with (
        Workdir(target).locked("--out", notify=display.note),
        staging.Staged(target) as staged,
        all_or_nothing(staged.local),
    ):
        check_no_model(target)  # another program may have written one meanwhile
        if tokenizer is not None:
            as_trained, length = model.trained_here, cfg.context_length
            save_tokenizer(staged.local, tokenizer, context_length=length, as_trained=as_trained)
        huggingface.save(
            staged.local,
            cfg,
            params,
            dtype=dtype,
            generation=generation,
            progress=lambda done, files: display.busy(f"wrote {done} of {files} files"),
        )
    folder = str(target)
    display.note(
        f"Hugging Face folder: {folder}\nNext:\n"
        f"  AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)\n"
        f"  python -m experiments.evaluate {shlex.quote(folder)}"
    )


def begin_run(
    workdir: Workdir,
    config: PretrainConfig,
    given: frozenset[str],
    params: Params,
    model: Model,
    mesh: Mesh,
    display: Display,
) -> None:
    """Writes the folder of a run that stands before its first step, with these parameters."""
    with workdir.locked(notify=display.note), all_or_nothing(workdir.root):
        check_no_run(workdir)  # another program may have written one meanwhile
        if model.tokenizer is not None and config.data.tokenizer != "bytes":
            workdir.write_tokenizer(model.tokenizer)  # the source may go
            config = replace(config, data=replace(config.data, tokenizer=str(workdir.tokenizer)))
        if model.generation is not None:
            workdir.write_generation(model.generation)
        config = with_rate(config, given, display)
        given |= {"model.vocab_size"}
        config, data, record = load_corpus(config, given, workdir, display, resuming=False)
        workdir.write_tokenizer(data.tokenizer)
        workdir.write_config(config, record | {"weights_from": model.origin})
        # Of the weights alone: their function does not say how they will be trained.
        about, keep = function_of(config), config.run.keep_last
        with Checkpoints(workdir.checkpoints, keep_last=keep, run_metadata=about) as checkpoints:
            checkpoints.save(0, state_from(config.model, config.optim, params, mesh))
    root = shlex.quote(str(workdir.root))
    display.note(
        f"Run at step 0: {workdir.root}\nNext:\n"
        f"  python -m experiments.generate {root}\n  python -m experiments.pretrain {root}"
    )


if __name__ == "__main__":
    sys.exit(main())
