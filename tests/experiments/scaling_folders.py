"""Folders of runs as studies write them, with losses of a known law and no training."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.compare.across import figures
from experiments.compare.across.cells import read_cells
from experiments.compare.across.differences import differences
from experiments.compare.across.law import FORMS
from experiments.compare.across.resampled import fitted
from experiments.compare.runs import Run, RunFolder, RunKey
from experiments.compare.sensitivity import Sensitivity
from experiments.run.rate_search import FIRST_SEED

COMMITTED = Path(__file__).resolve().parents[2] / "experiments/results/compare/scaling"
SETTINGS = {
    "study": "activations",
    "data.source": "some.txt",
    "data.tokenizer": "bytes",
    "data.batch_size": 8,
    "seq_len": None,
    "heldout_tokens": None,
    "data_fingerprint": "0",
    "jax": "0",
}
STEP_TOKENS = 8 * 128
RATES = (0.003, 0.006, 0.012)
Loss = Callable[[float], float]
"""Tokens -> loss."""


def write_run(
    root: Path, arm: str, seed: int, heldout: tuple[float, ...], lengths: tuple[int, ...],
    rate: float = 0.006, *, diverged: bool = False,
) -> None:  # fmt: skip
    key = RunKey(arm, rate, seed, lengths)
    RunFolder(root / "runs").write(
        Run(key, diverged, heldout, (1,), (1.0,), (1.0,), ({},), 2.0, "abc")
    )


def study(
    root: Path, model: str, steps: int, arms: Mapping[str, Loss], *, seeds: int = 5,
    sd: float = 0.0, noise: int = 0,
) -> Path:  # fmt: skip
    """A study of these arms: a search that rate 0.006 wins, and seeds that share half of their
    deviation."""
    rng = np.random.default_rng(noise)
    root.mkdir(parents=True)
    (root / "settings.json").write_text(json.dumps({**SETTINGS, "model": model, "steps": steps}))
    lengths = (steps // 4, steps // 2, steps)
    common = rng.normal(size=seeds)
    for arm, loss in arms.items():
        full = loss(STEP_TOKENS * steps)
        for rate, worse in zip(RATES, (0.02, 0.0, 0.01), strict=True):
            write_run(root, arm, FIRST_SEED, (full + worse,), lengths[-1:], rate)
        for seed in range(seeds):
            shift = sd * (common[seed] + rng.normal()) / 2**0.5
            heldout = tuple(loss(STEP_TOKENS * n) + shift for n in lengths)
            write_run(root, arm, seed, heldout, lengths)
    return root


def a_valley(arm: str) -> Sensitivity:
    """What a search over three rates and two seeds gives."""
    losses = ((1.6, 1.7), (1.5, 1.55), (1.8, 1.9))
    return Sensitivity(arm, RATES, losses, RATES, 0.006, (0.13, 0.17))


def draw_committed(folder: Path) -> None:
    """Every figure of a report on the committed runs."""
    cells = read_cells(COMMITTED)
    fit = fitted(cells, ["swiglu", "poly_norm"], FORMS[1], resamples=10)
    figures.draw_all(folder, cells, differences(cells), fit)
