"""Runs the notebooks and keeps what they show: `python -m experiments.notebooks.execute [NAME]`.

To publish: put the address into pyproject.toml, as `Repository` of [project.urls], and run this;
with `--address` it only writes the address into the first cells. Each notebook runs in a process of
its own, in the clone's folder; `runs/notebook-*` of an earlier time are gone on with.
"""

import argparse
import base64
import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CLONE = HERE.parent.parent
Notebook = dict[str, Any]
_ADDRESS = re.compile(r'^REPOSITORY = "[^"]*"', re.MULTILINE)


def address(clone: Path = CLONE) -> str:
    """Where the project is published, by its pyproject.toml; "" where that does not say."""
    project = tomllib.loads((clone / "pyproject.toml").read_text("utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def read(path: Path) -> Notebook:
    """The notebook, with the project's address in its first cell."""
    notebook = json.loads(path.read_text("utf-8"))
    for cell in code_cells(notebook):
        source = _ADDRESS.sub(f'REPOSITORY = "{address()}"', "".join(cell["source"]))
        cell["source"] = source.splitlines(keepends=True)
    return notebook


def write(path: Path, notebook: Notebook) -> None:
    """Writes it as Jupyter does."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    """The cells that run, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def fingerprint(notebook: Notebook) -> str:
    """Of the code but for the address: outputs with another are of another notebook."""
    code = "\0".join("".join(cell["source"]) for cell in code_cells(notebook))
    return hashlib.sha256(_ADDRESS.sub("", code).encode()).hexdigest()[:16]


def execute(notebook: Notebook, names: dict[str, Any]) -> Iterator[str]:
    """Runs the code cells as a kernel would and puts what they print and draw into the notebook.

    Args:
        notebook: is changed.
        names: of the kernel, which the cells find and leave.

    Yields:
        What each cell printed.
    """
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("agg")
    for count, cell in enumerate(code_cells(notebook), 1):
        code = compile("".join(cell["source"]), cell["id"], "exec")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, names)
        text = said.getvalue()
        pictures = [_picture(plt.figure(number)) for number in plt.get_fignums()]
        plt.close("all")
        lines = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell |= {"execution_count": count, "outputs": [*([lines] if text else []), *pictures]}
        yield text
    notebook["metadata"]["executed"] = fingerprint(notebook)


def _picture(figure: Any) -> dict[str, Any]:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72, bbox_inches="tight")
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the named notebooks, or all of them, and writes them with their outputs."""
    parser = argparse.ArgumentParser(description="Runs the notebooks and keeps what they show.")
    every = sorted(path.stem for path in HERE.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(every)}; none: all")
    parser.add_argument("--address", action="store_true", help="writes the address, runs nothing")
    words = parser.parse_args(argv)
    if unknown := set(words.names) - set(every):
        parser.error(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    names = words.names or every
    if words.address:
        for name in names:
            write(HERE / f"{name}.ipynb", read(HERE / f"{name}.ipynb"))
    elif len(names) == 1:
        path = HERE / f"{names[0]}.ipynb"
        notebook = read(path)
        for text in execute(notebook, {"__name__": "__main__"}):
            print(text, end="", flush=True)
        write(path, notebook)
    else:
        for name in names:
            command = [sys.executable, "-m", "experiments.notebooks.execute", name]
            subprocess.run(command, check=True, cwd=CLONE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
