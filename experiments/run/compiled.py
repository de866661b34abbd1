"""The compiled programs of a run: the training step, the evaluation, and where they are kept."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax._src.compilation_cache import decompress_executable
from jax.sharding import Mesh

from experiments.run.config import PretrainConfig
from experiments.run.environment import deterministic
from experiments.terminal.progress import Display
from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.compile_ahead.compiler import refused_option
from polycom_jax.data import Corpus, Mixture, eval_batches
from polycom_jax.data.cache import local_cache_folder
from polycom_jax.hosts import meet
from polycom_jax.params import Params
from polycom_jax.training import (
    TrainState,
    average_of,
    batch_rows,
    evaluate,
    make_eval_step,
    make_model_step,
    put_batch,
)
from polycom_jax.training.loss import Batch

MIN_COMPILE_S = 0.1
"""Programs that took less to compile are not kept: reading them would take as long."""

COMPILE_S = 3600.0
"""How long processes wait for each other to have compiled: one may find in its cache what another
must make."""

NEWEST = 4
"""Entries of the cache that a start looks into: a killed process leaves one that is torn."""

GROWS_S = 0.2
"""After so long, an entry that another process is writing has more bytes than before."""

OWN_OPTIONS = {"tpu": ("xla_tpu_", "xla_jf_", "xla_sc_"), "gpu": ("xla_gpu_",)}
"""How names of XLA's options begin that one backend alone has."""

Item = TypeVar("Item")


def cache_compiled(
    cache_dir: str | None, *, enabled: bool = True, place: str | None = None
) -> None:
    """Lets JAX store compiled programs in `place`, by default in the cache folder, or nowhere."""
    folder = None
    if enabled:
        default = local_cache_folder(cache_dir) / "compiled"
        where = storage.named(place or default)
        storage.require_reachable(where)
        if not storage.is_remote(where):  # an object is written atomically
            drop_torn(Path(where))
        folder = str(where)
        # JAX's own threshold, a second, would leave out most of what a CPU compiles.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    jax.config.update("jax_compilation_cache_dir", folder)


def drop_torn(folder: Path) -> None:
    """Deletes, of the programs that were kept last, those that a kill has cut short.

    JAX writes an entry in place. A torn one it would try to read at every start, warn of, and
    compile instead; and it never replaces an entry.
    """
    for entry in sorted(folder.glob("*-cache"), key=_changed_ns)[-NEWEST:]:
        with contextlib.suppress(OSError):  # another process deletes it, or keeps it to itself
            if (torn := _torn_bytes(entry)) is None:
                continue
            time.sleep(GROWS_S)
            if entry.stat().st_size == torn:  # else another process is writing it
                entry.unlink()


def _torn_bytes(entry: Path) -> int | None:
    """How many bytes there are of a program that is not whole; None: it is."""
    data = entry.read_bytes()
    try:
        decompress_executable(data)
    except OSError:
        raise
    except Exception:  # whatever the compression that JAX has found here calls it
        return len(data)
    return None


def _changed_ns(path: Path) -> int:
    """When a file was changed last; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def compile_step(
    config: PretrainConfig, mesh: Mesh, state: TrainState, batch: Batch, display: Display
) -> jax.stages.Compiled:
    """Compiles the training step ahead of the first one, so that its time is seen.

    Raises:
        InputError: an option that XLA does not take.
    """
    clock = time.perf_counter()
    display.doing("compile")
    step = make_model_step(config.model, config.optim, config.run.steps, mesh)
    options = compiler_options(config, display)
    try:
        compiled = step.lower(state, batch).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        refusal = refused_option(str(error))
        if refusal is None:
            raise
        leave_out = "--run.compiler-options with nothing behind it leaves all of them out."
        raise InputError(f"{refusal} {leave_out}") from error
    # Where devices of several processes meet first, collectives wait half a minute alone.
    meet("compile the training step", timeout_s=COMPILE_S)
    display.note(f"compiled in {time.perf_counter() - clock:.1f} s")
    return compiled


def compiler_options(config: PretrainConfig, display: Display) -> dict[str, Any]:
    """XLA's options for the training step, by name; `run.compiler_options` are of accelerators.

    Those whose names say that they are another backend's are left out, with a word: a run may move.
    """
    options, backend = config.run.compiler_options, jax.default_backend()
    if options and backend == "cpu":
        display.note("run.compiler_options are for TPUs and GPUs, and left out on this cpu")
        options = ()
    kept = without_others(options, backend, display)
    return dict(option.split("=", 1) for option in kept) | deterministic(config.run)


def without_others(options: Sequence[str], platform: str, display: Display) -> tuple[str, ...]:
    """Those of XLA's options that are not by their names another platform's, which it says."""
    others = tuple(word for own, names in OWN_OPTIONS.items() if own != platform for word in names)
    left_out = [option for option in options if option.startswith(others)]
    if left_out:
        display.note(f"run.compiler_options: left out on a {platform}: {', '.join(left_out)}")
    return tuple(option for option in options if option not in left_out)


class Cut(Exception):
    """An evaluation was cut short."""


def make_evaluation(
    config: PretrainConfig, data: Mixture, mesh: Mesh, cut: Callable[[], bool]
) -> Callable[[Params], dict[str, float]]:
    """Builds the function from parameters to their numbers on held-out text.

    That is all of it, or `run.eval_tokens` of each corpus spread over it, as many bytes being taken
    for read as there are tokens. `cut` is asked before each batch; once it says yes, there are no
    numbers.
    """
    eval_step = make_eval_step(config.model, mesh)
    part: dict[str, Any] = {**batch_shape(config, mesh), "tokens": config.run.eval_tokens}
    put = partial(put_batch, mesh=mesh, batch_size=config.data.batch_size)
    # Compiled once, as the training step is: batches of another shape are an error that names both
    # shapes, and no program is compiled again while the run goes on.
    compiled: jax.stages.Compiled | None = None

    def once(params: Params, batch: Batch) -> dict[str, Any]:
        nonlocal compiled
        if compiled is None:
            lowered = eval_step.lower(params, batch)
            compiled = lowered.compile(compiler_options=deterministic(config.run))
            meet("compile the evaluation", timeout_s=COMPILE_S)
        return compiled(params, batch)

    def one(corpus: Corpus, params: Params) -> tuple[float, float]:
        batches = eval_batches(corpus.heldout, **part)
        share = 1.0 if config.run.eval_tokens is None else batches.share
        meet("evaluate")
        result = evaluate(once, params, _until(cut, map(put, batches)), corpus.heldout.num_bytes)
        return result["loss"], result["bits_per_byte"] / share

    def heldout_numbers(params: Params) -> dict[str, float]:
        try:
            return weighted(data, [one(corpus, params) for corpus in data.corpora])
        except Cut:
            return {}

    return heldout_numbers


def state_numbers(
    heldout_numbers: Callable[[Params], dict[str, float]], state: TrainState
) -> dict[str, float]:
    """The held-out numbers of a state: of its parameters and, as `ema_*`, of their average if any.

    None where one of the two evaluations was cut short.
    """
    numbers, average = heldout_numbers(state.params), average_of(state.opt_state)
    if not numbers or average is None:
        return numbers
    averaged = heldout_numbers(average)
    named = {f"ema_{name}": value for name, value in averaged.items()}
    return numbers | named if named else {}


def weighted(data: Mixture, found: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The held-out numbers of a mixture from the loss and the bits a byte of each corpus.

    With the weights w, which count tokens, `heldout_loss` = sum w loss. Bits a byte are those of
    such a text, sum w loss / sum w (loss / bits), since w loss / bits are a corpus's bytes.
    """
    if data.is_single:
        ((loss, bits),) = found
        return {"heldout_loss": loss, "bits_per_byte": bits}
    each = list(zip(data.weights, found, strict=True))
    loss = sum(weight * own for weight, (own, _) in each)
    size = sum(weight * own / bits for weight, (own, bits) in each)
    numbers = {"heldout_loss": loss, "bits_per_byte": loss / size}
    for name, (own, bits) in zip(data.names, found, strict=True):
        numbers |= {f"heldout_loss/{name}": own, f"bits_per_byte/{name}": bits}
    return numbers


def _until(cut: Callable[[], bool], items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        if cut():
            raise Cut
        yield item


def batch_shape(config: PretrainConfig, mesh: Mesh) -> dict[str, Any]:
    """What training and evaluation batches have in common, this process's part of them included."""
    return {
        "batch_size": config.data.batch_size,
        "seq_len": config.model.context_length,
        "rows": batch_rows(config.data.batch_size, mesh),
    }
