"""Do all processes of a run see the same folder?"""

import time
import uuid
from pathlib import Path

import jax

from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.hosts import gather
from polycom_jax.hosts.processes import named

SHOWS_S = 10.0
"""How long a new file may take to show on another machine that shares the disk."""


def check_shared(folder: storage.Place) -> None:
    """Returns where all processes see what process 0 writes into `folder`, the workdir.

    Folders that only have the same name would show when the first checkpoint lacks parts.

    Raises:
        InputError: on every process, where some do not see it; they are named.
    """
    if jax.process_count() == 1 or storage.is_remote(folder):
        return
    first, token = jax.process_index() == 0, uuid.uuid4().hex
    if first:
        (folder / f".shared-{token}").touch()
    file = Path(folder) / f".shared-{gather('write into the workdir', token)[0]}"
    try:
        found = gather("read the workdir", _shows(file))
    finally:
        if first:
            file.unlink(missing_ok=True)
    blind = [process for process, sees in sorted(found.items()) if not sees]
    if blind:
        raise InputError(
            f"What process 0 writes into --workdir {folder} does not show for {named(blind)}: the"
            " workdir must be on a disk that all processes share, or in a bucket (gs://...)."
        )


def _shows(file: Path) -> bool:
    deadline = time.monotonic() + SHOWS_S
    while not (found := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
