"""Checkpoints with Orbax: asynchronous, the last few and the best kept, damage noticed.

Orbax is imported on first use.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax

from polycom_jax._errors import InputError, require
from polycom_jax.hosts import meet, together
from polycom_jax.params import Params, Specs
from polycom_jax.training import restore
from polycom_jax.training.checksums import checksums, leaf_names
from polycom_jax.training.manifest import Contents, Leaf, committer
from polycom_jax.training.quiet import Silence, collect_quietly, quietly
from polycom_jax.training.state import TrainState

Tree = TypeVar("Tree")

LONGEST_S = 7200.0
"""How long hosts may be at one checkpoint before it counts as stuck."""


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged and an older one is used."""


def all_steps(folder: str | Path) -> list[int]:
    """Steps of the finished checkpoints in `folder`, ascending; a save cut short is none."""
    import orbax.checkpoint as ocp

    return sorted(found.step for found in ocp.step.standard_name_format().find_all(folder))


def latest_step(folder: str | Path) -> int | None:
    """Step of the newest finished checkpoint in `folder`, read from names alone."""
    return max(all_steps(folder), default=None)


class Checkpoints:
    """The checkpoints of one run, in one folder; a context manager that ends in `close`.

    Reading changes nothing in the folder, so a run may be sampled from while it goes on. Saving
    belongs to one run at a time.

    Args:
        folder: made when first saved to.
        keep_last: how many of the newest stay.
        keep_best: how many with the lowest score stay beside them.
        keep_every: those at multiples of this step stay too; None: no such.
        about: what the run is of: name -> JSON-able value, its config and its data for instance.
            It is written into every manifest, and a checkpoint with another value of the same name
            is not restored. None: restore whatever it is of.

    Raises:
        InputError: a number out of its range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        keep_every: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        require(keep_last >= 1, f"keep_last={keep_last} must be at least 1.")
        require(keep_best >= 0, f"keep_best={keep_best} must be at least 0.")
        require(
            keep_every is None or keep_every >= 1,
            f"keep_every={keep_every} must be at least 1, or none.",
        )
        self.folder = Path(folder).absolute()
        self._keep = keep_last, keep_best, keep_every
        self._about = about
        self._writer: Any = None
        self._current: int | None = None  # the step that the run has saved or restored last
        self._saving: Contents | None = None
        self._pending = False  # a save whose end nobody has looked at yet
        self._hush = contextlib.ExitStack()  # while there is a writer: it logs from threads

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        score: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts to save and returns once `state` is copied, so it may be donated after.

        A failure shows at the next call of `check` after it, or of `save`, `restore`, `wait` or
        `close`. A step that has just been saved or restored is not saved again, so the last one of
        a run may be saved whether or not its period falls there.

        Args:
            step: number of updates done.
            state: of all hosts; each calls this.
            score: the held-out loss, lower is better; None: it competes for no best place.
            environment: what the bits depend on beside the run's settings, by name.

        Raises:
            InputError: the folder has checkpoints that this run did not start from.
            SaveError: this save, or the one before, failed.
        """
        with together(f"save the checkpoint of step {step}", limit_s=LONGEST_S):
            self._finish()
            if step != self._current:
                self._save(step, state, score, environment)

    def restore(
        self, abstract_state: TrainState, *, step: int | None = None, specs: Specs | None = None
    ) -> TrainState:
        """Reads a state onto the mesh of `abstract_state`, whatever mesh it was saved from.

        Without `step`, a damaged checkpoint is passed over with a `CheckpointWarning`, and the
        next older one is read.

        Args:
            abstract_state: from `polycom_jax.training.abstract_state`.
            step: which; None: the newest that is whole.
            specs: from `polycom_jax.training.model_specs`; needed where the saved vocabulary may
                be padded otherwise.

        Returns:
            The state, bit for bit as it was saved.

        Raises:
            InputError: there is none, none is whole, the given one is not, or it is of another
                model or another run; differences are named. Never does a run start afresh because
                its checkpoints cannot be read.
        """
        found, state = self._read(abstract_state, step, specs, partial=False)
        self._current = found
        return state

    def restore_params(
        self, abstract_params: Params, *, step: int | None = None, specs: Specs | None = None
    ) -> tuple[int, Params]:
        """Reads the model's parameters alone, as `restore` does; returns their step too."""
        found, tree = self._read({"params": abstract_params}, step, specs, partial=True)
        return found, tree["params"]

    def all_steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return all_steps(self.folder)

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint; None: there is none."""
        return latest_step(self.folder)

    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest score, the newest of equals; None: no scores."""
        scores = {}
        for step in self.all_steps():
            with contextlib.suppress(ValueError):
                scores[step] = restore.score(self.folder / str(step))
        scored = [(value, -step) for step, value in scores.items() if value is not None]
        return -min(scored)[1] if scored else None

    def check(self) -> None:
        """Tells of a save that has failed meanwhile, without waiting for one under way.

        It costs microseconds; a loop calls it after each step, so that a full disk is not found
        out a checkpoint later.

        Raises:
            SaveError: it failed.
        """
        if self._pending and not self._writer.is_saving_in_progress():
            self._finish()  # Others may find theirs ended at another step.

    def environment(self, step: int) -> Mapping[str, str]:
        """What was saved of the environment with the checkpoint of `step`."""
        return restore.environment(self.folder / str(step))

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
            SaveError: it failed.
        """
        with together("end the save under way", limit_s=LONGEST_S):
            self._finish()

    def close(self) -> None:
        """Waits for the save under way and ends all threads.

        Raises:
            SaveError: it failed.
        """
        if self._writer is not None:
            with together("end the saves", limit_s=LONGEST_S):
                self._call(lambda writer: writer.close())
            self._writer = None
        self._hush.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _finish(self) -> None:
        if self._writer is not None:
            self._call(lambda writer: writer.wait_until_finished())
            self._pending = False

    def _save(
        self,
        step: int,
        state: TrainState,
        score: float | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        import orbax.checkpoint as ocp

        if self._writer is None:
            self._writer = self._open_writer()
        metrics: dict[str, float] = {}
        if score is not None and math.isfinite(score):
            metrics["score"] = float(score)
        sums = checksums(state)
        leaves = {
            name: Leaf(leaf.shape, leaf.dtype.name, sums[name])
            for name, leaf in leaf_names(state).items()
        }
        self._saving = Contents(step, leaves, dict(self._about or {}), dict(environment or {}))
        args = ocp.args.Composite(**{restore.STATE: ocp.args.PyTreeSave(state)})
        self._pending = True
        self._call(lambda writer: writer.save(step, args=args, metrics=metrics, force=True))
        self._current = step

    def _read(
        self, target: Tree, step: int | None, specs: Specs | None, *, partial: bool
    ) -> tuple[int, Tree]:
        self.wait()
        steps = self.all_steps()
        if not steps:
            raise InputError(f"There is no checkpoint in {self.folder}.")
        if step is not None:
            require(
                step in steps,
                f"There is no checkpoint of step {step} in {self.folder}; "
                f"there are: {', '.join(map(str, steps))}.",
            )
            steps = [step]
        damage = ""
        for candidate in reversed(steps):
            path = self.folder / str(candidate)
            try:
                with together(f"read the checkpoint {path}", limit_s=LONGEST_S):
                    return candidate, restore.read(
                        path, target, specs, partial=partial, about=self._about
                    )
            except restore.Unreadable as error:
                damage = f"checkpoint {path} is damaged ({error})"
                if candidate != steps[0]:
                    warnings.warn(
                        f"{damage}; going back to an older one.", CheckpointWarning, stacklevel=3
                    )
        raise InputError(
            f"{damage[:1].upper()}{damage[1:]}, and no older one can be read. To start afresh, "
            "move the folder away or take another one."
        )

    def _call(self, method: Callable[[Any], Any]) -> None:
        """Calls the writer; if it fails, the next save opens a new one, which reads the folder."""
        _, failure = quietly(lambda: method(self._writer))
        if failure is None:
            return
        quietly(lambda: self._writer.close())
        self._writer, self._current, self._pending = None, self.latest_step(), False
        collect_quietly()  # nothing refers to the writer now
        self._hush.close()
        step = "" if self._saving is None else f" of step {self._saving.step}"
        raise SaveError(
            f"The checkpoint{step} could not be saved in {self.folder}: {failure}. Those before it"
            " are as they were."
        )

    def _contents(self) -> Contents:
        assert self._saving is not None
        return self._saving

    def _open_writer(self) -> Any:
        """Orbax's manager, once the folder holds nothing but what this run goes on from."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

        steps, current = self.all_steps(), self._current
        if steps and current is None:
            raise InputError(
                f"{self.folder} holds checkpoints up to step {steps[-1]} that this run did not "
                "start from: restore one first, or take another folder."
            )
        later = [step for step in steps if current is not None and step > current]
        torn = [step for step in steps if not self._score_is_readable(step)]
        self._set_aside(sorted({*later, *torn}))
        last, best, every = self._keep
        policies = [
            keep.LatestN(last),
            keep.BestN(n=best, get_metric_fn=_score_or_worst, reverse=True),
        ]
        if every is not None:
            policies.append(keep.EveryNSteps(every))
        options = ocp.CheckpointManagerOptions(
            best_fn=_score_or_worst,
            best_mode="min",
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            save_root_metadata=False,
            temporary_path_class=committer(self._contents),
        )
        self._hush.enter_context(Silence())
        writer, failure = quietly(lambda: ocp.CheckpointManager(self.folder, options=options))
        if failure is not None:
            self._hush.close()
            raise SaveError(f"No checkpoint can be saved in {self.folder}: {failure}.")
        return writer

    def _score_is_readable(self, step: int) -> bool:
        try:
            restore.score(self.folder / str(step))
        except ValueError:
            return False
        return True

    def _set_aside(self, steps: list[int]) -> None:
        """Moves checkpoints that are damaged, or of a future that this run will not have."""
        meet("list the checkpoints")  # or a slower host would find fewer
        if jax.process_index() == 0:
            for step in steps:
                aside = self.folder / "set-aside"
                aside.mkdir(exist_ok=True)
                free = next(n for n in itertools.count(1) if not (aside / f"{step}-{n}").exists())
                (self.folder / str(step)).rename(aside / f"{step}-{free}")
        meet("set checkpoints aside")


def _score_or_worst(metrics: dict[str, float] | None) -> float:
    """What ranks a checkpoint; without a score it is the first to go."""
    return (metrics or {}).get("score", math.inf)
