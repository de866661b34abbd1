"""What few-bit backward keeps, and how far its gradients are off.

    python -m experiments.results.activations.few_bit

prints the tables of few_bit.md, but for the losses, which `experiments.compare few-bit` measures.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from scipy.stats import norm

from experiments.compare.config import shape
from polycom_jax import models
from polycom_jax import params as pm
from polycom_jax.activations.derivative_table import derivative_table
from polycom_jax.kernels.checkpoint_names import remat_block
from polycom_jax.kernels.feed_forward import feed_forward
from polycom_jax.models import ModelConfig, layers
from polycom_jax.table import ActivationOptions, get_activation
from polycom_jax.training.loss import cross_entropy

BITS = (1, 2, 3, 4)
WIDENED = (1.0, 2.0, 4.0)
"""Factors of the inward matrices: training, too, makes pre-activations wider."""

TOKENS, WIDTH = 512, 256


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints them in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(map(str, row)), "|")
    print()


def tables_error() -> None:
    """Root mean square error of the derivative, of a standard normal input."""
    x = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    exact = norm.cdf(x) + x * norm.pdf(x)
    act = get_activation("gelu")

    def error(bits: int) -> str:
        found = derivative_table(act.row.function, bits, "gelu")
        value = np.array(found.levels)[np.searchsorted(found.borders, x)]
        return f"{np.sqrt(np.mean((value - exact) ** 2)):.4f}"

    table(["GELU's derivative", *map(str, BITS)], [["RMS error", *map(error, BITS)]])


def kept_bytes() -> None:
    """Of a block of the paper's 1B model, a token, in bfloat16: what has the hidden width."""
    cfg = models.preset("dense-1b", activation="gelu", remat="none")

    def row(name: str, make: Callable[[int | None], str]) -> list[str]:
        return [name, *(make(bits) for bits in (None, *BITS))]

    def plain(bits: int | None) -> str:
        return _kept(cfg, bits, implementation="reference")

    rows = [row("two products and an activation, differentiated by JAX", plain)]
    for remat in ("none", "dots", "full"):

        def ours(bits: int | None, remat: Any = remat) -> str:
            return _kept(replace(cfg, remat=remat), bits)

        rows.append(row(f"`remat={remat}`", ours))
    table(["bytes a token", "exact", *(f"{bits} bits" for bits in BITS)], rows)


def _kept(cfg: ModelConfig, bits: int | None, **how: Any) -> str:
    act = get_activation("gelu", bits=bits)
    tree = pm.abstract(layers.ffn_specs(cfg))
    tree = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), tree)
    tokens = 4096
    x = jax.ShapeDtypeStruct((1, tokens, cfg.embed_dim), jnp.bfloat16)

    def block(params: Any, x: Array) -> Array:
        out = partial(feed_forward, act, params, remat=cfg.remat, **how)
        return remat_block(out, cfg.remat, looped=True)(x)

    leaves = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(block, *a)[1], tree, x))
    wide = [a for a in leaves if a.size >= tokens * cfg.hidden_width // 8 and tokens in _long(a)]
    hidden = [a for a in wide if cfg.hidden_width in a.shape]
    return f"{sum(a.size * a.dtype.itemsize for a in hidden) / tokens:.0f}"


def _long(array: Any) -> set[int]:
    """Lengths of its axes, those of packed ones too."""
    return {*array.shape, *(8 * size for size in array.shape)}


def gradients_error() -> None:
    """Of the gradient of a model's loss on text, at its start and with wider pre-activations."""
    base = replace(shape("bytes-0.1m"), activation="gelu")
    text = np.frombuffer(inspect.getsource(json.decoder).encode()[: 8 * 129], np.uint8)
    tokens = jnp.asarray(text.reshape(8, 129).astype(np.int32))
    start = models.init(base, jax.random.key(0))

    def gradient(bits: int | None) -> Callable[[Any], Array]:
        cfg = replace(base, activation_options=ActivationOptions(bits=bits))

        def loss(params: Any) -> Array:
            logits = models.forward(cfg, params, tokens[:, :-1])
            return jnp.mean(cross_entropy(logits, tokens[:, 1:]))

        return jax.jit(jax.grad(loss))

    exactly, few, rows = gradient(None), [gradient(bits) for bits in BITS], []
    for factor in WIDENED:
        params = jax.tree_util.tree_map_with_path(partial(_widened, factor), start)
        exact = exactly(params)
        for what, part in (("all", lambda g: g), ("w_up", _inward)):
            off = [_off(_flat(part(found(params))), _flat(part(exact))) for found in few]
            rows.append([f"{factor:g}", what, *off])
    table(["inward matrices times", "gradient", *(f"{bits} bits" for bits in BITS)], rows)


def _inward(gradient: Any) -> Any:
    return [group["ffn"]["w_up"] for group in gradient["layers"]]


def _flat(tree: Any) -> Array:
    return ravel_pytree(tree)[0]


def _widened(factor: float, path: Any, value: Array) -> Array:
    return factor * value if "w_up" in jax.tree_util.keystr(path) else value


def _off(found: Any, exact: Any) -> str:
    found, exact = np.asarray(found), np.asarray(exact)
    return f"{np.linalg.norm(found - exact) / np.linalg.norm(exact):.3f}"


def estimated_coefficients() -> None:
    """Gradients of PolyCom from few bits of its input, beside those of GELU by its tables.

    The cotangent is that of a sum of squares: the activation learns another function. This is the
    best case: bins are Lloyd's for just these inputs, and of a bin the means of just what is read.
    """
    x = np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    target = get_activation("silu").apply({}, jnp.asarray(1.5 * x))

    def differentiated(name: str, **options: Any) -> tuple[np.ndarray, Any]:
        act = get_activation(name, **options)
        y, pull = jax.vjp(act.apply, act.init(jax.random.key(0)), jnp.asarray(x))
        return np.asarray(y - target), pull

    dy, pull = differentiated("poly_relu")
    own, dx = pull(dy)
    powers = [np.maximum(x, 0) ** i for i in range(len(own["coeffs"]))]
    slope = np.asarray(pull(np.ones_like(x))[1])

    def poly_relu(bits: int) -> list[str]:
        index = _lloyd(slope, 2**bits)
        found = [np.sum(dy * _means(power, index)) for power in powers]
        return [_off(found, own["coeffs"]), _off(dy * _means(slope, index), dx)]

    def poly_norm(bits: int) -> list[str]:
        act, index = get_activation("poly_norm"), _lloyd(x, 2**bits)
        dy, pull = differentiated("poly_norm")
        exact, params = pull(dy), act.init(jax.random.key(0))
        found = jax.vjp(act.apply, params, jnp.asarray(_means(x, index)))[1](dy)
        return [_off(found[0]["coeffs"], exact[0]["coeffs"]), _off(found[1], exact[1])]

    def gelu(bits: int) -> str:
        dy, pull = differentiated("gelu")
        return _off(differentiated("gelu", bits=bits)[1](dy)[1], pull(dy)[1])

    head = ["bits", "poly_relu, coefficients", "input", "poly_norm, coefficients", "input"]
    rows = [[bits, *poly_relu(bits), *poly_norm(bits), gelu(bits)] for bits in BITS]
    table([*head, "gelu, input"], rows)


def _lloyd(x: np.ndarray, levels: int) -> np.ndarray:
    """The bin of each element: those of the least mean square error."""
    borders = np.quantile(np.unique(x), np.arange(1, levels) / levels)
    for _ in range(50):
        means = _levels(x, np.searchsorted(borders, x))
        borders = (means[1:] + means[:-1]) / 2
    return np.searchsorted(borders, x)


def _levels(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.bincount(index.ravel(), x.ravel()) / np.bincount(index.ravel())


def _means(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    return _levels(x, index)[index].astype(np.float32)


if __name__ == "__main__":
    tables_error()
    kept_bytes()
    gradients_error()
    estimated_coefficients()
