"""Functions to approximate, each scaled to norm 1 in W^{n,inf}([0,1]^d).

The norm is the paper's: the maximum over |m| <= n of sup |D^m f|. Where it is known in closed form
it is exactly 1; otherwise `Target.norm` brackets it, and 1 is the upper end, so that every target
lies in the unit ball.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial

from polycom_jax._errors import require, unknown

Values = Callable[[Float[Array, "*P d"]], Float[Array, "*P"]]

MAX_ORDER, MAX_DIM = 8, 3


@dataclass(frozen=True, eq=False)
class Target:
    """A function on [0,1]^d of norm 1 in W^{n,inf}; call it on points [d] or [P, d].

    Attributes:
        name: in `TARGETS`.
        dim: d.
        order: n.
        smoothness: the largest k for which it is in W^{k,inf}; infinite for analytic ones.
        norm: bounds of its W^{n,inf} norm; equal where it is known exactly.
        how: how the norm was found.
        values: the function.
    """

    name: str
    dim: int
    order: int
    smoothness: float
    norm: tuple[float, float]
    how: str
    values: Values

    def __call__(self, x: Float[Array, "*P d"]) -> Float[Array, "*P"]:
        """The values at `x`, in its dtype; differentiable by JAX to any order."""
        require(
            x.ndim >= 1 and x.shape[-1] == self.dim,
            f"points of shape {x.shape} must have a last axis of {self.dim}, the target's"
            " dimension.",
        )
        return self.values(x)


def get_target(name: str, *, order: int, dim: int, seed: int = 0) -> Target:
    """The target of that name, with norm 1 in W^{order,inf}([0,1]^dim).

    Args:
        name: one of `TARGETS`.
        order: n, from 1 to 8.
        dim: d, from 1 to 3.
        seed: of the coefficients of `random`; the others do not depend on it.

    Raises:
        InputError: an unknown name, or a number out of its range.

        >>> target = get_target("spline", order=3, dim=2)
        >>> target.norm, target.smoothness
        ((1.0, 1.0), 3)
        >>> target(jnp.ones((5, 2)) / 3).shape
        (5,)
    """
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    require(1 <= order <= MAX_ORDER, f"order={order} must be from 1 to {MAX_ORDER}.")
    require(1 <= dim <= MAX_DIM, f"dim={dim} must be from 1 to {MAX_DIM}.")
    require(seed >= 0, f"seed={seed} must be at least 0.")
    return TARGETS[name](order, dim, seed)


_FREQUENCY, _PHASE = 2 * math.pi, 0.7


def _waves(order: int, dim: int, seed: int) -> Target:
    """prod_k sin(w x_k + phase) / w^n with w = 2 pi.

    A derivative of order |m| is w^|m| times a product of sines and cosines, each of which takes the
    value 1 on a period.
    """
    del seed

    def values(x: Array) -> Array:
        return jnp.prod(jnp.sin(_FREQUENCY * x + _PHASE), axis=-1) / _FREQUENCY**order

    return Target("waves", dim, order, math.inf, (1.0, 1.0), "exactly: (2 pi)^n", values)


_STEEPNESS = 5.0


def _runge(order: int, dim: int, seed: int) -> Target:
    """prod_k 1 / (1 + (c (x_k - 1/2))^2) with c = 5, scaled; its poles are 1/5 from the interval.

    With t = cot(a), the j-th derivative of 1/(1 + t^2) is (-1)^j j! sin(a)^(j+1) sin((j+1) a),
    which is largest at an a = i pi / (j+2), where it is j! sin(a)^(j+2) in size.
    """
    del seed

    def largest(j: int) -> float:
        return math.factorial(j) * max(
            math.sin(i * math.pi / (j + 2)) ** (j + 2) for i in range(1, j + 2)
        )

    norm = _product_norm([_STEEPNESS**j * largest(j) for j in range(order + 1)], dim)

    def values(x: Array) -> Array:
        return jnp.prod(1 / (1 + (_STEEPNESS * (x - 0.5)) ** 2), axis=-1) / norm

    return Target("runge", dim, order, math.inf, (1.0, 1.0), "exactly: by the cotangent", values)


_BUMPS, _NARROWING = 2, 1.25


def _bumps(order: int, dim: int, seed: int) -> Target:
    """2^d bumps of alternating sign, prod_k max(1 - u_k^2, 0)^(n+2), with gaps between; scaled.

    u = 1.25 (2 frac(2 x) - 1), so each factor vanishes to order n+2 at x = 1/20 from its cell's
    faces: the sum is in W^{n+2,inf} and no better.
    """
    del seed
    power, scale = order + 2, 2 * _BUMPS * _NARROWING
    bump = Polynomial([1, 0, -1]) ** power
    sups = [scale**j * _sup_on_interval(bump.deriv(j)) for j in range(order + 1)]
    norm = _product_norm(sups, dim)

    def values(x: Array) -> Array:
        cell = jnp.floor(_BUMPS * x)
        u = _NARROWING * (2 * (_BUMPS * x - cell) - 1)
        return jnp.prod(_sign(cell) * jnp.maximum(1 - u**2, 0) ** power, axis=-1) / norm

    how = "exactly: extrema of polynomials"
    return Target("bumps", dim, order, order + 2, (1.0, 1.0), how, values)


_HALF_PERIOD = 1 / 3


def _spline(order: int, dim: int, seed: int) -> Target:
    """The perfect spline s(x_1 + ... + x_d) of Euler, with |s^(n)| = 1 wherever it exists.

    s(t) = h^n e_n(t / h) with h = 1/3, where e_n on [0,1) is the Euler polynomial E_n / n! and
    e_n(u + 1) = -e_n(u). So |D^m f| is 1 for all |m| = n, and at most h^(n-|m|) / 2 below. The
    n-th derivative jumps at t = 1/3, 2/3, ...: f is in W^{n,inf} and no better. On dyadic grids
    every knot stands at a third of its cell, so errors fall without wobbling. It attains the worst
    case (sum_k |x_k - y_k|)^n / n! of Taylor's remainder.
    """
    del seed
    piece = Polynomial([1.0])
    for _ in range(order):
        piece = piece.integ()
        piece = piece - (piece(0.0) + piece(1.0)) / 2
    coefficients = [float(c) for c in piece.coef]

    def values(x: Array) -> Array:
        t = jnp.sum(x, axis=-1) / _HALF_PERIOD
        knot = jnp.floor(t)
        u, value = t - knot, jnp.zeros_like(t)
        for c in reversed(coefficients):
            value = value * u + c
        return _sign(knot) * value * _HALF_PERIOD**order

    how = "exactly: the n-th derivative is 1 or -1"
    return Target("spline", dim, order, order, (1.0, 1.0), how, values)


_DEGREE, _SAMPLES = 2, 64


def _random(order: int, dim: int, seed: int) -> Target:
    """A real trigonometric polynomial of degree 2 in each variable with random coefficients.

    They are normal with standard deviation (1 + |2 pi k|^2)^(-n/2), so all frequencies matter alike
    in the n-th derivatives, which are trigonometric polynomials too. Their maxima on 64^d points
    are at least cos(2 pi / 64)^d times the suprema (Ehlich and Zeller, 1964, in each variable).
    """
    rng = np.random.default_rng([seed, order, dim])
    line = range(-_DEGREE, _DEGREE + 1)
    frequencies = np.array(list(itertools.product(line, repeat=dim)))
    decay = (1 + np.sum((2 * math.pi * frequencies) ** 2, axis=1)) ** (-order / 2)
    a, b = rng.standard_normal((2, len(frequencies))) * decay
    spectrum = np.zeros((_SAMPLES,) * dim, complex)
    spectrum[tuple(frequencies.T)] = a - 1j * b  # negative frequencies count from the end
    largest = max(
        np.abs(np.real(np.fft.ifftn(spectrum * _symbol(m), norm="forward"))).max()
        for m in itertools.product(range(order + 1), repeat=dim)
        if sum(m) <= order
    )
    low = math.cos(math.pi * _DEGREE / _SAMPLES) ** dim
    a, b = a * low / largest, b * low / largest

    def values(x: Array) -> Array:
        angle = x @ (2 * math.pi * frequencies.T).astype(x.dtype)
        return jnp.cos(angle) @ a.astype(x.dtype) + jnp.sin(angle) @ b.astype(x.dtype)

    how = f"within [{low:.4f}, 1]: maxima on {_SAMPLES}^d points, by Ehlich and Zeller"
    return Target("random", dim, order, math.inf, (low, 1.0), how, values)


def _symbol(index: tuple[int, ...]) -> np.ndarray:
    """What D^m multiplies the spectrum by."""
    angular = 2j * math.pi * np.fft.fftfreq(_SAMPLES, 1 / _SAMPLES)
    factors = np.meshgrid(*[angular**j for j in index], indexing="ij")
    return np.prod(np.stack(factors), axis=0)


def _sign(count: Array) -> Array:
    """(-1)^count for whole numbers."""
    return 1 - 2 * jnp.mod(count, 2)


def _sup_on_interval(p: Polynomial) -> float:
    """max |p| over [-1, 1], from the roots of p'."""
    roots = p.deriv().roots() if p.degree() >= 1 else np.array([])
    inside = [r.real for r in roots if abs(r.imag) < 1e-6 and abs(r.real) < 1]
    return max(abs(float(p(t))) for t in [-1.0, 1.0, *inside])


def _product_norm(sups: list[float], dim: int) -> float:
    """Norm of prod_k g(x_k) from the suprema of g's derivatives, `sups[j]` of the j-th."""
    indices = itertools.product(range(len(sups)), repeat=dim)
    return max(math.prod(sups[j] for j in m) for m in indices if sum(m) < len(sups))


TARGETS: Mapping[str, Callable[[int, int, int], Target]] = {
    "waves": _waves,
    "runge": _runge,
    "bumps": _bumps,
    "spline": _spline,
    "random": _random,
}
"""Name -> builder from (order, dim, seed); see `get_target`."""
