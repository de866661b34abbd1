"""Orbax's manager of the checkpoints of one run: which it keeps, and how it commits them."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from polycom_jax._files import retried
from polycom_jax.hosts import meet
from polycom_jax.training import restore
from polycom_jax.training.folder import Names, set_aside
from polycom_jax.training.manifest import Contents, committer, proven_torn
from polycom_jax.training.orbax_errors import quietly


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


def open_writer(folder: Path, keep: Keep, contents: Callable[[], Contents]) -> Any:
    """Orbax's manager of `folder`, which is made if need be.

    Args:
        folder: with no checkpoint later than the run, and no score that can't be read.
        keep: which checkpoints stay.
        contents: of the save under way.

    Raises:
        SaveError: the folder cannot be written, or its scores cannot be read.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

    policies = [
        policy.LatestN(keep.last),
        policy.BestN(n=keep.best, get_metric_fn=_score_or_worst, reverse=True),
    ]
    if keep.every is not None:
        policies.append(policy.EveryNSteps(keep.every))
    committed = committer(contents)
    options = ocp.CheckpointManagerOptions(
        best_fn=_score_or_worst,
        best_mode="min",
        preservation_policy=policy.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        step_name_format=Names(committed),
        temporary_path_class=committed,
    )
    manager, failure = quietly(
        lambda: retried(lambda: ocp.CheckpointManager(folder, options=options))
    )
    if failure is not None:
        raise SaveError(f"No checkpoint can be saved in {folder}: {failure}.")
    return manager


def clear_way(
    folder: Path, steps: Sequence[int], current: int | None, torn: Collection[int]
) -> None:
    """Sets aside what is later than `current`, and what has a score that Orbax would fall over.

    Args:
        folder: of the checkpoints.
        steps: all that are there.
        current: the step that the run goes on from.
        torn: steps that were damaged when they were read; each is looked at once more.

    Raises:
        SaveError: the folder cannot be written.
    """
    if jax.process_index() == 0:
        later = {step for step in steps if current is not None and step > current}
        try:
            unscored = {step for step in steps if not _score_is_readable(folder / str(step))}
            looked_at = unscored | later.intersection(torn)
            proofs = {
                step: proven_torn(folder / str(step)) if step in looked_at else ""
                for step in later | unscored
            }
            set_aside(folder, proofs)
        except OSError as error:
            reason = f"{error.strerror or error} ({error.filename or folder})"
            raise SaveError(f"No checkpoint can be saved in {folder}: {reason}.") from error
    meet("set checkpoints aside")


def _score_is_readable(checkpoint: Path) -> bool:
    try:
        restore.score(checkpoint)
    except ValueError:
        return False
    return True


def _score_or_worst(metrics: Mapping[str, float] | None) -> float:
    """What ranks a checkpoint; without a score it is the first to go."""
    return (metrics or {}).get("score", math.inf)
