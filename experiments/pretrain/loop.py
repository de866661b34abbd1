"""The loop of a run: step, log, evaluate, save."""

import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from experiments import STARTED
from experiments.run.compiled import batch_shape, compile_step, make_evaluation, state_numbers
from experiments.run.config import PretrainConfig, RunConfig
from experiments.run.environment import facts
from experiments.run.folder import Workdir
from experiments.run.lock import Hold
from experiments.run.metrics import Logs
from experiments.run.profile import Profile
from experiments.run.signals import StopRequest
from experiments.run.step_metrics import Meter
from experiments.terminal.progress import Display
from polycom_jax.data import Mixture
from polycom_jax.hosts import meet
from polycom_jax.training import (
    Checkpoints,
    TrainState,
    put_batch,
)


def run_steps(
    config: PretrainConfig,
    data: Mixture,
    mesh: Mesh,
    state: TrainState,
    checkpoints: Checkpoints,
    hold: Hold,
    logs: Logs,
    workdir: Workdir,
    display: Display,
    stop: StopRequest,
    pending: Mapping[str, Any] | None,
) -> TrainState:
    """The loop: step, log, evaluate, save; first of all an evaluation that is still `pending`."""
    run, first = config.run, int(state.step)
    heldout_numbers = make_evaluation(config, data, mesh, stop.cuts)
    environment = facts(run)
    display.start(first, run.steps)
    if pending:
        display.doing("evaluate")
        make_up(pending, state_numbers(heldout_numbers, state), state, checkpoints, hold, logs)
    if first >= run.steps:
        return state
    shape = batch_shape(config, mesh)
    batches = data.train_batches(**shape, seed=run.seed, start_step=first)
    put = partial(put_batch, mesh=mesh, batch_size=config.data.batch_size)
    batch = put(next(batches))
    train_step = compile_step(config, mesh, state, batch, display)

    meter = Meter(run, logs, display, in_a_row=int(state.watch.in_a_row))
    display.doing("train")
    with stop.heeded(), closing(make_profile(run, workdir, display)) as profile:
        for step in range(first + 1, run.steps + 1):
            last = step == run.steps
            profile.before(step)
            state, metrics = train_step(state, batch)
            profile.after(step, metrics)
            # The device is busy with this step while Python reads the numbers of the one before
            # it and fetches the next batch.
            meter.push(step, metrics)
            checkpoints.raise_if_save_failed()
            hold.check()
            if not last:
                with meter.waiting():
                    fetched = next(batches)
                batch = put(fetched)
            if step == first + 1:
                meet("the first step")
                jax.block_until_ready(metrics)
                display.note(
                    f"first step done {time.perf_counter() - STARTED:.1f} s after the start"
                )

            score = None
            if last or step % run.eval_every == 0:
                display.doing("evaluate")
                line = meter.flush(partial(state_numbers, heldout_numbers, state))
                score = line.get("heldout_loss")
                if score is not None:
                    display.note(f"step {step}: {heldout_line(line, data)}")
                display.doing("train")
            stopping = stop.due(step)
            if last or stopping or meter.diverged or step % run.checkpoint_every == 0:
                display.doing("save")
                meter.flush()
                # Lines first: a checkpoint must not be ahead of what is logged.
                logs.sync()
                checkpoints.save(step, state, score=score, environment=environment)
                display.doing("train")
                meter.pause()
            if meter.diverged:  # also with the numbers that have been read since
                raise meter.give_up(step, str(workdir.root))
            if stopping:
                raise stop.reached(step)
        checkpoints.wait()
    display.stop()
    return state


def make_up(
    line: Mapping[str, Any],
    numbers: Mapping[str, float],
    state: TrainState,
    checkpoints: Checkpoints,
    hold: Hold,
    logs: Logs,
) -> None:
    """Adds the numbers of an evaluation that was cut short to its step's checkpoint and `line`.

    The line comes last: as long as it has none, whoever resumes makes the evaluation again.
    """
    hold.confirm()
    checkpoints.save(line["step"], state, score=numbers.get("heldout_loss"))
    logs.amend(dict(line) | dict(numbers))


def heldout_line(line: Mapping[str, Any], data: Mixture) -> str:
    """An evaluation in words; of several corpora each is named."""
    losses = [(name, line.get(f"heldout_loss/{name}")) for name in data.names]
    each = [f"{name} {loss:.4f}" for name, loss in losses if loss is not None]
    listed = f" ({', '.join(each)})" if each else ""
    loss, bits = line["heldout_loss"], line["bits_per_byte"]
    average = line.get("ema_heldout_loss")
    ema = "" if average is None else f"; of the averaged weights {average:.4f}"
    return f"held-out loss {loss:.4f}{listed}, {bits:.4f} bits a byte{ema}"


def make_profile(run: RunConfig, workdir: Workdir, display: Display) -> Profile:
    """What traces the steps that were asked for, on the process that writes files."""
    steps = run.profile_steps if is_first_process() else None
    return Profile(steps, workdir.root / "profile", display.note)


def is_first_process() -> bool:
    """Is this the process that writes files and shows progress?"""
    return jax.process_index() == 0
