"""What signals do to a run."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.run.signals import StopRequest, stop_request

ROOT = Path(__file__).resolve().parents[3]
SAID = "\nstopping after this step; again to end at once\n"
PROGRAM = """
    import os, signal, sys, threading, time
    from experiments.run.signals import StopRequest, stop_request
    {body}
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(PROGRAM).format(body=textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def asked(stop: StopRequest) -> None:
    """The thread takes a moment."""
    deadline = time.monotonic() + 10
    while stop.number is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_says_what_it_does_and_is_noted(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stop_request(60) as stop, stop.heeded():
        assert not stop.due(1)
        signal.raise_signal(number)
        asked(stop)
        assert stop.number is number
        assert stop.due(2)
        assert stop.cuts()
        deadline = time.monotonic() + 10
        said = ""
        while SAID not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capfd.readouterr().err
    assert said == SAID
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert stop.reached(3).code == 128 + number


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT")])
def test_a_second_signal_ends_the_process_at_once(first: str, second: str):
    ended = run(
        f"""
with stop_request(60) as stop, stop.heeded():
    signal.raise_signal(signal.{first})
    while stop.number is None:
        time.sleep(0.01)
    time.sleep(0.1)
    try:
        signal.raise_signal(signal.{second})
    finally:
        print("not at once")
"""
    )
    # By the system where Python's main thread is free, else by ours; a shell sees the same code.
    assert ended.returncode in (-signal.Signals[second], 128 + signal.Signals[second])
    assert (ended.stdout, ended.stderr) == ("", SAID)


# The main thread is in compiled code, where no Python handler runs: here in a lock's.
BLOCKED = """
lock = threading.Lock()
lock.acquire()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
"""


def test_a_signal_ends_a_process_that_is_in_compiled_code_and_has_nothing_to_save():
    ended = run(BLOCKED + "with stop_request(60):\n    lock.acquire()\n    print('not ended')\n")
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stdout == ""
    assert ended.stderr.startswith("ended: stopped by SIGTERM: there is nothing new to save; the")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"), [("0.5", "0.5 s;"), ("0.5, 'run.grace_s'", "0.5 s (run.grace_s);")]
)
def test_what_takes_longer_than_the_grace_period_is_not_waited_for(words: str, said: str):
    ended = run(
        BLOCKED
        + f"with stop_request({words}) as stop, stop.heeded():\n"
        + "    lock.acquire()\n    print('no')\n"
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stdout == ""
    assert ended.stderr.startswith(
        f"{SAID}ended: stopped by SIGTERM: what it was doing took longer"
    )
    assert said in ended.stderr


@pytest.fixture
def ctrl_c_heard() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so would what the test starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_heard")
def test_ctrl_c_amid_the_imports_shows_no_traceback():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.pretrain", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line.endswith(" jaxlib\n"):
                break
        started.send_signal(signal.SIGINT)
        said = started.stderr.read()
        assert started.wait(60) == -signal.SIGINT
    assert "Traceback" not in said
