"""Arms that are one function behind each affine map: formula, start and frequency of each.

Where a source says nothing of a start, its code has PyTorch's: all of a layer uniform within
1 / sqrt(fan-in).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from polycom_jax.params import Initializer

OMEGA = 30.0
"""Frequency of SIREN and FINER."""
WIRE_OMEGA, WIRE_SCALE = 20.0, 10.0
GAUSS_SCALE = 30.0
FEATURES_SCALE = 10.0
"""Standard deviation of the frequencies of Fourier features, in periods over the unit square."""

Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Arm:
    """A layer f(W h + b), and how it starts.

    Attributes:
        formula: of f, for people.
        source: where formula, start and frequency are from.
        function: f, or a name of the project's table of activations.
        weights: (fan-in, whether the layer is the first) -> initializer.
        biases: likewise.
        trained: what f is for the gradient of parameters, where that differs.
        features: whether Fourier features of the coordinates go in, in their place.
        complex: whether weights behind the first layer have an imaginary part, and the output is
            the real one.
    """

    formula: str
    source: str
    function: Function | str
    weights: Callable[[int, bool], Initializer]
    biases: Callable[[int, bool], Initializer]
    trained: Function | None = None
    features: bool = False
    complex: bool = False


def uniform(bound: float) -> Initializer:
    """Uniform within [-bound, bound]."""

    def init(key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return init


def _torch(fan_in: int, first: bool) -> Initializer:
    return uniform(1 / math.sqrt(fan_in))


def _sine(fan_in: int, first: bool) -> Initializer:
    return uniform(1 / fan_in if first else math.sqrt(6 / fan_in) / OMEGA)


def _normal(fan_in: int, first: bool) -> Initializer:
    return jax.nn.initializers.normal(1 / math.sqrt(fan_in))


def _wide(fan_in: int, first: bool) -> Initializer:
    return uniform(1.0)


def _glorot(fan_in: int, first: bool) -> Initializer:
    return jax.nn.initializers.glorot_normal()


def _small(fan_in: int, first: bool) -> Initializer:
    return jax.nn.initializers.normal(1e-2)


def _siren(z: Array) -> Array:
    return jnp.sin(OMEGA * z)


def _finer(z: Array) -> Array:
    return jnp.sin(OMEGA * (jnp.abs(z) + 1) * z)


def _finer_trained(z: Array) -> Array:
    return jnp.sin(OMEGA * jax.lax.stop_gradient(jnp.abs(z) + 1) * z)


def _gauss(z: Array) -> Array:
    return jnp.exp(-((GAUSS_SCALE * z) ** 2))


def _wire(z: Array) -> Array:
    """|z|^2 by parts: jnp.abs has no derivative at 0."""
    square = jnp.real(z) ** 2 + jnp.imag(z) ** 2
    return jnp.exp(1j * WIRE_OMEGA * z - WIRE_SCALE**2 * square)


def _with_features(function: str) -> Arm:
    return Arm(
        f"{function} of Fourier features: sin and cos of 2 pi B (x + 1) / 2, B normal of deviation"
        f" {FEATURES_SCALE:g}, not trained",
        "Tancik et al. 2020 (2006.10739): features, and start of its JAX code",
        function,
        _glorot,
        _small,
        features=True,
    )


def _plain(function: str) -> Arm:
    return Arm(
        f"{function} of the coordinates",
        "start of this project's other studies: normal of variance 1 / fan-in, biases in [-1, 1]",
        function,
        _normal,
        _wide,
    )


ARMS: Mapping[str, Arm] = {
    "siren": Arm(f"sin({OMEGA:g} z)", "Sitzmann et al. 2020 (2006.09661)", _siren, _sine, _torch),
    "finer": Arm(
        f"sin({OMEGA:g} (|z| + 1) z), |z| + 1 constant for the gradient of squared values",
        "Liu et al. 2024 (2312.02434), the start of its image script, without the wide first biases"
        " that the paper proposes",
        _finer,
        _sine,
        _torch,
        trained=_finer_trained,
    ),
    "wire": Arm(
        f"exp({WIRE_OMEGA:g} i z - |{WIRE_SCALE:g} z|^2), complex; the output's real part",
        "Saragadam et al. 2023 (2301.05187), frequencies of FINER's comparison",
        _wire,
        _torch,
        _torch,
        complex=True,
    ),
    "gauss": Arm(
        f"exp(-({GAUSS_SCALE:g} z)^2)",
        "Ramasinghe and Lucey 2022 (2111.15135), scale and start of FINER's comparison",
        _gauss,
        _torch,
        _torch,
    ),
    "relu_fourier": _with_features("relu"),
    "poly_relu_fourier": _with_features("poly_relu"),
    "poly_norm_fourier": _with_features("poly_norm"),
    "poly_relu": _plain("poly_relu"),
    "poly_norm": _plain("poly_norm"),
}
"""Those that are one function behind each affine map; `Sl2a` is the other."""

SL2A = "sl2a"
NAMES = (*list(ARMS)[:4], SL2A, *list(ARMS)[4:])
"""All of them."""
