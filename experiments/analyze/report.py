"""An analysis as tables, a column a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.terminal.tables import Section
from polycom_jax.analysis.activity import MASSIVE_RATIO, MASSIVE_SIZE, NEAR_ZERO
from polycom_jax.analysis.spectra import ENERGY, RANKS, RELATIVE_THRESHOLD

Measured = Mapping[str, Any]


def sections(measured: Measured) -> list[Section]:
    """All tables."""
    return [_ranks(measured), _similarity(measured), _activity(measured), _gradients(measured)]


def unlike(measured: Measured, common: int | None) -> list[str]:
    """Lines on what the models differ in though it is not what one compares: steps and texts.

    `common` is a step that checkpoints of all of them are there of, None: there is none.
    """
    models = {run: found["model"] for run, found in measured.items()}
    steps = {run: model["step"] for run, model in models.items() if model["step"] is not None}
    texts = {run: model["text"] for run, model in models.items()}
    lines = []
    if len(set(steps.values())) > 1:
        way = (
            "no step is saved of all"
            if common is None
            else f"--checkpoint {common} reads that of all"
        )
        lines.append(f"Mind: not at the same step ({_listed(steps)}); {way}.")
    if len(set(texts.values())) > 1:
        lines.append(f"Mind: not on the same text ({_listed(texts)}); --data names one for all.")
    return lines


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{run}: {value}" for run, value in values.items())


def _ranks(measured: Measured) -> Section:
    names = list(dict.fromkeys(n for found in measured.values() for n in found["weights"]))
    rows = []
    for name in names:
        for kind in RANKS:
            cells = []
            for found in measured.values():
                matrix = found["weights"].get(name)
                cells.append(
                    f"{np.mean(matrix['ranks'][kind]):.1f} of {min(matrix['shape'])}"
                    if matrix
                    else ""
                )
            rows.append((name, kind, *cells))
    return Section(
        "Ranks of weight matrices, means over layers",
        ("matrix", "rank", *measured),
        tuple(rows),
        (
            "effective: exp of the entropy of s / sum(s) (Roy and Vetterli 2007); stable: sum of"
            f" squares by the largest square; threshold: s > {RELATIVE_THRESHOLD} of the largest;"
            f" energy: fewest s with {ENERGY:.0%} of the sum of squares. s: singular values in"
            " float64. The paper's own definition is not known.",
        ),
    )


def _similarity(measured: Measured) -> Section:
    def rows(name: str, label: str) -> list[tuple[str, ...]]:
        maps = [np.array(found["inside"][name]) for found in measured.values()]
        return [
            (label, "next to each other", *(f"{np.mean(np.diag(m, 1)):.4f}" for m in maps)),
            (label, "first and last", *(f"{m[0, -1]:.4f}" for m in maps)),
            (label, "all pairs", *(f"{np.mean(m[np.triu_indices(len(m), 1)]):.4f}" for m in maps)),
        ]

    return Section(
        "Similarity of hidden states along the depth",
        ("measure", "places", *measured),
        (*rows("cosine", "cosine"), *rows("cka", "linear CKA")),
        (
            "Residual stream before each layer and after the last, on held-out tokens. Cosine: mean"
            " over tokens, not centred. CKA: Kornblith et al. 2019; with fewer tokens than"
            " dimensions it is near 1 for anything.",
        ),
    )


def last(values: Sequence[float]) -> float:
    """That after the last layer."""
    return values[-1]


_NAMES = {
    "count": "massive activations",
    "rankme_of_eigenvalues": "RankMe of eigenvalues",
    "rankme_of_singular_values": "RankMe of singular values",
    "alpha_req": "alpha-ReQ",
}
"""Of numbers that are not called as their key is."""

ACTIVITY_TITLE = "Activations, over layers"

DEFINITIONS = (
    "Lazy neurons: nonzero share, of the activation's outputs (Li et al. 2023), and dead share, of"
    " neurons that are 0 at all tokens. An activation that is nowhere exactly 0 uses all.",
    "Neurons at PPL-1%: share of active neurons, |activation| |row of W_down| above the layer's"
    " threshold, when the others are left out and perplexity rises by 1 % (Luo et al. 2024). One"
    " relative error of the layers' outputs sets all thresholds. Dense models only.",
    "RankMe: exp of the entropy of p; of eigenvalues, p = l / sum(l), l those of the covariance, as"
    " arXiv 2509.23024 has it; of singular values, p = s / sum(s), s those of the features, not"
    " centred, as Garrido et al. 2023 have it. alpha-ReQ: l_i ~ i^-a. Features: the residual stream"
    " at every token, where the former takes the last token of 15,000 texts.",
    "Largest logit: of attention, before the softmax, over all heads and pairs of tokens that see"
    " each other. Token before: the share of its attention that a head gives to it, mean over"
    " tokens, of the head that gives most. Mean norm: over tokens, of the residual stream.",
)
"""What the numbers are that are followed along a training, too."""

_NUMBERS: Sequence[tuple[str, str, str, Callable[..., Any]]] = (
    ("activation's input", "inputs", "rms", np.mean),
    ("activation's input", "inputs", "kurtosis", np.mean),
    ("activation's output", "hidden", "rms", np.mean),
    ("activation's output", "hidden", "kurtosis", np.mean),
    ("activation's output", "hidden", "near_zero_share", np.mean),
    ("activation's output", "hidden", "nonzero_share", np.mean),
    ("activation's output", "hidden", "dead_share", np.mean),
    ("neurons at PPL-1%", "sparsity", "active_share", np.mean),
    ("activation's output", "hidden", "largest_magnitude", np.max),
    ("residual stream", "states", "kurtosis", np.mean),
    ("residual stream", "states", "largest_by_median", np.max),
    ("residual stream", "states", "count", np.sum),
    ("residual stream", "states", "mean_norm", last),
    ("residual stream", "states", "rankme_of_eigenvalues", last),
    ("residual stream", "states", "rankme_of_singular_values", last),
    ("residual stream", "states", "alpha_req", last),
    ("attention", "attention", "largest_logit", np.max),
    ("attention", "attention", "token_before", np.max),
)
"""(what, where it is, number, over layers)."""


def _activity(measured: Measured) -> Section:
    rows = []
    for label, where, number, over in _NUMBERS:
        places = [found["inside"].get(where) for found in measured.values()]
        cells = [f"{over([place[number] for place in own]):.4g}" if own else "" for own in places]
        name = _NAMES.get(number, number.replace("_", " "))
        rows.append((label, f"{name}, {over.__name__}", *cells))
    return Section(
        ACTIVITY_TITLE,
        ("of", "number", *measured),
        tuple(rows),
        (
            f"Near zero: magnitude at most {NEAR_ZERO} of the rms. Kurtosis: 3 for a normal"
            f" distribution. Massive: magnitude over {MASSIVE_SIZE:.0f} and over"
            f" {MASSIVE_RATIO:,.0f} times the median's (Sun et al. 2024).",
            *DEFINITIONS,
        ),
    )


def _gradients(measured: Measured) -> Section:
    names = list(dict.fromkeys(n for found in measured.values() for n in found["gradients"]))
    rows = []
    for name in names:
        norms = [found["gradients"].get(name) for found in measured.values()]
        rows.append((name, *("" if n is None else _range(n) for n in norms)))
    return Section(
        "Norm of the gradient of the mean loss",
        ("parameter", *measured),
        tuple(rows),
        ("Least to greatest over layers.",),
    )


def _range(norms: Sequence[float]) -> str:
    low, high = min(norms), max(norms)
    return f"{low:.3g}" if len(norms) == 1 else f"{low:.3g} to {high:.3g}"
