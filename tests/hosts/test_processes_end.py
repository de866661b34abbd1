"""Real processes, two of them with two devices each: how they end when one is late or lost."""

import itertools
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
    import os, signal, sys, time
    import jax, numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
    from polycom_jax.hosts import HostsConfig, agree_on_stop, joined, meet, processes
    from polycom_jax.sharding import MESH_AXES, fetch
    from polycom_jax.training import batch_rows, put_batch

    case, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])

    class Same(Exception):
        pass

    def report_error(error):
        print(type(error).__name__, error, file=sys.stderr)
        return 3

    def collective(x):
        jax.block_until_ready(jax.jit(lambda x: x.sum())(x))

    def split(order, shape):
        devices = np.array(jax.devices())[order].reshape(*shape, 1, 1)
        return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 4)

    if case == "alone":
        config = HostsConfig(f"localhost:{port}", 3, index, start_timeout_s=5, lost_after_s=5)
        with joined(config, report_error=report_error):
            print("went on alone")
        sys.exit()
    count = 2 + (case == "counts" and index == 1)
    config = HostsConfig(f"localhost:{port}", count, index, start_timeout_s=90, lost_after_s=5)
    with joined(config, report_error=report_error, common=(Same,)):
        mesh = split([0, 2, 1, 3], (4, 1))  # Devices of the processes take turns.
        rows = batch_rows(8, mesh)
        whole = np.arange(16, dtype=np.int32).reshape(8, 2)
        x = put_batch({"tokens": whole[rows]}, mesh, batch_size=8)["tokens"]
        collective(x)
        meet("first")
        if case == "fine":
            print(rows.tolist(), (fetch(x) == whole).all())
            tensor = Mesh(mesh.devices.reshape(1, 2, 2, 1), MESH_AXES, axis_types=mesh.axis_types)
            rows = batch_rows(8, tensor)  # On both: they hold parts of the same replica.
            x = put_batch({"tokens": whole[rows]}, tensor, batch_size=8)["tokens"]
            print(rows.tolist(), (fetch(x) == whole).all())
            raise Same("the same on all processes")
        if case == "differ":
            meet("a", {"x": 1, "y": index})
        if case == "late":
            if index == 1:
                time.sleep(60)
            meet("b", timeout_s=2)
        if case == "stuck":  # It lives, and so its heart beats.
            processes.WAIT_S = 2.0
            for step in range(9):
                if index == 1 and step == 7:
                    time.sleep(60)
                assert agree_on_stop(step, None) is None
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
    *("fine", "differ", "counts", "late", "stuck", "killed", "failed"),
    *("first killed", "first hangs", "first failed"),
)
End = tuple[int, str, list[str]]


def begin(program: Path, case: str, port: int, index: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), case, str(port), str(index)],
        env={
            **{"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"},
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("processes") / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    return program


@pytest.fixture(scope="module")
def ends(program: Path) -> dict[str, list[End]]:
    """Case -> of each process: exit code, output, lines on stderr. All cases run at once."""
    running: dict[str, list[subprocess.Popen[str]]] = {}
    for case in CASES:
        port = free_port()
        running[case] = [begin(program, case, port, index) for index in (0, 1)]
    ended: dict[str, list[End]] = {}
    try:
        for case, processes in running.items():
            ended[case] = []
            for process in reversed(processes):
                out, err = process.communicate(timeout=240)
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
        # What all processes raise goes through, as it would in one.
        assert (code, err[-1]) == (1, "Same: the same on all processes")


LATE = "HostsError Waited 2 s for process 1 of 2 to come to: b."
STUCK = "HostsError Waited 2 s for process 1 of 2 to come to: step 7."
DIFFER = "InputError Processes differ in a: y is 1 on process 1 and 0 on process 0; "
COUNTS = "InputError Processes differ in the start: hosts.count is 3 on process 1 and 2 on process"
FULL = "of 2 ended: disk full"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("differ", DIFFER, DIFFER),
        ("counts", COUNTS, COUNTS),
        ("late", LATE, LATE),
        ("stuck", STUCK, STUCK),
        ("failed", f"HostsError process 1 {FULL}", "OSError disk full"),
        ("first failed", "OSError disk full", f"HostsError process 0 {FULL}"),
    ],
)
def test_no_process_waits_for_ever_and_each_says_why_in_one_line(
    ends: dict[str, list[End]], case: str, first: str, second: str
):
    for (code, _, err), line in zip(ends[case], (first, second), strict=True):
        assert code == 3, err
        assert len(err) == 1, err
        assert err[0].startswith(line)


# JAX's own words: processes are its "tasks", and process 0 is the "leader".
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "lost", "said"),
    [
        ("killed", 1, r"tasks are unhealthy \(stopped sending heartbeats\):\n1$"),
        ("first killed", 0, r"leader task was preempted/died/restarted"),
        ("first hangs", 0, r"DEADLINE_EXCEEDED.*\n\nRPC: /xla\S+CoordinationService/Heartbeat"),
    ],
)
def test_where_a_process_is_gone_jax_says_so_and_ends_the_others(
    ends: dict[str, list[End]], case: str, lost: int, said: str
):
    assert ends[case][lost][0] == -signal.SIGKILL
    code, _, err = ends[case][1 - lost]
    assert code == -signal.SIGABRT, err
    assert re.search(said, "\n".join(err), re.MULTILINE), err


@pytest.mark.slow
@pytest.mark.parametrize("present", [(0, 2), (2,)])
def test_who_does_not_come_to_the_start_is_named(program: Path, present: tuple[int, ...]):
    port = free_port()
    processes = [begin(program, "alone", port, index) for index in present]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert "went on alone" not in out
        if 0 in present:
            assert process.returncode == -signal.SIGABRT
            assert re.search(r"reached the barrier: 2/3\.\n.*task names:\n1\n", err), err
        else:
            assert (process.returncode, err.count("\n")) == (3, 1), err
            assert err.startswith("InputError Waited 15 s (hosts.start_timeout_s and 10) for")
            assert f"process 0 of 3 at localhost:{port}" in err


@pytest.mark.slow
def test_a_taken_port_is_said(program: Path):
    with socket.create_server(("", 0)) as server:
        process = begin(program, "alone", server.getsockname()[1], 0)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "InputError: JAX cannot start at localhost:" in err
