"""Singular values of weight matrices, and four meanings of "rank" that differ.

The paper compares ranks of feed-forward weights without giving a definition that we could find;
none of these is claimed to be its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from polycom_jax._errors import require
from polycom_jax.models import ModelConfig
from polycom_jax.params import Params

RELATIVE_THRESHOLD = 1e-2
"""A singular value counts in `threshold_rank` above this share of the largest."""
ENERGY = 0.99
"""`energy_rank` is how many singular values hold this share of the sum of squares."""

Spectrum = Float[np.ndarray, "*S R"]
"""Singular values, descending along the last axis."""


def weight_matrices(cfg: ModelConfig, params: Params) -> dict[str, Float[np.ndarray, "L *E m n"]]:
    """Every weight matrix as [layers, (experts,) rows, columns], by name, on the host in float32.

    Heads lie side by side, as they are multiplied: w_q is [layers, D, H C], w_o [layers, H C, D].
    Embeddings have one layer and no padding.
    """
    found: dict[str, np.ndarray] = {}
    groups = jax.device_get(params["layers"])
    for part in groups[0]:
        for name, first in groups[0][part].items():
            if name.startswith("w_") or name == "router":
                stacked = np.concatenate([np.asarray(group[part][name]) for group in groups])
                found[f"{part}/{name}"] = _flat_heads(name, stacked) if first.ndim == 4 else stacked
    for name in ("embed", "unembed"):
        if name in params:
            table = np.asarray(jax.device_get(params[name]))
            found[name] = table[None, : cfg.vocab_size]
    return {name: matrix.astype(np.float32) for name, matrix in found.items()}


def _flat_heads(name: str, w: np.ndarray) -> np.ndarray:
    layers, a, b, c = w.shape
    if name == "w_o":
        return w.reshape(layers, a * b, c)
    return w.reshape(layers, a, b * c) if name in ("w_q", "w_k", "w_v") else w


def singular_values(matrices: Float[np.ndarray, "*S m n"]) -> Spectrum:
    """Descending singular values of each matrix: float64 [..., min(m, n)], of any float dtype."""
    return np.linalg.svd(np.asarray(matrices, np.float64), compute_uv=False)


def effective_rank(s: Spectrum) -> Float[np.ndarray, "*S"]:
    """exp(-sum p_i ln p_i), p_i = s_i / sum s: from 1 to R (Roy and Vetterli 2007, EUSIPCO).

    Raises:
        InputError: a spectrum of zeros.
    """
    p = s / _positive(s.sum(axis=-1, keepdims=True))
    terms = np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0)
    return np.exp(-terms.sum(axis=-1))


def stable_rank(s: Spectrum) -> Float[np.ndarray, "*S"]:
    """sum s_i^2 / s_1^2, from 1 to R: squared Frobenius norm by squared spectral norm.

    Raises:
        InputError: a spectrum of zeros.
    """
    return np.square(s).sum(axis=-1) / _positive(np.square(s[..., 0]))


def threshold_rank(s: Spectrum, relative: float = RELATIVE_THRESHOLD) -> Float[np.ndarray, "*S"]:
    """#{i: s_i > relative s_1}, as float64; 0 for a spectrum of zeros."""
    return np.sum(s > relative * s[..., :1], axis=-1).astype(np.float64)


def energy_rank(s: Spectrum, share: float = ENERGY) -> Float[np.ndarray, "*S"]:
    """min {k: sum_{i<=k} s_i^2 >= share x sum s_i^2}, as float64, from 1 to R.

    Raises:
        InputError: a spectrum of zeros.
    """
    squares = np.square(s)
    total = _positive(squares.sum(axis=-1, keepdims=True))
    held = np.cumsum(squares, axis=-1) / total
    return 1.0 + np.sum(held < share * (1 - 1e-12), axis=-1)


def _positive(x: np.ndarray) -> np.ndarray:
    require(bool(np.all(x > 0)), "A matrix of zeros has no rank to speak of.")
    return x


RANKS: Mapping[str, Callable[[Any], Any]] = {
    "effective": effective_rank,
    "stable": stable_rank,
    "threshold": threshold_rank,
    "energy": energy_rank,
}
"""The definitions by name."""
