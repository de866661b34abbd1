"""A run's checkpoints followed one by one, from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.analyze import __main__ as analyze
from experiments.analyze import figures
from experiments.analyze.along import SHOWN, chosen_steps, draw, section, values
from polycom_jax import InputError


@pytest.mark.slow
def test_a_run_is_followed_along_its_checkpoints(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "analysis"
    words = [str(whole), "--tokens", "64", "--out", str(out), "--untrained", "False"]
    assert analyze.main([*words, "--steps", "all"]) == 0
    assert "Along the training" in capsys.readouterr().out
    (found,) = json.loads((out / "results.json").read_text())["runs"].values()
    steps = [at["step"] for at in found["along"]]
    assert steps == chosen_steps(whole, ["all"])
    assert len(steps) >= 2
    # The last kept one is what the rest of the report is of: the same numbers, from the same text.
    last = found["along"][-1]
    assert last["step"] == found["model"]["step"]
    names = ("states", "inputs", "hidden", "attention", "sparsity", "sparsity_at")
    assert last.keys() == {"step", *names}
    assert {name: last[name] for name in names} == {name: found["inside"][name] for name in names}
    assert last["states"] != found["along"][0]["states"]
    assert len(last["states"]) == 3
    assert len(last["attention"]) == len(last["sparsity"]) == 2
    assert all(0 < layer["active_share"] < 1 for layer in last["sparsity"])
    assert last["sparsity_at"]["perplexity_rise"] <= 0.01
    report = (out / "report.md").read_text()
    assert "![along](plots/along.png)" in report
    for step in steps:
        assert f"| {whole.name} | {step} |" in report
    assert (out / "plots" / "along.png").stat().st_size > 1000


def kept(folder: Path, *steps: int) -> Path:
    """A folder as of a run that keeps checkpoints of these steps."""
    for step in steps:
        place = folder / "checkpoints" / str(step)
        place.mkdir(parents=True)
        (place / "_CHECKPOINT_METADATA").write_text("{}")
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("")
    return folder


def test_steps_are_all_that_are_kept_or_some(tmp_path: Path):
    run = kept(tmp_path / "run", 20, 100, 3)
    assert chosen_steps(run, ["all"]) == [3, 20, 100]
    assert chosen_steps(run, ["100", "3", "100"]) == [3, 100]
    for asked in (["4"], ["3", "all"], ["-3"], ["3.0"]):
        with pytest.raises(InputError, match=r"keeps the steps 3, 20, 100; name some of"):
            chosen_steps(run, asked)


def test_what_cannot_be_followed_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = str(kept(tmp_path / "run", 20))
    bare = str(kept(tmp_path / "bare"))
    told = {
        (run, "--steps", "40"): "--steps 40:",
        (bare, "--steps", "all"): "there is no checkpoint in",
        (str(tmp_path / "none"), "--steps", "all"): "is no run",
    }
    for words, line in told.items():
        assert analyze.main([*words, "--out", str(tmp_path / "out")]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert line in error
        assert "Traceback" not in error


def measured(*, sparse: bool) -> dict:
    def at(step: int) -> dict:
        numbers: dict[str, list[dict]] = {shown.where: [{}, {}] for shown in SHOWN}
        for shown in SHOWN:
            for layer, place in enumerate(numbers[shown.where]):
                place[shown.number] = float(step + layer)
        if not sparse:
            del numbers["sparsity"]
        return {"step": step, **numbers}

    return {"along": [at(1), at(5)]}


def test_layers_become_one_number_and_a_mixture_has_no_sparsity(tmp_path: Path):
    runs = {"dense": measured(sparse=True), "_mixture": measured(sparse=False)}
    shown = {one.number: one for one in SHOWN}
    dense = runs["dense"]["along"]
    assert values(dense, shown["mean_norm"]) == [2, 6]
    assert values(dense, shown["active_share"]) == [1.5, 5.5]
    assert values(dense, shown["count"]) == [3, 11]
    assert values(runs["_mixture"]["along"], shown["active_share"]) is None
    table = section(runs)
    assert [row[:2] for row in table.rows] == [
        ("dense", "1"), ("dense", "5"), ("_mixture", "1"), ("_mixture", "5")
    ]  # fmt: skip
    place = 2 + [one.number for one in SHOWN].index("active_share")
    assert [row[place] for row in table.rows] == ["1.5", "5.5", "", ""]
    assert np.all([len(row) == len(table.columns) for row in table.rows])
    assert draw(tmp_path / "along", runs) == tmp_path / "along"
    assert (tmp_path / "along.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [2, 20])
def test_no_two_runs_look_alike(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(
        "experiments.terminal.figures.save",
        lambda figure, path: drawn.update({path.name: figure}),
    )
    matrix = {"shape": [8, 8], "ranks": {"effective": [3.0]}, "singular_values": [[4.0, 3.0, 2.0]]}
    runs = {
        f"run {index}": {**measured(sparse=True), "weights": {"ffn/w_up": matrix}}
        for index in range(count)
    }
    draw(tmp_path / "along", runs)
    for name in ("ranks", "spectra"):
        assert getattr(figures, f"_draw_{name}")(tmp_path / name, runs)
    assert drawn.keys() == {"along", "ranks", "spectra"}
    for figure in drawn.values():
        for axes in figure.axes[:1]:
            lines = [part for part in axes.lines if str(part.get_label()).startswith("run ")]
            assert len(lines) == count
            assert len({(part.get_color(), part.get_marker()) for part in lines}) == count
