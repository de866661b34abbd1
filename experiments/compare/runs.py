"""One training run of one arm: what it was, what came out; one JSON file each."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from experiments.run import lock
from experiments.run.files import write_json
from experiments.run.kept_state import KeptState
from experiments.run.provenance import cores, source_files, versions
from experiments.run.signals import StopRequest
from polycom_jax import storage
from polycom_jax._errors import InputError
from polycom_jax.data import Corpus
from polycom_jax.storage import Place


def data_fingerprint(settings: Place, corpus: Corpus) -> str:
    """That of the corpus, or the one under which an earlier version began a folder's runs on it."""
    if not storage.is_file(settings):
        return corpus.fingerprint
    began = json.loads(storage.read(settings)).get("data_fingerprint")
    other = began not in (None, corpus.fingerprint)
    return began if other and began == corpus.earlier() else corpus.fingerprint


@dataclass(frozen=True)
class RunKey:
    """Which run.

    Attributes:
        arm: of the study.
        rate: peak learning rate.
        seed: of data order and initial values.
        lengths: of the decayed branches, in updates, ascending.
    """

    arm: str
    rate: float
    seed: int
    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its place among others of a folder."""
        lengths = "-".join(map(str, self.lengths))
        return f"{self.arm}/lr{self.rate:.6g}-seed{self.seed}-steps{lengths}"

    @property
    def file(self) -> str:
        """Its place in the folder of runs."""
        return f"{self.name}.json"


@dataclass(frozen=True)
class Run:
    """What came out.

    Attributes:
        key: which run.
        diverged: loss or gradient stopped being finite; the rest then ends before that.
        heldout: nats a token at the end of each length's decay.
        steps: updates at which the curves below have a point; of the longest branch.
        loss: mean training loss since the point before, nats a token.
        grad_norm: mean norm of the gradient, likewise.
        coefficients: at these updates, name -> layer -> numbers.
        seconds: that training and evaluation took.
        commit: of the code that trained it; None: not known.
        initial: held-out nats a token before the first update; None: the run is of an earlier
            version, which did not measure it.
    """

    key: RunKey
    diverged: bool
    heldout: tuple[float, ...]
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    coefficients: tuple[Mapping[str, Any], ...]
    seconds: float
    commit: str | None = None
    initial: float | None = None

    @property
    def final(self) -> float:
        """Held-out loss of the longest length."""
        return self.heldout[-1]

    @property
    def score(self) -> float:
        """The same, infinite where the run diverged, so that no such rate is best."""
        return math.inf if self.diverged else self.final


class RunFolder:
    """The runs of a study; what is there is not run again."""

    def __init__(self, root: Place) -> None:
        self._root = root

    def read(self, key: RunKey) -> Run | None:
        """The finished run, if there is one.

        Raises:
            InputError: its file does not hold one.
        """
        path = self._root / key.file
        return replace(_run(path), key=key) if storage.is_file(path) else None

    def files(self) -> set[str]:
        """Those of the finished runs, by their places in the folder."""
        return set(storage.entries(self._root))

    def all(self) -> list[Run]:
        """Every finished run, in the order of their files' names.

        Raises:
            InputError: a file does not hold one.
        """
        names = sorted(name for name in self.files() if name.endswith(".json"))
        return [_run(self._root / name) for name in names]

    def write(self, run: Run) -> None:
        """Writes it atomically."""
        write_json(self._root / run.key.file, asdict(run), indent=None)

    @contextlib.contextmanager
    def taken(self, key: RunKey, notify: Callable[[str], None]) -> Iterator[lock.Hold]:
        """Keeps a run from all other processes while the block runs.

        Raises:
            Held: another one keeps it.
        """
        place = self._state(key)
        try:
            name = f".{place.name}{lock.NAME}"
            with lock.locked(place.parent, notify=notify, name=name) as hold:
                yield hold
        finally:
            if not storage.is_remote(place):  # a bucket has no empty folders
                for folder in (place.parent, place.parent.parent):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)

    def _state(self, key: RunKey) -> Place:
        return self._root.parent / "state" / key.name

    def made(
        self,
        key: RunKey,
        train: Callable[[KeptState], Run],
        *,
        commit: str | None,
        stop: StopRequest,
        tell: Callable[[str], None],
        hold: lock.Hold | None = None,
    ) -> Run:
        """Trains a run, writes it, and forgets the state that was kept of it.

        The state lies in `state`, beside the folder of runs; a run that another version of the
        code, or another kind of device, has begun is trained anew. `hold` is what keeps the run,
        or its whole folder, from other processes.

        Raises:
            Stop: the user asks for the end; the same call goes on, or reads what was written.
            Lost: another process has taken the run over.
        """
        confirm = (hold or lock.Kept()).confirm
        made_by = {"commit": commit, "source files": source_files(), **versions(), **_device()}
        with stop.heeded():
            with KeptState(self._state(key), made_by, stop, tell, confirm) as kept:
                run = replace(train(kept), commit=commit)
            confirm()
            self.write(run)
            kept.forget()
        # Behind its last update the run looks no more: a request since then would be lost.
        if stop.due(0):
            raise stop.reached(key.lengths[-1])
        return run


def _device() -> dict[str, Any]:
    """What a run is trained on: one device, however many there are, or some cores of a CPU."""
    kind = jax.devices()[0].device_kind
    return {"device": kind, **({"cores": cores()} if jax.default_backend() == "cpu" else {})}


def _run(path: Place) -> Run:
    """The run of a file."""
    try:
        record = json.loads(storage.read(path))
        key = RunKey(**{**record["key"], "lengths": tuple(record["key"]["lengths"])})
        return replace(_tuples(Run(**record)), key=key)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} holds no finished run; remove it to run it anew.") from error


def _tuples(run: Run) -> Run:
    names = ("heldout", "steps", "loss", "grad_norm", "coefficients")
    return replace(run, **{name: tuple(getattr(run, name)) for name in names})
