"""The score of a checkpoint, which may be measured after the save: its file, and how it ranks."""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax._files import retried
from polycom_jax.storage import Place
from polycom_jax.training.quarantine import ReadError

METRICS = "metrics"
"""The item of a checkpoint that holds its score, and the file in it; Orbax calls both so itself."""


def as_metrics(score: Any) -> dict[str, float]:
    """What is stored of a score; nothing of None, NaN and infinity.

    Raises:
        InputError: it is no number.
    """
    try:
        require(np.ndim(score) == 0 and not isinstance(score, str | bytes), "")
        value = math.nan if score is None else float(score)
    except (TypeError, ValueError) as error:
        raise InputError(f"score={score!r:.80} must be a number, or none.") from error
    return {"score": value} if math.isfinite(value) else {}


def read(checkpoint: Place) -> float | None:
    """The held-out loss saved with a checkpoint, if one was.

    Raises:
        ValueError: damaged.
        ReadError: it cannot be read.
    """
    path = checkpoint / METRICS / METRICS
    try:
        metrics = json.loads(retried(lambda: storage.read(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} holds no score: {error}.") from error
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror or error}.") from error
    value = metrics.get("score") if isinstance(metrics, dict) else metrics
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"{path} holds no score: {value!r:.80}.")
    return value


def flaw(checkpoint: Place) -> str:
    """What is wrong with its score; "" where nothing is, or where it has none.

    Raises:
        ReadError: it cannot be read.
    """
    try:
        read(checkpoint)
    except ValueError as error:
        return str(error)
    return ""


def write(checkpoint: Place, metrics: Mapping[str, float]) -> None:
    """Puts a score in the place of the one that the checkpoint has, whole or not at all.

    Its values and their checksums lie in other files, which stay as they are.

    Raises:
        OSError: it cannot be written.
    """
    path = checkpoint / METRICS / METRICS
    retried(lambda: storage.write(path, json.dumps(dict(metrics)).encode()))


def best(checkpoints: Mapping[int, Place]) -> int | None:
    """The step, of those given with their checkpoints, of the lowest score; the last of equals.

    Damaged scores are passed over. None: there is no score.

    Raises:
        ReadError: one cannot be read.
    """
    found = {}
    for step, checkpoint in checkpoints.items():
        with contextlib.suppress(ValueError):
            found[step] = read(checkpoint)
    scored = [(value, -step) for step, value in found.items() if value is not None]
    return -min(scored)[1] if scored else None


def or_worst(metrics: Mapping[str, float] | None) -> float:
    """What ranks a checkpoint; without a score it is the first to go."""
    return (metrics or {}).get("score", math.inf)
