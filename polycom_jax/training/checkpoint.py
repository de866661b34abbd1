"""Checkpoints with Orbax: asynchronous, the last few and the best kept, damage noticed.

Orbax commits a checkpoint by a rename, and keeps a checksum of every array in its metadata: sums
over what each process holds in memory, so nothing is read back. A checkpoint is damaged where
something proves it: a file that is missing or cannot be decoded, or values of another sum. What a
disk refuses for a moment is read again, and what it goes on refusing ends the run: then nothing is
passed over, and nothing is moved.

Orbax is imported on first use.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self, SupportsFloat, SupportsIndex

from polycom_jax import storage
from polycom_jax._errors import InputError, require
from polycom_jax.hosts import gather, meet
from polycom_jax.params import Params, Specs
from polycom_jax.training import metadata, restore, scores
from polycom_jax.training.checksums import checksums, leaf_names
from polycom_jax.training.metadata import STATE, CheckpointMetadata, Leaf, whole
from polycom_jax.training.orbax_errors import Silence, collect_quietly, quietly
from polycom_jax.training.quarantine import ReadError as ReadError
from polycom_jax.training.quarantine import agreed_steps, path_of
from polycom_jax.training.quarantine import all_steps as all_steps
from polycom_jax.training.quarantine import latest_step as latest_step
from polycom_jax.training.restore import CheckpointWarning as CheckpointWarning
from polycom_jax.training.restore import DamagedCheckpoint, Found
from polycom_jax.training.state import TrainState
from polycom_jax.training.writer import (
    Keep,
    announce,
    check_storable,
    clear_way,
    delete_rest,
    open_writer,
    write_score,
)
from polycom_jax.training.writer import SaveError as SaveError


class Checkpoints:
    """The checkpoints of one run, in one folder; a context manager that ends in `close`.

    Reading changes nothing in the folder, so a run may be sampled from while it goes on. Saving
    belongs to one run at a time.

    Checkpoints that stand in the way of a run that has gone back, since they are damaged or of a
    future that it will not have, are moved to `quarantine` in the folder by its first save (in a
    bucket, marked). Of the damaged ones the newest `KEPT_TORN` stay; others are never deleted.

    Args:
        folder: local or gs://; made when first saved to.
        keep_last: how many of the newest stay.
        keep_best: how many with the lowest score are kept, too.
        keep_every: those at multiples of this step stay too; None: no such.
        run_metadata: what the run is of: name -> value, its config and its data for instance;
            numbers and arrays (NumPy's and JAX's too), texts, paths, lists and mappings. It is kept
            with every checkpoint, and one with another value of the same name is not restored.
            None: restore whatever it is of.

    Raises:
        InputError: a number out of its range, or a value that JSON cannot hold.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: SupportsIndex = 2,
        keep_best: SupportsIndex = 1,
        keep_every: SupportsIndex | None = None,
        run_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = storage.absolute(storage.named(folder))
        self._keep = Keep(
            last=whole("keep_last", keep_last, least=1),
            best=whole("keep_best", keep_best),
            every=None if keep_every is None else whole("keep_every", keep_every, least=1),
        )
        self._run_metadata = metadata.plain("run_metadata", run_metadata or {})
        self._writer: Any = None
        self._current: int | None = None  # the step that the run has saved or restored last
        self._metrics: Mapping[str, float] = {}  # what it has itself stored of that step's score
        self._known: set[int] = set()  # steps that it has saved, or found when it restored
        self._torn: Mapping[int, DamagedCheckpoint] = {}  # steps found damaged when it restored
        self._saving: int | None = None
        self._pending = False  # a save whose end nobody has looked at yet
        self._hush = contextlib.ExitStack()  # while there is a writer: it logs from threads
        weakref.finalize(self, self._hush.close)

    def save(
        self,
        step: SupportsIndex,
        state: TrainState,
        *,
        score: SupportsFloat | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to save and returns once `state` is copied, so it may be donated after.

        A failure shows at the next call of `check` after it, or of `save`, `restore`, `wait` or
        `close`. A step that has just been saved or restored is not saved again, so the last one of
        a run may be saved whether or not its period falls there; a score that comes with it is put
        in its checkpoint before this returns, and which stay is decided anew.

        Args:
            step: number of updates done.
            state: of all processes; each calls this.
            score: the held-out loss, lower is better; None, NaN or infinity: it competes for no
                best place. That of the first process counts.
            environment: what the bits depend on besides the run's settings, by name; values as in
                `run_metadata`.

        Raises:
            InputError: the folder has checkpoints that this run did not start from, or `step` is
                behind the one saved or restored last, or a value cannot be stored.
            ReadError: the folder cannot be listed.
            SaveError: this save, or the one before, failed.
        """
        number, own = whole("step", step), scores.as_metrics(score)
        facts = metadata.plain("environment", environment or {})
        metrics = gather(f"save the checkpoint of step {number}", own)[0]
        self._finish()
        if number != self._current:
            self._save(number, state, metrics, facts)
        elif metrics and metrics != self._metrics:
            self._add_score(number, metrics)

    def restore(
        self,
        abstract_state: TrainState,
        *,
        step: SupportsIndex | None = None,
        specs: Specs | None = None,
    ) -> TrainState:
        """Reads a state onto the mesh of `abstract_state`, whatever mesh it was saved from.

        Without `step`, a damaged checkpoint is passed over with a `CheckpointWarning`, and the
        next older one is read.

        Args:
            abstract_state: from `polycom_jax.training.abstract_state`.
            step: which; None: the newest that is intact.
            specs: from `polycom_jax.training.model_specs`; needed where the saved vocabulary may
                be padded otherwise.

        Returns:
            The state, bit for bit as it was saved.

        Raises:
            InputError: there is none, none is intact, the given one is not, it is of another model
                or run (differences are named), or a save would move too many intact ones away. A
                run never starts afresh because its checkpoints cannot be read.
            ReadError: it cannot be read, though tried again; nothing says that it is damaged.
        """
        found = self._read(abstract_state, step, specs, partial=False)
        restore.check_way(self.folder, found)
        if found.step != self._current:
            self.close()  # The next save opens the writer again, once what is later is moved away.
        self._current, self._known, self._torn = found.step, set(found.steps), found.torn
        self._metrics = {}
        return found.tree

    def restore_params(
        self,
        abstract_params: Params,
        *,
        step: SupportsIndex | None = None,
        specs: Specs | None = None,
        averaged: bool = False,
    ) -> tuple[int, Params]:
        """Reads the model's parameters alone, as `restore` does; returns their step too.

        With `averaged` it reads their moving average, which runs with `OptimConfig.ema_decay` keep.
        """
        target: Any = {"params": abstract_params}
        if averaged:
            target = {"opt_state": {"average": abstract_params}}
        found = self._read(target, step, specs, partial=True)
        tree = found.tree["opt_state"]["average"] if averaged else found.tree["params"]
        return found.step, tree

    def all_steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return all_steps(self.folder)

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint; None: there is none."""
        return latest_step(self.folder)

    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest score, the newest of equals; None: no scores."""
        return scores.best({step: path_of(self.folder, step) for step in self.all_steps()})

    def raise_if_save_failed(self) -> None:
        """Raises if a save has failed meanwhile, and waits for none: a loop's call at each step.

        Raises:
            SaveError: it failed.
        """
        if self._pending and not self._writer.is_saving_in_progress():
            self._finish()  # Others may find theirs ended at another step.

    check = raise_if_save_failed  # its name before, for one more release

    def environment(self, step: int) -> Mapping[str, Any]:
        """What was saved of the environment with the checkpoint of `step`."""
        return restore.environment(path_of(self.folder, step))

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
            SaveError: it failed.
        """
        meet("end the save under way")
        self._finish()

    def close(self) -> None:
        """Waits for the save under way and ends all threads.

        Raises:
            SaveError: it failed.
        """
        if self._writer is not None:
            self._call(lambda writer: writer.close())
            self._writer = None
        self._hush.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _finish(self) -> None:
        if self._writer is not None:
            self._call(lambda writer: writer.wait_until_finished())
            self._pending = False

    def _save(
        self,
        step: int,
        state: TrainState,
        metrics: Mapping[str, float],
        environment: Mapping[str, Any],
    ) -> None:
        import orbax.checkpoint as ocp

        check_storable(state)
        steps = agreed_steps(self.folder)
        self._check_own(steps, step)
        if self._writer is None:
            self._open_writer(steps)
        sums = checksums(state)
        leaves = {
            name: Leaf(leaf.shape, leaf.dtype.name, sums[name])
            for name, leaf in leaf_names(state).items()
        }
        about = CheckpointMetadata(step, leaves, self._run_metadata, environment).to_json()
        announce(self.folder, step)
        item = ocp.args.PyTreeSave(state, custom_metadata=about)
        args = ocp.args.Composite(**{STATE: item})
        self._saving, self._pending = step, True
        self._call(lambda writer: writer.save(step, args=args, metrics=metrics, force=True))
        self._current, self._metrics = step, metrics
        self._known.add(step)

    def _add_score(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stores the score of a checkpoint that is there, and keeps what a save with it would."""
        steps = agreed_steps(self.folder)
        self._check_own(steps, step)
        if step not in steps:
            raise SaveError(f"The checkpoint of step {step} is no longer in {self.folder}.")
        self.close()  # The writer knows the scores that there were when it was opened.
        write_score(self.folder, step, metrics)
        self._open_writer(steps)
        self._saving = step
        self._call(lambda writer: delete_rest(writer, self.folder, self._keep))
        self._metrics = metrics

    def _check_own(self, steps: list[int], step: int) -> None:
        """Raises `InputError` unless `step` may follow those that are in the folder."""
        current = self._current
        if steps and current is None:
            raise InputError(
                f"{self.folder} holds checkpoints up to step {steps[-1]} that this run did not "
                "start from: restore one first, or take another folder."
            )
        if current is None:
            return
        require(
            step >= current,
            f"step={step} is behind step {current}, which was saved or restored last; restore an"
            " older checkpoint to go on from there.",
        )
        others = [step for step in steps if step > current and step not in self._known]
        require(
            not others,
            f"Another run has meanwhile saved step {max(others, default=0)} in {self.folder}; one"
            " run at a time may save there. Take another folder, or restore to go on from it.",
        )

    def _read(
        self, target: Any, step: SupportsIndex | None, specs: Specs | None, *, partial: bool
    ) -> Found:
        number = None if step is None else whole("step", step)
        self.wait()
        return restore.read_newest(
            self.folder, number, target, specs, partial=partial, run_metadata=self._run_metadata
        )

    def _call(self, method: Callable[[Any], Any]) -> None:
        """Calls the writer; if it fails, the next save opens a new one, which reads the folder."""
        _, failure = quietly(lambda: method(self._writer))
        if failure is None:
            return
        quietly(lambda: self._writer.close())
        self._writer, self._pending = None, False
        self._forget_unsaved()
        collect_quietly()  # nothing refers to the writer now
        self._hush.close()
        step = "" if self._saving is None else f" of step {self._saving}"
        place, rest = self.folder, "Those before it are as they were."
        raise SaveError(f"The checkpoint{step} could not be saved in {place}: {failure}. {rest}")

    def _forget_unsaved(self) -> None:
        """Goes back to the newest checkpoint of this run that is on the disk."""
        try:
            self._known &= set(self.all_steps())
        except ReadError:
            self._known -= {self._saving}
        self._current, self._metrics = max(self._known, default=None), {}

    def _open_writer(self, steps: list[int]) -> None:
        """Opens it once the folder holds nothing but what this run goes on from."""
        clear_way(self.folder, steps, self._current, self._torn)
        self._known = {step for step in self._known if step <= (self._current or 0)}
        self._hush.enter_context(Silence())
        try:
            self._writer = open_writer(self.folder, self._keep)
        except BaseException:
            self._hush.close()
            raise
