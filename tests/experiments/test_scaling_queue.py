"""The queue of sizes, lengths and arms: its order, its steps, its rates, and a very small grid."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from scaling_folders import COMMITTED, STEP_TOKENS, study
from test_compare_findings import SMALL

from experiments.compare import __main__ as compare
from experiments.compare import comparing, concluding, config, timing, train
from experiments.compare.across import grid, report, scaling
from experiments.compare.across.cells import read_cell, stored_config
from experiments.compare.across.grid import SCALINGS, carried_rate, queue
from experiments.compare.branching import updates
from experiments.compare.studies import STUDIES
from experiments.run import device_memory
from experiments.run.planned import abstract_batch
from experiments.run.rate_search import MOST_EXTENSIONS, halving, searched
from polycom_jax import InputError, models
from polycom_jax.models import ModelConfig
from polycom_jax.training import OptimConfig


def test_every_beginning_of_the_queue_is_a_result():
    items = queue(SCALINGS["cpu"])
    first = ("swiglu", "poly_norm")
    assert [item.folder for item in items[:4]] == [
        "bytes-0.1m-20", "bytes-0.3m-20", "bytes-0.1m-200", "bytes-0.3m-100",
    ]  # fmt: skip
    assert all(item.config.arms == first for item in items[:4])
    seen: dict[str, set[str]] = {}
    for item in items:
        assert "swiglu" in item.config.arms
        assert seen.get(item.folder, set()) <= set(item.config.arms)
        seen[item.folder] = set(item.config.arms)
    assert "swiglu_norm" in seen["bytes-0.3m-20"] - seen["bytes-0.1m-20"]
    assert seen["bytes-1m-20"] == {*first, "relu2", "poly_norm_glu"}
    assert seen["bytes-3m-20"] == seen["bytes-1m-20"]
    assert [item.carried for item in items] == [item.folder[:8] in ("bytes-1m", "bytes-3m")
                                                for item in items]  # fmt: skip


def test_folders_that_are_there_are_gone_on_with():
    steps = {item.folder: item.config.steps for item in queue(SCALINGS["cpu"])}
    assert steps["bytes-0.1m-200"] == 22_400
    assert steps["bytes-0.3m-100"] == 35_200
    rates = {item.folder: item.config.learning_rates for item in queue(SCALINGS["cpu"])}
    assert rates["bytes-0.1m-200"] == tuple(r / 2 for r in rates["bytes-0.1m-20"])
    for item in queue(SCALINGS["cpu"])[:2]:
        stored = stored_config(COMMITTED / item.folder)
        ours = item.config
        same = ("model", "seq_len", "steps", "heldout_tokens")
        assert [getattr(ours, n) for n in same] == [getattr(stored, n) for n in same]
        assert STUDIES[ours.study].runs_of == stored.study
        assert ours.data.batch_size == stored.data.batch_size


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.runs_of])
def test_arms_of_one_name_are_the_same_in_a_study_and_in_one_that_goes_on_with_its_folders(
    name: str,
):
    one = STUDIES[name]
    other = STUDIES[str(one.runs_of)]
    for arm in other.arms:
        assert one.arm(arm.name) == arm
    assert one.mixture == other.mixture


def test_sizes_follow_from_one_width():
    for name, counts in {"bytes-0.1m": 114_048, "bytes-0.3m": 357_120}.items():
        assert grid.parameters(name) == counts
    assert grid.parameters("bytes-1m") == pytest.approx(1.022e6, rel=1e-3)
    assert grid.parameters("bytes-3m") == pytest.approx(3.149e6, rel=1e-3)
    for cfg in config.SHAPES.values():
        assert cfg.head_dim == 32
        assert cfg.num_heads * cfg.head_dim == cfg.embed_dim
        assert cfg.gated_width == pytest.approx(8 / 3 * cfg.embed_dim, rel=0.02)


def test_gpu_scale_spans_the_paper_s_sizes():
    sizes = [grid.parameters(size) for size in SCALINGS["gpu"].sizes]
    assert sizes[0] == pytest.approx(110e6, rel=0.01)
    assert sizes[-1] == pytest.approx(1.345e9, rel=0.01)
    assert len({models.preset(size).vocab_size for size in SCALINGS["gpu"].sizes}) == 1


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ((0.008, 0.006), 0.0045),  # 4 times the size, and 4 times once more
        ((0.008, 0.002), 0.002 / 2),  # falls as 1 / size: taken as no more than its root
        ((0.004, 0.008), 0.008),  # never rises
        ((0.004, 0.004), 0.004),
    ],
)
def test_rates_are_carried_up_by_a_power_of_the_size(rates: tuple[float, float], wanted: float):
    assert carried_rate((100, 400), rates, 1600) == pytest.approx(wanted, rel=2e-3)


def test_a_carried_rate_is_checked_against_its_half():
    tried: list[float] = []

    def score(best: float, rate: float) -> float:
        tried.append(rate)
        return abs(rate - best)

    found = searched(halving(0.004), lambda rate: score(0.005, rate))
    assert (found.rates, found.best) == ((0.002, 0.004), 0.004)
    assert tried == [0.002, 0.004]
    found = searched(halving(0.004), lambda rate: score(0.001, rate))
    assert (found.best, found.at_edge) == (0.001, False)
    assert found.rates == (0.0005, 0.001, 0.002, 0.004)
    assert len(searched(halving(0.004), lambda rate: score(0.0, rate)).rates) == MOST_EXTENSIONS


def test_updates_of_a_run_are_its_trunk_and_its_branches():
    assert updates((100,)) == 100
    assert updates((25, 50, 100)) == 80 + 5 + 10 + 20


def test_a_dry_run_tells_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    laws = {"swiglu": lambda d: 2.0, "poly_norm": lambda d: 1.9}
    study(tmp_path / "bytes-0.1m-20", "bytes-0.1m", 2240, laws, seeds=4)
    words = ["scaling", "--dry-run", "--out", str(tmp_path), "--json=-"]
    assert compare.main(words) == 0
    costs = json.loads(capsys.readouterr().out)
    # Of four rates three are tried, of five seeds four are there, of two arms.
    assert (costs[0]["folder"], costs[0]["runs"]) == ("bytes-0.1m-20", 4)
    assert costs[1]["runs"] == 2 * (4 + 5)
    assert costs[1]["seconds"] > costs[0]["seconds"] > 0
    # A search is of the full length, results have branches of 20 % of the shorter ones, too.
    search, results = 2240, 1792 + (112 + 224 + 448)
    each = [arm.flops for arm in read_cell(tmp_path / "bytes-0.1m-20").arms.values()]
    assert costs[0]["flops"] == STEP_TOKENS * sum(each) * (search + results)
    # A finished run took two seconds, and most of them are results; arms differ a little in FLOPs.
    wanted = 2 * 2.0 * (search + results) / results
    assert costs[0]["seconds"] == pytest.approx(wanted, rel=0.05)
    assert {*tmp_path.iterdir()} == {tmp_path / "bytes-0.1m-20"}


def test_a_dry_run_for_a_gpu_tells_what_entries_take_before_any_has_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["scaling", "--scale", "gpu", "--dry-run", "--out", str(tmp_path)]
    assert compare.main([*words, "--json=-"]) == 0
    costs = json.loads(capsys.readouterr().out)
    # 40 % of 989 TFLOP/s
    assert [c["seconds"] for c in costs] == [pytest.approx(c["flops"] / 395.6e12) for c in costs]
    assert compare.main(words) == 0
    text = capsys.readouterr().out
    days = sum(cost["seconds"] for cost in costs) / 86_400
    assert f"{days:,.1f} days" in text.splitlines()[4 + len(costs) - 1]
    assert "of one h100 at 40% of its bfloat16 peak" in text
    assert compare.main(["scaling", "--dry-run", "--out", str(tmp_path), "--json=-"]) == 0
    assert {c["seconds"] for c in json.loads(capsys.readouterr().out)} == {None}


def test_a_recipe_is_added_to_that_of_the_scale():
    own = SCALINGS["gpu"].recipe
    assert grid.from_command(["--scale", "gpu"]).recipe == own
    found = grid.from_command(["--scale", "gpu", "--recipe", "model.remat=dots", "optim.b1=0.8"])
    assert found.recipe == (*own, "model.remat=dots", "optim.b1=0.8")
    common = queue(found)[0].config.common
    assert (common.model.remat, common.model.loss_chunk, common.optim.b1) == ("dots", 4096, 0.8)


def test_a_run_holds_its_state_twice_and_is_refused_where_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
):
    wanted: list[int] = []
    monkeypatch.setattr(train, "check_memory", lambda cfg, needed: wanted.append(needed))
    made = train.compile_programs(SMALL, OptimConfig(), abstract_batch(8, 16))
    state = jax.eval_shape(made.init, jax.random.key(0))
    twice = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert wanted == [made.memory + twice]
    assert twice > 12 * models.count_params(SMALL)
    monkeypatch.undo()

    train.check_memory(SMALL, wanted[0])  # a CPU does not say what it has
    monkeypatch.setattr(device_memory, "bytes_limit", lambda: wanted[0])
    train.check_memory(SMALL, wanted[0])
    with pytest.raises(InputError, match="set XLA_PYTHON_CLIENT_MEM_FRACTION="):
        train.check_memory(SMALL, wanted[0] + 1)


def test_a_grid_that_does_not_fit_the_device_is_refused_before_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(scaling, "cache_compiled", lambda *args: None)
    monkeypatch.setattr(scaling, "run", lambda *args: pytest.fail("it was run"))
    tried: list[tuple[int, str, int]] = []

    def compiled(cfg: ModelConfig, optim: OptimConfig, batch: Mapping[str, Any]) -> None:
        tried.append((cfg.embed_dim, cfg.activation_name, batch["tokens"].size))
        train.check_memory(cfg, cfg.embed_dim * 2**30)

    monkeypatch.setattr(scaling, "compile_programs", compiled)
    monkeypatch.setattr(device_memory, "bytes_limit", lambda: 100 * 2**30)
    assert compare.main(["scaling", "--out", str(tmp_path / "g")]) == 2
    told = capsys.readouterr().err
    assert "parameters needs 128.0 GiB, and JAX may take 100.0 GiB of this device" in told
    assert told.count("\n") == 1
    both = {(width, name, 8 * 128) for width in (64, 96) for name in ("swiglu", "poly_norm")}
    assert {*tried[:-1]} == both
    assert tried[-1][0] == 128
    assert not (tmp_path / "g").exists()

    tried.clear()
    monkeypatch.setattr(device_memory, "bytes_limit", lambda: 0)
    with pytest.raises(pytest.fail.Exception, match="it was run"):
        compare.main(["scaling", "--out", str(tmp_path / "g")])
    assert not tried


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "bytes-3m", "bytes-0.1m"], "ascending in parameters"),
        (["--sizes", "bytes-2m"], "Did you mean"),
        (["--first", "poly_norm"], "must have swiglu"),
        (["--large-arms", "swiglu", "silu"], "silu must be among arms"),
        (["--arms", "swiglu", "poly_norm", "relu2", "poly_norm_glu", "xelu9"], "Unknown arm"),
        (["--sizes", "bytes-0.1m", "--longer", "200", "100"], "at most 1"),
        (["--seeds", "1"], "at least 2"),
        (["--scale", "tpu"], "Unknown scale"),
    ],
)
def test_misuse_is_told_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert compare.main(["scaling", "--dry-run", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_small_grid_runs_resumes_and_carries_its_rates_up(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, width in {"bytes-0.1m": 16, "bytes-0.3m": 24, "bytes-0.8m": 32}.items():
        small = replace(SMALL, gated_width=width)
        monkeypatch.setitem(config.SHAPES, name, small)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(grid, "UNIT", 16)
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(concluding.figures, "draw_all", lambda *args: [])
    monkeypatch.setattr(report.figures, "draw_all", lambda *args: [])
    arms = ["swiglu", "poly_norm"]
    words = [
        "scaling", "--sizes", "bytes-0.1m", "bytes-0.3m", "bytes-0.8m", "--tokens", "1",
        "--longer", "--first", *arms, "--arms", *arms, "--large-arms", *arms, "--controls",
        "--seeds", "2", "--large-seeds", "2", "--seq-len", "16", "--heldout-tokens",
        "64", "--data", str(settings.parent / "little.txt"), "--data.document-bytes", "2000",
        "--out", str(tmp_path / "g"),
    ]  # fmt: skip
    assert compare.main(words) == 0
    root = tmp_path / "g"
    names = ["bytes-0.1m-1", "bytes-0.3m-1", "bytes-0.8m-1"]
    assert sorted(p.name for p in root.iterdir() if p.is_dir() and "bytes" in p.name) == names
    small, large = read_cell(root / "bytes-0.1m-1"), read_cell(root / "bytes-0.8m-1")
    assert small.lengths[-1] == 48
    assert small.data.source == str(settings.parent / "little.txt")
    assert small.train_tokens
    two = [read_cell(root / name).arms["swiglu"].search.best for name in names[:2]]
    sizes = [grid.parameters(f"bytes-{size}m") for size in ("0.1", "0.3", "0.8")]
    carried = carried_rate(sizes[:2], two, sizes[2])
    assert large.arms["swiglu"].search.rates[-1] == carried
    assert (root / "scaling.md").is_file()

    # The same command trains nothing; more seeds are added to what is there.
    made = []
    original = comparing.train
    monkeypatch.setattr(
        comparing, "train", lambda p, key, *a, **k: made.append(key) or original(p, key, *a, **k)
    )
    assert compare.main(words) == 0
    assert not made
    assert not sum(cost.runs for cost in scaling.costs(grid.from_command(words[1:]), root))
