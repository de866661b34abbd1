import os
import platform
import subprocess
import sys

from experiments.run import host_memory


def kept(**environment: str) -> str:
    """What a program of its own says, whose environment has these beside what it needs."""
    names = ("PATH", "PYTHONPATH", "HOME", "POLYCOM_CACHE")
    command = [sys.executable, "-c", "import experiments; print(experiments.KEEPS_FREED_MEMORY)"]
    own = {name: os.environ[name] for name in names if name in os.environ} | environment
    return subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout


def test_freed_memory_is_kept_unless_the_user_has_chosen():
    possible = platform.libc_ver()[0] == "glibc" and not host_memory._accelerators()
    assert kept() == f"{possible}\n"
    for chosen in ({"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}):
        assert kept(**chosen) == "False\n"


def test_a_machine_with_accelerators_is_left_alone(monkeypatch, tmp_path):
    def no_library(name):
        raise AssertionError("nothing is asked of the C library")

    monkeypatch.setattr(host_memory, "_accelerators", lambda: [tmp_path / "accel0"])
    monkeypatch.setattr(host_memory.ctypes, "CDLL", no_library)
    assert host_memory.keep_freed_memory() is False
