"""Hosts that find each other, wait, agree and end: threads in this process, and real processes."""

import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.hosts import HostsConfig, agree_on_stop, fetch, joined, meet, meeting, watch
from polycom_jax.hosts.config import Place, find_place
from polycom_jax.hosts.lobby import wait_for_hosts

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


# What is told


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


# The lobby


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


# The watch, on a store that is a dict


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


# Real processes, two of them with two devices each

PROGRAM = """
    import os, signal, sys, time
    import jax, numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
    from polycom_jax.hosts import HostsConfig, fetch, joined, meet
    from polycom_jax.sharding import MESH_AXES
    from polycom_jax.training import batch_rows, put_batch

    case, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])

    class Same(Exception):
        pass

    def tell(error):
        print(type(error).__name__, error, file=sys.stderr)
        return 3

    def collective(x):
        jax.block_until_ready(jax.jit(lambda x: x.sum())(x))

    def split(order, shape):
        devices = np.array(jax.devices())[order].reshape(*shape, 1, 1)
        return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 4)

    config = HostsConfig(f"localhost:{port}", 2, index, start_timeout_s=60, lost_after_s=3)
    with joined(config, tell=tell, common=(Same,)):
        mesh = split([0, 2, 1, 3], (4, 1))  # Devices of the hosts take turns.
        rows = batch_rows(8, mesh)
        whole = np.arange(16, dtype=np.int32).reshape(8, 2)
        x = put_batch({"tokens": whole[rows]}, mesh, batch_size=8)["tokens"]
        collective(x)
        meet("first")
        if case == "fine":
            print(rows.tolist(), (fetch(x) == whole).all())
            tensor = Mesh(mesh.devices.reshape(1, 2, 2, 1), MESH_AXES, axis_types=mesh.axis_types)
            rows = batch_rows(8, tensor)  # On both hosts: they hold parts of the same replica.
            x = put_batch({"tokens": whole[rows]}, tensor, batch_size=8)["tokens"]
            print(rows.tolist(), (fetch(x) == whole).all())
            raise Same("the same on all hosts")
        if case == "differ":
            meet("a", {"x": 1, "y": index})
        if case == "late":
            if index == 1:
                time.sleep(60)
            meet("b", timeout_s=2)
        if case == "killed" and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "first killed" and index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "first hangs" and index == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        if case == "failed" and index == 1:
            raise OSError("disk full")
        if case == "first failed" and index == 0:
            raise OSError("disk full")
        while True:  # The other one does not come: this waits in a collective, or breaks there.
            collective(x)
            time.sleep(0.01)
"""
CASES = (
    *("fine", "differ", "late", "killed", "failed"),
    *("first killed", "first hangs", "first failed"),
)
End = tuple[int, str, list[str]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[End]]:
    """Case -> of each host: exit code, output, lines on stderr. All cases run at once."""
    program = tmp_path_factory.mktemp("hosts") / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    environment = {
        **{"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"},
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    running: dict[str, list[subprocess.Popen[str]]] = {}
    for case in CASES:
        words = [sys.executable, str(program), case, str(free_port())]
        running[case] = [
            subprocess.Popen(
                [*words, str(index)],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for index in (0, 1)
        ]
    ended: dict[str, list[End]] = {}
    try:
        for case, processes in running.items():
            ended[case] = []
            for process in reversed(processes):
                out, err = process.communicate(timeout=120)
                own = "\n".join(line for line in out.splitlines() if "peer ranks" not in line)
                ended[case].insert(0, (process.returncode, own, err.splitlines()))
                if case == "first hangs":
                    processes[0].kill()  # the other has ended without it
    finally:
        for process in itertools.chain(*running.values()):
            process.kill()
    return ended


@pytest.mark.slow
def test_rows_go_where_the_devices_are_and_come_back(ends: dict[str, list[End]]):
    for (code, out, err), rows in zip(ends["fine"], ([0, 1, 4, 5], [2, 3, 6, 7]), strict=True):
        lines = out.splitlines()
        assert lines == [f"{rows} True", f"{list(range(8))} True"]
        # What all hosts raise goes through, as it would on one.
        assert (code, err[-1]) == (1, "Same: the same on all hosts")


LATE = "HostsError Waited 2 s for host 1 (of 0 to 1) to come to: b."
DIFFER = "InputError Hosts differ in a: y is 1 on host 1 and 0 on host 0; "
FULL = "(of 0 to 1) ended: disk full"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("differ", DIFFER, DIFFER),
        ("late", LATE, LATE),
        ("killed", "HostsError No sign of life from host 1 (of 0 to 1) for 3 s", None),
        ("first killed", None, "HostsError The process of host 0 (of 0 to 1) is gone."),
        ("first hangs", None, "HostsError No sign of life from host 0 (of 0 to 1) for 3 s"),
        ("failed", f"HostsError host 1 {FULL}", "OSError disk full"),
        ("first failed", "OSError disk full", f"HostsError host 0 {FULL}"),
    ],
)
def test_no_host_waits_for_ever_and_each_says_why_in_one_line(
    ends: dict[str, list[End]], case: str, first: str, second: str | None
):
    for (code, _, err), line in zip(ends[case], (first, second), strict=True):
        if line is None:
            assert code == -signal.SIGKILL
        else:
            assert code == 3, err
            assert len(err) == 1, err
            assert err[0].startswith(line)


LOST_AT_THE_START = """
    import sys
    from polycom_jax.hosts import HostsConfig, joined
    from polycom_jax.hosts.config import find_place
    from polycom_jax.hosts.lobby import wait_for_hosts

    def tell(error):
        print(type(error).__name__, error, flush=True)
        return 3

    port, index, stays = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = HostsConfig(f"localhost:{port}", 2, index, start_timeout_s=60, lost_after_s=3)
    if index != stays:
        wait_for_hosts(find_place(config), 60)
        sys.exit()
    sys.modules["polycom_jax.hosts.joined"].CONNECT_S = 3
    with joined(config, tell=tell):
        print("went on alone")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stays", [0, 1])
def test_a_host_lost_between_meeting_and_start_is_not_waited_for(stays: int, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(LOST_AT_THE_START))
    words = [sys.executable, str(program), str(free_port())]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [*words, str(index), str(stays)], env=environment, text=True, stdout=subprocess.PIPE
        )
        for index in (0, 1)
    ]
    said = processes[stays].communicate(timeout=60)[0]
    processes[1 - stays].communicate(timeout=60)
    assert said.startswith("HostsError A host was lost while JAX started"), said
    assert (processes[stays].returncode, said.count("\n")) == (3, 1)
