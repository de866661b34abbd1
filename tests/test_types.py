"""The types of what users import: pyright finds nothing in them in its strict mode."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / ".ci" / "strict_types.json"


def config() -> dict:
    return json.loads(re.sub(r"^\s*//.*$", "", CONFIG.read_text(), flags=re.M))


def test_the_strict_files_are_there():
    for name in (*config()["include"], *config()["exclude"]):
        assert (CONFIG.parent / name).exists(), name


@pytest.mark.slow
def test_strict_mode_finds_nothing():
    pytest.importorskip("pyright", reason="extra test")
    words = [sys.executable, "-m", "pyright", "-p", str(CONFIG), "--pythonpath", sys.executable]
    done = subprocess.run([*words, "--outputjson"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    problems = [
        f"{one['file']}:{one['range']['start']['line'] + 1}: {one['message']}"
        for one in found["generalDiagnostics"]
    ]
    assert not problems
    assert found["summary"]["filesAnalyzed"] > 100
