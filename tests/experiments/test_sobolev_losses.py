"""A study beside one of the other loss: what is paired, and what is refused before any work."""

import itertools
import json
from pathlib import Path

import pytest

from experiments.sobolev import losses
from experiments.sobolev.__main__ import main
from polycom_jax import InputError

TRAIN_WORDS = (
    "--quick --activations relu swiglu --sizes 40 --steps 12 --points 64 --batch-size 16 --cells 1"
    " --dim 1 --targets spline:1 waves:2 --seeds 2"
)
WORDS = TRAIN_WORDS.split()


def test_runs_are_paired_with_those_of_another_loss(tmp_path: Path):
    ours = [{"activation": "gelu", "size": 40, "runs": []}]
    for target, factor in (("spline:1", 0.5), ("waves:2", 0.125)):
        for seed, error in enumerate((0.1, 3.0)):
            run = {"target": target, "seed": seed, "sup": error, "l2": error}
            ours[0]["runs"].append(run | {"h1": factor * error})
    path = tmp_path / "train.csv"
    lines = ["activation,size,target,seed,sup,l2,h1"]
    for run in ours[0]["runs"]:
        error = run["sup"]
        lines.append(f"gelu,40,{run['target']},{run['seed']},{error},{2 * error},{error}")
    path.write_text("\n".join(lines))
    (row,) = losses.paired(ours, losses.stored_runs(path))
    assert (row["sup error"], row["L2 error"]) == ("1 [1, 1]", "0.5 [0.5, 0.5]")
    assert row["H1 error"] == "0.25 [0.25, 0.25]"  # over both targets
    assert row["waves:2"] == "0.125 [0.125, 0.125]"
    assert row["failed"] == "2, before 2, of 4"
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match="no run gelu, 40, waves:2, 1"):
        losses.paired(ours, losses.stored_runs(path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--activations", "relu", "gelu"],
            "lacks 4 of the 8 runs of this study, such as gelu, 40",
        ),
        (["--seeds", "3"], "lacks 4 of the 12 runs of this study, such as relu, 40, spline:1, 2"),
        (["--sizes", "50"], "such as relu, 50"),
        (["--targets", "spline:1", "bumps:2"], "such as relu, 40, bumps:2, 0"),
        (["--steps", "13"], "other options (steps: 12 there, 13 now)"),
        (["--batch-size", "8"], "other options (batch_size: 16 there, 8 now)"),
        (["--layers", "3"], "other options (layers: 2 there, 3 now)"),
        (["--loss", "l2"], "trained by l2, too"),
    ],
)
def test_a_study_that_cannot_be_paired_is_refused_before_any_work(
    words: list[str], message: str, capsys, tmp_path: Path
):
    rows = itertools.product(("relu", "swiglu"), ("spline:1", "waves:2"), "01")
    path, out = tmp_path / "train.csv", tmp_path / "out"
    lines = [f"{name},40,{target},{seed},1,1,1" for name, target, seed in rows]
    path.write_text("\n".join(["activation,size,target,seed,sup,l2,h1", *lines]))
    about = {"steps": 12, "points": 64, "batch_size": 16, "cells": 1, "dim": 1, "layers": 2}
    (tmp_path / "train-options.json").write_text(json.dumps({**about, "loss": "l2"}))
    end = ["--beside", str(path), "--out", str(out)]
    assert main(["train", *WORDS, "--loss", "h1", *words, *end]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_study_beside_that_is_damaged_is_one_line(tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_text("activation,size,target,seed,sup,l2,h1\nrelu,40,spline:1,0,1,one,1")
    with pytest.raises(InputError, match="no number"):
        losses.stored_runs(path)
    (tmp_path / "train-options.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        losses.stored_options(path)
