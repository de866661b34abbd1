"""A folder in a bucket that one process at a time may write to.

The lease is an object. It is taken by a write that fails where one is there, and kept by writes of
a new beat, each of which fails where another than the last one's is there. So whoever has lost it
finds out at the next beat, whatever the clocks say, and never takes it again.
"""

import contextlib
import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self

from polycom_jax import _buckets

BEAT_S = 5.0
"""Between two beats of who holds a lease."""

LOST_S = 60.0
"""A lease whose beat has not changed for so long is of a process that is no more."""

POLL_S = 1.0
"""Between two looks at somebody else's beat."""


class Held(Exception):
    """Somebody else holds the lease.

    Attributes:
        record: what its holder has written about itself.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(f"held by {record}")
        self.record = record


class Lost(OSError):
    """Somebody else has taken the lease, or removed it; it is not taken again."""


class Lease:
    """Holds the lease at a place in a bucket; a context manager, which takes it and gives it back.

    Args:
        place: of the object.
        about: what others are told of the holder, as JSON.
        is_gone: whether the holder that says this of itself is known to be no more; of others it is
            watched for `LOST_S` whether their beat changes.
        tell: takes a line where that has to be watched.
    """

    def __init__(
        self,
        place: str,
        about: Mapping[str, Any],
        *,
        is_gone: Callable[[Mapping[str, Any]], bool] = lambda record: False,
        tell: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        self._place, self._is_gone, self._tell = place, is_gone, tell
        self._about = {**about, "holder": uuid.uuid4().hex}
        self._beats = itertools.count()
        self._generation = 0
        self._beaten = 0.0
        self._lost: Lost | None = None
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="lease", daemon=True)

    def check(self) -> None:
        """Raises `Lost` where a beat has found that out; asks nobody, so it may be called often."""
        if self._lost is not None:
            raise self._lost

    def confirm(self) -> None:
        """Returns if the lease is held now; called before what only its holder may write.

        Raises:
            Lost: it is not.
            OSError: the bucket cannot be asked.
        """
        if time.monotonic() - self._beaten > LOST_S / 3:
            self._beat()
        self.check()

    def __enter__(self) -> Self:
        """Takes it.

        Raises:
            Held: somebody else has it.
            OSError: the bucket cannot be written.
        """
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives it back, unless it was lost."""
        self._done.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(OSError):  # who comes next watches it for a while
                _buckets.remove(self._place)

    def _take(self) -> None:
        known = 0  # 0: nobody has it
        while True:
            begun = time.monotonic()
            made = _buckets.put(self._place, self._body(), known)
            if made is not None:
                self._generation, self._beaten = made, begun
                return
            record, generation = self._read()
            if generation and not self._is_gone(record):
                self._watch(record, generation)
            known = generation

    def _watch(self, record: Mapping[str, Any], generation: int) -> None:
        """Raises `Held` if the lease changes within `LOST_S`."""
        self._tell(record)
        deadline = time.monotonic() + LOST_S
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            now, later = self._read()
            if later == 0:
                return  # given back
            if later != generation:
                raise Held(now)

    def _go_on(self) -> None:
        while not self._done.wait(BEAT_S) and self._lost is None:
            with contextlib.suppress(OSError):  # a bucket that is away is for the run to tell
                self._beat()

    def _beat(self) -> None:
        with self._lock:
            if self._lost is not None:
                return
            begun = time.monotonic()
            made = _buckets.put(self._place, self._body(), self._generation)
            if made is None:
                self._lost = Lost(self._loss(self._read()[0]))
            else:
                self._generation, self._beaten = made, begun

    def _loss(self, record: Mapping[str, Any]) -> str:
        """What is told of a lost lease, in a line."""
        known = [name for name in record if name in self._about]
        about = ", ".join(f"{name} {record[name]}" for name in known)
        return (
            f"{self._place} is no longer this process's"
            f" ({f'taken by {about}' if about else 'removed'}); did this process, or the bucket,"
            f" stand still for {LOST_S:g} s? It ends here, and what it has saved stays."
        )

    def _body(self) -> bytes:
        return json.dumps({**self._about, "beat": next(self._beats)}).encode() + b"\n"

    def _read(self) -> tuple[Mapping[str, Any], int]:
        """What the object holds, and its generation; nothing and 0: there is none."""
        try:
            text, generation = _buckets.get(self._place)
        except FileNotFoundError:
            return {}, 0
        with contextlib.suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict):
                return found, generation
        return {}, generation
