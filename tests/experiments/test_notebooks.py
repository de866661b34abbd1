"""Notebooks run from top to bottom, in their quick form, and say what they should."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"


def run(path: Path) -> dict:
    """Executes the code cells in order, as a kernel would: the names that they leave."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict = {"__name__": "__main__", "QUICK": True}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # none that nobody can trace
            source = "".join(cell["source"])
            exec(compile(source, f"{path.name}:{cell['id']}", "exec"), names)
    return names


def test_the_sobolev_notebook_tells_the_rates(capsys: pytest.CaptureFixture[str]):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("agg")
    try:
        names = run(NOTEBOOKS / "sobolev.ipynb")
    finally:
        plt.close("all")
    for n, slope in names["rates"].items():
        assert slope == pytest.approx(-n, rel=0.05)
    said = capsys.readouterr().out
    assert "measured slopes" in said
    assert "order=2" in said  # refused, with the reason
