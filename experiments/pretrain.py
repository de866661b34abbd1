"""Pretrains a transformer: `python -m experiments.pretrain --help`.

Without flags: the preset "tiny" with PolyNorm, on the source text of Python's standard library.
The same command again resumes a run where its last checkpoint stands.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments import STARTED, cli
from experiments.config import PretrainConfig, fixed, from_command, resolve, shared
from experiments.logs import Logs
from experiments.meter import Meter
from experiments.plan.files import made_for
from experiments.progress import Display
from experiments.report import report
from experiments.signals import StopRequest, stop_request
from experiments.trained import load_trained
from experiments.workdir import Workdir, data_record, resumed, versions
from polycom_jax import models
from polycom_jax._errors import InputError
from polycom_jax.data import Corpus, eval_batches, prepare, train_batches
from polycom_jax.data.cache import cache_folder
from polycom_jax.data.windows import count_windows
from polycom_jax.hosts import joined, meet
from polycom_jax.params import Params
from polycom_jax.sharding import Rules, make_mesh
from polycom_jax.training import (
    Checkpoints,
    TrainState,
    abstract_state,
    batch_rows,
    evaluate,
    latest_step,
    make_eval_step,
    make_state,
    make_train_step,
    model_specs,
    put_batch,
)
from polycom_jax.training.loss import Batch
from polycom_jax.training.state import split_count
from polycom_jax.training.step import check_parts

MIN_COMPILE_S = 0.1
"""Programs that took less to compile are not kept: reading them would take as long."""

ABOUT = "Pretrain a transformer. The same command again resumes the run."


@cli.program
def main(argv: Sequence[str]) -> int:
    """Runs, resumes, or says that there is nothing left to do."""
    config, given = from_command(argv, prog="python -m experiments.pretrain", about=ABOUT)
    with joined(config.hosts, tell=cli.tell, common=(cli.Stop,)):
        run(config, given)
    return 0


def run(config: PretrainConfig, given: frozenset[str]) -> None:
    """Trains, or says what the folder holds already; on several hosts, each runs this."""
    workdir = Workdir(Path(config.workdir or "."))
    first_host = is_first_host()
    with (
        Display(active=first_host) as display,
        workdir.locked(active=first_host, tell=display.note),
    ):
        done = latest_step(workdir.checkpoints)
        meet("settings", shared(config) | {"step of the last checkpoint": done})
        if done is not None:
            config = resumed(workdir, config, given)
            if done >= config.run.steps:
                display.note(
                    f"Finished: {workdir.root} has {done} steps. A larger --steps goes on."
                )
                if not workdir.sample.exists():
                    report_again(config, workdir, display)
                return
        train(config, given, workdir, display, resuming=done is not None)


def train(
    config: PretrainConfig,
    given: frozenset[str],
    workdir: Workdir,
    display: Display,
    *,
    resuming: bool,
) -> None:
    """Trains to the last step, from the last checkpoint or from the beginning, and reports.

    Raises:
        InputError: settings that fit neither each other, nor the data, nor the devices.
        cli.Stop: a signal asked for it (the state is saved), or the loss is no number any more.
    """
    keep_compiled(config)
    mesh = mesh_of(config)
    check_fits(config, mesh)
    config, corpus = load(config, given, workdir, display, resuming=resuming)
    if is_first_host():
        workdir.sample.unlink(missing_ok=True)  # or a report cut short would look complete
    display.note(describe(config, corpus))
    if treated := treatment(config, corpus):
        display.note(treated)

    about = fixed(config) | {
        "data_fingerprint": corpus.fingerprint,
        "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
    }
    keep_last = config.run.keep_last
    with Checkpoints(workdir.checkpoints, keep_last=keep_last, about=about) as checkpoints:
        if resuming:
            specs = model_specs(config.model, mesh)
            abstract = abstract_state(config.model, config.optim, mesh)
            state = checkpoints.restore(abstract, specs=specs)
            display.note(f"resumed from the checkpoint of step {int(state.step)}")
        else:
            state = make_state(config.model, config.optim, jax.random.key(config.run.seed), mesh)
        first = int(state.step)
        logs = Logs(workdir.metrics, workdir.tensorboard, step=first, active=is_first_host())
        with closing(logs), stop_request() as stop:
            state = run_steps(config, corpus, mesh, state, checkpoints, logs, display, stop)
        # While the last checkpoint is being written.
        report(
            display.console,
            workdir,
            config,
            state.params,
            corpus.tokenizer,
            active=is_first_host(),
        )


def keep_compiled(config: PretrainConfig) -> None:
    """Lets JAX read compiled programs from the cache folder, and write them there."""
    folder = None
    if config.run.compile_cache:
        folder = str(cache_folder(config.data.cache_dir) / "compiled")
        # JAX's own threshold, a second, would leave out most of what a CPU compiles.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    jax.config.update("jax_compilation_cache_dir", folder)


def report_again(config: PretrainConfig, workdir: Workdir, display: Display) -> None:
    """The report of a finished run whose own was cut short, from its folder alone."""
    trained = load_trained(workdir, mesh=make_mesh(**asdict(config.mesh)))
    report(
        display.console,
        workdir,
        trained.config,
        trained.params,
        trained.tokenizer,
        active=is_first_host(),
    )


def load(
    config: PretrainConfig,
    given: frozenset[str],
    workdir: Workdir,
    display: Display,
    *,
    resuming: bool,
) -> tuple[PretrainConfig, Corpus]:
    """Prepares the data, and completes the config by what only they tell."""
    clock = time.perf_counter()
    # A BPE may come out smaller than asked for; asking for less would be another preparation.
    record = workdir.record() if resuming else {"vocab_size_asked": config.model.vocab_size}
    asked = record.get("vocab_size_asked", config.model.vocab_size)
    corpus = prepare(config.data, vocab_size=asked, progress=display.busy)
    display.note(f"prepared data in {time.perf_counter() - clock:.1f} s")
    found = {"fingerprint": corpus.fingerprint, "tokenizer": corpus.tokenizer.fingerprint}
    meet("the data", found, timeout_s=config.data.lock_timeout_s)
    count_windows(corpus.train, config.model.context_length)
    if resuming:
        workdir.check_data(data_record(corpus))
    else:
        horizon_given = config.optim.decay_steps is not None
        config = resolve(config, given, vocab_size=corpus.tokenizer.vocab_size)
        record |= {
            **({} if horizon_given else {"decay_steps": config.optim.decay_steps}),
            **versions(),
            **data_record(corpus),
        }
    if is_first_host():
        workdir.write_tokenizer(corpus.tokenizer)
        workdir.write_config(config, record)
    return config, corpus


def run_steps(
    config: PretrainConfig,
    corpus: Corpus,
    mesh: Mesh,
    state: TrainState,
    checkpoints: Checkpoints,
    logs: Logs,
    display: Display,
    stop: StopRequest,
) -> TrainState:
    """The loop: step, log, evaluate, save."""
    run, first = config.run, int(state.step)
    shape = batch_shape(config, mesh)
    batches = iter(train_batches(corpus.train, **shape, seed=run.seed, start_step=first))
    put = partial(put_batch, mesh=mesh, batch_size=config.data.batch_size)
    batch = put(next(batches))
    display.start(first, run.steps)
    train_step = compile_step(config, mesh, state, batch, display)
    heldout_numbers = make_evaluation(config, corpus, mesh)

    meter = Meter(run, logs, display)
    display.doing("train")
    for step in range(first + 1, run.steps + 1):
        last = step == run.steps
        state, metrics = train_step(state, batch)
        # The device is busy with this step while the host reads the numbers of the one before it
        # and fetches the next batch.
        meter.push(step, metrics)
        checkpoints.check()
        if not last:
            batch = put(next(batches))
        if step == first + 1:
            jax.block_until_ready(metrics)
            display.note(f"first step done {time.perf_counter() - STARTED:.1f} s after the start")

        score = None
        if last or step % run.eval_every == 0:
            display.doing("evaluate")
            line = meter.flush(partial(heldout_numbers, state.params))
            score = line["heldout_loss"]
            display.note(
                f"step {step}: held-out loss {score:.4f}, {line['bits_per_byte']:.4f} bits a byte"
            )
            display.doing("train")
        stopping = not last and stop.due(step)
        if last or stopping or step % run.checkpoint_every == 0:
            meter.flush()
            # Lines first: a checkpoint must not be ahead of what is logged.
            logs.sync()
            checkpoints.save(step, state, score=score)
            meter.pause()
        if stopping:
            raise stop.reached(step)
    display.stop()
    return state


def compile_step(
    config: PretrainConfig, mesh: Mesh, state: TrainState, batch: Batch, display: Display
) -> jax.stages.Compiled:
    """Compiles the training step ahead of the first one, so that its time is seen."""
    clock = time.perf_counter()
    display.doing("compile")
    step = make_train_step(config.model, config.optim, config.run.steps, mesh)
    options = compiler_options(config, display)
    compiled = step.lower(state, batch).compile(compiler_options=options)
    display.note(f"compiled in {time.perf_counter() - clock:.1f} s")
    return compiled


def compiler_options(config: PretrainConfig, display: Display) -> dict[str, str]:
    """XLA's options for the training step, by name; they are a TPU's."""
    options, backend = config.run.compiler_options, jax.default_backend()
    if options and backend != "tpu":
        display.note(f"run.compiler_options are for TPUs and left out on this {backend}")
        return {}
    return dict(option.split("=", 1) for option in options)


def mesh_of(config: PretrainConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
        InputError: its sizes do not fit them; files of `tpu_configs/` that would are named.
    """
    try:
        return make_mesh(**asdict(config.mesh))
    except InputError as error:
        files = made_for(jax.device_count())
        fitting = f" Made for {jax.device_count()} chips: {', '.join(files)}." if files else ""
        raise InputError(f"{error}{fitting}") from error


def check_fits(config: PretrainConfig, mesh: Mesh) -> None:
    """Raises `InputError`, before anything is written, where sizes do not divide over the mesh."""
    rows, parts = config.data.batch_size, config.optim.accumulation_steps
    batch_rows(rows, mesh)
    check_parts(rows, parts, split_count(mesh, Rules(), "batch"))
    abstract_state(config.model, config.optim, mesh)


def make_evaluation(
    config: PretrainConfig, corpus: Corpus, mesh: Mesh
) -> Callable[[Params], dict[str, float]]:
    """Builds the function from parameters to their numbers on all held-out text."""
    eval_step = make_eval_step(config.model, mesh)
    heldout, shape = corpus.heldout, batch_shape(config, mesh)
    put = partial(put_batch, mesh=mesh, batch_size=config.data.batch_size)
    # Compiled once, as the training step is: batches of another shape are an error that names both
    # shapes, and no program is compiled again while the run goes on.
    compiled: jax.stages.Compiled | None = None

    def once(params: Params, batch: Batch) -> dict[str, Any]:
        nonlocal compiled
        compiled = compiled or eval_step.lower(params, batch).compile()
        return compiled(params, batch)

    def heldout_numbers(params: Params) -> dict[str, float]:
        batches = map(put, eval_batches(heldout, **shape))
        result = evaluate(once, params, batches, heldout.num_bytes)
        return {"heldout_loss": result["loss"], "bits_per_byte": result["bits_per_byte"]}

    return heldout_numbers


def batch_shape(config: PretrainConfig, mesh: Mesh) -> dict[str, Any]:
    """What training and evaluation batches have in common, this host's part of them included."""
    return {
        "batch_size": config.data.batch_size,
        "seq_len": config.model.context_length,
        "rows": batch_rows(config.data.batch_size, mesh),
    }


def is_first_host() -> bool:
    """Is this the host that writes files and shows progress?"""
    return jax.process_index() == 0


def treatment(config: PretrainConfig, corpus: Corpus) -> str:
    """One line on documents that were not simply taken as they are."""
    long = corpus.train.documents_longer_than(config.model.context_length)
    split = (
        f"{long:,} of {corpus.train.num_documents:,} training documents are longer than the context"
        f" of {config.model.context_length} and run over several windows"
    )
    return "; ".join(filter(None, [split if long else "", corpus.treated]))


def describe(config: PretrainConfig, corpus: Corpus) -> str:
    """One line on model, data, length and devices."""
    model, run = config.model, config.run
    active = f" ({models.count_active_params(model):,} active)" if model.is_moe else ""
    return (
        f"{config.preset} with {model.activation}, {models.count_params(model):,} parameters"
        f"{active},"
        f" vocabulary {model.vocab_size:,}; {len(corpus.train.tokens):,} training tokens;"
        f" {run.steps:,} steps of {config.data.batch_size} x {model.context_length} tokens,"
        f" learning rate falling until step {config.optim.decay_steps:,};"
        f" {jax.device_count()} x {jax.devices()[0].device_kind}"
    )


if __name__ == "__main__":
    sys.exit(main())
