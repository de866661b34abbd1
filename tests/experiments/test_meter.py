"""What becomes of the numbers of each step."""

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.cli import Stop
from experiments.config import RunConfig
from experiments.logs import Logs
from experiments.meter import Meter
from experiments.progress import Display


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
def meter(logs: Collected) -> Iterator[Meter]:
    with Display(active=False) as display:
        display.start(0, 7)
        yield Meter(RunConfig(steps=7, log_every=3), logs, display)


def metrics(loss: float, grad_norm: float = 1.0) -> dict[str, float]:
    return {"loss": loss, "grad_norm": grad_norm, "learning_rate": 0.1, "tokens": 100.0}


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


def test_an_evaluated_step_is_logged_with_its_evaluation_which_takes_none_of_its_time(
    meter: Meter, logs: Collected, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]
    monkeypatch.setattr("experiments.meter.time", SimpleNamespace(perf_counter=lambda: clock[0]))
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
def test_a_number_that_is_none_ends_the_run_and_is_not_logged(
    meter: Meter, logs: Collected, name: str, bad: float
):
    meter.push(1, metrics(5.0) | {name: bad})
    with pytest.raises(Stop, match=rf"{name} is {bad} at step 1: .*--optim.peak-learning-rate"):
        meter.flush()
    assert logs.records == []
