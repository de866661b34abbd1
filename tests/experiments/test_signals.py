"""What signals do to a run."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments.signals import stop_request

ROOT = Path(__file__).resolve().parents[2]
SAID = "\nstopping after this step; again to end at once\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_says_what_it_does_and_is_noted(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stop_request() as stop:
        assert stop.number is None
        signal.raise_signal(number)
        assert stop.number is number
    assert capfd.readouterr().err == SAID
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert stop.reached(3).code == 128 + number


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_the_process_at_once(first: str, second: str):
    code = f"""
        import signal
        from experiments.signals import stop_request
        with stop_request():
            signal.raise_signal(signal.{first})
            try:
                signal.raise_signal(signal.{second})
            finally:
                print("not at once")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.Signals[second]
    assert (ended.stdout, ended.stderr) == ("", SAID)
