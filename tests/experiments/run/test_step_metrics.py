"""What becomes of the numbers of each step."""

import math
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.run.config import RunConfig
from experiments.run.metrics import Logs
from experiments.run.step_metrics import Meter
from experiments.terminal.progress import Display


class Collected(Logs):
    """Logs in memory."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self.records.append((step, dict(values)))


@pytest.fixture
def logs() -> Collected:
    return Collected()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The only item is the time that steps are measured by."""
    now = [0.0]
    monkeypatch.setattr(
        "experiments.run.step_metrics.time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    return now


@pytest.fixture
def meter(logs: Collected) -> Iterator[Meter]:
    with Display(active=False) as display:
        display.start(0, 7)
        yield Meter(RunConfig(steps=7, log_every=3), logs, display)


def metrics(loss: float, grad_norm: float = 1.0) -> dict[str, float]:
    bad = not (math.isfinite(loss) and math.isfinite(grad_norm))
    numbers = {"loss": loss, "grad_norm": grad_norm, "learning_rate": 0.1, "tokens": 100.0}
    return numbers | {"skipped": float(bad), "spike": 0.0}


def test_a_step_is_read_when_the_next_one_is_under_way(meter: Meter, logs: Collected):
    meter.push(1, metrics(5.0))
    assert logs.records == []
    meter.push(2, metrics(4.0))
    assert [step for step, _ in logs.records] == [1]


def test_flushing_leaves_nothing_outstanding(meter: Meter, logs: Collected):
    meter.push(1, metrics(5.0))
    meter.flush()
    meter.flush()
    assert [(step, values["loss"]) for step, values in logs.records] == [(1, 5.0)]


def test_the_first_the_last_and_every_third_step_are_logged(meter: Meter, logs: Collected):
    for step in range(1, 8):
        meter.push(step, metrics(float(step)))
    meter.flush()
    assert [(step, values["loss"]) for step, values in logs.records] == [
        (1, 1.0),
        (3, 3.0),
        (6, 6.0),
        (7, 7.0),
    ]
    for _, values in logs.records:
        assert values["tokens_per_second"] > 0
        assert "tokens" not in values


def test_speed_is_that_of_all_steps_since_the_last_line(meter: Meter, logs: Collected):
    for step in range(1, 5):
        meter.push(step, metrics(1.0))
    _, values = logs.records[1]
    assert values["tokens_per_second"] * values["step_time_s"] == pytest.approx(100.0)


def test_the_time_that_a_step_waits_for_its_batch_is_the_mean_since_the_last_line(
    clock: list[float], meter: Meter, logs: Collected
):
    meter.pause()
    for step in range(1, 7):
        meter.push(step, metrics(1.0))
        with meter.waiting():
            clock[0] += 0.25 * step
    meter.flush()
    assert [values["data_wait_s"] for _, values in logs.records] == [0.25, 0.625, 1.25]


def test_the_time_left_is_that_of_the_steps_left(
    clock: list[float], meter: Meter, monkeypatch: pytest.MonkeyPatch
):
    left: dict[int, float] = {}
    monkeypatch.setattr(
        Display, "numbers", lambda self, step, values, seconds: left.update({step: seconds})
    )
    meter.pause()
    for step in range(1, 8):
        meter.push(step, metrics(1.0))
        clock[0] += 2.0
    meter.flush()
    assert left == {1: 12.0, 3: 8.0, 6: 2.0, 7: 0.0}


def test_an_evaluated_step_is_logged_with_its_evaluation_which_takes_none_of_its_time(
    clock: list[float], meter: Meter, logs: Collected
):
    meter.pause()

    def evaluate() -> dict[str, float]:
        clock[0] += 1000.0
        return {"heldout_loss": 4.5}

    for step in (1, 2, 3):
        meter.push(step, metrics(float(step)))
        clock[0] += 1.0
        line = meter.flush(evaluate if step == 2 else None)
        assert line == logs.records[-1][1]
    assert meter.flush() == {}
    assert [values.pop("step_time_s") for _, values in logs.records] == [1.0, 1.0, 1.0]
    assert [(s, v["loss"], v.get("heldout_loss")) for s, v in logs.records] == [
        (1, 1.0, None),
        (2, 2.0, 4.5),
        (3, 3.0, None),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_step_that_changed_nothing_is_said_and_logged_though_it_is_not_its_turn(
    logs: Collected, name: str, bad: float, capsys: pytest.CaptureFixture[str]
):
    meter = Meter(RunConfig(steps=7, log_every=3), logs, Display())
    for step in range(1, 6):
        meter.push(step, metrics(**({"loss": 5.0} | ({name: bad} if step == 4 else {}))))
    assert [step for step, _ in logs.records] == [1, 3, 4]
    assert f"step 4: {name} is {bad}, so nothing was updated (1 in a row" in capsys.readouterr().out
    assert not meter.diverged


def test_a_batch_without_targets_is_named_as_such(
    logs: Collected, capsys: pytest.CaptureFixture[str]
):
    meter = Meter(RunConfig(steps=7, log_every=3), logs, Display())
    meter.push(2, metrics(math.nan, 0.0) | {"tokens": 0.0})
    meter.flush()
    assert "step 2: the batch has no targets, so nothing was updated" in capsys.readouterr().out


def test_a_spike_is_said_and_logged(logs: Collected, capsys: pytest.CaptureFixture[str]):
    meter = Meter(RunConfig(steps=7, log_every=3), logs, Display())
    meter.push(2, metrics(9.0) | {"spike": 1.0})
    meter.flush()
    assert [step for step, _ in logs.records] == [2]
    assert "step 2: loss 9.0000 is a spike" in capsys.readouterr().out


def diverged_after(logs: Collected, losses: str, in_a_row: int = 0) -> int | None:
    """The step with whose numbers a run is given up; "." is a good loss, "x" is none."""
    meter = Meter(RunConfig(give_up_after=3), logs, Display(active=False), in_a_row=in_a_row)
    for step, mark in enumerate(losses, 1):
        meter.push(step, metrics(math.nan if mark == "x" else 1.0))
        meter.flush()
        if meter.diverged:
            return step
    return None


@pytest.mark.parametrize(
    ("losses", "in_a_row", "expected"),
    [
        (".xx.xx.", 0, None),
        (".xxxx", 0, 4),
        ("x", 2, 3 - 2),  # resumed amid three in a row: given up where it would have been
        (".xx", 2, None),
        ("xx", 3, None),  # and resumed behind them: as many again
        ("xxx", 3, 3),
        ("xx", 4, 2),
    ],
)
def test_a_run_is_given_up_after_so_many_steps_in_a_row(
    logs: Collected, losses: str, in_a_row: int, expected: int | None
):
    assert diverged_after(logs, losses, in_a_row) == expected


def test_giving_up_names_the_steps_and_the_command_that_repeats_them(logs: Collected):
    meter = Meter(RunConfig(give_up_after=2), logs, Display(active=False))
    for step, loss in ((7, 1.0), (8, math.nan), (9, math.nan)):
        meter.push(step, metrics(loss))
    assert not meter.diverged
    meter.flush()
    stop = meter.give_up(9, "my run")
    assert stop.code == 1
    assert "not finite in steps 8 to 9; the parameters are those of step 7" in str(stop)
    assert "python -m experiments.replay 'my run' --step 8`" in str(stop)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("00", r"^the batch had no targets in steps 1 to 2; .*\. Look at the data: every target"),
        ("01", r"^loss or gradient was not finite or the batch had no targets in steps .* Look at"),
        ("11", r"^loss or gradient was not finite in steps 1 to 2; [^;]*longer --optim.warmup"),
    ],
)
def test_giving_up_says_whether_numbers_or_targets_were_missing(
    logs: Collected, targets: str, message: str
):
    meter = Meter(RunConfig(give_up_after=2), logs, Display(active=False))
    for step, count in enumerate(targets, 1):
        meter.push(step, metrics(math.nan) | {"tokens": float(count)})
    assert re.search(message, str(meter.give_up(2, "run")))
    assert ("Look at" in message) == ("Look at" in str(meter.give_up(2, "run")))
