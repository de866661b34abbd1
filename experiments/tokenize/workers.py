"""Worker processes of this machine: each tokenises one piece after the other, as it is told.

A worker may die at any moment: its piece is given to a new one.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from polycom_jax._errors import InputError
from polycom_jax.data.pieces import Job

MOST_DEATHS = 3
"""Workers that may die over one piece."""

ROOT = Path(__file__).resolve().parents[2]

Done = Callable[[int, int], None]
"""Takes a piece that is done, and its tokens."""


class Worker:
    """A process, and the piece that it is at."""

    def __init__(self, job: Job) -> None:
        own, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.tokenize.worker", str(other.fileno())],
                pass_fds=[other.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                # One thread each: there are as many workers as there is room for.
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
            )
        self.connection = Connection(own.detach())
        self.piece: int | None = None
        self._tell(job)

    def give(self, piece: int) -> None:
        """Lets it begin a piece."""
        self.piece = piece
        self._tell(piece)

    def _tell(self, what: Job | int) -> None:
        with contextlib.suppress(OSError):  # It has died, and is found dead when it is asked.
            self.connection.send(what)

    def result(self) -> tuple[int, int] | Exception:
        """The piece and its tokens, or why there are none.

        Raises:
            EOFError: it has died.
        """
        try:
            found = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        self.piece = None
        return found

    def stop(self) -> None:
        """Ends it once its piece is done, or at once if it is at none."""
        self.connection.close()


def tokenise(job: Job, pieces: Sequence[int], count: int, done: Done) -> None:
    """Tokenises pieces by `count` workers.

    Raises:
        InputError: a piece cannot be tokenised, or ends whatever worker it is given to.
    """
    left = deque(pieces)
    deaths: Counter[int] = Counter()
    with _workers(job, min(count, len(pieces))) as workers:
        while left or any(worker.piece is not None for worker in workers):
            for worker in workers:
                if worker.piece is None and left:
                    worker.give(left.popleft())
            busy = [worker for worker in workers if worker.piece is not None]
            ready = wait([worker.connection for worker in busy])
            for worker in (worker for worker in busy if worker.connection in ready):
                piece = worker.piece
                try:
                    found = worker.result()
                except EOFError:
                    assert piece is not None
                    deaths[piece] += 1
                    _check_deaths(deaths[piece], piece, worker.process.wait())
                    left.appendleft(piece)
                    workers[workers.index(worker)] = Worker(job)
                    continue
                if isinstance(found, Exception):
                    raise found
                done(*found)


@contextlib.contextmanager
def _workers(job: Job, count: int) -> Iterator[list[Worker]]:
    """Workers that have ended at the end of the block."""
    workers = [Worker(job) for _ in range(count)]
    try:
        yield workers
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.process.wait()


def _check_deaths(deaths: int, piece: int, code: int) -> None:
    if deaths >= MOST_DEATHS:
        raise InputError(
            f"{deaths} workers ended over piece {piece}, the last with code {code}; if the system"
            " ended them for lack of memory, take fewer --workers or a smaller --piece-bytes."
        )
