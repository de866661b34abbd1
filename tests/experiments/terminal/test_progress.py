"""What people see with and without a terminal."""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from experiments.terminal.progress import Display

ROOT = Path(__file__).resolve().parents[3]
VALUES = {"loss": 2.5, "tokens_per_second": 12345.0}


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    """A console that writes into memory."""
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=100, highlight=False), text


def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left():
    screen, text = console(terminal=True)
    with Display(screen) as display:
        display.start(5, 20)
        display.doing("train")
        display.step(10)
        display.numbers(10, VALUES, 65.0)
        display.note("a line [that] stays")
    for part in ("train", "10/20", "loss 2.5000", "12,345 tokens/s", "a line [that] stays"):
        assert part in text.getvalue()


def test_without_a_terminal_lines_come_now_and_then_and_at_the_end():
    screen, text = console(terminal=False)
    with Display(screen) as display:
        display.start(0, 20)
        for step in range(1, 21):
            display.step(step)
            display.numbers(step, VALUES, 3700.0 * (20 - step))
    lines = text.getvalue().splitlines()
    assert lines == ["step 20/20  loss 2.5000  12,345 tokens/s  0:00 left"]


def test_stages_before_training_replace_each_other_on_a_terminal_only():
    for terminal in (False, True):
        screen, text = console(terminal=terminal)
        with Display(screen) as display:
            display.busy("counting [1]")
            display.busy("counting [2]")
            display.note("counted")
        assert "counted" in text.getvalue()
        assert ("counting [1]\ncounting [2]\n" in text.getvalue()) != terminal


@pytest.mark.parametrize("lacks", ["control codes", "signs"])
def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, lacks: str):
    monkeypatch.setenv("TERM", "dumb" if lacks == "control codes" else "xterm")
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, "utf-8" if lacks == "control codes" else "ascii")
    with Display(Console(file=text, force_terminal=True, width=100, highlight=False)) as display:
        display.busy("counting")
        display.start(0, 2)
        display.step(2)
        display.numbers(2, VALUES, 0.0)
    text.flush()
    shown = raw.getvalue().decode().splitlines()
    assert shown == ["counting", "step 2/2  loss 2.5000  12,345 tokens/s  0:00 left"]


def test_the_plain_lines_say_the_time_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.terminal.progress.PLAIN_EVERY_S", 0.0)
    screen, text = console(terminal=False)
    with Display(screen) as display:
        display.start(0, 20)
        display.numbers(1, VALUES, 3725.4)
        display.numbers(2, VALUES, 65.0)
    assert "1:02:05 left" in text.getvalue()
    assert "1:05 left" in text.getvalue()


def test_a_reader_that_goes_away_does_not_end_the_run():
    code = """
        import sys
        from experiments.terminal.progress import Display
        with Display() as display:
            for _ in range(3):
                display.note("text")
        sys.exit(7)
    """
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(
        command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write)
    assert ended.returncode == 7
    assert ended.stderr == "stdout was closed: going on without display.\n"


def test_other_hosts_show_nothing(capsys: pytest.CaptureFixture[str]):
    with Display(active=False) as display:
        display.start(0, 2)
        display.note("text")
        display.numbers(2, VALUES, 0.0)
    assert capsys.readouterr().out == ""
