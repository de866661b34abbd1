"""One holder of a place in a bucket: who is refused, who takes over, who has lost it."""

import json
import threading
import time
from collections.abc import Callable

import buckets
import pytest

from polycom_jax import _buckets, _lease, storage
from polycom_jax.storage import Held, Lease, Lost

ONE, OTHER = {"process": 1, "host": "a"}, {"process": 2, "host": "b"}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and waits short enough for a test."""
    monkeypatch.setattr(_lease, "BEAT_S", 0.05)
    monkeypatch.setattr(_lease, "POLL_S", 0.02)
    monkeypatch.setattr(_lease, "LOST_S", 10.0)


@pytest.fixture
def place(bucket: str) -> str:
    return f"{bucket}/run/.lock"


def record(place: str) -> dict[str, object]:
    return json.loads(storage.read(storage.place(place)))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def beat(place: str) -> int:
    found = record(place)["beat"]
    assert isinstance(found, int)
    return found


def left(place: str) -> None:
    """The lease of a process that was killed."""
    storage.write(storage.place(place), json.dumps({**OTHER, "beat": 3}).encode())


def test_a_lease_is_kept_by_beats_and_given_back(place: str):
    with Lease(place, ONE) as lease:
        assert record(place).items() >= ONE.items()
        wait_for(lambda: beat(place) >= 3)
        lease.check()
        lease.confirm()
    assert not storage.is_file(storage.place(place))
    with Lease(place, OTHER):
        assert record(place)["process"] == 2


def test_who_comes_second_is_told_by_whom_it_is_held(place: str):
    told = []
    with Lease(place, ONE) as lease:
        with pytest.raises(Held) as raised, Lease(place, OTHER, tell=told.append):
            pass
        assert raised.value.record.items() >= ONE.items()
        assert told[0].items() >= ONE.items()
        lease.confirm()
        assert record(place)["process"] == 1


def test_one_of_many_that_come_at_once_gets_it(place: str):
    held, refused, go_on = list[int](), list[int](), threading.Event()

    def take(number: int) -> None:
        try:
            with Lease(place, {"process": number, "host": "a"}):
                held.append(number)
                go_on.wait()
        except Held:
            refused.append(number)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(refused) == 3)
    assert record(place)["process"] in held
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(held) == 1


def test_a_lease_without_a_sign_of_life_is_taken_over(place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_lease, "LOST_S", 0.5)
    left(place)
    begun = time.monotonic()
    with Lease(place, ONE) as lease:
        assert time.monotonic() - begun >= _lease.LOST_S
        lease.confirm()
        assert record(place)["process"] == 1


def test_a_lease_of_who_is_known_to_be_gone_is_taken_at_once(place: str):
    left(place)
    told = []
    with Lease(place, ONE, is_gone=lambda found: found["process"] == 2, tell=told.append):
        assert record(place)["process"] == 1
    assert told == []


def test_a_lease_that_is_given_back_meanwhile_is_taken(place: str):
    left(place)
    remove = threading.Timer(0.2, storage.remove, (storage.place(place),))
    remove.start()
    with Lease(place, ONE):
        assert record(place)["process"] == 1
    remove.join()


def test_what_holds_no_record_is_watched_too(place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_lease, "LOST_S", 0.5)
    storage.write(storage.place(place), b"garbage")
    with Lease(place, ONE):
        assert record(place)["process"] == 1


def test_a_lost_lease_is_told_and_never_taken_again(place: str):
    with Lease(place, ONE) as lease:
        left(place)
        wait_for(lambda: lease._lost is not None)
        with pytest.raises(Lost, match=r"no longer this process's \(taken by process 2, host b\)"):
            lease.check()
        storage.remove(storage.place(place))
        time.sleep(0.2)
        with pytest.raises(Lost):
            lease.confirm()
    assert not storage.is_file(storage.place(place))


def test_the_lease_of_another_is_left_where_ones_own_was_lost(place: str):
    with Lease(place, ONE) as lease:
        left(place)
        wait_for(lambda: lease._lost is not None)
    assert record(place)["process"] == 2


def test_who_stood_still_asks_before_it_writes(place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_lease, "BEAT_S", 60)  # no beat comes by itself
    with Lease(place, ONE) as lease:
        left(place)
        lease.confirm()  # the last beat was just now
        lease.check()
        monkeypatch.setattr(_lease, "LOST_S", 0)  # it was long ago
        lease.check()  # which asks nobody
        with pytest.raises(Lost):
            lease.confirm()


def test_a_bucket_that_is_away_loses_no_lease(
    front: buckets.Front, place: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_buckets, "WAITS_S", (0.05,))
    with Lease(place, ONE) as lease:
        monkeypatch.setattr(_lease, "LOST_S", 0)  # each `confirm` asks
        front.refusing = True
        wait_for(lambda: front.refused.count("POST") >= 4)
        lease.check()
        with pytest.raises(OSError, match="does not answer"):
            lease.confirm()
        front.refusing = False
        lease.confirm()
        lease.check()
        assert record(place)["process"] == 1
