"""An operation in a process whose allocator has settings of its own.

Run by `allocator.py` as `python -m experiments.benchmark.allocator_process`. On stdin: a line of
JSON that says what to compute, answered by the contestants' names; then, a line each, "prepare
NAME" and "call NAME", answered by the MiB of fresh pages, each counted as an ordinary one.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from experiments.benchmark.harness import Contestant
from experiments.benchmark.options import read_options
from experiments.terminal.program import Stop

MIB = 2**20
PEERS = ("copy", "torch-compile")
FRESH = f"MiB in {resource.getpagesize() // 1024} KiB pages"
"""What a call had mapped at its first use, by the count of faults: a huge page counts as one."""


@contextmanager
def started(request: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator["Process"]:
    """Such a process, which ends with the context; its allocator has these variables alone."""
    chosen = ("MALLOC_", "GLIBC_TUNABLES")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(chosen)}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as said,
        subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark.allocator_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env={**inherited, **environment},
        ) as process,
    ):
        try:
            yield Process(process, said, request)
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # a line that it did not read: why, has been said
                process.stdin.close()


class Process:
    """Such a process, from the other side.

    Attributes:
        names: of its contestants.
    """

    def __init__(
        self, process: "subprocess.Popen[str]", said: IO[str], request: Mapping[str, Any]
    ) -> None:
        self._process, self._said = process, said
        self.names: list[str] = json.loads(self._ask(json.dumps(request)))
        self._fresh: dict[str, list[float]] = {name: [] for name in self.names}

    def contestant(self, name: str, label: str) -> Contestant:
        """The one of that name, under another one."""

        def prepare() -> tuple[Any, ...]:
            self._ask(f"prepare {name}")
            return ()

        def call() -> None:
            self._fresh[name].append(float(self._ask(f"call {name}")))

        return Contestant(label, call, lambda outcome: None, prepare)

    def fresh(self, name: str) -> float:
        """`FRESH` of that one: the median of its calls."""
        return statistics.median(self._fresh[name])

    def _ask(self, line: str) -> str:
        sent, answers = self._process.stdin, self._process.stdout
        assert sent is not None
        assert answers is not None
        with suppress(BrokenPipeError):  # it has ended, and there is no answer either
            print(line, file=sent, flush=True)
        answer = answers.readline()
        if not answer:
            raise Stop(f"a process of the suite allocator failed: {self._last_words()}", code=1)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        return said[-1] if said else f"exit code {code}"


def main() -> None:
    """The process's side."""
    contestants = {c.name: c for c in _contestants(json.loads(sys.stdin.readline()))}
    print(json.dumps(list(contestants)), flush=True)
    arguments: dict[str, tuple[Any, ...]] = {}
    for line in sys.stdin:
        word, name = line.rstrip("\n").split(" ", 1)
        contestant = contestants[name]
        if word == "prepare":
            arguments[name] = contestant.prepare()
            contestant.wait(arguments[name])
            print(flush=True)
        else:
            before = _handed_out()
            contestant.wait(contestant.call(*arguments.pop(name)))
            print((_handed_out() - before) / MIB, flush=True)


def _contestants(request: Mapping[str, Any]) -> Iterator[Contestant]:
    from experiments.benchmark import ops

    options = read_options(request["options"])
    (spec,) = (spec for spec in ops.shapes(options) if spec.name == request["shape"])
    task = (spec, request["activation"], request["which"])
    yield from ops.contestants(*task, request["peers"], {})
    if request["which"] == "both":
        yield ops.overwriting(spec, request["activation"])


def _handed_out() -> int:
    """Bytes that were mapped at their first use, so far, if all pages were ordinary ones."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize()


if __name__ == "__main__":
    main()
