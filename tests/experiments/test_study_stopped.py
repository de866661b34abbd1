"""Runs of a study that are stopped in the middle: they go on, and come out the same."""

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compare import runs, train
from experiments.compare.runs import Run, RunFolder, RunKey
from experiments.compare.train import Programs, heldout_batches
from experiments.run import kept_state, provenance
from experiments.run.signals import StopRequest
from experiments.terminal.program import Stop
from polycom_jax import InputError, storage
from polycom_jax.data import TokenStore
from polycom_jax.training import TrainState
from polycom_jax.training.loss_stats import LossStats

KEY = RunKey("arm", 0.5, 7, (10, 20, 40))
"""Its branches leave the trunk at 8, 16 and 32."""
ROWS, T = 2, 4


UPDATES = 46
"""8 of the trunk, 2 of the first branch, 8, 4, 16, and 8 of the last branch."""


class Killed(BaseException):
    """The process ends, and nothing more is saved."""


class Study:
    """A folder of runs of a model with one parameter, whose losses depend on all batches so far."""

    def __init__(self, root: Path, commit: str | None = "a") -> None:
        self.folder = RunFolder(storage.named(root / "runs"))
        self.commit, self.state = commit, root / "state" / KEY.name
        self.stop, self.said = StopRequest(25.0), list[str]()
        self.confirm: Callable[[], None] = lambda: None
        self.updates, self.seconds = 0, 0.0

    def run(self, events: Mapping[int, Callable[[], None]] | None = None) -> Run:
        """Trains; during the update of a number, counted in this call, something may happen."""
        self.updates = 0

        def init(key: Any) -> TrainState:
            return TrainState(jnp.int32(0), jax.random.normal(key, ()), (), LossStats.start())

        def step(state: TrainState, batch: Any, rate: Any) -> tuple[TrainState, Any]:
            self.updates += 1
            (events or {}).get(self.updates, lambda: None)()
            change = np.float32(rate) * np.sin(np.float32(batch["tokens"].sum()) + state.params)
            metrics = {"loss": jnp.float32(change), "grad_norm": jnp.float32(rate)}
            return replace(state, step=state.step + 1, params=state.params + change), metrics

        def nats(params: Any, batch: Any) -> tuple[Any, Any]:
            return params * batch["mask"].sum(), batch["mask"].sum()

        cfg: Any = SimpleNamespace(context_length=T)
        hold: Any = SimpleNamespace(confirm=lambda: self.confirm())
        text = TokenStore(np.array([400]), lambda shard: np.arange(400), 999, 1, 400)
        heldout = heldout_batches(text, batch_size=ROWS, seq_len=T, tokens=None)
        programs = Programs(cfg, init, step, nats, 0)
        with pytest.MonkeyPatch.context() as patch:
            for module in (train, kept_state):
                patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.seconds))
            patch.setattr(train, "activation_parameters", lambda cfg, params: [{"a": params}])
            patch.setattr(train, "POINTS", 8)
            return self.folder.made(
                KEY,
                lambda kept: train.train(programs, KEY, text, heldout, batch_size=ROWS, kept=kept),
                commit=self.commit,
                stop=self.stop,
                tell=self.said.append,
                hold=hold,
            )

    def late(self) -> None:
        """It is time to save."""
        self.seconds += kept_state.EVERY_S

    def ask(self) -> None:
        """The user asks for the end."""
        self.stop.number = signal.SIGINT

    def killed_behind(self, update: int) -> None:
        """It is kept behind an update, and killed in the next one."""
        with pytest.raises(Killed):
            self.run({update: self.late, update + 1: killed})


def killed() -> None:
    raise Killed


def lost() -> None:
    raise storage.Lost("another process has it")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Study(tmp_path_factory.mktemp("whole")).run()


@pytest.mark.parametrize("update", [20, UPDATES])
def test_what_another_process_has_taken_over_is_neither_written_nor_removed(
    tmp_path: Path, whole: Run, update: int
):
    study = Study(tmp_path)
    study.killed_behind(10)
    kept = sorted(path.name for path in study.state.iterdir())

    def late_and_lost() -> None:
        study.confirm = lost
        study.late()

    with pytest.raises(storage.Lost):
        study.run({update - 8: late_and_lost})
    assert sorted(path.name for path in study.state.iterdir()) == kept
    assert not study.folder.files()
    study.confirm = lambda: None
    assert numbers(study.run()) == numbers(whole)


def numbers(run: Run) -> str:
    return json.dumps(asdict(run) | {"seconds": 0})


@pytest.mark.parametrize(
    ("update", "kept", "left"),
    [(5, 5, 41), (8, 8, 38), (10, 8, 38), (20, 16, 28), (30, 24, 16), (39, 33, 7), (45, 39, 1)],
)
def test_a_run_goes_on_from_its_kept_state_and_comes_out_the_same(
    tmp_path: Path, whole: Run, update: int, kept: int, left: int
):
    """Within a shorter branch that is where the branch leaves the trunk."""
    study = Study(tmp_path)
    study.killed_behind(update)
    assert numbers(study.run()) == numbers(whole)
    assert study.updates == left
    assert study.said == [f"goes on from update {kept}"]
    assert not study.state.exists()


def test_a_run_that_is_killed_again_and_again_ends_once(tmp_path: Path, whole: Run):
    study = Study(tmp_path)
    for update in (3, 6, 11, 7):
        study.killed_behind(update)
    assert numbers(study.run()) == numbers(whole)
    assert [text.split()[-1] for text in study.said] == ["3", "8", "16", "19"]


def test_nothing_is_kept_of_a_run_that_is_quick(tmp_path: Path, whole: Run):
    study = Study(tmp_path)
    with pytest.raises(Killed):
        study.run({40: killed})
    assert not study.state.exists()
    assert numbers(study.run()) == numbers(whole)
    assert (study.updates, study.said) == (UPDATES, [])
    assert not study.state.parent.exists()


@pytest.mark.parametrize(("update", "kept"), [(6, 6), (9, 8), (41, 35)])
def test_who_asks_for_the_end_gets_it_and_the_same_command_goes_on(
    tmp_path: Path, whole: Run, update: int, kept: int
):
    study = Study(tmp_path)
    with pytest.raises(Stop, match=f"stopped by SIGINT, saved at step {kept};") as stopped:
        study.run({update: study.ask})
    assert (stopped.value.code, study.updates) == (130, update)
    again = Study(tmp_path)
    assert numbers(again.run()) == numbers(whole)
    assert again.said == [f"goes on from update {kept}"]


def test_a_run_that_another_version_began_is_trained_anew(tmp_path: Path, whole: Run):
    Study(tmp_path, "a").killed_behind(30)
    study = Study(tmp_path, "b")
    assert numbers(study.run()) == numbers(replace(whole, commit="b"))
    assert study.updates == UPDATES
    assert study.said == ["begun with commit a, which is another now: trained anew from its start"]


def test_a_run_that_other_files_of_the_same_commit_began_is_trained_anew(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
):
    edited = tmp_path / "experiments/run/edited.py"
    edited.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(edited))
    monkeypatch.setattr(runs, "source_files", provenance.source_files.__wrapped__)
    edited.write_text("a = 1")
    Study(tmp_path, "a-dirty").killed_behind(30)
    edited.write_text("a = 2")
    study = Study(tmp_path, "a-dirty")
    assert numbers(study.run()) == numbers(replace(whole, commit="a-dirty"))
    assert study.updates == UPDATES
    assert "begun with source files" in study.said[0]


def test_who_asks_for_the_end_behind_the_last_update_gets_it_once_the_run_is_written(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
):
    """Else a queue would go on with its next study, whose request is another one."""
    study, evaluated = Study(tmp_path), train.evaluated

    def asked(state: TrainState) -> Any:
        if int(state.step) == KEY.lengths[-1]:
            study.ask()
        return evaluated(state)

    monkeypatch.setattr(train, "evaluated", asked)
    with pytest.raises(Stop, match="stopped by SIGINT, saved at step 40;"):
        study.run()
    assert numbers(study.folder.all()[0]) == numbers(whole)
    assert not study.state.exists()


def test_what_the_device_has_left_to_do_is_not_the_time_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = Study(tmp_path)

    def read(step: Any) -> int:
        study.seconds += 50
        return int(step)

    monkeypatch.setattr(kept_state, "int", read, raising=False)
    saves = 2
    assert study.run({5: study.late, 7: study.late}).seconds == saves * (kept_state.EVERY_S + 50)


def test_seconds_are_those_of_all_parts_and_not_of_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study, saves = Study(tmp_path), list[float]()

    class Slow(kept_state.Checkpoints):
        def save(self, step: Any, state: Any, **words: Any) -> None:
            saves.append(study.seconds)
            study.seconds += 2
            super().save(step, state, **words)

    def later(seconds: float) -> Callable[[], None]:
        def event() -> None:
            study.seconds += seconds

        return event

    monkeypatch.setattr(kept_state, "Checkpoints", Slow)
    # Saves of 2 s are 100 s apart: 50 of 61 and the next 101, which are together 2 % of the time.
    events = {1: later(61), 3: later(99), 4: later(2), 5: killed}
    with pytest.raises(Killed):
        study.run(events)
    assert saves == [61, 164]
    assert study.run({2: later(7)}).seconds == 61 + 99 + 2 + 7


def test_a_stale_state_that_was_half_removed_is_removed_at_the_next_start(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
):
    Study(tmp_path, "a").killed_behind(30)

    def half(folder: Path) -> None:
        for file in Path(folder).rglob("*"):
            if file.is_file():
                file.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_tree", half)
        with pytest.raises(Killed):
            Study(tmp_path, "b").run()
    study = Study(tmp_path, "b")
    assert numbers(study.run()) == numbers(replace(whole, commit="b"))
    assert study.updates == UPDATES
    assert not list(study.state.parent.iterdir())


def test_a_damaged_state_says_what_to_remove(tmp_path: Path):
    study = Study(tmp_path)
    study.killed_behind(5)
    for file in study.state.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError, match=rf"Remove {study.state}, and the run begins anew"):
        study.run()
