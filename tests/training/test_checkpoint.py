import json
import math
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycom_jax import InputError
from polycom_jax.hosts import HostsError
from polycom_jax.training import (
    Checkpoints,
    OptimConfig,
    abstract_state,
    latest_step,
    make_state,
    model_specs,
)
from polycom_jax.training.checkpoint import CheckpointWarning, SaveError
from polycom_jax.training.checksums import checksums
from polycom_jax.training.orbax_errors import quietly

OPTIM = OptimConfig()
SPLIT = "data 2, fsdp 2, tensor 2"


@pytest.fixture(scope="module")
def state(initial):
    """A state whose every real value is random, NaN, infinity and subnormals among them."""

    def fill(path, leaf):
        rng = np.random.default_rng(len(jax.tree_util.keystr(path)))
        if leaf.dtype == jnp.int32:
            return leaf + 7
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if leaf.ndim == 2 and leaf.shape[0] in (128, 256):
            values[100:] = 0
        values.ravel()[:4] = [np.nan, np.inf, -0.0, 1e-40][: values.size]
        return jax.device_put(values, leaf.sharding)

    return jax.tree_util.tree_map_with_path(fill, initial(SPLIT))


@pytest.fixture(scope="module")
def abstract(model, meshes):
    return abstract_state(model(), OPTIM, meshes[SPLIT])


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A folder with checkpoints of steps 1, 2 and 3, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture
def assert_nothing_said(capfd, caplog):
    """Nothing on the terminal, nothing in the log, no thread left."""
    before = set(threading.enumerate())

    def check():
        deadline = time.monotonic() + 10
        while set(threading.enumerate()) - before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not set(threading.enumerate()) - before
        captured = capfd.readouterr()
        assert captured.out + captured.err == ""
        assert [record.getMessage() for record in caplog.records] == []

    return check


def bits(x):
    return np.asarray(x).reshape(-1).view(np.uint32)


def assert_same_bits(one, other, rows=None):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(
            bits(a[:rows] if a.ndim else a), bits(b[:rows] if b.ndim else b)
        )


def values(folder):
    """The files that hold values; which holds what changes from save to save."""
    return list((folder / "state" / "ocdbt.process_0" / "d").iterdir())


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_state_comes_back_bit_for_bit(folder, abstract, state):
    restored = Checkpoints(folder).restore(abstract)
    assert_same_bits(restored, state)
    for want, got in zip(jax.tree.leaves(abstract), jax.tree.leaves(restored), strict=True):
        assert want.sharding == got.sharding


def test_a_state_comes_back_on_another_mesh_with_another_padding(folder, model, meshes, state):
    cfg, mesh = model(), meshes["data 8"]
    target = abstract_state(cfg, OPTIM, mesh)
    assert target.params["embed"].shape[0] == 128 != state.params["embed"].shape[0]
    restored = Checkpoints(folder).restore(target, specs=model_specs(cfg, mesh))
    assert_same_bits(restored, state, rows=100)
    for want, got in zip(jax.tree.leaves(target), jax.tree.leaves(restored), strict=True):
        assert (want.shape, want.sharding) == (got.shape, got.sharding)
    assert not np.asarray(restored.params["embed"][100:]).any()


def test_padding_grows_as_well_as_it_shrinks(tmp_path, model, meshes, initial):
    cfg = model()
    small = initial("one device")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small)
        target = abstract_state(cfg, OPTIM, meshes[SPLIT])
        restored = checkpoints.restore(target, specs=model_specs(cfg, meshes[SPLIT]))
    assert restored.params["embed"].shape[0] == 256
    assert_same_bits(restored, small, rows=100)
    assert not np.asarray(restored.params["embed"][100:]).any()


def test_parameters_come_back_without_the_optimiser(folder, abstract, state):
    step, params = Checkpoints(folder).restore_params(abstract.params, step=2)
    assert step == 2
    assert_same_bits(params, state.params)


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        ({"vocab_size": 300}, r"params.embed is float32\[256, 16\], wanted float32\[384, 16\]"),
        ({"ffn_width": 32}, r"w_down is float32\[1, 24, 16\], wanted float32\[1, 32, 16\]"),
        ({"activation": "swiglu"}, "w_gate is missing"),
    ],
)
def test_another_model_is_refused_by_difference(folder, model, meshes, overrides, difference):
    cfg, mesh = model(**overrides), meshes["one device"]
    with pytest.raises(InputError, match=difference):
        Checkpoints(folder).restore(abstract_state(cfg, OPTIM, mesh), specs=model_specs(cfg, mesh))


def test_without_specs_other_padding_is_another_model(folder, model, meshes):
    with pytest.raises(InputError, match=r"embed is float32\[256, 16\], wanted float32\[128, 16\]"):
        Checkpoints(folder).restore(abstract_state(model(), OPTIM, meshes["one device"]))


@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    folder, abstract, state, damage, assert_nothing_said
):
    for path in values(folder / "3"):
        damage(path)
    checkpoints = Checkpoints(folder)
    with pytest.warns(CheckpointWarning, match="checkpoints/3 is damaged"):
        restored = checkpoints.restore(abstract)
    assert_same_bits(restored, state)
    assert_nothing_said()


def test_a_run_that_went_back_sets_damaged_checkpoints_aside(folder, abstract):
    truncate(folder / "3" / "state" / "_METADATA")
    with Checkpoints(folder, keep_last=3) as checkpoints:
        with pytest.warns(CheckpointWarning):
            state = checkpoints.restore(abstract)
        checkpoints.save(3, state)
    assert checkpoints.all_steps() == [1, 2, 3]
    assert (folder / "quarantine" / "3-1").is_dir()
    assert_same_bits(Checkpoints(folder).restore(abstract), state)


def test_a_run_never_starts_afresh_over_checkpoints_that_cannot_be_read(folder, abstract, state):
    for step in ("1", "2", "3"):
        truncate(folder / step / "state" / "manifest.ocdbt")
    before = sorted(folder.rglob("*"))
    with Checkpoints(folder) as checkpoints:
        with (
            pytest.warns(CheckpointWarning) as warned,
            pytest.raises(InputError, match=r"checkpoints/1 is damaged .* no older one"),
        ):
            checkpoints.restore(abstract)
        assert ["3 is damaged" in str(w.message) for w in warned] == [True, False]
        with pytest.raises(InputError, match="up to step 3 that this run did not"):
            checkpoints.save(0, state)
    assert sorted(folder.rglob("*")) == before


def test_a_named_step_is_read_or_refused_never_replaced(folder, abstract):
    for path in values(folder / "2"):
        flip_a_bit(path)
    with pytest.raises(InputError, match="checkpoints/2 is damaged"):
        Checkpoints(folder).restore(abstract, step=2)
    with pytest.raises(InputError, match="there are: 1, 2, 3"):
        Checkpoints(folder).restore(abstract, step=4)


def test_an_empty_folder_has_no_checkpoint(tmp_path, abstract):
    checkpoints = Checkpoints(tmp_path / "nowhere")
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.restore(abstract)
    checkpoints.close()
    assert not (tmp_path / "nowhere").exists()


def test_a_save_cut_short_is_no_checkpoint_and_is_swept_away(folder, abstract, state):
    """What a SIGKILL leaves: a folder under its temporary name."""
    unfinished = folder / "4.orbax-checkpoint-tmp-1"
    shutil.copytree(folder / "3", unfinished)
    assert latest_step(folder) == 3
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(abstract)
        assert unfinished.exists()
        checkpoints.save(4, state)
    assert not unfinished.exists()
    assert latest_step(folder) == 4


def test_the_last_the_best_and_every_nth_stay(tmp_path, state):
    scores = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: math.nan, 6: 1.5, 7: 4.0}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1, keep_every=4) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state, score=score)
        checkpoints.wait()
        assert checkpoints.all_steps() == [2, 4, 6, 7]
        assert checkpoints.best_step() == 2
    assert json.loads((tmp_path / "2" / "metrics" / "metrics").read_text()) == {"score": 1.0}


def test_scores_are_known_again_to_a_resumed_run(folder, abstract, tmp_path, state):
    with Checkpoints(tmp_path / "run", keep_last=1) as checkpoints:
        checkpoints.save(1, state, score=1.0)
        checkpoints.save(2, state, score=2.0)
    with Checkpoints(tmp_path / "run", keep_last=1) as checkpoints:
        checkpoints.restore(abstract)
        checkpoints.save(3, state, score=3.0)
    assert checkpoints.all_steps() == [1, 3]


def test_going_back_to_an_older_step_sets_the_later_ones_aside(folder, abstract, state):
    with Checkpoints(folder, keep_last=3) as checkpoints:
        checkpoints.restore(abstract, step=1)
        checkpoints.save(2, state)
    assert checkpoints.all_steps() == [1, 2]
    assert sorted(p.name for p in (folder / "quarantine").iterdir()) == ["2-1", "3-1"]


def test_the_same_step_is_saved_once(folder, abstract, state):
    made = (folder / "3").stat().st_mtime_ns
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(abstract)
        checkpoints.save(3, state)
        checkpoints.save(5, state)
        checkpoints.save(5, state)
    assert (folder / "3").stat().st_mtime_ns == made
    assert checkpoints.latest_step() == 5


def test_a_state_may_be_donated_right_after_saving(tmp_path, model, meshes, abstract):
    mesh = meshes[SPLIT]
    state = make_state(model(), OPTIM, jax.random.key(5), mesh)
    expected = jax.tree.map(np.array, state)
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        jax.block_until_ready(spoil(state))
        assert_same_bits(checkpoints.restore(abstract), expected)


def test_a_failed_save_shows_at_the_next_call_and_harms_no_older_one(
    tmp_path, abstract, state, assert_nothing_said
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(1, state)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # as on a full disk
    try:
        checkpoints.save(2, state)
        time.sleep(0.5)  # it fails in the background
        with pytest.raises(SaveError, match=f"step 2 could not be saved in {tmp_path}: .+"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.all_steps() == [1]
    checkpoints.save(2, state)
    checkpoints.close()
    assert checkpoints.all_steps() == [2]
    assert_same_bits(Checkpoints(tmp_path).restore(abstract), state)
    assert_nothing_said()


def test_a_barrier_that_hosts_wait_at_in_vain_is_no_defect_of_the_program():
    def barrier():
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nId: save/1")

    with pytest.raises(HostsError, match=r"waited for each other .*Barrier timed out\. Id: save/1"):
        quietly(barrier)


def test_nothing_is_left_running_or_said(tmp_path, abstract, state, assert_nothing_said):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, score=1.0)
        checkpoints.save(2, state)
        checkpoints.restore(abstract)
    assert_nothing_said()


def test_checksums_see_one_bit_and_neither_mesh_nor_padding(state):
    table = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    tree = {
        "table": jax.device_put(table),
        "count": jnp.int32(3),
        "half": jnp.ones(3, jnp.bfloat16),
    }
    expected = checksums(tree)
    padded = tree | {"table": jnp.pad(table, ((0, 156), (0, 0)))}
    split = jax.device_put(padded["table"], state.params["embed"].sharding)
    assert checksums(padded) == checksums(padded | {"table": split}) == expected
    words = table.copy().view(np.uint32)
    words[57, 3] ^= 1 << 20
    changed = checksums(tree | {"table": jnp.asarray(words.view(np.float32))})
    assert changed["table"] != expected["table"]
    swapped = checksums(tree | {"table": jnp.asarray(table[::-1])})
    assert swapped["table"] != expected["table"]
    index = np.arange(table.size, dtype=np.uint64)
    exact = (table.ravel().view(np.uint32) * (2 * index + 1)).sum() % 2**32
    assert expected["table"] == exact
