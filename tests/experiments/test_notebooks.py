"""Notebooks run from top to bottom, in their quick form, and say what they should."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"


def code_cells(path: Path) -> list[tuple[str, str]]:
    """(id, source) of each, in order."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)  # none that nobody can trace
    return [(cell["id"], "".join(cell["source"])) for cell in cells]


def run(name: str) -> dict:
    """Executes the code cells in order, as a kernel would: the names that they leave."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("agg")
    names: dict = {"__name__": "__main__", "QUICK": True}
    try:
        for cell, source in code_cells(NOTEBOOKS / f"{name}.ipynb"):
            exec(compile(source, f"{name}.ipynb:{cell}", "exec"), names)
            for number in plt.get_fignums():  # a kernel draws what a cell leaves
                plt.figure(number).canvas.draw()
            plt.close("all")
    finally:
        plt.close("all")
    return names


def test_all_notebooks_install_themselves_in_the_same_way():
    cells = {code_cells(path)[0][1] for path in NOTEBOOKS.glob("*.ipynb")}
    kept = {re.sub(r'find_spec\(".*"\)|  # .*', "", cell) for cell in cells}
    assert len(kept) == 1


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_clone_that_an_earlier_kernel_made_is_used_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # On Colab a kernel that starts again finds its files, but no sys.path of the one before.
    (tmp_path / "polycom" / "polycom_jax").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.path", ["there"])
    exec(compile(code_cells(path)[0][1], str(path), "exec"), {})
    assert sys.path == [str(tmp_path / "polycom"), "there"]


def test_the_sobolev_notebook_tells_the_rates(capsys: pytest.CaptureFixture[str]):
    for n, slope in run("sobolev")["rates"].items():
        assert slope == pytest.approx(-n, rel=0.05)
    said = capsys.readouterr().out
    assert "measured slopes" in said
    assert "order=2" in said  # refused, with the reason


@pytest.mark.slow
def test_the_activations_notebook_shows_sizes_and_slopes():
    names = run("activations")
    large = names["scales"] >= 1
    sizes, slopes = (
        {k: np.array(v)[large] for k, v in names[n].items()} for n in ("sizes", "slopes")
    )
    # A row of 256 has lighter tails than the normal distribution.
    np.testing.assert_allclose(sizes["PolyNorm"], 0.711, rtol=0.02)
    growth = {name: np.log10(value[-1] / value[-2]) for name, value in slopes.items()}
    assert growth == pytest.approx(
        {"relu": 0, "relu squared": 1, "gelu": 0, "PolyReLU": 2, "PolyNorm": -1}, abs=1e-3
    )
    assert max(np.array(names["slopes"]["PolyNorm"])) < 334
    for losses in names["losses"].values():
        assert losses[-1] < losses[0] / 2
    assert np.any(names["learned"] != names["coeffs"])


@pytest.mark.slow
def test_the_pretrain_notebook_trains_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    names = run("pretrain")
    said = capsys.readouterr().out
    sizes = re.findall(r" (\w+): ([\d,]+) parameters, held-out loss (\d\.\d+)", said)
    assert [name for name, _, _ in sizes] == ["poly_norm", "swiglu"]
    counts = [int(count.replace(",", "")) for _, count, _ in sizes]
    assert counts[0] == counts[1] + 2 * 4  # equal but for four coefficients a layer
    for name, run_folder in names["runs"].items():
        steps, losses = names["series"](names["read_metrics"](run_folder.metrics), "heldout_loss")
        assert steps == [3, 6]
        assert losses[1] < losses[0]
        assert f"--- {name}\ndef " in said
        assert len(names["inside"][name]["curves"]) == 2
