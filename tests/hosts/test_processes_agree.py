"""Processes that agree: threads on a store that is a dict, with barriers that are Python's."""

import contextlib
import random
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.hosts import (
    HostsConfig,
    HostsError,
    agree_on_stop,
    gather,
    joined,
    meet,
    processes,
)
from polycom_jax.sharding import fetch


class Store(dict[str, str]):
    """What the coordination service offers, to `count` threads."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._barriers = defaultdict[str, threading.Barrier](lambda: threading.Barrier(count))

    def key_value_set(self, key: str, value: str) -> None:
        with self._lock:
            if key in self:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self[key] = value

    def key_value_dir_get(self, place: str) -> list[tuple[str, str]]:
        with self._lock:
            return [(key, value) for key, value in self.items() if key.startswith(place)]

    def wait_at_barrier(self, name: str, timeout_ms: int) -> None:
        with self._lock:
            barrier = self._barriers[name]
        barrier.wait(timeout_ms / 1000)


@contextlib.contextmanager
def several(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """Threads that take themselves for processes."""
    store, own, indices = Store(count), threading.local(), iter(range(count))

    def number() -> None:
        own.index = next(indices)

    with monkeypatch.context() as patch:
        patch.setattr(processes, "store", lambda: store)
        patch.setattr(processes, "_counts", defaultdict(lambda: iter([0] * count)))
        patch.setattr(jax, "process_count", lambda: count)
        patch.setattr(jax, "process_index", lambda: own.index)
        with ThreadPoolExecutor(count, initializer=number) as pool:
            yield pool


@pytest.mark.parametrize("seed", range(200))
def test_all_processes_stop_at_the_same_step(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Whoever is asked when, and however the processes get ahead of each other."""
    draw, count = random.Random(seed), 3
    asked_at = {draw.randrange(count): draw.randrange(1, 12) for _ in range(2)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def run(_: int) -> tuple[int, int]:
        for step in range(1, 20):
            number = 15 if step >= asked_at.get(jax.process_index(), 99) else None
            if (agreed := agree_on_stop(step, number)) is not None:
                return step, agreed
        raise AssertionError("It went on.")

    try:
        with several(count, monkeypatch) as pool:
            ended = set(pool.map(run, range(count)))
    finally:
        sys.setswitchinterval(interval)
    assert ended == {(min(asked_at.values()), 15)}


def test_who_is_asked_when_others_look_already_is_heeded_a_step_later(
    monkeypatch: pytest.MonkeyPatch,
):
    store = Store(1)
    monkeypatch.setattr(processes, "store", lambda: store)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    store.key_value_set(f"{processes._STOP}0", "6 15")  # by a process that has left step 5
    assert agree_on_stop(5, None) is None
    assert agree_on_stop(6, 2) == 15


def test_processes_tell_each_other_and_who_differs_is_named(monkeypatch: pytest.MonkeyPatch):
    with several(3, monkeypatch) as pool:
        told = list(pool.map(lambda _: gather("a", [jax.process_index()]), range(3)))
    assert told == [{0: [0], 1: [1], 2: [2]}] * 3

    def differ(_: int) -> str:
        with pytest.raises(InputError) as caught:
            meet("b", {"x": 1, "y": jax.process_index() == 2})
        return str(caught.value)

    with several(3, monkeypatch) as pool:
        [text] = set(pool.map(differ, range(3)))
    assert text.startswith("Processes differ in b: y is True on process 2 and False on process 0;")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("names:\n3\n", "Waited 2 s for process 3 of 12 to come to: step 7."),
        ("names:\n10\n3\n\n", "Waited 2 s for processes 3, 10 of 12 to come to: step 7."),
    ],
)
def test_who_is_missing_at_a_barrier_is_told_in_our_words(
    said: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    store = Store(2)
    monkeypatch.setattr(processes, "store", lambda: store)
    monkeypatch.setattr(processes, "WAIT_S", 2.0)
    monkeypatch.setattr(jax, "process_count", lambda: 12)

    def late(name: str, timeout_ms: int) -> None:
        assert (name, timeout_ms) == ("polycom_jax/step", 2000)
        raise jax.errors.JaxRuntimeError(
            f"DEADLINE_EXCEEDED: Barrier timed out. Id: step::7. {said}"
        )

    monkeypatch.setattr(store, "wait_at_barrier", late)
    with pytest.raises(HostsError) as caught:
        agree_on_stop(7, None)
    assert str(caught.value) == message


def test_in_one_process_nothing_is_started():
    threads = threading.active_count()
    with joined(HostsConfig(), report_error=lambda _: 1):
        assert agree_on_stop(3, None) is None
        assert agree_on_stop(3, int(signal.SIGINT)) == signal.SIGINT
        meet("nobody", {"a": 1})
        assert threading.active_count() == threads
    tree = {"a": jax.numpy.arange(3), "b": 2.0}
    assert jax.tree.map(np.ndarray.tolist, fetch(tree)) == {"a": [0, 1, 2], "b": 2.0}
    with pytest.raises(ZeroDivisionError), joined(HostsConfig(), report_error=lambda _: 1):
        _ = 1 / 0
