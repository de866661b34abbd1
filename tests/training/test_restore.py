"""What a disk refuses is no damage: nothing is passed over for it, and nothing is moved."""

import builtins
import errno
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from ports import free_port

from polycom_jax import InputError, _files
from polycom_jax.training import Checkpoints, checkpoint, metadata, restore
from polycom_jax.training.checkpoint import CheckpointWarning, ReadError

TREE: Any = {"params": {"w": jnp.arange(64.0).reshape(8, 8), "b": jnp.float32(3)}}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE)


def error(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def forever(one: Any) -> Iterator[Any]:
    while True:
        yield one


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "WAITS_S", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, to be copied; the values of step 1 are one less."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, jax.tree.map(lambda x: x - 1, TREE), score=2.0)
        checkpoints.save(2, TREE, score=1.0, environment={"cores": "2"})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "c")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Iterator[Any]], None]:
    """Opening or listing a path that ends like this raises one error after the other."""

    def make(end: str, errors: Iterator[Any]) -> None:
        def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
            def fake(path: Any = ".", *rest: Any, **options: Any) -> Any:
                if str(path).endswith(end) and (found := next(errors, None)):
                    raise found
                return real(path, *rest, **options)

            return fake

        monkeypatch.setattr(builtins, "open", wrapped(builtins.open))
        monkeypatch.setattr(io, "open", wrapped(io.open))
        monkeypatch.setattr(os, "scandir", wrapped(os.scandir))

    return make


def restored(folder: Path, **options: Any) -> float:
    found: Any = Checkpoints(folder).restore(ABSTRACT, **options)
    return float(found["params"]["b"])


def inside(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


PLACES = {"list": "c", "metadata": "2/state/_METADATA", "arrays": "array_metadatas/process_0"}


def refusals(first: str, *others: str) -> list[Any]:
    """Every place with every error; those of arrays take seconds, and are not among the quick."""
    return [
        pytest.param(
            path, name, id=f"{place}-{name}", marks=[pytest.mark.exhaustive] if slow else []
        )
        for place, path in PLACES.items()
        for name in (first, *others)
        for slow in [place == "arrays"]
    ]


@pytest.mark.parametrize(("place", "name"), refusals("ESTALE", "EIO", "ETIMEDOUT"))
def test_one_refusal_changes_nothing(folder: Path, refuse: Any, place: str, name: str):
    before = inside(folder)
    refuse(place, iter([error(name), error(name)]))
    with Checkpoints(folder) as checkpoints:
        found: Any = checkpoints.restore(ABSTRACT)
        assert float(found["params"]["b"]) == 3
        assert inside(folder) == before
        checkpoints.save(3, TREE)
    assert not (folder / "quarantine").exists()


@pytest.mark.parametrize(("place", "name"), refusals("ESTALE", "EIO", "EACCES", "EPERM"))
def test_a_disk_that_goes_on_refusing_ends_the_run_in_one_line(
    folder: Path, refuse: Any, place: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    before = inside(folder)
    monkeypatch.setattr(_files, "WAITS_S", (0.0,))  # a try more would tell nothing more
    refuse(place, forever(error(name)))
    with Checkpoints(folder) as checkpoints:
        for call in (checkpoints.restore, lambda it: checkpoints.restore_params(it["params"])):
            with pytest.raises(ReadError, match=os.strerror(getattr(errno, name))) as caught:
                call(ABSTRACT)
            assert "\n" not in str(caught.value)
            if place != "c":
                assert str(folder / "2") in str(caught.value)
                assert "move it away" in str(caught.value)
    monkeypatch.undo()
    assert inside(folder) == before


def test_an_older_one_that_cannot_be_read_is_not_passed_over_either(folder: Path, refuse: Any):
    (folder / "2" / metadata.FILE).unlink()
    refuse("1/state/_METADATA", forever(error("ESTALE")))
    with (
        pytest.warns(CheckpointWarning, match="c/2 is damaged"),
        pytest.raises(ReadError, match="c/1 cannot be read"),
    ):
        restored(folder)


def test_values_that_the_system_refuses_are_no_damage(folder: Path, tmp_path: Path):
    """TensorStore itself meets links that go round in circles, in the place of the files."""
    shutil.move(folder / "2" / "state" / "d", tmp_path / "away")
    (folder / "2" / "state" / "d").symlink_to("d")
    before = inside(folder)
    with pytest.raises(ReadError, match=r"c/2 cannot be read \(UNKNOWN.* symbolic links"):
        restored(folder)
    assert inside(folder) == before
    (folder / "2" / "state" / "d").unlink()
    shutil.move(tmp_path / "away", folder / "2" / "state" / "d")
    assert restored(folder) == 3


FAILURES = [
    ValueError("UNAVAILABLE: Error reading local file [OS error: Stale file handle]"),
    ValueError("DEADLINE_EXCEEDED: Error reading local file"),
    Exception("ABORTED: Error reading local file"),
    OSError(errno.ESTALE, "Stale file handle"),
]


@pytest.fixture
def orbax_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[Any]], None]:
    def make(errors: Iterator[Any]) -> None:
        real = ocp.PyTreeCheckpointHandler.restore

        def fake(self: Any, *rest: Any, **options: Any) -> Any:
            if found := next(errors, None):
                raise found
            return real(self, *rest, **options)

        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fake)

    return make


@pytest.mark.parametrize(
    "failure", [FAILURES[0], *(pytest.param(f, marks=pytest.mark.exhaustive) for f in FAILURES[1:])]
)
def test_what_orbax_cannot_read_for_a_moment_is_read_again(
    folder: Path, orbax_fails: Any, failure: Exception
):
    orbax_fails(iter([failure, failure]))
    assert restored(folder) == 3


@pytest.mark.slow
def test_what_orbax_never_can_read_is_no_damage(folder: Path, orbax_fails: Any):
    orbax_fails(forever(FAILURES[0]))
    before = inside(folder)
    with pytest.raises(ReadError, match=r"c/2 cannot be read \(UNAVAILABLE"):
        restored(folder)
    assert inside(folder) == before


def test_hosts_agree_on_the_worst_that_one_of_them_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    others: list[Any] = [["PermissionError", "of host 1"], ["Unreadable", "seen by host 2"]]
    said: list[Any] = []

    def gather(what: str, value: Any, *, timeout_s: float) -> dict[int, Any]:
        said.append(value)
        return {0: value, **dict(enumerate(others, 1))}

    monkeypatch.setattr(restore, "gather", gather)
    with pytest.raises(metadata.Unreadable, match="seen by host 2"):
        restore.read(folder / "2", ABSTRACT, None, partial=False)
    assert said == [None]
    others = [None, ["PermissionError", "of host 2"]]
    with pytest.raises(ReadError, match="of host 2"):
        restore.read(folder / "2", ABSTRACT, None, partial=False)


def test_values_are_read_again_on_all_hosts_where_one_has_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    loads: list[int] = []
    real = restore._load

    def load(*arguments: Any) -> Any:
        loads.append(1)
        return real(*arguments)

    def gather(what: str, value: Any, *, timeout_s: float) -> dict[int, Any]:
        failed = "values" in what and len(loads) < 3
        return {0: value, 1: ["ReadError", "UNAVAILABLE"] if failed else None}

    monkeypatch.setattr(restore, "gather", gather)
    monkeypatch.setattr(restore, "_load", load)
    restore.read(folder / "2", ABSTRACT, None, partial=False)
    assert len(loads) == 3


def test_what_a_run_deletes_while_it_is_read_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its own run has saved two more meanwhile."""
    real = metadata.read

    def meanwhile(step: Path) -> Any:
        if step.name == "2" and step.exists():
            shutil.copytree(folder / "1", folder / "5")
            shutil.rmtree(step)
        return real(step)

    monkeypatch.setattr(metadata, "read", meanwhile)
    assert restored(folder) == 2
    with pytest.raises(InputError, match="no checkpoint of step 2"):
        restored(folder, step=2)
    shutil.rmtree(folder / "1" / "state")  # it deletes file by file
    monkeypatch.setattr(restore.time, "sleep", lambda seconds: shutil.rmtree(folder / "1"))
    with pytest.raises(InputError, match=r"no checkpoint of step 1 .* there are: 5"):
        restored(folder, step=1)


def test_a_score_that_cannot_be_read_is_no_damage(folder: Path, refuse: Any):
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(ABSTRACT)
        refuse("1/metrics/metrics", iter([error("ESTALE")] * 2 + [None] + [error("EIO")] * 2))
        assert checkpoints.best_step() == 2
        checkpoints.save(3, TREE)
    assert not (folder / "quarantine").exists()


@pytest.mark.parametrize("text", ["[]", '{"score": "low"}', '{"score": NaN}', "{", "[" * 10**5])
def test_a_score_that_is_none_is_damage(folder: Path, text: str):
    (folder / "1" / "metrics" / "metrics").write_text(text)
    with Checkpoints(folder, keep_best=0) as checkpoints:
        assert checkpoints.best_step() == 2
        checkpoints.restore(ABSTRACT)
        checkpoints.save(3, TREE)
    assert "metrics/metrics" in (folder / "quarantine" / "1-1" / "torn.txt").read_text()


def test_the_environment_of_what_is_not_there_is_told(folder: Path, refuse: Any):
    checkpoints = Checkpoints(folder)
    assert checkpoints.environment(2) == {"cores": "2"}
    with pytest.raises(InputError, match=r"c/9 .*no state/_METADATA"):
        checkpoints.environment(9)
    refuse("2/state/_METADATA", forever(error("EACCES")))
    with pytest.raises(checkpoint.ReadError, match="Permission denied"):
        checkpoints.environment(2)


HOST = """
import sys

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))

import numpy as np

from polycom_jax import _files
from polycom_jax.sharding import make_mesh
from polycom_jax.training import Checkpoints, restore
from polycom_jax.training.checkpoint import ReadError

_files.WAITS_S = (0.0, 0.0)
split = jax.sharding.NamedSharding(make_mesh(data=2), jax.sharding.PartitionSpec("data"))
state = {"w": jax.make_array_from_callback((8,), split, lambda rows: np.arange(8.0)[rows])}
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), state)
load, left = restore._load, 2


def refuse(*arguments):
    global left
    if jax.process_index() == 1 and left:
        left -= 1
        raise ValueError("UNAVAILABLE: of host 1")
    return load(*arguments)


restore._load = refuse
with Checkpoints(sys.argv[3]) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.restore(abstract)
    assert jax.process_index() == 0 or not left
    left = 99
    try:
        checkpoints.restore(abstract)
    except ReadError as error:
        print(error)
"""


@pytest.mark.slow  # two processes that import JAX
def test_two_hosts_read_again_and_give_up_together(tmp_path: Path):
    words = (f"127.0.0.1:{free_port()}", str(tmp_path / "c"))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(index), *words],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for host in hosts:
        said, _ = host.communicate(timeout=300)
        assert host.returncode == 0
        assert "c/1 cannot be read (UNAVAILABLE" in said
