"""Hosts that watch each other and agree, on a store that is a dict."""

import random
import signal
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

from polycom_jax.hosts import HostsConfig, agree_on_stop, fetch, joined, meet, meeting, watch
from polycom_jax.hosts.config import Place


class Store(dict[str, str]):
    """What the coordination service offers of a dict."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if key in self and not allow_overwrite:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
        self[key] = value

    def key_value_dir_get(self, place: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.items() if key.startswith(place)]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    for module in (meeting, watch):
        monkeypatch.setattr(module, "store", lambda: store)
    return store


def watches(count: int, lost_after_s: float = 30.0) -> list[Any]:
    return [watch.Watch(Place("a:1", count, i), lost_after_s, lambda _: 1) for i in range(count)]


def test_a_host_without_a_sign_of_life_is_lost(store: Store):
    a, b, _ = watches(3)
    start = time.monotonic()
    for second in range(30):
        assert a._poll(start + second) is None
        assert b._poll(start + second) is None
    text = a._poll(start + 31)
    assert "No sign of life from host 2 (of 0 to 2) for 30 s" in text


def test_a_host_that_stays_behind_is_named(store: Store):
    a, b = watches(2, lost_after_s=2 * watch.WAIT_S)
    start = time.monotonic()
    a.step, b.step = 7, 6
    assert [w._poll(start + 1) for w in (b, a, b)] == [None] * 3
    late = start + 2 + watch.WAIT_S
    assert "at step 7 for host 1 (of 0 to 1), still at step 6" in a._poll(late)
    assert b._poll(late) is None
    b.step = 7
    assert [w._poll(late) for w in (b, a)] == [None] * 2


def test_a_host_that_does_not_come_to_a_block_of_all_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    a, b = watches(2, lost_after_s=9 * watch.WAIT_S)
    monkeypatch.setattr(watch, "running", a)
    with watch.together("save", limit_s=3 * watch.WAIT_S):
        late = time.monotonic() + watch.WAIT_S + 1
        assert [w._poll(late - 2) for w in (b, a)] == [None] * 2
        text = a._poll(late)
        assert f"Waited {watch.WAIT_S + 1:.0f} s for host 1 (of 0 to 1) to come to: save." in text
        assert b._poll(late) is None
        monkeypatch.setattr(watch, "running", b)
        with watch.together("save", limit_s=3 * watch.WAIT_S):  # It is slow, and has come.
            assert [w._poll(late) for w in (b, a)] == [None] * 2
            text = a._poll(late + 2 * watch.WAIT_S)
            assert "for host 1 (of 0 to 1) to get through: save." in text
    assert [w._poll(late + 2 * watch.WAIT_S) for w in (b, a)] == [None] * 2


def test_the_end_of_another_host_is_passed_on(store: Store):
    a, b = watches(2)
    store[f"{watch._ENDED}1"] = "host 1 ended: no space left"
    assert a._poll(time.monotonic()) == "host 1 ended: no space left"
    assert b._poll(time.monotonic()) == "host 1 ended: no space left"


@pytest.mark.parametrize("seed", range(200))
def test_all_hosts_stop_at_the_same_step(seed: int, store: Store, monkeypatch: pytest.MonkeyPatch):
    """Any order of events in which a host has the numbers of step n - 1 only if all are at n - 1:
    a host may look behind step n once every host has dispatched step n - 1."""
    draw, count = random.Random(seed), 3
    hosts = watches(count)
    dispatched, ended = [1] * count, dict[int, tuple[int, int]]()
    asked_at = {draw.randrange(count): draw.randrange(1, 12) for _ in range(2)}
    while len(ended) < count:
        can_look = [
            i for i in range(count) if i not in ended and min(dispatched) >= dispatched[i] - 1
        ]
        host = draw.choice(can_look)  # There is one: a deadlock would raise here.
        step = dispatched[host]
        number = 15 if step >= asked_at.get(host, 99) else None
        monkeypatch.setattr(watch, "running", hosts[host])
        if (agreed := agree_on_stop(step, number)) is not None:
            ended[host] = step, agreed
        else:
            dispatched[host] += 1
    [(stop, _)] = set(ended.values())
    assert stop in {step + watch.SKEW for step in asked_at.values()}


def test_on_one_host_nothing_is_started():
    threads = threading.active_count()
    with joined(HostsConfig(), tell=lambda _: 1):
        assert agree_on_stop(3, None) is None
        assert agree_on_stop(3, int(signal.SIGINT)) == signal.SIGINT
        meet("nobody", {"a": 1})
        assert threading.active_count() == threads
    tree = {"a": jax.numpy.arange(3), "b": 2.0}
    assert jax.tree.map(np.ndarray.tolist, fetch(tree)) == {"a": [0, 1, 2], "b": 2.0}
    with pytest.raises(ZeroDivisionError), joined(HostsConfig(), tell=lambda _: 1):
        _ = 1 / 0
