"""How alike the hidden states of different depths are: cosine similarity and linear CKA."""

import numpy as np
from jaxtyping import Float

States = Float[np.ndarray, "P N D"]
"""Hidden states of N tokens at P places along the depth."""


def cosine_similarity(states: States) -> Float[np.ndarray, "P P"]:
    """Mean over tokens of x_a . x_b / (|x_a| |x_b|), for each pair of places a, b.

    Nothing is centred: what all tokens have in common counts. A state of zeros has similarity 0.
    """
    x = np.asarray(states, np.float64)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    x = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    flat = x.reshape(len(x), -1)
    return flat @ flat.T / x.shape[1]


def linear_cka(states: States) -> Float[np.ndarray, "P P"]:
    """|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred states X, Y [N, D], for each pair of places.

    From 0 to 1, and unchanged by rotations and scales of either (Kornblith et al. 2019, arXiv
    1905.00414, section 3). It wants more tokens than dimensions: with fewer it is near 1 for
    anything.
    """
    x = np.asarray(states, np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    places = len(x)
    cross = np.empty((places, places))
    for a in range(places):
        for b in range(a, places):
            cross[a, b] = cross[b, a] = np.sum(np.square(x[a].T @ x[b]))
    own = np.sqrt(np.diag(cross))
    scale = np.outer(own, own)
    return np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
