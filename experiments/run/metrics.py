"""Numbers of a run: metrics.jsonl, which survives kills exactly, and TensorBoard files.

Nothing can be appended to an object in a bucket: there both are kept on this machine, and put whole
where they have to be durable.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Self

from experiments.run.files import json_text
from experiments.run.lock import Hold, Kept
from experiments.run.trackers import Trackers
from experiments.terminal.paths import naming
from polycom_jax import staging, storage
from polycom_jax._errors import InputError
from polycom_jax.storage import Place
from polycom_jax.training.checkpoint import SaveError

LATE = ("heldout_loss", "bits_per_byte", "ema_heldout_loss", "ema_bits_per_byte")
"""Numbers of an evaluation, also of one corpus of several as heldout_loss/NAME: these may come when
the rest of their line is written."""


def read_metrics(path: Place) -> list[dict[str, Any]]:
    """The records of a metrics file; a torn last line (a kill amid writing) is left out.

    Raises:
        InputError: another line that is not a JSON object with a step.
    """
    return [record for _, record in _lines(path)]


def series(records: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the records that have a value of that name."""
    found = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def cut_short(path: Place, step: int) -> dict[str, Any] | None:
    """The record of `step`, if it was logged without an evaluation; None: it was not so."""
    found = [record for record in read_metrics(path) if record["step"] == step]
    return found[-1] if found and "heldout_loss" not in found[-1] else None


def _lines(path: Place) -> Iterator[tuple[bytes, dict[str, Any]]]:
    try:
        lines = storage.read(path).splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int:
                raise TypeError("a step is a whole number")
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return
            raise InputError(
                f"{path}, line {number} is not a JSON object with a step; was the file edited?"
            ) from error
        if line.endswith(b"\n"):
            yield line, record


class MetricsFile:
    """Appends records to metrics.jsonl; floats are written in full, so that runs can be compared.

    What is no number is null, as JSON knows no other. Opening cuts the file back to the steps up to
    `step`: what a killed run logged after its last checkpoint is logged again, with the same
    values, by the run that resumes there.
    """

    def __init__(self, path: Place, *, step: int) -> None:
        lines = [line for line, record in _lines(path) if record["step"] <= step]
        self._staged = staging.Staged(path.parent)
        self._path = self._staged.local / path.name
        self._file = self._rewritten(lines)
        self._staged.put()

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Appends one line, {"step": step, **values}."""
        with naming(self._path):
            self._file.write(_encoded({"step": step, **values}))
            self._file.flush()

    def amend(self, record: Mapping[str, Any]) -> None:
        """Puts `record` in place of the last line."""
        self._file.close()
        kept = [line for line, _ in _lines(self._path)][:-1]
        self._file = self._rewritten([*kept, _encoded(record)])
        self._staged.put()

    def sync(self) -> None:
        """Returns once all lines are durable; called before a checkpoint refers to them."""
        with naming(self._path):
            os.fsync(self._file.fileno())
        self._staged.put()

    def close(self) -> None:
        """Closes the file; all lines are in their place."""
        try:
            with naming(self._path):
                self._file.close()
            self._staged.put()
        finally:
            self._staged.drop()

    def drop(self) -> None:
        """Closes the file, and leaves in a bucket what is there."""
        try:
            with naming(self._path):
                self._file.close()
        finally:
            self._staged.drop()

    def _rewritten(self, lines: list[bytes]) -> BinaryIO:
        """The file with these lines and no others, open to append to; whole at any moment."""
        temporary = self._path.with_suffix(".tmp")
        with naming(temporary), temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)
        return self._path.open("ab")


def _encoded(record: Mapping[str, Any]) -> bytes:
    return json_text(record, indent=None).encode()


class Logs:
    """Where numbers go: metrics.jsonl and trackers. Without trackers (None), nowhere.

    A context manager that ends in `close`; behind an error of the system, of which one has been
    told already, what cannot be written any more is left to the run that goes on.
    """

    def __init__(
        self, metrics: Place, trackers: Trackers | None, *, step: int, hold: Hold | None = None
    ) -> None:
        self._trackers = trackers
        self._hold: Hold = hold or Kept()  # of the folder that they are in
        self._metrics = None if trackers is None else MetricsFile(metrics, step=step)

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Logs the numbers of one step; lists go to metrics.jsonl alone."""
        if self._metrics is not None and self._trackers is not None:
            self._metrics.write(step, values)
            self._trackers.write(step, values)

    def amend(self, record: Mapping[str, Any]) -> None:
        """Puts `record` in place of the last line: numbers that came later are among it."""
        if self._metrics is not None and self._trackers is not None:
            self._metrics.amend(record)
            late = {name: value for name, value in record.items() if name.partition("/")[0] in LATE}
            self._trackers.write(record["step"], late)

    def sync(self) -> None:
        """Returns once what was written is durable.

        Raises:
            Lost: another run has taken the folder meanwhile; nothing of it is touched.
        """
        if self._metrics is not None and self._trackers is not None:
            self._hold.confirm()
            self._metrics.sync()
            self._trackers.flush()

    def close(self) -> None:
        """Closes the files.

        Raises:
            OSError: they cannot be put where they belong.
        """
        if self._metrics is None or self._trackers is None:
            return
        try:
            self._hold.confirm()
        except storage.Lost:  # what is there is another run's; the next check reports it
            self.drop()
        except OSError:
            self.drop()
            raise
        else:
            self._metrics.close()
            self._trackers.close()

    def drop(self) -> None:
        """Closes the files, and leaves in a bucket what is there."""
        if self._metrics is not None and self._trackers is not None:
            self._metrics.drop()
            self._trackers.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, OSError | SaveError):
            with contextlib.suppress(OSError):
                self.drop()
        else:
            self.close()
