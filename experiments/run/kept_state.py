"""A run of a study that was stopped goes on: its state is kept until the run has finished."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax

from experiments.run.signals import StopRequest
from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.storage import Place
from polycom_jax.training import Checkpoints, TrainState

EVERY_S = 60.0
"""Seconds between two saves, where a save is quick."""
TAKES = 0.02
"""Share of a run's time that saves may take; where they are slow, they are further apart."""


class KeptState:
    """The newest state of one run, with a record of how it came there; a context manager.

    It is saved now and then and where the user asks for the end, on the disk before `look` returns.

    Args:
        folder: of its own, local or in a bucket; made with the first save.
        made_by: what the run's numbers depend on besides its settings, its code's version for
            instance. A state of another is removed, and the run begins anew.
        stop: whether the user asks for the end.
        tell: takes a line for people.
        confirm: raises where another process has taken the run over; asked before anything is
            written or removed.
    """

    def __init__(
        self,
        folder: Place,
        made_by: Mapping[str, Any],
        stop: StopRequest,
        tell: Callable[[str], None],
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._made_by, self._stop, self._tell = folder, made_by, stop, tell
        self._confirm = confirm
        self._removing = folder.with_name(f"{folder.name}.removing")
        self._checkpoints = Checkpoints(folder, keep_last=1, keep_best=0)
        self._next = time.perf_counter() + EVERY_S
        self.seconds = 0.0
        """That saving has taken."""

    def __enter__(self) -> Self:
        if storage.is_file(self._removing):
            self._remove()
        with self._advised():
            step = self._checkpoints.latest_step()
            if step is None:
                return self
            found = self._checkpoints.environment(step)["made_by"]
        if found != self._made_by:
            changed = [name for name in self._made_by if found.get(name) != self._made_by[name]]
            what = ", ".join(f"{name} {found.get(name)}" for name in changed)
            self._tell(f"begun with {what}, which is another now: trained anew from its start")
            self._remove()
        return self

    def __exit__(self, *error: object) -> None:
        self._checkpoints.close()

    def restore(self, init: Callable[[], TrainState]) -> tuple[TrainState, Mapping[str, Any]]:
        """The state that the run goes on from, and its record; of one that begins, an empty one.

        Args:
            init: makes the state that the run begins with.

        Raises:
            InputError: the state that was kept is damaged.
        """
        if self._checkpoints.latest_step() is None:
            return init(), {}
        with self._advised():
            state = self._checkpoints.restore(abstract(init()))
        step = int(state.step)
        self._tell(f"goes on from update {step:,}")
        return state, self._checkpoints.environment(step)["record"]

    def look(self, state: TrainState, record: Callable[[], Mapping[str, Any]]) -> None:
        """Saves `state` if it is time to; called between updates.

        Args:
            state: of this moment; one that has been saved is not saved again.
            record: says how it came there, in numbers, texts, lists and mappings.

        Raises:
            Stop: the user asked for the end; the state is saved.
            SaveError: it cannot be saved.
            Lost: another process has taken the run over.
        """
        stopping = self._stop.due(0)
        if not stopping and time.perf_counter() < self._next:
            return
        step = int(state.step)
        begun = time.perf_counter()  # the device had updates left to make, which is no saving
        self._confirm()
        about = {"made_by": self._made_by, "record": record()}
        self._checkpoints.save(step, state, environment=about)
        self._checkpoints.wait()
        now = time.perf_counter()
        self.seconds += now - begun
        self._next = now + max(EVERY_S, (now - begun) / TAKES)
        if stopping:
            raise self._stop.reached(step)

    def forget(self) -> None:
        """Removes what was kept of a run that has finished."""
        self._confirm()
        self._remove()

    def _remove(self) -> None:
        """Removes the folder; where it is killed on the way, the next start goes on with that."""
        if storage.is_folder(self._folder):
            storage.write(self._removing, b"")
            storage.remove_tree(self._folder)
        storage.remove(self._removing)

    @contextlib.contextmanager
    def _advised(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{error} Remove {self._folder}, and the run begins anew.") from error


def abstract(state: Any) -> Any:
    """Shapes, dtypes and places of a state's arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
