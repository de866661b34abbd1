"""Where metrics of a run are shown besides metrics.jsonl: TensorBoard, Weights & Biases, Trackio.

The last two are packages to be installed by hand; their own environment variables say
where the numbers go (`WANDB_MODE=offline`, `TRACKIO_DIR`). No tracker ends a run: one that fails is
named in a warning and left out from there on.
"""

import importlib.util
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from experiments.run.files import write_text
from polycom_jax import staging, storage
from polycom_jax._errors import InputError
from polycom_jax.storage import Place

PROJECT = "polycom_jax"
"""Under which Weights & Biases and Trackio list runs."""

Scalars = Mapping[str, float]


class Tracker(Protocol):
    """One of them, for one run."""

    def write(self, step: int, values: Scalars) -> None:
        """Takes the numbers of a step, all of them finite."""
        ...

    def flush(self) -> None:
        """Hands on what it holds back."""
        ...

    def close(self) -> None:
        """Hands on what it holds back, and ends."""
        ...

    def drop(self) -> None:
        """Ends, and leaves what lies in the run's folder as it is."""
        ...


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, root: Place, config: Mapping[str, Any], step: int) -> None:
        from tensorboardX import SummaryWriter

        self._staged = staging.Staged(root / "tensorboard")
        # Events of steps that a killed run had logged after its checkpoint are hidden.
        self._writer = SummaryWriter(str(self._staged.local), purge_step=step + 1)

    def write(self, step: int, values: Scalars) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See `Tracker`."""
        self._writer.flush()
        self._staged.put()

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()
        self._staged.close()

    def drop(self) -> None:
        """See `Tracker`."""
        self._writer.close()
        self._staged.drop()


class _Hosted:
    """A tracker of a package, through its run object with `log` and `finish`."""

    _run: Any

    def write(self, step: int, values: Scalars) -> None:
        """See `Tracker`."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing: the package flushes by itself."""

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()

    drop = close


class WandB(_Hosted):
    """A run of Weights & Biases, the same one when it is resumed."""

    def __init__(self, root: Place, config: Mapping[str, Any], step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=PROJECT,
            name=root.name,
            id=run_id(root),
            resume="allow",
            dir=None if storage.is_remote(root) else str(root),
            config=dict(config),
            settings=wandb.Settings(silent=True),
        )


class Trackio(_Hosted):
    """A run of Trackio, the same one when it is resumed."""

    def __init__(self, root: Place, config: Mapping[str, Any], step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        name = f"{root.name}-{run_id(root)}"
        self._run = trackio.init(
            PROJECT, name=name, resume="allow", config=dict(config), embed=False
        )


TRACKERS: Mapping[str, Callable[[Place, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def check_installed(names: Sequence[str]) -> None:
    """Raises `InputError` where a tracker is asked for that is not installed."""
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise InputError(
                f"run.trackers: {name} is not installed; `pip install {name}`, or leave it out."
            )


def run_id(root: Place) -> str:
    """A short name that no other run has; it goes with the folder."""
    path = root / "tracker.json"
    if not storage.is_file(path):
        write_text(path, json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    return json.loads(storage.read(path))["id"]


class Trackers:
    """Those of a run.

    Args:
        names: of `TRACKERS`.
        root: the run's folder.
        config: what it runs with.
        step: the last one that is logged.
        warn: takes the line on one that fails.
    """

    def __init__(
        self,
        names: Sequence[str],
        root: Place,
        config: Mapping[str, Any],
        *,
        step: int,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._running: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            self._guard(name, lambda name=name: self._start(name, root, config, step))

    def _start(self, name: str, root: Place, config: Mapping[str, Any], step: int) -> None:
        self._running[name] = TRACKERS[name](root, config, step)

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Hands on the numbers of a step; no lists, and nothing that is not finite."""
        scalars = {
            name: value
            for name, value in values.items()
            if not isinstance(value, list) and math.isfinite(value)
        }
        self._each(lambda tracker: tracker.write(step, scalars))

    def flush(self) -> None:
        """Hands on what is held back."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Ends all of them."""
        self._each(lambda tracker: tracker.close())
        self._running = {}

    def drop(self) -> None:
        """Ends all of them; what lies in the run's folder has become another run's."""
        self._each(lambda tracker: tracker.drop())
        self._running = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._running.items()):
            self._guard(name, lambda tracker=tracker: call(tracker))

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # others' code, and often a network
            self._running.pop(name, None)
            said = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"warning: tracker {name} failed ({said}); the run goes on without it")
