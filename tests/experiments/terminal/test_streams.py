"""Programs whose stdout and stderr are closed, or cannot write every letter."""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments.terminal import streams

ROOT = Path(__file__).resolve().parents[3]


def test_what_is_printed_goes_into_no_file_where_the_streams_are_closed(tmp_path: Path):
    program = """
        import os, sys
        import experiments
        with open(sys.argv[1], "w") as file:
            print("text")
            print("text", file=sys.stderr)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number in (1, 2):
                os.write(number, b"a library's text")
            file.write("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=True, env=environment
    )
    assert (tmp_path / "a").read_text() == "done"


def test_letters_that_stdout_lacks_are_written_as_escapes(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    streams.write_any_letter()
    print("naïve 日 \udce9", flush=True)
    assert raw.getvalue() == rb"na\xefve \u65e5 \udce9" + b"\n"


def test_a_program_has_such_streams():
    program = "import sys, experiments; print(sys.stdout.errors, sys.stderr.errors)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"backslashreplace"] * 2
