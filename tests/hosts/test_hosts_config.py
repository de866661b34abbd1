"""How a process is told of the others: by flags, or by the cluster."""

from typing import Any

import pytest

from polycom_jax import InputError
from polycom_jax.hosts import HostsConfig
from polycom_jax.hosts.service import find_place


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 2}, "given together"),
        ({"coordinator": "a", "count": 2, "index": 0}, "'a' must be HOST:PORT"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "index=2 must be from 0 to 1"),
        ({"coordinator": "a:1", "count": 0, "index": 0}, "count=0 must be at least 1"),
        ({"lost_after_s": 0}, "lost_after_s=0 must be at least 1 second"),
        ({"start_timeout_s": 1e7}, "start_timeout_s=10000000.0 must be .* at most 1e6"),
    ],
)
def test_processes_that_cannot_be_are_refused(given: dict[str, Any], message: str):
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
    assert find_place(HostsConfig()) == ("node3:61441", 2, 1, [0])
    assert find_place(HostsConfig("a:1", 3, 2)) == ("a:1", 3, 2, None)
    assert find_place(HostsConfig("a:1", 1, 0)) is None
    assert find_place(HostsConfig(count=1)) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_place(HostsConfig()) is None


def test_a_cluster_that_says_too_little_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "polycom_jax.hosts.service.ClusterEnv.auto_detect_unset_distributed_params",
        lambda *_: (None, 2, None, None),
    )
    with pytest.raises(InputError, match=r"names 2 processes, .*--hosts\.coordinator"):
        find_place(HostsConfig())
