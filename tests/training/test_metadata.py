"""A checkpoint notices what was done to its files, and says what it is of."""

import builtins
import enum
import errno
import io
import json
import math
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.metadata.tree import InternalTreeMetadata

from polycom_jax import InputError
from polycom_jax.training import Checkpoints, metadata
from polycom_jax.training.checkpoint import CheckpointWarning, SaveError

TREE: Any = {"params": {"w": jnp.arange(512.0).reshape(32, 16), "b": jnp.float32(3)}}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE)
ABOUT = {"config.width": (32, 16), "data": "abc"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {"flipped": flip, "cut": cut, "deleted": Path.unlink}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints of a tree, steps 1 and 2; that of step 1 is one less."""
    with Checkpoints(tmp_path / "c", run_metadata=ABOUT) as checkpoints:
        checkpoints.save(1, jax.tree.map(lambda x: x - 1, TREE))
        checkpoints.save(2, TREE, environment={"cores": "2"})
    return tmp_path / "c"


def restored(folder: Path, **options: Any) -> float:
    """The value that tells which checkpoint was read."""
    found: Any = Checkpoints(folder, **options).restore(ABSTRACT)
    return float(found["params"]["b"])


def test_it_says_what_a_checkpoint_holds(folder: Path):
    found = metadata.read(folder / "2")
    assert found.step == 2
    assert found.run_metadata == {"config.width": [32, 16], "data": "abc"}
    assert found.environment == Checkpoints(folder).environment(2) == {"cores": "2"}
    assert Checkpoints(folder).environment(1) == {}
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.leaves.items()} == {
        "params.w": ((32, 16), "float32"),
        "params.b": ((), "float32"),
    }


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=name, marks=[] if name == "flipped" else [pytest.mark.exhaustive])
        for name, damage in DAMAGE.items()
    ],
)
def test_damage_to_any_file_is_noticed_or_takes_nothing_from_the_values(folder: Path, damage):
    files = [path for path in sorted((folder / "2").rglob("*")) if path.is_file()]
    noticed = set()
    for path in files:
        kept = path.read_bytes()
        if not kept and damage is not Path.unlink:
            continue
        damage(path)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found: Any = Checkpoints(folder).restore(ABSTRACT)
        expected = jax.tree.map(lambda x: x - bool(told), TREE)  # that of step 1 is one less
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert all("c/2 is damaged" in str(one.message) for one in told)
        noticed |= {path.relative_to(folder / "2").as_posix()} if told else set()
        path.write_bytes(kept)
    assert {metadata.FILE, "state/manifest.ocdbt"} <= noticed
    assert len(noticed) >= 4
    assert restored(folder) == 3


def test_no_byte_of_the_metadata_can_change_unnoticed(folder: Path):
    path = folder / "2" / metadata.FILE
    text = path.read_text()
    for old, new in (('"data": "abc"', '"data": "abd"'), ('"step": 2', '"step": 3')):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(metadata.Unreadable, match="not as it was written"):
            metadata.read(folder / "2")


def test_a_save_reads_no_values_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Checkpoints(tmp_path, keep_best=0) as checkpoints:
        checkpoints.save(1, TREE)
        checkpoints.wait()
        opened, real = [], io.open

        def note(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if "r" in mode and "/state" in str(path):
                opened.append(str(path))
            return real(path, mode, *rest, **options)

        monkeypatch.setattr(io, "open", note)
        monkeypatch.setattr(builtins, "open", note)
        checkpoints.save(2, TREE)
        checkpoints.wait()
    assert {Path(name).parent.name for name in opened} <= {"array_metadatas"}  # Orbax's own


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Steps 1 and 2 of a tree, as version 0.1.0 saved them before checksums moved into Orbax's
    metadata (format 1)."""
    shutil.unpack_archive(Path(__file__).with_name("format1.zip"), tmp_path / "c")
    return tmp_path / "c"


SMALL: Any = {"params": {"w": jnp.arange(64.0).reshape(8, 8), "b": jnp.float32(3)}}
SMALL_ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), SMALL
)


def test_checkpoints_of_the_earlier_format_are_restored_and_followed(earlier: Path):
    with Checkpoints(earlier, run_metadata={"data": "abc"}) as checkpoints:
        found: Any = checkpoints.restore(SMALL_ABSTRACT)
        jax.tree.map(np.testing.assert_array_equal, found, SMALL)
        assert checkpoints.environment(2) == {"cores": "2"}
        assert checkpoints.best_step() == 2
        checkpoints.save(3, SMALL, score=0.5)
    assert metadata.read(earlier / "3").run_metadata == {"data": "abc"}
    with pytest.raises(InputError, match="data: 'abc' there, 'xyz' now"):
        Checkpoints(earlier, run_metadata={"data": "xyz"}).restore(SMALL_ABSTRACT, step=2)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_to_one_of_the_earlier_format_is_noticed(earlier: Path, damage):
    damage(earlier / "2" / "manifest.json")
    with pytest.warns(CheckpointWarning, match="c/2 is damaged"):
        found: Any = Checkpoints(earlier).restore(SMALL_ABSTRACT)
    assert float(found["params"]["b"]) == 2


@pytest.mark.parametrize("left", [[], ["state"]])
def test_what_is_half_deleted_is_passed_over_with_a_warning_that_names_it(
    folder: Path, left: list[str]
):
    for path in sorted((folder / "2").rglob("*"), reverse=True):
        top = path.relative_to(folder / "2").parts[0]
        if top not in left:
            path.rmdir() if path.is_dir() else path.unlink()
    if "state" in left:  # nothing but Orbax's own files at the top is gone
        (folder / "2" / "state" / "manifest.ocdbt").unlink()
    with pytest.warns(CheckpointWarning, match="c/2 is damaged .*going back to an older one"):
        assert restored(folder) == 2


def test_what_another_writer_committed_without_checksums_is_passed_over_and_stays(folder: Path):
    path = folder / "2" / metadata.FILE
    tree = json.loads(path.read_text())
    del tree["custom_metadata"]
    path.write_text(json.dumps(tree))
    with pytest.warns(CheckpointWarning, match="is whole and has none of this library's checksums"):
        assert restored(folder) == 2
    assert not list(folder.rglob("torn*"))


def test_metadata_of_another_version_are_not_guessed_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(metadata, "FORMAT", 3)
    with (
        pytest.warns(CheckpointWarning, match="format 2, and this version reads 1 and 3"),
        pytest.raises(InputError, match="no older one can be read"),
    ):
        restored(folder)


def test_another_run_is_refused_with_the_differences(folder: Path):
    assert restored(folder, run_metadata=ABOUT | {"new": 1}) == 3
    with pytest.raises(InputError, match=r"data: 'abc' there, 'xyz' now") as caught:
        restored(folder, run_metadata={"config.width": [32, 8], "data": "xyz"})
    assert "config.width: [32, 16] there, [32, 8] now" in str(caught.value)


def test_values_are_compared_with_those_that_were_saved(folder: Path):
    """Damage on the way between the device and the file, that no checksum of a file can see."""
    path = folder / "2" / metadata.FILE
    whole = json.loads(path.read_text())
    tree = whole["custom_metadata"]
    del tree["sha256"]
    tree["contents"]["leaves"]["params.b"]["checksum"] += 1
    whole["custom_metadata"] = {"sha256": metadata._digest(tree), **tree}
    path.write_text(json.dumps(whole))
    with pytest.warns(CheckpointWarning, match=r"checksums differ: params\.b"):
        assert restored(folder) == 2


def fail_to_write(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def look_for(seconds: float, checkpoints: Checkpoints) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        checkpoints.raise_if_save_failed()
        time.sleep(0.01)


@pytest.mark.exhaustive
def test_a_failed_save_is_told_by_the_next_look_and_leaves_the_last_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    with Checkpoints(folder, keep_last=1) as checkpoints:
        checkpoints.restore(ABSTRACT)
        checkpoints.raise_if_save_failed()
        with monkeypatch.context() as patch:
            patch.setattr(InternalTreeMetadata, "to_json", fail_to_write)
            checkpoints.save(3, TREE)
            with pytest.raises(SaveError, match=r"step 3 could not be saved .*No space left"):
                look_for(30, checkpoints)
        assert checkpoints.all_steps() == [1, 2]
        assert restored(folder) == 3
        checkpoints.save(3, jax.tree.map(lambda x: x + 1, TREE))
        checkpoints.wait()
        checkpoints.raise_if_save_failed()
    assert restored(folder) == 4


def test_a_folder_that_cannot_be_made_is_a_failed_save(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with (
        Checkpoints(tmp_path / "file" / "c") as checkpoints,
        pytest.raises(SaveError, match=r"No checkpoint can be saved in .*file/c"),
    ):
        checkpoints.save(1, TREE)


def test_checksums_of_the_tree_stand_in_the_metadata(folder: Path):
    leaves = metadata.read(folder / "2").leaves
    words = np.asarray(TREE["params"]["w"]).ravel().view(np.uint32).astype(np.uint64)
    expected = (words * (2 * np.arange(words.size, dtype=np.uint64) + 1)).sum() % 2**32
    assert leaves["params.w"].checksum == expected


class Color(enum.IntEnum):
    RED = 1


PLAIN = {
    "int64": (np.int64(7), 7),
    "uint8": (np.uint8(255), 255),
    "float32": (np.float32(0.1), float(np.float32(0.1))),
    "float16": (np.float16(0.5), 0.5),
    "float64": (np.float64(0.1), 0.1),
    "bool": (np.bool_(True), True),
    "str": (np.str_("text"), "text"),
    "jax int": (jnp.int32(-3), -3),
    "jax bfloat16": (jnp.bfloat16(1.5), 1.5),
    "jax bool": (jnp.bool_(False), False),
    "array": (np.arange(4, dtype=np.int16).reshape(2, 2), [[0, 1], [2, 3]]),
    "jax array": (jnp.array([0.5, 1.5]), [0.5, 1.5]),
    "tuple": ((1, (np.int8(2), None)), [1, [2, None]]),
    "path": (Path("/a") / "b", "/a/b"),
    "dtype": (jnp.zeros(1, jnp.bfloat16).dtype, "bfloat16"),
    "mapping": (
        {"a": {np.int64(3): np.float32(2)}, "b": (Path("x"),)},
        {"a": {"3": 2}, "b": ["x"]},
    ),
    "enum": (Color.RED, 1),
    "nothing": (None, None),
    "large": (2**70, 2**70),
    "nan": (float("nan"), math.nan),
    "numpy nan": (np.float32("nan"), math.nan),
    "infinity": (-np.inf, -np.inf),
    "text": ("é \n \udc80", "é \n \udc80"),
}


def test_values_of_numpy_and_jax_are_stored_and_are_equal_on_restore(tmp_path: Path):
    given = {name: value for name, (value, _) in PLAIN.items()}
    with Checkpoints(tmp_path, run_metadata=given) as checkpoints:
        checkpoints.save(1, TREE, environment=given)
    assert restored(tmp_path, run_metadata=given) == 3
    for stored in (metadata.read(tmp_path / "1").run_metadata, checkpoints.environment(1)):
        assert stored.keys() == given.keys()
        for name, (_, expected) in PLAIN.items():
            found = stored[name]
            assert type(found) is type(expected), name
            assert found == expected or (math.isnan(found) and math.isnan(expected)), name
    for name in PLAIN:
        with pytest.raises(InputError, match=f"{name}: .* there, 'another' now"):
            restored(tmp_path, run_metadata={name: "another"})


NOT_PLAIN = {
    "complex": 1j,
    "numpy complex": np.complex64(1),
    "date": np.datetime64("2024-01-01"),
    "span": np.timedelta64(3, "s"),
    "objects": np.array([object()]),
    "key": jax.random.key(0),
    "bytes": b"x",
    "set": {1, 2},
    "function": print,
    "deep": [1, (2, {"a": {"b": 1j}})],
    "keys": {"a": {1.5: 2}},
    "pairs": {("a", "b"): 1},
}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_json_cannot_hold_is_refused_in_a_line_before_anything_is_saved(
    tmp_path: Path, value: Any
):
    with pytest.raises(
        InputError, match=r"^run_metadata\.value.* is .*of type \w+, which metadata"
    ) as one:
        Checkpoints(tmp_path / "c", run_metadata={"value": value})
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(InputError, match=r"^environment\.value.* metadata in JSON cannot") as other,
    ):
        checkpoints.save(1, TREE, environment={"value": value})
    assert "\n" not in str(one.value) + str(other.value)
    assert not (tmp_path / "c").exists()


def test_what_a_run_is_of_is_taken_when_it_is_given(tmp_path: Path):
    about = {"sizes": [1, 2]}
    with Checkpoints(tmp_path, run_metadata=about) as checkpoints:
        about["sizes"].append(3)
        checkpoints.save(1, TREE)
    assert metadata.read(tmp_path / "1").run_metadata == {"sizes": [1, 2]}
