"""Batches against a plain Python reading of what they should hold."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from stores import in_memory

from polycom_jax import InputError
from polycom_jax.data import windows
from polycom_jax.data.store import TokenStore
from polycom_jax.data.windows import Batch, eval_batches, train_batches

EOT = 999


def make_store(lengths: list[int]) -> TokenStore:
    tokens, value = [], 0
    for length in lengths:
        tokens += [EOT, *range(value, value + length)]
        value += length
    stream = np.array(tokens, np.uint16)
    return in_memory(stream, EOT, num_documents=len(lengths), num_bytes=sum(lengths))


STORE = make_store([3, 11, 1, 1, 26, 5, 2])


def expected_row(store: TokenStore, window: int, seq_len: int) -> dict[str, list[int]]:
    row: dict[str, list[int]] = {name: [] for name in windows.gather(store, np.array([0]), 1)}
    stream, segment, position = store.tokens.tolist(), 1, 0
    for place in range(window * seq_len, (window + 1) * seq_len):
        if place + 1 >= len(stream):
            values = {"tokens": 0, "targets": 0, "segment_ids": 0, "positions": 0, "mask": False}
        else:
            if stream[place] == EOT and place > window * seq_len:
                segment, position = segment + 1, 0
            values = {"tokens": stream[place], "targets": stream[place + 1], "mask": True}
            values |= {"segment_ids": segment, "positions": position}
            position += 1
        for name, value in values.items():
            row[name].append(value)
    return row


def assert_same(a: Batch, b: Batch) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(islice(batches, count))


@pytest.mark.parametrize("seq_len", [1, 4, 7, 100])
def test_a_window_is_what_a_plain_loop_makes_of_it(seq_len: int):
    count = -(-STORE.num_targets // seq_len) + 1
    batch = windows.gather(STORE, np.arange(count), seq_len)
    for window in range(count):
        for name, values in expected_row(STORE, window, seq_len).items():
            assert batch[name][window].tolist() == values, (window, name)
    assert {name: x.dtype for name, x in batch.items()} == {
        **dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.dtype(np.int32)),
        "mask": np.dtype(bool),
    }


def test_a_document_longer_than_the_window_goes_on_in_the_next():
    batch = windows.gather(make_store([20]), np.array([0, 1]), 8)
    assert batch["tokens"].tolist() == [[EOT, *range(7)], list(range(7, 15))]
    assert batch["segment_ids"].tolist() == [[1] * 8] * 2


@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("seq_len", [7, 100])
def test_overlapping_windows_count_a_target_once_with_text_before_it(seq_len: int, stride: int):
    stream, seen = STORE.tokens.tolist(), []
    for batch in eval_batches(STORE, batch_size=4, seq_len=seq_len, stride=stride):
        for row in range(4):
            places = np.flatnonzero(batch["mask"][row])
            for place in places:
                first = len(seen) - place
                assert first >= 0
                assert batch["tokens"][row, : place + 1].tolist() == stream[first:][: place + 1]
                assert place >= seq_len - stride or first == 0
                seen.append(int(batch["targets"][row, place]))
    assert seen == stream[1:]


def test_a_stride_beyond_the_window_is_refused():
    for stride in (0, 8):
        with pytest.raises(InputError, match=f"stride={stride} must be from 1 to seq_len=7"):
            eval_batches(STORE, batch_size=4, seq_len=7, stride=stride)


@pytest.mark.parametrize("shares", [[None], [range(2), range(2, 4)]])
@pytest.mark.parametrize("seq_len", [4, 7, 100])
def test_evaluation_sees_every_target_once_and_in_order(seq_len: int, shares: list):
    hosts = [eval_batches(STORE, batch_size=4, seq_len=seq_len, rows=rows) for rows in shares]
    assert len({len(host) for host in hosts}) == 1
    seen = []
    for parts in zip(*hosts, strict=True):
        for part in parts:
            assert part["tokens"].shape == (4 // len(shares), seq_len)
            seen += part["targets"][part["mask"]].tolist()
    assert seen == STORE.tokens[1:].tolist()
    assert sum(1 for _ in hosts[0]) == len(hosts[0])  # and it can be read again


@pytest.mark.parametrize("shares", [[None], [range(2), range(2, 4)]])
@pytest.mark.parametrize("stride", [5, 2])
@pytest.mark.parametrize("tokens", [1, 15, 30, 56, 10**9])
def test_evaluation_on_some_tokens_reads_whole_windows_spread_over_the_store(
    tokens: int, stride: int, shares: list
):
    options: dict[str, Any] = {"batch_size": 4, "seq_len": 5, "stride": stride}
    hosts = [eval_batches(STORE, **options, rows=rows, tokens=tokens) for rows in shares]
    rows = [row for parts in zip(*hosts, strict=True) for part in parts for row in _rows(part)]
    every = [row for batch in eval_batches(STORE, **options) for row in _rows(batch)]
    count = min(len(every), -(-tokens // stride))
    assert rows == [every[i * len(every) // count] for i in range(count)]
    assert len(hosts[0]) == -(-count // 4)
    assert hosts[0].share == sum(map(len, rows)) / STORE.num_targets


def _rows(batch: Batch) -> list[list[int]]:
    """The targets of each row that has some."""
    found = zip(batch["targets"], batch["mask"], strict=True)
    return [row[mask].tolist() for row, mask in found if mask.any()]


def test_no_tokens_to_evaluate_on_are_refused():
    with pytest.raises(InputError, match="tokens=0 must be at least 1"):
        eval_batches(STORE, batch_size=4, seq_len=5, tokens=0)


def test_starting_at_a_step_equals_iterating_to_it():
    start: dict[str, Any] = {"batch_size": 4, "seq_len": 5, "seed": 3}
    through = take(train_batches(STORE, **start), 60)  # many epochs of eleven windows
    for step in (1, 2, 17, 55):
        for a, b in zip(
            take(train_batches(STORE, **start, start_step=step), 3), through[step:], strict=False
        ):
            assert_same(a, b)


def test_starting_late_costs_no_batch_before_it(monkeypatch: pytest.MonkeyPatch):
    calls, plain = [], windows.gather
    monkeypatch.setattr(windows, "gather", lambda *a: calls.append(1) or plain(*a))
    late = take(train_batches(STORE, batch_size=4, seq_len=5, seed=3, start_step=100_000), 4)
    assert len(calls) < 30  # four, and what is read ahead
    monkeypatch.undo()
    before = train_batches(STORE, batch_size=4, seq_len=5, seed=3, start_step=99_900)
    for a, b in zip(late, take(before, 104)[100:], strict=True):
        assert_same(a, b)


def test_an_epoch_holds_every_window_once_and_the_next_another_order():
    num_windows = STORE.num_targets // 5
    batches = train_batches(STORE, batch_size=1, seq_len=5, seed=0)
    firsts = [int(b["targets"][0, 0]) for b in take(batches, 2 * num_windows)]
    expected = sorted(int(STORE.tokens[5 * w + 1]) for w in range(num_windows))
    assert sorted(firsts[:num_windows]) == sorted(firsts[num_windows:]) == expected
    assert firsts[:num_windows] != firsts[num_windows:]


def test_another_seed_gives_another_order():
    a, b = (
        [
            x["tokens"].tolist()
            for x in take(train_batches(STORE, batch_size=2, seq_len=5, seed=s), 5)
        ]
        for s in (0, 1)
    )
    assert a != b


@pytest.mark.parametrize("shares", [[(0, 1), (2, 3)], [(0, 3), (1, 2)], [(0, 1), (1, 2, 3)]])
def test_a_hosts_rows_are_those_of_the_whole_batch(shares: list):
    shape: dict[str, Any] = {"batch_size": 4, "seq_len": 5, "seed": 1, "start_step": 6}
    whole = take(train_batches(STORE, **shape), 5)
    for rows in shares:
        own = take(train_batches(STORE, **shape, rows=rows), 5)
        for batch, part in zip(whole, own, strict=True):
            assert_same(part, {name: x[list(rows)] for name, x in batch.items()})


def test_fewer_windows_than_a_batch_repeat():
    batch = next(train_batches(STORE, batch_size=64, seq_len=5, seed=0))
    assert batch["tokens"].shape == (64, 5)
    assert batch["mask"].all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seq_len": 57}, r"56 targets.*seq_len=57.*at most 56"),
        ({"seq_len": 0}, "seq_len=0"),
        ({"seed": -1}, "seed=-1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rows": [0, 2, -1]}, r"rows=\[2, -1\] .* batch_size=2"),
    ],
)
def test_what_cannot_be_batched_is_refused(change: dict[str, Any], match: str):
    options = {"batch_size": 2, "seq_len": 5, "seed": 0, **change}
    with pytest.raises(InputError, match=match):
        train_batches(STORE, **options)
