"""Checkpoints by name: the last of a run, its best, or that of a step."""

from typing import Any

from polycom_jax._errors import InputError, require
from polycom_jax.params import Params
from polycom_jax.training import Checkpoints


def read_named(saved: Checkpoints, name: str, shapes: Params, **options: Any) -> tuple[int, Params]:
    """`Checkpoints.restore_params` of "latest", "best" (lowest held-out loss) or a step.

    Where its run has found a better one meanwhile, and has deleted this one, that is the best.

    Raises:
        InputError: there is no such checkpoint, or it cannot be used.
    """
    step = step_of(saved, name)
    while True:
        try:
            return saved.restore_params(shapes, step=step, **options)
        except InputError:
            before, step = step, step_of(saved, name)
            if step == before:
                raise


def step_of(saved: Checkpoints, name: str) -> int | None:
    """The step of that name; None: the last that is intact.

    Raises:
        InputError: it names none, or none has a score.
    """
    if name == "latest":
        return None
    if name == "best":
        text = f"checkpoint='best': none in {saved.folder} has a held-out loss; take 'latest'."
        require((best := saved.best_step()) is not None or not saved.all_steps(), text)
        return best
    if not (name.isdecimal() and len(name) < 20):
        raise InputError(f"checkpoint={name!r} must be 'latest', 'best' or a step.")
    return int(name)
