"""Pretrains a transformer: `python -m experiments.pretrain --help`.

Without flags: the preset "tiny" with PolyNorm, on the source text of Python's standard library.
The same command again resumes a run where its last checkpoint stands; so does the folder alone:
`python -m experiments.pretrain runs/tiny-poly_norm`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import jax
from tyro.conf import Positional, arg

from experiments.pretrain import dry_run
from experiments.pretrain.loop import is_first_process, run_steps
from experiments.run.command import ALIASES, LISTS, Command, from_command
from experiments.run.compiled import cache_compiled
from experiments.run.config import PretrainConfig, shared
from experiments.run.corpus import load_corpus
from experiments.run.devices import check_fits, mesh_of
from experiments.run.environment import facts, warnings
from experiments.run.folder import Workdir, resumed
from experiments.run.lock import Hold
from experiments.run.metrics import Logs, cut_short
from experiments.run.model_loading import load_trained
from experiments.run.profile import check_traced
from experiments.run.report import report
from experiments.run.resuming import BY_FINGERPRINT, allowed, fixed, goes_on
from experiments.run.shared_disk import check_shared
from experiments.run.signals import StopRequest, stop_request
from experiments.run.starting import adopted, load_start, with_rate
from experiments.run.summary import (
    describe,
    held_out_too_much,
    own_activation,
    schedule_warnings,
    treatment,
)
from experiments.run.trackers import Trackers, check_installed
from experiments.terminal.flags import CommandLine, flatten
from experiments.terminal.program import Stop, program, report_error
from experiments.terminal.progress import Display
from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax._fields import PlaceText
from polycom_jax.hosts import joined, meet
from polycom_jax.sharding import make_mesh
from polycom_jax.training import (
    Checkpoints,
    abstract_state,
    latest_step,
    make_state,
    model_specs,
    state_from,
)

LINE = CommandLine(
    "pretrain",
    "Pretrain a transformer. The same command again, or RUN alone, resumes the run.",
    short=ALIASES,
    lists=LISTS,
)


@dataclass(frozen=True)
class PretrainCommand(Command):
    """What to train, or what to go on with.

    Attributes:
        resume: folder of the run to resume, with the settings stored there; --steps and flags that
            do not change the result win over them. Without RUN, a new run begins.
    """

    resume: Annotated[PlaceText | None, Positional, arg(metavar="[RUN]")] = None


@program
def main(argv: Sequence[str]) -> int:
    """Runs, resumes, or says that there is nothing left to do."""
    config, given = read_command(argv)
    check_installed(config.run.trackers)
    with (
        stop_request(config.run.grace_s, "run.grace_s") as stop,
        joined(config.hosts, report_error=report_error, common=(Stop,)),
    ):
        run(config, given, stop)
    return 0


def read_command(argv: Sequence[str]) -> tuple[PretrainConfig, frozenset[str]]:
    """What to run; of a run's folder, with nothing that makes it another run, its own settings.

    Raises:
        InputError: see `from_command`; or the folder to go on with holds no run.
    """
    command, given = from_command(LINE, PretrainCommand(), argv)
    config, rest = command.pretrain, list(argv)
    workdir = Workdir(command.resume or str(config.workdir))
    if command.resume is not None:
        require(
            command.config is None and "workdir" not in given,
            f"{command.resume} is a run that goes on with its own settings: leave out --config and"
            " --workdir, or the word before them.",
        )
        workdir.read_config()  # or says that there is no run
        rest[0] = f"--workdir={command.resume}"
    elif command.config or "workdir" not in given or not goes_on(given) or not is_there(workdir):
        return config, given
    elif given & {*BY_FINGERPRINT} and latest_step(workdir.checkpoints) is None:
        return config, given  # with other data it is another run, and there is nothing to lose
    command, given = from_command(LINE, PretrainCommand(), ["--config", str(workdir.config), *rest])
    return command.pretrain, given


def is_there(workdir: Workdir) -> bool:
    """Whether the folder is that of a run."""
    storage.require_reachable(workdir.root)
    return storage.is_file(workdir.config)


def run(config: PretrainConfig, given: frozenset[str], stop: StopRequest) -> None:
    """Trains, or says what the folder holds already; each process of a run calls this."""
    workdir = Workdir(config.workdir or ".")
    first, dry = is_first_process(), config.run.dry_run
    with (
        Display(active=first) as display,
        workdir.locked(active=first and not dry, notify=display.note) as hold,
    ):
        if not dry:
            check_shared(workdir.root)
        done = latest_step(workdir.checkpoints)
        meet("settings", shared(config) | {"step of the last checkpoint": done})
        if done is not None:
            config = resumed(workdir, config, given)
            if done >= config.run.steps and not evaluation_due(config, workdir, done):
                display.note(
                    f"Finished: {workdir.root} has {done} steps. A larger --steps goes on."
                )
                if not storage.is_file(workdir.sample):
                    report_again(config, workdir, display)
                return
            if changes := allowed(config, workdir.read_config(), begun=done > 0):
                display.note(f"changed: {changes}")
        train(config, given, workdir, hold, display, stop, resuming=done is not None)


def train(
    config: PretrainConfig,
    given: frozenset[str],
    workdir: Workdir,
    hold: Hold,
    display: Display,
    stop: StopRequest,
    *,
    resuming: bool,
) -> None:
    """Trains to the last step, from the last checkpoint or from the beginning, and reports.

    Raises:
        InputError: settings that fit neither each other, nor the data, nor the devices.
        Stop: a signal asked for it, or the loss is no number any more; the state is saved.
        Lost: another run has taken the folder, which is in a bucket, meanwhile.
    """
    enabled, place = config.run.compile_cache, config.run.compile_cache_dir
    cache_compiled(config.data.cache_dir, enabled=enabled, place=place)
    mesh = mesh_of(config)
    if not resuming:
        check_traced(config.run)
    source = None
    if config.run.init_from is not None and not resuming:
        display.busy(f"reading {config.run.init_from}")
        source = load_start(config, mesh)
        config = with_rate(adopted(config, given, source), given, display)
        given |= {"model.vocab_size"}
    check_fits(config, mesh)
    config, data, record = load_corpus(config, given, workdir, display, resuming=resuming)
    display.note(describe(config, data))
    remarks = (
        own_activation(config.model),
        treatment(config, data),
        held_out_too_much(config, data),
    )
    for line in (*schedule_warnings(config, resuming=resuming), *filter(None, remarks)):
        display.note(line)

    if config.run.dry_run:
        dry_run.show(config, data, mesh, display)
        return
    about = fixed(config) | {
        "data_fingerprint": record["data_fingerprint"],
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
    }
    keep_last = config.run.keep_last
    with Checkpoints(workdir.checkpoints, keep_last=keep_last, run_metadata=about) as checkpoints:
        if resuming:
            specs = model_specs(config.model, mesh)
            abstract = abstract_state(config.model, config.optim, mesh)
            state = checkpoints.restore(abstract, specs=specs)
            display.note(f"resumed from the checkpoint of step {int(state.step)}")
            before = checkpoints.environment(int(state.step))
            drops = config.model.moe.capacity_factor is not None
            for line in warnings(before, facts(config.run), by_device=drops):
                display.note(line)
        elif source is not None:
            display.note(f"starts from {source.origin}")
            state = state_from(config.model, config.optim, source.params, mesh)
        else:
            state = make_state(config.model, config.optim, jax.random.key(config.run.seed), mesh)
        if is_first_process():  # Only now: a run that is refused leaves the folder as it was.
            hold.confirm()
            storage.remove(workdir.sample)  # or a report cut short would look complete
            workdir.write_tokenizer(data.tokenizer)
            workdir.write_config(config, record)
            if source is not None and source.generation is not None:
                workdir.write_generation(source.generation)
        first = int(state.step)
        pending = evaluation_due(config, workdir, first)
        with make_logs(config, workdir, display, hold, first) as logs:
            state = run_steps(
                config,
                data,
                mesh,
                state,
                checkpoints,
                hold,
                logs,
                workdir,
                display,
                stop,
                pending,
            )
        hold.confirm()
        display.doing("report")
        report(
            display.console,
            workdir,
            config,
            state.params,
            data.tokenizer,
            active=is_first_process(),
        )


def make_logs(
    config: PretrainConfig, workdir: Workdir, display: Display, hold: Hold, step: int
) -> Logs:
    """Where the run's numbers go from behind `step` on; nowhere on other processes."""
    if not is_first_process():
        return Logs(workdir.metrics, None, step=step)
    names, settings = config.run.trackers, flatten(config)
    trackers = Trackers(names, workdir.root, settings, step=step, warn=display.note)
    return Logs(workdir.metrics, trackers, step=step, hold=hold)


def report_again(config: PretrainConfig, workdir: Workdir, display: Display) -> None:
    """The report of a finished run whose own was cut short, from its folder alone."""
    trained = load_trained(workdir, mesh=make_mesh(**asdict(config.mesh)))
    report(
        display.console,
        workdir,
        trained.config,
        trained.params,
        trained.tokenizer,
        active=is_first_process(),
    )


def evaluation_due(config: PretrainConfig, workdir: Workdir, step: int) -> Mapping[str, Any] | None:
    """The line of `step` in metrics.jsonl, if a signal cut its evaluation short; else None."""
    if step % config.run.eval_every and step != config.run.steps:
        return None
    return cut_short(workdir.metrics, step)


if __name__ == "__main__":
    sys.exit(main())
