"""Orbax's manager of the checkpoints of one run: which it keeps, and what is in its way."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax

from polycom_jax import storage
from polycom_jax._errors import require
from polycom_jax._files import retried
from polycom_jax.hosts import gather, meet
from polycom_jax.storage import Place
from polycom_jax.training import in_bucket, scores
from polycom_jax.training.checksums import leaf_names
from polycom_jax.training.orbax_errors import quietly
from polycom_jax.training.quarantine import is_step, path_of, quarantine
from polycom_jax.training.restore import DamagedCheckpoint

UNSTORED = re.compile(r"u?int1|uint[24]|float6_.*|float8_e4m3")
"""Dtypes that TensorStore, which Orbax writes with, has not."""


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay.

    Attributes:
        last: how many of the newest.
        best: how many with the lowest score.
        every: those at multiples of this step; None: no such.
    """

    last: int
    best: int
    every: int | None


def check_storable(state: Any) -> None:
    """Raises `InputError` where an array is of a dtype that no checkpoint can hold."""
    for name, leaf in leaf_names(state).items():
        require(
            UNSTORED.fullmatch(leaf.dtype.name) is None,
            f"{name} is {leaf.dtype.name}, which Orbax's TensorStore cannot store; keep it as int4,"
            " as float8_e4m3fn, or in the bits of uint8.",
        )


def open_writer(folder: Place, keep: Keep) -> Any:
    """Orbax's manager of `folder`, which is made if need be.

    Args:
        folder: with no checkpoint later than the run, and no score that can't be read.
        keep: which checkpoints stay.

    Raises:
        SaveError: the folder cannot be written, or its scores cannot be read.
    """
    import orbax.checkpoint as ocp

    remote = storage.is_remote(folder)
    if remote:
        in_bucket.bound_retries()
    options = ocp.CheckpointManagerOptions(
        best_fn=scores.or_worst,
        best_mode="min",
        preservation_policy=_policy(keep),
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        step_name_format=in_bucket.StepNames(folder) if remote else StepNames(),
    )
    manager, failure = quietly(
        lambda: retried(lambda: ocp.CheckpointManager(folder, options=options))
    )
    if failure is not None:
        raise SaveError(f"No checkpoint can be saved in {folder}: {failure}.")
    return manager


def delete_rest(writer: Any, folder: Place, keep: Keep) -> None:
    """Deletes what `keep` has no place for, as a save does: scores have come since the last one.

    Of several processes the first one reads the scores, so that all delete the same.
    """
    rest = _rest(writer, folder, keep) if jax.process_index() == 0 else []
    for step in gather("choose the checkpoints that stay", rest)[0]:
        writer.delete(step)


def _rest(writer: Any, folder: Place, keep: Keep) -> list[int]:
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

    steps = list(writer.all_steps())
    found = [
        SimpleNamespace(step=step, metrics=scores.as_metrics(scores.read(path_of(folder, step))))
        for step in steps
    ]
    kept: Any = _policy(keep).should_preserve(found, context=policy.PreservationContext())
    return [step for step, stays in zip(steps, kept, strict=True) if not stays]


def _policy(keep: Keep) -> Any:
    """Orbax's word for it."""
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

    policies: list[policy.PreservationPolicy] = [
        policy.LatestN(keep.last),
        policy.BestN(n=keep.best, get_metric_fn=scores.or_worst, reverse=True),
    ]
    if keep.every is not None:
        policies.append(policy.EveryNSteps(keep.every))
    return policy.AnyPreservationPolicy(policies)


class StepNames:
    """Orbax's `NameFormat` of our folders: its own takes digits of any script for numbers."""

    def __init__(self) -> None:
        import orbax.checkpoint as ocp

        standard = ocp.step.standard_name_format()
        self.build_name, self.find_step = standard.build_name, standard.find_step
        self._find_all = standard.find_all

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """What Orbax keeps of each checkpoint under `base_path`."""
        return (one for one in self._find_all(base_path) if is_step(one.path.name))


def announce(folder: Place, step: int) -> None:
    """Tells whoever resumes that there may be a checkpoint of `step`; on a disk, its name does.

    Raises:
        SaveError: the folder cannot be read or written.
    """
    if storage.is_remote(folder) and jax.process_index() == 0:
        try:
            in_bucket.announce(folder, step)
        except OSError as error:
            raise SaveError(_not_in(folder, error)) from error


def write_score(folder: Place, step: int, metrics: Mapping[str, float]) -> None:
    """Gives the checkpoint of `step` this score; of several processes the first one writes it.

    Raises:
        SaveError: the folder cannot be written.
    """
    if jax.process_index() == 0:
        try:
            scores.write(path_of(folder, step), metrics)
        except OSError as error:
            text = f"The score of step {step} could not be saved in {folder}"
            raise SaveError(f"{text}: {_reason(folder, error)}.") from error
    meet(f"give the checkpoint of step {step} its score")


def clear_way(
    folder: Place, steps: Sequence[int], current: int | None, torn: Mapping[int, DamagedCheckpoint]
) -> None:
    """Moves out of the way what is later than `current`, or has a score that Orbax can't read.

    Args:
        folder: of the checkpoints.
        steps: all that are there.
        current: the step that the run goes on from.
        torn: those that were damaged when they were read, and may have been mended since.

    Raises:
        SaveError: the folder cannot be written.
    """
    if jax.process_index() == 0:
        try:
            proofs = {step: scores.flaw(path_of(folder, step)) for step in steps}
            proofs = {step: proof for step, proof in proofs.items() if proof}
            for step in (step for step in steps if current is not None and step > current):
                proven = step in torn and torn[step].still_there(path_of(folder, step))
                proofs[step] = torn[step].proof if proven else proofs.get(step, "")
            quarantine(folder, proofs)
        except OSError as error:
            raise SaveError(_not_in(folder, error)) from error
    meet("move checkpoints into quarantine")


def _not_in(folder: Place, error: OSError) -> str:
    return f"No checkpoint can be saved in {folder}: {_reason(folder, error)}."


def _reason(folder: Place, error: OSError) -> str:
    return f"{error.strerror or error} ({error.filename or folder})"
