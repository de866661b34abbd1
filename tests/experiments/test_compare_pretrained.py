"""Finished runs of `pretrain`, paired by seed."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.compare import __main__ as compare
from experiments.compare.across import tables
from experiments.compare.across.differences import differences
from experiments.compare.across.pretrained import (
    OF_LENGTH,
    OF_SIZE,
    PretrainedConfig,
    cells_of,
    roots,
    section,
)
from experiments.compare.across.pretrained_run import Pretrained
from experiments.run.resuming import STAYS
from experiments.run.statistics import paired
from polycom_jax import InputError, models
from polycom_jax.table import ActivationOptions

SHAPE = {
    "preset": "tiny", "vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 1,
    "num_kv_heads": 1, "head_dim": 32, "gated_width": 32, "context_length": 32,
}  # fmt: skip
STEPS = 10
LOSSES = {"swiglu": (3.0, 3.2, 3.1), "poly_norm": (2.9, 3.15, 3.08)}


def write(
    root: Path,
    activation: str,
    seed: int,
    loss: float | None,
    *,
    rate: float = 0.001,
    at: int = STEPS,
    metric: str = "heldout_loss",
    data: str = "abc",
    **changes: Mapping[str, Any],
) -> Path:
    """A run's folder; `changes` are of sections of its config."""
    config: dict[str, Any] = {
        "model": {**SHAPE, "activation": activation, **changes.get("model", {})},
        "optim": {
            "peak_learning_rate": rate, "warmup_steps": 1, "decay_steps": STEPS,
            **changes.get("optim", {}),
        },
        "data": {"source": "some.txt", "tokenizer": "bytes", "batch_size": 4},
        "run": {"steps": STEPS, "seed": seed, **changes.get("run", {})},
        "record": {
            "data_fingerprint": data, "data": {"train": {"tokens": 5000}}, "jax": "0.12",
            **changes.get("record", {}),
        },
    }  # fmt: skip
    folder = root / f"{activation}-{seed}-{rate:g}-{len(list(root.glob('*')))}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"step": step, "loss": 4.0, "grad_norm": 1.0, "tokens_per_second": 100.0 * step}
        for step in range(1, at + 1)
    ]
    if at == STEPS:
        lines[-1][metric] = loss
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            write(root, name, seed, loss)
    return root


def read(folder: Path) -> list[Pretrained]:
    return [Pretrained.read(root) for root in roots([str(folder)])]


def test_runs_of_equal_seed_are_pairs(folder: Path):
    (cell,) = cells_of(read(folder))
    (found,) = differences([cell])
    assert found.full
    assert found.result == paired(LOSSES["poly_norm"], LOSSES["swiglu"])
    assert cell.tokens == (STEPS * 4 * 32,)
    assert cell.parameters == models.count_params(cell.base)
    assert (cell.model, cell.train_tokens) == ("tiny", 5000)
    assert list(cell.arms) == ["swiglu", "poly_norm"]


def test_a_report_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert compare.main(["pretrained", str(folder), "--out", str(out)]) == 0
    text = (out / "scaling.md").read_text()
    assert "| poly_norm | 3 | -0.0567 [" in text
    assert "| 550 |" in text  # tokens a second, median of 100 to 1,000
    assert "swiglu in 1: tiny, 10 steps (not searched)" in text
    assert "shorter lengths" not in text
    numbers = json.loads((out / "scaling.json").read_text())
    assert numbers["tokens for the same loss"] == []
    (differ,) = numbers["differences"]
    assert differ["result"]["mean"] == pytest.approx(-0.17 / 3)


def test_sizes_and_lengths_are_compared_apart(folder: Path):
    for name in LOSSES:
        write(folder, name, 0, 2.5, model={"embed_dim": 64, "num_heads": 2, "num_kv_heads": 2})
    small, large = cells_of(read(folder))
    assert small.parameters < large.parameters
    assert small.name != large.name
    assert [len(small.seeds("swiglu")), len(large.seeds("swiglu"))] == [3, 1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optim": {"weight_decay": 0.2}}, "optim.weight_decay (0.1, 0.2)"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype ('float32', 'bfloat16')"),
        ({"run": {"eval_tokens": 7}}, "run.eval_tokens"),
        ({"data": "other"}, "text ('abc', 'other')"),
        ({"optim": {"warmup_steps": 3}}, "optim.warmup_steps (1, 3)"),
        ({"optim": {"decay_steps": 20}}, "optim.decay_steps (10, 20)"),
        ({"record": {"weights_from": "elsewhere"}}, "weights from (None, 'elsewhere')"),
        ({"model": {"ffn_width": 30}}, "model.ffn_width"),
        ({"model": {"context_length": 16}}, "model.context_length"),
    ],
)
def test_other_recipes_are_refused_by_field(folder: Path, changes: dict[str, Any], field: str):
    write(folder, "swish", 0, 3.0, **changes)
    with pytest.raises(InputError, match="differ in activation, seed, learning rate") as error:
        cells_of(read(folder))
    assert field in str(error.value)


def test_what_does_not_change_a_run_may_differ(folder: Path):
    write(folder, "gelu", 0, 3.0, model={"remat": "full"}, run={"log_every": 3})
    assert "gelu" in cells_of(read(folder))[0].arms


def test_a_text_that_is_known_by_another_fingerprint_now_is_the_same(folder: Path):
    write(folder, "gelu", 0, 3.0, data="old", record={"data_known_as": "abc"})
    assert "gelu" in cells_of(read(folder))[0].arms


def test_lengths_have_warm_ups_of_their_own(folder: Path):
    optim = {"warmup_steps": 0, "decay_steps": 5}
    for name in LOSSES:
        long = write(folder, name, 0, 3.5, run={"steps": 5}, optim=optim)
        lines = (long / "metrics.jsonl").read_text().splitlines()
        last = {**json.loads(lines[4]), "heldout_loss": 3.5}
        (long / "metrics.jsonl").write_text(json.dumps(last) + "\n")
    assert [cell.lengths for cell in cells_of(read(folder))] == [(5,), (10,)]


def test_options_name_an_arm(folder: Path):
    write(folder, "poly_norm", 0, 3.0, model={"activation_options": {"order": 2}})
    write(folder, "poly_norm", 5, 3.0, model={"activation_options": {"implementation": "xla"}})
    (cell,) = cells_of(read(folder))
    assert list(cell.arms) == ["swiglu", "poly_norm", "poly_norm order=2"]
    assert cell.seeds("poly_norm") == [0, 1, 2, 5]
    assert cell.base.activation_options == ActivationOptions()  # whichever run comes first
    of_two = cell.arms["poly_norm order=2"]
    assert of_two.parameters == cell.arms["poly_norm"].parameters - 1


def test_averaged_weights_are_what_counts_where_there_are_such(tmp_path: Path):
    own = write(tmp_path, "swiglu", 0, 2.0, metric="ema_heldout_loss", optim={"ema_decay": 0.9})
    with_both = json.loads((own / "metrics.jsonl").read_text().splitlines()[-1])
    (own / "metrics.jsonl").write_text(json.dumps({**with_both, "heldout_loss": 9.0}) + "\n")
    assert Pretrained.read(own).run.heldout == (2.0,)


def test_runs_that_have_not_ended_are_left_out_and_told(folder: Path):
    early = write(folder, "gelu", 0, None, at=4)
    (cell,) = cells_of(read(folder))
    assert "gelu" not in cell.arms
    (told,) = cell.left_out
    assert "at step 4, and has no held-out loss of its last, 10, yet" in told
    assert f"pretrain {early}" in told
    assert told in tables.folders([cell]).notes


def test_a_loss_that_is_no_number_is_a_run_that_diverged(folder: Path):
    write(folder, "poly_norm", 3, None)
    write(folder, "swiglu", 3, 3.0)
    (cell,) = cells_of(read(folder))
    assert cell.arms["poly_norm"].diverged == 1
    assert differences([cell])[0].result is None


def test_a_run_that_gave_up_is_one_that_diverged_and_no_unfinished_one(folder: Path):
    lost = write(folder, "poly_norm", 3, None, at=0, run={"give_up_after": 3})
    line = {"loss": None, "grad_norm": None, "tokens_per_second": 1.0}
    good, skipped = {**line, "loss": 4.0, "skipped": 0.0}, {**line, "skipped": 1.0}
    for lines, diverged in (([good, skipped, skipped], 0), ([good, *[skipped] * 3], 1)):
        text = "".join(json.dumps({"step": at, **one}) + "\n" for at, one in enumerate(lines, 1))
        (lost / "metrics.jsonl").write_text(text)
        (cell,) = cells_of(read(folder))
        assert cell.arms["poly_norm"].diverged == diverged
        assert len(cell.left_out) == 1 - diverged
    (row,) = [row for row in section(read(folder)).rows if row[0] == lost.name]
    assert row[6:8] == ("diverged", "3")


def test_a_rate_is_not_chosen_by_the_results(folder: Path):
    for seed in range(3):
        write(folder, "poly_norm", seed, 1.0, rate=0.002)
    with pytest.raises(InputError, match=r"learning rates 0\.001, 0\.002, and to take the better"):
        cells_of(read(folder))
    # Seeds apart say that the other rate is better.
    write(folder, "poly_norm", 1_000_000, 3.0, rate=0.001)
    other = write(folder, "poly_norm", 1_000_001, 3.5, rate=0.002)
    with pytest.raises(InputError, match="no seed that all rates"):
        cells_of(read(folder))
    shutil.rmtree(other)
    write(folder, "poly_norm", 1_000_000, 3.5, rate=0.002)
    (cell,) = cells_of(read(folder))
    assert cell.arms["poly_norm"].search.best == 0.001
    assert differences([cell])[0].result == paired(LOSSES["poly_norm"], LOSSES["swiglu"])


def test_one_run_twice_is_refused(folder: Path):
    write(folder, "swiglu", 0, 3.0)
    with pytest.raises(InputError, match=r"are one run: swiglu, seed 0, learning rate 0\.001, 10"):
        cells_of(read(folder))


def test_nothing_to_compare_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert compare.main(["pretrained", str(tmp_path)]) == 2
    assert "holds no run of `pretrain`" in capsys.readouterr().err
    write(tmp_path, "gelu", 0, 3.0)
    assert compare.main(["pretrained", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "No finished run is of swiglu" in capsys.readouterr().err
    with pytest.raises(InputError, match="Name folders of runs"):
        PretrainedConfig(runs=())


def test_folders_may_be_named_twice_and_one_by_one(folder: Path):
    each = [str(path) for path in sorted(folder.iterdir())]
    assert roots([*each, str(folder), each[0]]) == roots([str(folder)])
    assert len(roots([str(folder), str(folder / ".." / folder.name)])) == len(each)


def test_fields_of_size_are_fields():
    assert {name for name in OF_SIZE | OF_LENGTH if name != "run.steps"} <= set(STAYS)


@pytest.mark.slow
def test_real_runs_are_compared(run: Any, tmp_path: Path):
    for name in ("swiglu", "poly_norm"):
        for seed in ("0", "1"):
            words = ("--activation", name, "--run.seed", seed)
            assert run(tmp_path / "runs" / f"{name}-{seed}", *words) == 0
    out = tmp_path / "out"
    assert compare.main(["pretrained", str(tmp_path / "runs"), "--out", str(out)]) == 0
    (differ,) = json.loads((out / "scaling.json").read_text())["differences"]
    each = {}
    for path in (tmp_path / "runs").iterdir():
        last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
        each[path.name] = last["heldout_loss"]
    wanted = [each[f"poly_norm-{seed}"] - each[f"swiglu-{seed}"] for seed in (0, 1)]
    assert differ["result"]["mean"] == pytest.approx(sum(wanted) / 2, rel=1e-12)
