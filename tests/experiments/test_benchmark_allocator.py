"""The benchmark's suite allocator: a process for each setting, and what it says when one fails."""

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.benchmark import allocator
from experiments.benchmark.__main__ import main
from experiments.benchmark.allocator_process import FRESH, started
from experiments.benchmark.options import Options
from experiments.terminal.program import Stop

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="measures glibc's allocator"
)


@pytest.mark.parametrize(
    "settings", [["defaults"], pytest.param(list(allocator.SETTINGS), marks=pytest.mark.slow)]
)
def test_each_setting_has_a_process_whose_contestants_are_compared(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        allocator, "SETTINGS", {name: allocator.SETTINGS[name] for name in settings}
    )
    words = ["allocator", "--shapes", "odd", "--passes", "both", "--peers", "copy"]
    words += ["--rounds", "2", "--sample-seconds", "1e-4", "--out", str(tmp_path)]
    assert main(words) == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    names = ("poly_norm", "copy of x", "poly_norm, donated")
    expected = [f"{name}, {setting}" for setting in settings for name in names]
    assert [row["name"] for row in result["rows"]] == expected
    for row in result["rows"]:
        assert row["ratios"].keys() == {f"poly_norm, {setting}" for setting in settings}
        assert row["numbers"][FRESH] >= 0


def test_a_process_that_fails_says_why():
    request = {"options": asdict(Options()), "shape": "none of them", "activation": "poly_norm"}
    with (
        pytest.raises(Stop, match="suite allocator failed: ValueError"),
        started(request | {"which": "both", "peers": []}, {}),
    ):
        pass


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a shell script be the process."""

    def write(script: str) -> None:
        path = tmp_path / "process"
        path.write_text(f"#!/bin/sh\nread request\necho '[\"a\"]'\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


def test_a_process_that_ends_between_two_requests_says_why(stand_in: Callable[[str], None]):
    stand_in("echo 'out of memory' >&2; exit 3")

    def ask_behind_its_end() -> None:
        with started({}, {}) as process:
            process._process.wait()
            process.contestant("a", "a").once()

    with pytest.raises(Stop, match="suite allocator failed: out of memory"):
        ask_behind_its_end()


def test_fresh_memory_is_the_median_of_the_calls(stand_in: Callable[[str], None]):
    calls = "for mib in 90 2 4 6 3; do read line; echo; read line; echo $mib; done"
    stand_in(calls)
    with started({}, {}) as process:
        contestant = process.contestant("a", "a")
        for _ in range(5):
            contestant.once()
        assert process.fresh("a") == 4


def test_the_kept_memory_is_that_of_our_programs(monkeypatch: pytest.MonkeyPatch):
    from experiments.run import host_memory

    asked: dict[int, int] = {}

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            asked[parameter] = value
            return 1

    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(host_memory, "_accelerators", list)
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert host_memory.keep_freed_memory()
    kept = allocator.SETTINGS["memory kept"]
    assert asked[host_memory._ARENA_MAX] == int(kept["MALLOC_ARENA_MAX"])
    assert asked[host_memory._MMAP_MAX] == int(kept["MALLOC_MMAP_MAX_"])
    assert len(asked) == len(kept)  # the third is never to trim, which -1 means to mallopt
