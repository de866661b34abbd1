"""Draws what this folder shows: `python -m experiments.results.activations.draw`.

PolyReLU and PolyNorm at the start and as runs learned them, beside GELU and SiLU.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import polycom_jax as pc
from experiments.terminal.figures import BLUE, COLOURS, ORANGE, REFERENCE, panels

HERE = Path(__file__).resolve().parent
SCALING = HERE.parent / "compare" / "scaling" / "bytes-0.1m-20" / "runs"
PANELS = (
    ("PolyReLU", "poly_relu", HERE / "runs" / "poly_relu"),
    ("PolyNorm, of a standard normal row", "poly_norm", SCALING / "poly_norm"),
)
RUNS = "lr0.006-seed?-steps560-1120-2240.json"
LAYERS = (BLUE, ORANGE)
ROW = 4096
EDGE = 2.6
"""Inputs are shown from -EDGE to EDGE: 99 % of a standard normal row."""


def draw() -> None:
    """One panel for each activation, all curves over the same row."""
    row = norm.ppf((jnp.arange(ROW) + 0.5) / ROW)
    shown = np.abs(np.asarray(row)) <= EDGE
    x = np.asarray(row)[shown]

    def curve(name: str, **params: jnp.ndarray) -> np.ndarray:
        return np.asarray(pc.get_activation(name).apply(params, row))[shown]

    note = (
        "Dashed: a_1 = a_2 = a_3 = 1/3, a_0 = 0. Lines and bands: mean, least and greatest of the"
        " runs. Models of two layers, 20 bytes of text a parameter."
    )
    title = "What the polynomials start as and what training makes of them"
    with panels(HERE / "activations", 2, title=title, note=note, size=(3.6, 2.3)) as axes:
        for axis, (heading, name, folder) in zip(axes, PANELS, strict=True):
            axis.axhline(0, color="0.7", linewidth=0.8)
            axis.plot(x, curve("gelu"), color=COLOURS[6], linewidth=1.0, label="GELU")
            axis.plot(x, curve("silu"), color=COLOURS[3], linewidth=1.0, label="SiLU")
            start = {**REFERENCE, "color": COLOURS[2], "label": "at the start"}
            axis.plot(x, curve(name, coeffs=pc.init_coeffs()), **start)
            for layer, colour in enumerate(LAYERS):
                ys = np.stack([curve(name, coeffs=c[layer]) for c in learned(folder)])
                axis.plot(x, ys.mean(0), color=colour, label=f"learned, layer {layer}")
                axis.fill_between(x, ys.min(0), ys.max(0), color=colour, alpha=0.2, linewidth=0)
            axis.set(title=heading, xlabel="input x", ylabel="output")
            axis.set(xlim=(-EDGE, EDGE), ylim=(-1.5, 4))
    (HERE / "activations.pdf").unlink()  # the page shows the PNG alone


def learned(folder: Path) -> list[jnp.ndarray]:
    """Coefficients [layers, order + 1] at the last point of each run."""
    files = sorted(folder.glob(RUNS))
    assert files, f"no runs in {folder}"
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [jnp.asarray(run["coefficients"][-1]["coeffs"]) for run in runs]


if __name__ == "__main__":
    draw()
