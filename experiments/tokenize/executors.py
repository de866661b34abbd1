"""Datatrove's executors: one machine, a Slurm cluster, Ray."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from polycom_jax._errors import InputError
from polycom_jax.data.pieces import Job, write_piece

CLASSES: Mapping[str, tuple[str, str]] = {
    "datatrove-local": ("datatrove.executor.local", "LocalPipelineExecutor"),
    "slurm": ("datatrove.executor.slurm", "SlurmPipelineExecutor"),
    "ray": ("datatrove.executor.ray", "RayPipelineExecutor"),
}


def tokenise(
    job: Job,
    pieces: Sequence[int],
    executor: str,
    *,
    workers: int,
    options: Mapping[str, Any],
) -> None:
    """Tokenises pieces, a task each; on Slurm it returns once they are queued.

    Raises:
        InputError: datatrove is not installed.
    """
    module, name = CLASSES[executor]
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise InputError(
            f"--executor {executor} needs datatrove ({error}); pip install 'polycom-jax[tokenize]'."
        ) from error
    kind(
        pipeline=[Pieces(job, tuple(pieces))],
        tasks=len(pieces),
        workers=workers,
        logging_dir=f"{job.folder}/datatrove",
        skip_completed=False,  # pieces that are done are left out already
        **options,
    ).run()


class Pieces:
    """A pipeline's only step: task r writes the r-th piece."""

    def __repr__(self) -> str:
        """As datatrove lists the steps of a pipeline."""
        return f"polycom_jax: tokenise {self._job.name}"

    def __init__(self, job: Job, pieces: tuple[int, ...]) -> None:
        self._job, self._pieces = job, pieces

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Writes the pieces of a task; there is nothing for a next step."""
        tokenizer = self._job.tokenizer()
        for piece in self._pieces[rank::world_size]:
            write_piece(self._job, piece, tokenizer)
        return data
