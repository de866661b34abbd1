"""How hosts are told of each other, and how they meet: threads in this process."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ports import free_port

from polycom_jax import InputError
from polycom_jax.hosts import HostsConfig
from polycom_jax.hosts.config import Place, find_place
from polycom_jax.hosts.lobby import wait_for_hosts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 2}, "given together"),
        ({"coordinator": "a", "count": 2, "index": 0}, "'a' must be HOST:PORT"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "index=2 must be from 0 to 1"),
        ({"coordinator": "a:1", "count": 0, "index": 0}, "count=0 must be at least 1"),
        ({"lost_after_s": 0}, "lost_after_s=0 must be at least 1 second"),
    ],
)
def test_hosts_that_cannot_be_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        HostsConfig(**given)


def test_a_cluster_tells_what_flags_do_not(monkeypatch: pytest.MonkeyPatch):
    assert find_place(HostsConfig()) is None
    job = {
        **{"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_NTASKS": "2"},
        **{"SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
    }
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert find_place(HostsConfig()) == Place("node3:61441", 2, 1, (0,))
    assert find_place(HostsConfig("a:1", 3, 2)) == Place("a:1", 3, 2)
    assert find_place(HostsConfig(count=1)) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_place(HostsConfig()) is None


def test_a_cluster_that_says_too_little_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "polycom_jax.hosts.config.ClusterEnv.auto_detect_unset_distributed_params",
        lambda *_: (None, 2, None, None),
    )
    with pytest.raises(InputError, match=r"tells of 2 hosts.*--hosts\.coordinator"):
        find_place(HostsConfig())


def arrive(places: list[Place], timeout_s: float = 10.0) -> list[str]:
    """What each host ends with; they arrive at once."""

    def one(place: Place) -> str:
        try:
            wait_for_hosts(place, timeout_s)
        except InputError as error:
            return str(error)
        return "all there"

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def test_hosts_meet_in_any_order_and_free_the_port():
    port = free_port()
    places = [Place(f"localhost:{port}", 3, i) for i in (2, 0, 1)]
    assert arrive(places) == ["all there"] * 3
    assert arrive(places) == ["all there"] * 3


def test_missing_hosts_are_named_to_those_that_came():
    coordinator = f"localhost:{free_port()}"
    first, second = arrive([Place(coordinator, 4, 0), Place(coordinator, 4, 2)], 1.0)
    assert first == second
    assert "Waited 1 s" in first
    assert "hosts 1, 3 (of 0 to 3)" in first
    [alone] = arrive([Place(coordinator, 4, 2)], 1.0)
    assert "host 0 (of 0 to 3)" in alone
    assert "refused" in alone


def test_hosts_that_disagree_are_told_so():
    coordinator = f"localhost:{free_port()}"
    for text in arrive([Place(coordinator, 2, 0), Place(coordinator, 3, 1)]):
        assert "host 1 was started as one of 3 hosts, the first as one of 2" in text
    ends = arrive([Place(coordinator, 3, 0), *[Place(coordinator, 3, 1)] * 2])
    assert all("Two hosts were started as --hosts.index 1" in text for text in ends)


def test_a_taken_port_is_said():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert "cannot listen" in arrive([Place(f"localhost:{port}", 2, 0)])[0]


def test_strangers_and_hosts_that_were_restarted_do_no_harm():
    port = free_port()
    coordinator = f"localhost:{port}"
    hello = json.dumps({"index": 1, "count": 3}).encode() + b"\n"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(arrive, [Place(coordinator, 3, 0)])
        time.sleep(0.3)
        for text in (b"GET / HTTP/1.1\n", b"[1]\n", b'{"index": 9}\n', hello):
            with socket.create_connection(("localhost", port)) as line:
                line.sendall(text)
        others = arrive([Place(coordinator, 3, 1), Place(coordinator, 3, 2)])
        assert [*first.result(), *others] == ["all there"] * 3
