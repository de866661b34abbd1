"""Notebooks run from top to bottom, in their quick form, and say what they should."""

import base64
import importlib
import json
import re
import shlex
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from experiments.notebooks import execute

NOTEBOOKS = sorted(execute.HERE.glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, str]:
    """Executes a notebook in its quick form: the names that it leaves, and what it printed."""
    picture = execute._picture

    def check(figure: Any) -> dict:
        said = {text.get_text() for text in figure.findobj(Text)}
        assert figure.get_suptitle() or figure.axes[0].get_title(), name
        assert figure.axes[-1].get_xlabel(), name
        assert all(axes.get_ylabel() for axes in figure.axes), name
        if any(axes.collections for axes in figure.axes):
            assert any("nine tenths" in text for text in said), f"{name}: what is the band?"
        if any(len(axes.lines) > 1 for axes in figure.axes):
            assert any(axes.get_legend() for axes in figure.axes), name
        return picture(figure)

    monkeypatch.setattr(execute, "_picture", check)
    names: dict = {"__name__": "__main__", "QUICK": True}
    said = "".join(execute.execute(execute.read(execute.HERE / f"{name}.ipynb"), names))
    for line in said[said.index("Next, in a terminal") :].splitlines()[1:]:
        command = shlex.split(line.rpartition(" && ")[2])
        assert command[1] == "-m"
        program = importlib.import_module(command[2])
        main = (
            getattr(program, "main", None) or importlib.import_module(f"{command[2]}.__main__").main
        )
        assert main([*command[3:], "--help"]) == 0
    return names, said


def test_all_notebooks_begin_with_the_same_cell_and_one_address():
    cells = ["".join(execute.code_cells(execute.read(path))[0]["source"]) for path in NOTEBOOKS]
    assert len(set(cells)) == 1
    for path in NOTEBOOKS:
        assert execute.read(path) == json.loads(path.read_text("utf-8"))  # pyproject's address
        assert path.read_text("utf-8").count("REPOSITORY = ") == 2  # the field, and a message


@by_name
def test_notebooks_carry_the_pictures_of_their_own_code(path: Path):
    notebook = execute.read(path)
    assert path.stat().st_size < 2**19
    assert notebook["metadata"]["executed"] == execute.fingerprint(notebook)
    outputs = [output for cell in execute.code_cells(notebook) for output in cell["outputs"]]
    pictures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if "data" in o]
    drawing = [c for c in execute.code_cells(notebook) if "plt.subplots" in "".join(c["source"])]
    assert len(pictures) == len(drawing) > 2
    for picture in pictures:
        width, height = struct.unpack(">II", picture[16:24])
        assert 200 < height < width < 1000
    text = "".join("".join(output.get("text", [])) for output in outputs)
    assert "Next, in a terminal" in text
    assert not re.search(r"/root|/home|/work|/tmp|site-packages", text)


def test_an_address_goes_into_the_first_cell_alone(monkeypatch: pytest.MonkeyPatch):
    before = execute.read(NOTEBOOKS[0])
    monkeypatch.setattr(execute, "address", lambda: "https://example.org/a/b")
    after = execute.read(NOTEBOOKS[0])
    changed = [
        (one["source"], two["source"])
        for one, two in zip(before["cells"], after["cells"], strict=True)
        if one != two
    ]
    ((old, new),) = changed
    assert set(new) - set(old) == {
        'REPOSITORY = "https://example.org/a/b"  # @param {type: "string"}\n'
    }
    assert execute.fingerprint(before) == execute.fingerprint(after)


def test_the_sobolev_notebook_tells_the_rates(monkeypatch: pytest.MonkeyPatch):
    names, said = run("sobolev", monkeypatch)
    for n, slope in names["rates"].items():
        assert slope == pytest.approx(-n, rel=0.05)
    assert "measured slopes" in said
    assert "order=2" in said  # refused, with the reason


@pytest.mark.slow
def test_the_activations_notebook_shows_sizes_and_slopes(monkeypatch: pytest.MonkeyPatch):
    names, _ = run("activations", monkeypatch)
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
def test_the_pretrain_notebook_trains_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names, said = run("pretrain", monkeypatch)
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
