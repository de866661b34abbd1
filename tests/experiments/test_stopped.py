"""Runs that are asked to stop, wherever they are, or that have to stop, and what comes after."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import replay
from experiments.faults.compare import arrays, differences
from experiments.faults.run_attempt import Plan, live
from experiments.pretrain import __main__ as pretrain
from experiments.run import compiled
from experiments.run.folder import Workdir
from experiments.run.metrics import read_metrics
from experiments.run.signals import StopRequest
from polycom_jax.data import prepare, train_batches
from polycom_jax.training import Checkpoints, latest_step, model_step

pytestmark = pytest.mark.slow  # runs, stopped and continued

Run = Callable[..., int]


@pytest.mark.parametrize(("which", "at"), [(1, 3), (2, 6)])
def test_a_signal_cuts_an_evaluation_short_and_the_next_start_makes_it_up(
    run: Run,
    whole: Path,
    tmp_path: Path,
    which: int,
    at: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    evaluations, stops = [], list[StopRequest]()
    honest, owner = compiled.eval_batches, pretrain.stop_request

    def asked(stop: StopRequest) -> None:
        deadline = time.monotonic() + 10
        signal.raise_signal(signal.SIGTERM)
        while stop.number is None and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread takes a moment

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        evaluations.append(1)
        for index, batch in enumerate(honest(*args, **kwargs)):
            if len(evaluations) == which and index == 1:
                asked(stops[0])
            yield batch

    class Kept:
        """`stop_request`, of which the test sees what it gives."""

        def __init__(self, *words: Any) -> None:
            self.context = owner(*words)

        def __enter__(self) -> StopRequest:
            stops.append(self.context.__enter__())
            return stops[-1]

        def __exit__(self, *error: Any) -> Any:
            return self.context.__exit__(*error)

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "eval_batches", interrupted)
        patch.setattr(pretrain, "stop_request", Kept)
        assert run(tmp_path) == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM, saved at step {at}; the same command" in capsys.readouterr().err
    assert latest_step(tmp_path / "checkpoints") == at
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == at
    assert "heldout_loss" not in last
    assert run(tmp_path) == 0
    assert differences(whole, tmp_path) == []
    cut, undisturbed = (Checkpoints(place / "checkpoints") for place in (tmp_path, whole))
    assert (cut.best_step(), cut.all_steps()) == (6, [4, 6])
    assert (undisturbed.best_step(), undisturbed.all_steps()) == (6, [4, 6])


def nan_at(bad_steps: set[int], honest: Any) -> Any:
    """`batch_nats` that is NaN where the window's first tokens say so: for some steps' batches."""

    def broken(cfg: Any, params: Any, batch: Any, *rest: Any) -> Any:
        nats, aux = honest(cfg, params, batch, *rest)
        here = jnp.sum(batch["tokens"] * jnp.arange(1, 33)[None], dtype=jnp.int32)
        bad = jnp.any(here == jnp.array(sorted(bad_steps), jnp.int32))
        return nats * jnp.where(bad, jnp.nan, 1.0), aux

    return broken


def test_steps_that_are_no_numbers_end_the_run_with_the_last_good_state_and_a_command(
    run: Run,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    batches = zip(train_batches(**_order(whole)), range(5), strict=False)
    marks = [int((batch["tokens"] * np.arange(1, 33)).sum(dtype=np.int32)) for batch, _ in batches]
    broken = nan_at(set(marks[2:]), model_step.batch_nats)
    monkeypatch.setattr(model_step, "batch_nats", broken)
    monkeypatch.setattr(replay, "batch_nats", broken)
    assert run(tmp_path, "--run.give-up-after", "2", "--log-every", "4") == 1
    said = capsys.readouterr()
    assert "not finite in steps 3 to 4; the parameters are those of step 2" in said.err
    command = f"python -m experiments.replay {tmp_path} --step 3"
    assert command in said.err
    assert said.err.count("\n") == 1
    assert "step 3: loss is nan, so nothing was updated (1 in a row" in said.out
    records = {record["step"]: record for record in read_metrics(tmp_path / "metrics.jsonl")}
    assert (records[3]["loss"], records[3]["skipped"]) == (None, 1.0)
    good, last = (arrays(Workdir(tmp_path), at) for at in (2, 4))
    for name in good:
        if name.startswith(("params", "opt_state")):
            np.testing.assert_array_equal(last[name], good[name], err_msg=name)

    assert replay.main(command.split()[3:]) == 0
    shown = capsys.readouterr().out
    assert "batch of step 3, parameters of step 4" in shown
    assert "nan" in shown
    assert "gradients that are no numbers" in shown


def _order(workdir: Path) -> dict[str, Any]:
    """The batches of a run, from the first."""
    config = Workdir(workdir).read_config()
    corpus = prepare(config.data, vocab_size=config.model.vocab_size)
    size, length = config.data.batch_size, config.model.context_length
    return {"store": corpus.train, "batch_size": size, "seq_len": length, "seed": config.run.seed}


@pytest.mark.parametrize(
    ("phase", "number"),
    [("compile", signal.SIGTERM), ("prepare", signal.SIGTERM), ("compile", signal.SIGINT)],
)
def test_a_signal_while_compiling_or_preparing_ends_the_run_and_the_next_start_goes_on(
    settings: Path, tmp_path: Path, phase: str, number: signal.Signals
):
    folder, whole = tmp_path / "w", tmp_path / "whole"
    words = ["--config", str(settings), "--data.cache-dir", str(tmp_path / "cache")]
    whole_words = [*words, "--workdir", str(whole)]
    words += ["--workdir", str(folder)]
    if phase == "prepare":  # some seconds in compiled code
        words += ["--data", "stdlib", "--data.tokenizer", "bpe", "--model.vocab-size", "2000"]
    life = live(words, folder, Plan(phase, 1, 0.5, number))
    assert life.killed
    assert life.phase == phase
    said = folder.with_suffix(".err").read_text()
    assert said.startswith(f"ended: stopped by {number.name}: there is nothing new to save;")
    assert said.count("\n") == 1
    if phase == "compile":
        assert not live(words, folder, None).killed
        assert not live(whole_words, whole, None).killed
        assert differences(whole, folder) == []
