"""The harness of the benchmark: who is timed when, what a ratio is, who must agree."""

import numpy as np
import pytest

from experiments.benchmark.harness import (
    Contestant,
    Plan,
    check_agreement,
    measure,
    order,
    tolerance,
)
from experiments.benchmark.results import Spread, rows_from_seconds
from experiments.terminal.program import Stop


class Clock:
    """Time that passes when a contestant says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, seconds: float, *, preparing: float = 0.0) -> Contestant:
        def prepare() -> tuple[()]:
            self.now += preparing
            return ()

        def call() -> str:
            self.calls.append(name)
            self.now += seconds
            return name

        return Contestant(name, call, lambda outcome: None, prepare)


@pytest.mark.parametrize("enqueue", [False, True])
def test_rounds_alternate_and_the_first_moves_on(enqueue: bool):
    clock = Clock()
    field = [clock.contestant(name, 1.0) for name in "abc"]
    readings = measure(field, Plan(rounds=2, sample_seconds=2.0, enqueue=enqueue), clock=clock)
    assert readings == {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]}
    # Warm-up: a call to compile, one to see how long it takes. Then one that is not measured, and
    # the two that make up the sample.
    warm = "aabbcc"
    assert "".join(clock.calls) == warm + "aaabbbccc" + "bbbcccaaa"
    assert order("abc", 4) == ["b", "c", "a"]


def test_a_sample_has_as_many_calls_as_fit_and_at_least_one():
    clock = Clock()
    measure([clock.contestant("quick", 0.25)], Plan(rounds=1, sample_seconds=1.0), clock=clock)
    assert len(clock.calls) == 2 + 1 + 4
    clock = Clock()
    measure([clock.contestant("slow", 9.0)], Plan(rounds=1, sample_seconds=1.0), clock=clock)
    assert len(clock.calls) == 2 + 1 + 1


@pytest.mark.parametrize("enqueue", [False, True])
def test_preparing_a_call_is_not_counted(enqueue: bool):
    clock = Clock()
    contestant = clock.contestant("a", 1.0, preparing=50.0)
    plan = Plan(rounds=1, sample_seconds=3.0, enqueue=enqueue)
    assert measure([contestant], plan, clock=clock) == {"a": [1.0]}


def test_enqueued_calls_are_waited_for_once():
    waited = []
    contestant = Contestant("a", lambda: "done", waited.append)
    measure([contestant], Plan(rounds=1, sample_seconds=1e-9, enqueue=True))
    assert waited.count("done") == 2 + 2  # a call by itself twice, a sample of calls twice


def test_a_reading_is_the_median_of_a_rounds_calls():
    clock = Clock()
    times = iter([1.0, 1.0, 1.0, 9.0, 2.0, 1.0])

    def call() -> None:
        clock.now += next(times)

    contestant = Contestant("a", call, lambda outcome: None)
    assert measure([contestant], Plan(1, sample_seconds=3.0), clock=clock) == {"a": [2.0]}


def test_ratios_are_those_of_paired_rounds():
    # The machine gets three times slower in the middle: medians alone would say 2.0.
    rows = rows_from_seconds({"ours": [1.0, 3.0, 3.0], "peer": [2.0, 6.0, 2.0]}, ["ours", "gone"])
    ours, peer = rows
    assert ours.ratios == {"ours": Spread.exact(1.0)}
    assert peer.ratios["ours"] == Spread.of([2.0, 2.0, 2 / 3])
    assert peer.ratios["ours"].median == 2.0
    assert peer.seconds.median == 2.0
    assert peer.rounds == (2.0, 6.0, 2.0)


def test_quartiles_are_between_the_readings():
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def agreeing(value: float, work: str = "same", shape: tuple[int, ...] = (2,)) -> Contestant:
    arrays = [np.full(shape, value)]
    return Contestant(f"{work} {value}", tuple, tuple, work=work, values=lambda: arrays)


def test_contestants_of_other_work_need_not_agree():
    check_agreement("case", [agreeing(1.0), agreeing(2.0, "other"), agreeing(1.00001)], 1e-4)


@pytest.mark.parametrize(
    "other", [agreeing(1.01), agreeing(float("nan")), agreeing(1.0, shape=(3,))]
)
def test_a_contestant_that_computes_something_else_ends_the_run(other: Contestant):
    with pytest.raises(Stop, match=r"case: same .* does not compute what same 1\.0 does"):
        check_agreement("case", [agreeing(1.0), other], 1e-4)


def test_float32_products_of_accelerators_are_given_more_room():
    assert tolerance("float32", "gpu") > tolerance("float32", "cpu")
    assert tolerance("bfloat16", "gpu") == tolerance("bfloat16", "cpu")
