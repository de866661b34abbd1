"""Real processes, two of them with two devices each: how they end when one is late or lost."""

import itertools
import signal
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
