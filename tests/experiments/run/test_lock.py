"""One writer to a folder: who is refused, what a killed run leaves, and what another machine's."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from experiments.run import lock

ROOT = Path(__file__).resolve().parents[3]

HOLDER = """
    import os, sys, time
    from pathlib import Path
    from experiments.run import lock
    with lock.locked(Path(sys.argv[1])):
        child = os.fork() if sys.argv[2] == "fork" else -1
        if child:
            print("held" if child < 0 else f"child {child}", flush=True)
        time.sleep(60)
"""


@contextmanager
def holder(folder: Path, how: str = "plain") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), how],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch):
    """Beats and waits short enough for a test."""
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "LOST_S", 0.5)
    monkeypatch.setattr(lock, "_POLL_S", 0.02)


def test_a_live_run_is_named_and_a_killed_one_leaves_the_folder_free(tmp_path: Path):
    with holder(tmp_path) as process:
        assert line(process) == "held"
        with pytest.raises(lock.Held, match=f"process {process.pid} on "), lock.locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock.locked(tmp_path):
            pass


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_run(tmp_path: Path):
    with holder(tmp_path, "fork") as process:
        child = int(line(process).removeprefix("child "))
        try:
            with pytest.raises(lock.Held), lock.locked(tmp_path):
                pass
            process.send_signal(signal.SIGKILL)
            process.wait()
            os.kill(child, 0)  # It lives, with every file open that its parent had.
            with lock.locked(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_process_does_not_lock_a_folder_twice(tmp_path: Path):
    for _ in range(2):
        with lock.locked(tmp_path):
            with pytest.raises(lock.Held, match="this process"), lock.locked(tmp_path):
                pass
            # To be refused must not have given the lock up.
            code = textwrap.dedent(
                """
                import sys
                from pathlib import Path
                from experiments.run import lock
                try:
                    lock.locked(Path(sys.argv[1])).__enter__()
                except lock.Held:
                    sys.exit(7)
                """
            )
            command = [sys.executable, "-c", code, str(tmp_path)]
            assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == 7


def test_what_was_made_for_the_lock_goes_with_it(tmp_path: Path):
    with lock.locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / lock.NAME).is_file()
    assert list(tmp_path.iterdir()) == []
    with lock.locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_lock_of_another_name_holds_what_its_caller_means(tmp_path: Path):
    names = (lock.NAME, ".a.lock", ".b.lock")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(lock.locked(tmp_path, name=name))
        for name in names:
            with pytest.raises(lock.Held), lock.locked(tmp_path, name=name):
                pass
    assert list(tmp_path.iterdir()) == []


def test_who_waits_has_the_folder_once_it_is_free_and_says_once_whom_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slept, said = list[float](), list[str]()
    with holder(tmp_path) as process:
        assert line(process) == "held"

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                process.kill()
                process.wait()

        monkeypatch.setattr(lock.time, "sleep", sleep)
        with lock.waited(tmp_path, notify=said.append):
            monkeypatch.undo()
            with pytest.raises(lock.Held, match="this process"), lock.locked(tmp_path):
                pass
    assert slept == [lock.AGAIN_S] * 3
    assert len(said) == 1
    assert f"waiting for the run of process {process.pid} on " in said[0]


def elsewhere(count: int) -> bytes:
    return json.dumps({"host": "elsewhere", "process": 7, "beat": count}).encode().ljust(256)


def test_the_beat_of_another_machine_that_changes_is_a_live_run(tmp_path: Path, fast: None):
    path = tmp_path / lock.NAME
    path.write_bytes(elsewhere(0))
    done = threading.Event()

    def beat() -> None:  # As over a file system that passes no lock on.
        count = 0
        with path.open("r+b", buffering=0) as file:
            while not done.wait(0.05):
                count += 1
                os.pwrite(file.fileno(), elsewhere(count), 0)

    thread = threading.Thread(target=beat)
    thread.start()
    said: list[str] = []
    try:
        with pytest.raises(lock.Held, match="process 7 on elsewhere"):
            lock.locked(tmp_path, notify=said.append).__enter__()
    finally:
        done.set()
        thread.join()
    assert len(said) == 1


def test_the_beat_of_another_machine_that_stands_still_is_waited_out(tmp_path: Path, fast: None):
    (tmp_path / lock.NAME).write_bytes(elsewhere(5))
    said: list[str] = []
    began = time.monotonic()
    with lock.locked(tmp_path, notify=said.append):
        assert time.monotonic() - began >= 0.5
    assert "process 7 on elsewhere has not given the folder back" in said[0]


def test_a_held_folder_has_a_beat_that_changes(tmp_path: Path, fast: None):
    path = tmp_path / lock.NAME
    with lock.locked(tmp_path):
        beats = set()
        deadline = time.monotonic() + 30
        while len(beats) < 3 and time.monotonic() < deadline:
            # Another process looks: to close the file here would give the lock up.
            beats.add(subprocess.run(["cat", str(path)], capture_output=True).stdout)
            time.sleep(0.05)
    assert len(beats - {b""}) >= 2


@pytest.mark.parametrize("left", [b"", b"not a beat", b"[1]"])
def test_what_is_no_beat_keeps_nobody_out_for_longer_than_a_lost_one(
    tmp_path: Path, fast: None, left: bytes
):
    (tmp_path / lock.NAME).write_bytes(left)
    with lock.locked(tmp_path):
        pass


def test_a_folder_that_its_holder_takes_away_at_its_end_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, real = tmp_path / "a" / "b", os.open

    def meanwhile(path: Path, *rest: int) -> int:
        monkeypatch.setattr(os, "open", real)
        folder.rmdir()
        folder.parent.rmdir()
        return real(path, *rest)

    monkeypatch.setattr(os, "open", meanwhile)
    with lock.locked(folder):
        assert (folder / lock.NAME).is_file()
    assert not list(tmp_path.iterdir())
