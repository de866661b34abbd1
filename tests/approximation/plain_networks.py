"""Explicit networks, evaluated without the code under test, and drawn at random."""

import numpy as np
from jaxtyping import ArrayLike

from polycom_jax.approximation import Network, feed_forward

ROUNDING = 1e-12
"""Norm-wise relative: float64 has 1.1e-16, times the few hundred operations of a test's network."""


def plain(net: Network, x: np.ndarray) -> np.ndarray:
    """The network's values at points [P, I], unit by unit."""
    blocks = [x]
    for layer in net.layers:
        coeffs, made = layer.coeffs, []
        for c, z in enumerate(_plain_affine(layer.affine, blocks)):
            a = coeffs[c if len(coeffs) > 1 else 0]
            made.append(sum(a[:, i] * np.maximum(z, 0) ** i for i in range(a.shape[1])))
        blocks = made
    (y,) = _plain_affine(net.readout, blocks)
    return y


def _plain_affine(through, blocks):
    links, made = max(through.sources, through.copies), []
    assert len(blocks) == through.sources
    for c in range(through.copies):
        z = through.biases[c if len(through.biases) > 1 else 0]
        for link in range(links):
            if through.copies == 1 or link == c:
                w = through.weights[link if len(through.weights) > 1 else 0]
                z = z + blocks[link if through.sources > 1 else 0] @ w.T
        made.append(z)
    return made


def random_network(seed: int, *widths: int, order: int = 3) -> Network:
    """Inputs, hidden widths, outputs; weights of a size that keeps values near 1."""
    draw = np.random.default_rng(seed)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    return feed_forward(
        [draw.normal(size=shape) / shape[1] for shape in shapes],
        [draw.normal(size=made) / 4 for made, _ in shapes],
        [draw.normal(size=(made, order + 1)) / 2 for made, _ in shapes[:-1]],
    )


def distance(a: ArrayLike, b: ArrayLike) -> float:
    """|a - b| relative to |b|, in the Euclidean norm."""
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))
