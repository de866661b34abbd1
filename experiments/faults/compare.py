"""Two finished runs, compared bit for bit."""

from typing import Any

import jax
import numpy as np

from experiments.run.folder import Workdir
from experiments.run.metrics import read_metrics
from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.storage import Place
from polycom_jax.training import latest_step
from polycom_jax.training.checksums import leaf_names
from polycom_jax.training.in_bucket import bound_retries
from polycom_jax.training.metadata import STATE
from polycom_jax.training.orbax_errors import Silence
from polycom_jax.training.quarantine import path_of

OF_SPEED = frozenset({"tokens_per_second", "step_time_s", "data_wait_s"})


def differences(one: Place, other: Place) -> list[str]:
    """What differs between the runs in two folders; empty: nothing does.

    Compared are every array of the last checkpoint (parameters, optimiser, watch, step), every line
    of metrics.jsonl but for what tells of speed, and the sample.
    """
    left, right = Workdir(one), Workdir(other)
    steps = [latest_step(run.checkpoints) for run in (left, right)]
    found = [] if steps[0] == steps[1] else [f"last checkpoints: of steps {steps[0]}, {steps[1]}"]
    found += _of_arrays(*(arrays(run) for run in (left, right)))
    found += _of_lines(*(lines(run.metrics) for run in (left, right)))
    if storage.read(left.sample) != storage.read(right.sample):
        found.append("sample.txt")
    return found


def arrays(run: Workdir, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a run's last checkpoint, or of that of `step`, by name, on the host.

    Raises:
        InputError: there is no checkpoint.
    """
    import orbax.checkpoint as ocp

    step = latest_step(run.checkpoints) if step is None else step
    if step is None:
        raise InputError(f"There is no checkpoint in {run.checkpoints}.")
    folder = storage.absolute(path_of(run.checkpoints, step)) / STATE
    if storage.is_remote(folder):
        bound_retries()
    with Silence(), ocp.PyTreeCheckpointer() as reader:
        tree: Any = reader.metadata(folder).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return leaf_names(reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how)))


def lines(metrics: Place) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without what tells of speed."""
    records = read_metrics(metrics)
    return [{k: v for k, v in record.items() if k not in OF_SPEED} for record in records]


def _of_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    found = [f"array {name}: in one run alone" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        a, b = np.asarray(one[name]), np.asarray(other[name])
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.append(f"array {name}: {a.dtype}{list(a.shape)}, {b.dtype}{list(b.shape)}")
        elif a.tobytes() != b.tobytes():  # bits: -0 is not 0, and a NaN is itself
            found.append(f"array {name}: {int((a != b).sum())} of {a.size} values")
    return found


def _of_lines(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[str]:
    steps = [[record["step"] for record in records] for records in (one, other)]
    if steps[0] != steps[1]:
        return [f"metrics.jsonl: lines of steps {steps[0]}, {steps[1]}"]
    return [
        f"metrics.jsonl, step {a['step']}: {name}"
        for a, b in zip(one, other, strict=True)
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
